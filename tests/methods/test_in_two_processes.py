"""Every method, as it is, makes in two processes the updates that it makes in one."""

from importlib.util import find_spec

import pytest
import torch
from together import together
from trials import new_trial

from harness.conformance import toy
from harness.core.errors import RunFailed
from harness.core.registry import load
from harness.methods import METHODS
from harness.training.trial import OptimizerSettings

UPDATES = 4
EPS = 1e-3  # of Adam: the gradient of a key's bias is 0 but for rounding, and a smaller one makes of any rounding a whole step
BY_TRL = ("dpo", "grpo", "kto", "rloo")
VARIANTS = {
    "awr from scratch": ("awr", {"start": "scratch"}),
    "grpo over the batch": ("grpo", {"scale": "batch"}),
    "ppo on one trunk": ("ppo", {"value_trunk": "shared"}),
    "quark as its code": ("quark", {"variant": "code", "unlikelihood_coef": 0.1}),
    "rwr on samples": ("rwr", {"source": "samples"}),
    "unlikelihood on the corpus": ("unlikelihood", {"source": "corpus", "level": "token"}),
}
CASES = {name: (name, {}) for name in METHODS} | VARIANTS


def left(name: str, updates: int = UPDATES):
    """What a method yields, leaves as weights and was charged, after a few updates."""
    method, more = CASES[name]
    kind = load("method", method)
    judged = getattr(kind, "sees_judge", False)
    task = toy.ToyTask() if judged else None  # which knows how its base policy was trained
    trial = new_trial(updates=updates, lr=1e-2, seed=3, optimizer=OptimizerSettings(eps=EPS), sees_judge=judged, task=task)
    made = kind(kind.Settings(**getattr(kind, "quick", {}) | more))
    rows = [row for _, row in zip(range(updates), made.train(trial), strict=False)]
    weights = [p.detach() for p in trial.policy.parameters()]
    return rows, weights, trial.cost, trial.rng.get_state()


@pytest.mark.parametrize("name", CASES)
def test_two_processes_make_the_updates_of_one(name):
    if CASES[name][0] in BY_TRL and find_spec("trl") is None:
        pytest.skip("needs TRL")
    rows, weights, cost, state = left(name)
    for found in together(2, lambda: left(name)):
        assert [x.keys() for x in found[0]] == [x.keys() for x in rows]
        for ours, theirs in zip(found[0], rows, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
        torch.testing.assert_close(found[1], weights, rtol=0, atol=2e-5)
        assert found[2] == cost and torch.equal(found[3], state)


def test_a_trainer_of_trl_that_sees_several_processes_is_refused(monkeypatch):
    pytest.importorskip("trl")
    from harness.training import trl_bridge

    monkeypatch.setattr(trl_bridge, "LAUNCHED", ())
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    for error in together(2, lambda: left("dpo")):
        assert type(error) is RunFailed and "sees the other processes" in str(error)
