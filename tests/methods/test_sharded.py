"""Methods make the updates of one process where two hold half of the policy each, and a checkpoint is of whole weights."""

from importlib.util import find_spec

import pytest
import torch
from together import together
from trials import new_trial

from harness.core.errors import BadSetting
from harness.core.registry import load
from harness.policy.models import sharding
from harness.policy.models.adapters import Lora
from harness.policy.models.setup import Setup
from harness.training.trial import OptimizerSettings

LORA = Lora(2, 4.0)
CASES = {
    "quark": ("quark", Setup()),
    "quark with LoRA, micro-batches and checkpointing": ("quark", Setup(3, True, LORA)),
    "dpo in micro-batches": ("dpo", Setup(3)),
    "dpo with LoRA": ("dpo", Setup(lora=LORA)),
    "ppo": ("ppo", Setup()),  # a second network is sharded, and a third, of two weights, is not
    "dexperts": ("dexperts", Setup()),  # three models in one
    "conditional_pretraining with checkpointing": ("conditional_pretraining", Setup(checkpointing=True)),
}
NEEDED = {"dpo": "trl"}


def trial(method: str, setup: Setup, shard: bool, updates: int = 2, **options):
    """A new trial, and the method."""
    made = new_trial(updates=4, lr=1e-2, seed=3, optimizer=OptimizerSettings(eps=1e-3), **options)
    for policy in (made.policy, made.reference):
        policy.setup = setup
        policy.model = sharding.shard(policy.model, "cpu") if shard else policy.model
        policy.requires_grad_(policy is made.policy)
    kind = load("method", method)
    return made, kind(kind.Settings(**getattr(kind, "quick", {})))


def updated(method: str, setup: Setup, shard: bool, updates: int = 2, **options):
    """What is yielded, the weights by name, the checkpoint, and the numbers of weights and of moments that are held."""
    made, algorithm = trial(method, setup, shard, **options)
    rows = [row for _, row in zip(range(updates), algorithm.train(made), strict=False)]
    moments = sum(x.numel() for state in made._optimizer.state.values() for x in state.values() if x.dim())
    held = sum(sharding.own(p).numel() for p in made.policy.parameters())
    weights = {name: p.detach() for name, p in made.policy.whole().named_parameters()}
    return rows, weights, made.state_dict(), (held, moments)


@pytest.mark.parametrize("name", CASES)
def test_two_halves_of_a_policy_make_the_updates_of_the_whole(name):
    method, setup = CASES[name]
    if find_spec(needed := "peft" if setup.lora else NEEDED.get(method, "torch")) is None:
        pytest.skip(f"needs {needed}")
    rows, weights, state, whole = updated(method, setup, shard=False)
    for found in together(2, lambda: updated(method, setup, shard=True)):
        for ours, theirs in zip(found[0], rows, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
        for key, weight in found[1].items():
            torch.testing.assert_close(weight, weights[key], rtol=0, atol=2e-5)
        same_checkpoint(found[2], state)
        assert found[3][1] == pytest.approx(whole[1] / 2, rel=0.05)  # a network without layers is whole in each


def same_checkpoint(ours, theirs) -> None:
    """The generator, the costs, what the method keeps and Adam's moments of whole weights, in the same order."""
    assert ours["cost"] == theirs["cost"] and torch.equal(ours["rng"], theirs["rng"])
    moments, expected = ours["optimizer"]["state"], theirs["optimizer"]["state"]
    assert moments.keys() == expected.keys()
    for i in expected:
        torch.testing.assert_close(moments[i], expected[i], rtol=1e-3, atol=1e-6)
    if "value" in theirs["kept"]:
        torch.testing.assert_close(dict(ours["kept"]["value"]), dict(theirs["kept"]["value"]), rtol=0, atol=2e-5)


def test_each_process_holds_half_of_weights_and_moments():
    *_, whole = updated("dpo" if find_spec("trl") else "quark", Setup(), shard=False, updates=1)
    for *_, held in together(2, lambda: updated("dpo" if find_spec("trl") else "quark", Setup(), shard=True, updates=1)):
        assert held == pytest.approx((whole[0] / 2, whole[1] / 2), rel=0.01)


@pytest.mark.parametrize("shard_first", [True, False])
def test_a_checkpoint_of_halves_goes_on_whole_and_the_other_way_round(shard_first):
    """PPO: its value network is of the policy's size and kept by the method."""

    def begun(shard):
        made, algorithm = trial("ppo", Setup(), shard)
        steps = algorithm.train(made)
        next(steps), next(steps)
        return made.policy.whole().model.state_dict(), made.state_dict()

    def gone_on(shard, weights, state):
        made, algorithm = trial("ppo", Setup(), False, state=state)
        made.policy.model.load_state_dict(weights)
        if shard:
            for policy in (made.policy, made.reference):
                policy.model = sharding.shard(policy.model, "cpu")
        next(algorithm.train(made))
        return [p.detach() for p in made.policy.whole().parameters()]

    saved = together(2, lambda: begun(True))[1] if shard_first else begun(False)
    found = gone_on(False, *saved) if shard_first else together(2, lambda: gone_on(True, *saved))[0]
    steps = (undisturbed := trial("ppo", Setup(), False))[1].train(undisturbed[0])
    for _ in range(3):
        next(steps)
    for ours, theirs in zip(found, undisturbed[0].policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=2e-5)


def test_a_model_without_layers_is_refused():
    def refused():
        with pytest.raises(BadSetting, match=r"Linear has no layers that are known as such; set model.shard=none"):
            sharding.shard(torch.nn.Linear(2, 2), "cpu")

    assert together(2, refused) == [None, None]
