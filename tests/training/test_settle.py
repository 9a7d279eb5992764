"""Control tokens made neutral before training: only their embeddings move, toward what the reference says."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from pydantic import ValidationError
from tiny import tiny_gpt2, tiny_llama
from toy_task import ToyTask
from trials import new_trial, same, weights

from harness.core.errors import BadSetting, NotFinite
from harness.core.types import settings_identity
from harness.methods.conditional_pretraining import ConditionalPretrainingSettings
from harness.methods.quark import Quark, QuarkSettings
from harness.policy.models import sharding
from harness.policy.models.setup import Lora, Setup
from harness.policy.policy import Policy
from harness.training.trial import Trial

MODELS = {"gpt2": tiny_gpt2, "llama": tiny_llama, "gpt2 under LoRA": tiny_gpt2}


def made(name: str) -> Trial:
    base = MODELS[name]()
    if "LoRA" not in name:
        return new_trial(base, reference=base.frozen_copy())
    base.setup = Setup(lora=Lora(2, 8.0, False), base={"name": "a base"})
    base.requires_grad_(False)
    return new_trial(base.copy().requires_grad_(True), reference=base.frozen_copy())


def drift(trial: Trial, token: int) -> float:
    """KL(reference || policy behind a token) per response, over 400 responses of the reference, written out."""
    rollout = trial.sample(ToyTask().train_prompts(400, torch.Generator().manual_seed(9)), policy=trial.reference)
    with torch.no_grad():
        p = trial.reference.logits(rollout).log_softmax(-1)
        prompts = trial.policy.prepend(torch.tensor(token), rollout.prompts)
        q = trial.policy.logits(rollout._replace(prompts=prompts)).log_softmax(-1)
    return float(((p.exp() * (p - q)).sum(-1) * rollout.response_mask).sum(1).mean())


@pytest.mark.parametrize("name", MODELS)
def test_the_policy_behind_each_token_comes_closer_to_the_reference(name):
    """Random weights shifted by a place cannot be made good altogether; a third of the drift can."""
    trial = made(name)
    tokens = trial.policy.control_tokens(3, trial.rng, 3.0)
    before = [drift(trial, int(token)) for token in tokens]
    trial.settle(tokens, 60, 16)
    after = [drift(trial, int(token)) for token in tokens]
    assert min(before) > 0.01 and sum(after) < 0.75 * sum(before), (before, after)
    assert all(b < a for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_nothing_but_the_rows_of_the_tokens_moves(name):
    trial = made(name)
    tokens = trial.policy.control_tokens(2, trial.rng)
    state = {key: value.clone() for key, value in trial.policy.state_dict().items()}
    reference = weights(trial.reference)
    trial.settle(tokens, 3, 8)
    moved = {key for key, value in trial.policy.state_dict().items() if not torch.equal(value, state[key])}
    table = trial.policy.model.get_input_embeddings()
    assert {id(dict(trial.policy.named_parameters(remove_duplicate=False)).get(key)) for key in moved} <= {
        id(weight) for weight in table.parameters()
    }
    if not hasattr(table, "control_rows"):
        key, first = sorted(moved)[0], trial.policy.vocab_size
        now = trial.policy.state_dict()[key]
        assert torch.equal(now[:first], state[key][:first]) and (now[first:] != state[key][first:]).any(1).all()
    assert same(weights(trial.reference), reference)
    assert all(weight.grad is None for weight in trial.policy.parameters())


def test_the_first_step_goes_down_by_the_rate_of_adam():
    """Adam's first step is the rate times the sign of the gradient; here that gradient is of the sum written out."""
    trial, again = made("gpt2"), made("gpt2")
    tokens = trial.policy.control_tokens(2, trial.rng)
    again.policy.control_tokens(2, again.rng)
    weight = again.policy.model.get_input_embeddings().weight
    before = weight[tokens].detach().clone()
    rollout = again.sample(again.prompts(8), policy=again.reference)
    token = tokens[torch.randint(2, (8,), generator=again.rng)]
    p = again.reference.logits(rollout).detach().softmax(-1)
    prompts = again.policy.prepend(token, rollout.prompts)
    q = again.policy.model(
        input_ids=torch.cat([prompts.tokens, rollout.response], 1),
        attention_mask=torch.cat([prompts.mask, rollout.response_mask], 1),
        position_ids=(torch.cat([prompts.mask, rollout.response_mask], 1).cumsum(1) - 1).clamp(min=0),
    ).logits[:, prompts.tokens.shape[1] - 1 : -1, : again.policy.vocab_size]
    loss = -((p * q.log_softmax(-1)).sum(-1) * rollout.response_mask).sum() / rollout.response_mask.sum()
    loss.backward()
    trial.settle(tokens, 1, 8)
    moved = trial.policy.model.get_input_embeddings().weight[tokens].detach() - before
    torch.testing.assert_close(moved, -float(before.std()) / 10 * weight.grad[tokens].sign(), atol=1e-6, rtol=1e-3)


