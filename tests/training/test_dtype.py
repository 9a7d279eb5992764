"""bfloat16 is what passes compute in: the weights and their updates stay float32, in a resumed run too."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from toy_task import ToyTask, toy_policy

from harness.core.errors import BadSetting, RunFailed
from harness.core.settings import resolve
from harness.core.types import Decoding
from harness.measure.evaluator import divergence
from harness.methods.dexperts import DExperts
from harness.methods.dpo import DPO
from harness.methods.mle import MLE
from harness.methods.ppo import PPO
from harness.methods.quark import Quark
from harness.methods.reinforce import Reinforce
from harness.methods.rloo import RLOO
from harness.policy.models.ensemble import Ensemble
from harness.policy.policy import Policy
from harness.policy.sampler import sample
from harness.records.write import RunStore
from harness.runs import assemble
from harness.runs import session as runner
from harness.runs.progress import Progress
from harness.training.trial import Budget, OptimizerSettings, Trial

EVERY = Decoding(max_new_tokens=5)


def half(seed: int = 0) -> Policy:
    policy = toy_policy(seed)
    policy.precision = torch.bfloat16
    return policy


def rollout_by(policy: Policy):
    prompts = ToyTask().train_prompts(16, torch.Generator().manual_seed(1))
    return sample(policy, prompts, decoding=EVERY, rng=torch.Generator().manual_seed(2))


def new_trial(policy: Policy, **options) -> Trial:
    options = {"budget": Budget(updates=20), "lr": 1e-5} | options
    return Trial(policy, policy.frozen_copy(), ToyTask(), seed=0, **options)


def method(kind, **more):
    return kind(kind.Settings(**getattr(kind, "quick", {}) | more))


def weights(policy: Policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()]).clone()


@torch.no_grad()
def test_passes_compute_in_bfloat16_and_give_float32():
    policy, rollout = half(), rollout_by(toy_policy())
    seen = []
    policy.model.transformer.h[0].mlp.c_fc.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    logits, states = policy.logits_and_states(rollout)
    assert torch.equal(logits, logits.bfloat16().float())  # the head's product is of that type, too
    assert seen == [torch.bfloat16] and logits.dtype == states.dtype == policy.states(rollout).dtype == torch.float32
    full = toy_policy().logits(rollout)
    assert 0 < (logits - full).abs().max() < 0.02 * full.abs().max()
    rollout_by(policy)
    assert set(seen) == {torch.bfloat16} and {p.dtype for p in policy.parameters()} == {torch.float32}


def test_twenty_updates_at_a_small_rate_move_nearly_all_weights():
    """In bfloat16 weights 20 steps of 1e-5 move 0.2 to 4 percent of them."""
    policy = half()
    before = weights(policy)
    trial = new_trial(policy)
    for _ in zip(range(20), method(Reinforce, batch_size=16).train(trial), strict=False):
        pass
    moved = (weights(policy) != before).float().mean()
    assert trial.cost.updates == 20 and moved > 0.9 and weights(policy).dtype == torch.float32


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_not_trained(narrow):
    trial = new_trial(toy_policy().to(narrow))
    with pytest.raises(
        RunFailed, match=rf"weights to train are {str(narrow)[6:]}, in which small steps are lost; expected"
    ) as e:
        trial.update(next(trial.policy.parameters()).float().square().mean())
    assert "\n" not in str(e.value) and trial.cost.updates == 0


def test_there_is_no_other_half_precision():
    with pytest.raises(BadSetting, match=r"model\.dtype"):
        resolve("micro", "quark", "toxicity", ["model.dtype=float16"])


def test_before_the_first_update_the_policy_is_the_reference():
    policy = half()
    found = divergence(policy, policy.frozen_copy(), rollout_by(policy))
    assert (found.kl == 0).all() and (found.log_ratio == 0).all()


@pytest.mark.parametrize("kind", [Quark, PPO, MLE, DExperts, DPO, RLOO], ids=lambda kind: kind.__name__)
def test_methods_run_unchanged(kind):
    """Quark's control tokens, PPO's network beside it, the ensemble, TRL's shells: all train float32 weights."""
    trial = new_trial(half(), budget=Budget(updates=4), lr=1e-3)
    before, seen = weights(trial.policy), []
    trial.policy.model.transformer.h[0].mlp.c_fc.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    rows = [row for _, row in zip(range(4), method(kind).train(trial), strict=False)]
    assert len(rows) == 4 and all(torch.isfinite(torch.tensor(v)) for row in rows for v in row.values())
    assert {p.dtype for p in trial.policy.parameters()} == {torch.float32} and set(seen) == {torch.bfloat16}
    after = weights(trial.policy)
    assert len(after) != len(before) or (after != before).any()
    if kind is DPO:
        assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-6)  # log 2: the policy is the reference


