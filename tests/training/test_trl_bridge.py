"""TRL's trainers as they are used here: there, as they were when they were checked, and with their faults put right."""

from __future__ import annotations

import inspect
import random
import socket
import tempfile
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from closed_forms import padded_batch, responses
from tiny import steered, tiny_gpt2
from toy_task import toy_policy
from trials import make_quick, pair_trial, run

from harness.conformance.play import Subject, play
from harness.core.errors import MissingPrerequisite
from harness.methods.dpo import DPO
from harness.methods.grpo import GRPO
from harness.methods.kto import KTO
from harness.methods.rloo import RLOO
from harness.policy.logprobs import masked_sum, token_logprobs
from harness.policy.models import setup
from harness.training import trl_bridge as ours
from harness.training.trial import Budget

BY_TRL = [DPO, KTO, RLOO, GRPO]


@pytest.mark.parametrize("method", BY_TRL)
def test_its_passes_are_split_into_micro_batches(method, monkeypatch):
    parts, whole = [], setup.checkpoint

    def seen(read, first, last, **options):
        parts.append((first, last))
        return whole(read, first, last, **options)

    monkeypatch.setattr(setup, "checkpoint", seen)
    play(Subject(method, ""), budget=Budget(updates=1), recorded=False, setup=setup.Setup(micro_batch=2))
    assert parts[:2] == [(0, 2), (2, 4)]


@pytest.mark.parametrize("method", BY_TRL)
def test_without_trl_there_is_one_line_that_says_how_to_get_it(method, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(ours, "version", missing)
    with pytest.raises(
        MissingPrerequisite, match=r"needs TRL 1\.16, which is not installed; .*pip install 'trl>=1\.16,<1\.17'"
    ) as e:
        make_quick(method)
    assert e.value.exit_code == 3 and "\n" not in str(e.value)
    monkeypatch.setattr(ours, "version", lambda name: "1.17.0")
    with pytest.raises(MissingPrerequisite, match=r"needs TRL 1\.16, found 1\.17\.0; "):
        make_quick(method)


def test_the_private_names_are_still_there():
    import trl
    from trl.trainer.utils import add_fused_lm_head

    def takes(function) -> list[str]:
        return list(inspect.signature(function).parameters)

    for kind in (trl.DPOTrainer, trl.KTOTrainer, trl.RLOOTrainer, trl.GRPOTrainer):
        assert takes(kind._send_telemetry) == ["self"]
    for kind in (trl.DPOTrainer, trl.KTOTrainer):
        assert takes(kind._prepare_dataset)[:2] == ["self", "dataset"]
    for kind in (trl.RLOOTrainer, trl.GRPOTrainer):
        assert takes(kind._generate) == ["self", "prompts"]
        assert takes(kind._prepare_inputs) == ["self", "generation_batch"]
    assert takes(add_fused_lm_head)[0] == "model"
    assert trl.__version__.startswith("1.16.")


def test_a_policy_with_control_tokens_is_refused():
    with pytest.raises(ValueError, match="3 control tokens; expected a policy without any"):
        next(make_quick(DPO).train(pair_trial(steered(toy_policy()))))


@pytest.mark.parametrize("kind", ["RLOO", "GRPO"])
def test_left_padding_is_scored_wrongly_by_trl_alone_and_rightly_here(kind):
    import copy

    from trl.trainer.utils import add_fused_lm_head

    policy, batch = tiny_gpt2(dropout=0.5), padded_batch()
    trainer = ours.group_trainer(kind, pair_trial(policy), group_size=2, batch_size=4, kl_coef=0.1)
    truth = token_logprobs(policy.logits(batch), batch.response)
    tokens = torch.cat([batch.prompts.tokens, batch.response], 1)
    mask = torch.cat([batch.prompts.mask, batch.response_mask], 1).long()

    def worst_error(model) -> float:
        found = trainer._get_per_token_logps_and_entropies(model, tokens, mask, batch.response.shape[1])[0]
        return ((found - truth) * batch.response_mask).abs().max().item()

    bare = copy.deepcopy(policy.model)
    add_fused_lm_head(bare)
    alone, here = worst_error(bare), worst_error(trainer.model)
    print(f"\n{kind}: worst error of a token's log-probability: TRL alone {alone:.3f}, here {here:.1e}")
    assert alone > 0.1 and here < 1e-5


@pytest.mark.parametrize("kind", ["RLOO", "GRPO"])
def test_what_a_group_trainer_scores_is_our_rollout(kind):
    policy, batch = tiny_gpt2(), padded_batch()
    trainer = ours.group_trainer(kind, pair_trial(policy), group_size=2, batch_size=4, kl_coef=0.1, num_iterations=2)
    scored = ours.score(trainer, batch, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert ours.rows(scored["completion_ids"], scored["completion_mask"].bool()) == ours.rows(
        batch.response, batch.response_mask
    )
    assert ours.rows(scored["prompt_ids"], scored["prompt_mask"].bool()) == ours.rows(*batch.prompts)
    truth = token_logprobs(policy.logits(batch), batch.response)
    if kind == "RLOO":
        assert torch.allclose(scored["old_logps"], masked_sum(truth, batch.response_mask), atol=1e-5)
    else:
        old = scored["old_per_token_logps"]
        assert torch.allclose(old[batch.response_mask], truth[batch.response_mask], atol=1e-5)


def test_the_policy_s_own_model_is_left_as_it_was():
    """A deep copy of a model that TRL has patched still runs the first one's layers."""
    trial = pair_trial()
    config = trial.policy.model.config.to_dict()
    run(make_quick(DPO), trial, 1)
    for policy in (trial.policy, trial.reference):
        assert "forward" not in vars(policy.model)
        assert not policy.model._forward_pre_hooks and not any(m.training for m in policy.model.modules())
    assert trial.policy.model.config.to_dict() == config
    twin, batch = trial.policy.copy(), responses([[5, 6]])
    before = trial.policy.logits(batch)
    with torch.no_grad():
        for w in twin.parameters():
            w.zero_()
    assert torch.equal(trial.policy.logits(batch), before) and not torch.equal(twin.logits(batch), before)


@pytest.mark.parametrize("method", BY_TRL)
def test_nothing_is_left_behind_and_nobody_is_called(method, tmp_path, monkeypatch, capfd):
    import trl.trainer.base_trainer as base

    def called(*args, **kw):
        raise AssertionError(f"somebody is called: {args}")

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base, "send_telemetry", called)
    monkeypatch.setattr(socket, "getaddrinfo", called)
    monkeypatch.setattr(socket.socket, "connect", called)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    trial, unlike_its_own = pair_trial(), 4321
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(unlike_its_own)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    capfd.readouterr()
    run(make_quick(method), trial, 2)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""