def test_it_is_charged_but_is_no_update_of_the_schedule():
    trial = made("gpt2")
    tokens = trial.policy.control_tokens(2, trial.rng)
    before = trial.rng.get_state()
    trial.settle(tokens, 0, 8)
    assert trial.cost.flops == 0 and torch.equal(trial.rng.get_state(), before)  # runs without it are as they were
    trial.settle(tokens, 2, 8)
    assert trial.cost.updates == 0 and trial.cost.sampled_tokens > 0 and trial.cost.trained_tokens > trial.cost.sampled_tokens
    assert trial.progress == 0  # the budget here is of updates


@pytest.mark.parametrize(("updates", "refused"), [(10, False), (1000, True)])
def test_it_leaves_half_of_the_budget_at_least(updates, refused):
    """Refused after one step, with the number that the budget allows; that number is then accepted."""
    policy = tiny_gpt2()
    trial = new_trial(policy, reference=policy.frozen_copy(), flops=1e8)
    tokens = trial.policy.control_tokens(2, trial.rng)
    if not refused:
        trial.settle(tokens, updates, 8)
        assert 0 < trial.progress < 0.6
        return
    with pytest.raises(BadSetting, match=r"1000 neutral updates would take \d+% of the budget; expected 50% at most") as error:
        trial.settle(tokens, updates, 8)
    each = trial.progress
    most = int(re.search(r"neutral_updates=(\d+) or fewer, or raise budget.flops", str(error.value)).group(1))  # type: ignore[union-attr]
    assert most * each <= 0.5 < (most + 1) * each


def test_each_step_is_shown():
    trial, shown = made("gpt2"), []
    trial.shown = shown.append
    trial.settle(trial.policy.control_tokens(2, trial.rng), 3, 8)
    assert [facts["neutral update"] for facts in shown] == ["1 of 3", "2 of 3", "3 of 3"]
    assert all(float(facts["nats per token"]) > 0 for facts in shown)


def test_a_budget_of_one_neutral_update_allows_none():
    policy = tiny_gpt2()
    trial = new_trial(policy, reference=policy.frozen_copy(), flops=1e3)
    with pytest.raises(BadSetting, match="set neutral_updates=0, or raise"):
        trial.settle(trial.policy.control_tokens(2, trial.rng), 1, 8)


def test_a_sharded_policy_and_weights_that_are_not_finite(monkeypatch):
    trial = made("gpt2")
    tokens = trial.policy.control_tokens(2, trial.rng)
    with torch.no_grad():
        trial.policy.model.get_input_embeddings().weight[tokens] = torch.nan
    with pytest.raises(NotFinite, match="the loss of update 1 is nan"):
        trial.settle(tokens, 1, 8)
    monkeypatch.setattr(sharding, "divided", lambda weight: True)
    with pytest.raises(BadSetting, match=r"model\.shard=full cannot train control tokens alone; set neutral_updates=0"):
        trial.settle(tokens, 1, 8)


def test_quark_starts_from_neutral_tokens_and_resumes(tmp_path):
    settings = QuarkSettings(**Quark.quick | {"neutral_updates": 4})
    whole, cut = made("gpt2"), made("gpt2")
    rows = list(itertools.islice(Quark(settings).train(whole), 4))
    assert list(itertools.islice(Quark(settings).train(cut), 2)) == rows[:2]
    cut.policy.save(tmp_path)
    later = new_trial(Policy.load(tmp_path), reference=tiny_gpt2().frozen_copy(), state=cut.state_dict())
    assert list(itertools.islice(Quark(settings).train(later), 2)) == rows[2:]
    assert same(weights(later.policy), weights(whole.policy))
    plain = made("gpt2")
    assert next(Quark(QuarkSettings(**Quark.quick)).train(plain)) != rows[0]


def test_it_is_no_part_of_the_identity_unless_asked_for():
    for settings in (QuarkSettings, ConditionalPretrainingSettings):
        assert "neutral_updates" not in settings_identity(settings())
        assert settings_identity(settings(neutral_updates=5))["neutral_updates"] == 5
    with pytest.raises(ValidationError, match="neutral_updates needs start=base"):
        ConditionalPretrainingSettings(neutral_updates=5, start="scratch")