class Stopped(threading.Event):
    """Set once a trial has made so many updates."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.trial, self.after = None, after

    def is_set(self) -> bool:
        return self.trial is not None and self.trial.cost.updates >= self.after


def session_of(path, kind, base, points: int = 0) -> runner.Session:
    """Six updates on the toy."""
    evaluation = SimpleNamespace(points=points, select="last", split="test")
    settings = SimpleNamespace(preset="toy", evaluation=evaluation, model_dump=dict)
    cell = runner.Cell(
        "m", "toy", 0, settings, {}, {}, lambda: method(kind), base, None, ToyTask(), Budget(updates=6),
        OptimizerSettings(), path,
    )  # fmt: skip
    cell.path.mkdir(parents=True, exist_ok=True)
    session = runner.Session(cell, RunStore(cell.path), Progress(quiet=True))
    session._begin()
    return session


def trained(path, kind, base, after: int) -> Trial:
    """A session, stopped after so many updates."""
    session, stop = session_of(path, kind, base), Stopped(after)
    trial, point = session._trial()
    stop.trial = trial
    session._train(trial, None, point, stop)
    return trial


def test_the_weights_of_the_reference_are_held_once(tmp_path):
    """The reference reads those of the loaded policy and the policy trains its own."""
    base = half()
    trial, _ = session_of(tmp_path, Quark, base)._trial()
    (of_base, *_), (of_reference, *_), (of_policy, *_) = (list(p.parameters()) for p in (base, trial.reference, trial.policy))
    assert of_reference.data_ptr() == of_base.data_ptr() != of_policy.data_ptr()
    assert of_policy.requires_grad and not of_reference.requires_grad and trial.reference.precision == torch.bfloat16


@pytest.mark.parametrize("kind", [Quark, DExperts], ids=lambda kind: kind.__name__)
def test_a_resumed_run_computes_as_it_began(tmp_path, kind):
    """Three updates, the same command again, three more: as six without a break, bit for bit."""
    whole = trained(tmp_path / "whole", kind, half(), 6)
    trained(tmp_path / "broken", kind, half(), 3)
    again = trained(tmp_path / "broken", kind, half(), 6)
    assert again.cost == whole.cost and torch.equal(weights(again.policy), weights(whole.policy))
    assert again.policy.precision == torch.bfloat16 and torch.equal(again.rng.get_state(), whole.rng.get_state())
    assert not torch.equal(weights(again.policy), weights(trained(tmp_path / "full", kind, toy_policy(), 6).policy))


def test_a_resumed_run_knows_that_a_point_lay_above_the_frontier(tmp_path, monkeypatch):
    """A fault of the suite that was seen before an interruption is told after it."""
    monkeypatch.setattr(runner.Session, "_consider", lambda *_: None)
    above = SimpleNamespace(above=True, point=lambda policy: SimpleNamespace(metrics={}))
    first = session_of(tmp_path, Quark, toy_policy(), points=6)
    trial, point = first._trial()
    stop = Stopped(2)
    stop.trial = trial
    first._train(trial, above, point, stop)
    again = session_of(tmp_path, Quark, toy_policy(), points=6)
    assert not again.above
    trial, point = again._trial()
    assert trial.cost.updates == 2 and again.above


def test_a_kept_policy_is_measured_as_it_was_trained(tmp_path):
    """The point that a rule chose is read from disk at the end: in the precision of the run, with its tokenizer."""
    reference = half()
    reference.tokenizer = "its tokenizer"
    store = RunStore(tmp_path)
    store.keep_policy(toy_policy(1), 2)
    session = object.__new__(runner.Session)
    session.store, session.rule, session.chosen = store, "best_validation", SimpleNamespace(place="kept", update=2, judge=1.0)
    session._record_point = session._consider = lambda *_: None
    along = SimpleNamespace(point=lambda deployed: SimpleNamespace(metrics={}))
    kept = session._deployed(SimpleNamespace(reference=reference, deployed=None), along)
    assert kept.precision == torch.bfloat16 and kept.tokenizer == "its tokenizer"
    assert torch.equal(weights(kept), weights(toy_policy(1)))


def test_around_and_copies_keep_the_precision():
    policy = half()
    twin = policy.around(Ensemble(*(policy.copy().model for _ in range(3)), 2.0))
    assert policy.copy().precision == policy.frozen_copy().precision == twin.precision == torch.bfloat16


def test_the_weights_are_loaded_in_float32_and_the_id_says_what_is_computed(tmp_path):
    full, narrow = (resolve("micro", "base", "toxicity", [f"model.dtype={dtype}"]) for dtype in ("float32", "bfloat16"))
    shared = assemble.parts(narrow, "toxicity")
    policy = shared.model.policy
    assert {p.dtype for p in policy.parameters()} == {torch.float32} and policy.precision == torch.bfloat16
    assert policy.tokenizer is shared.model.tokenizer
    found = [assemble.cell(s, shared, "base", "toxicity", 0, tmp_path).identity["dtype"] for s in (full, narrow)]
    assert found == ["float32", "float32 under bfloat16 autocast"]
