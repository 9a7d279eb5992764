"""The conformance kit on every method that is listed, and on methods that each break one rule."""

import socket
from contextlib import suppress
from types import SimpleNamespace
from typing import ClassVar, Literal

import pytest
import torch
from pydantic import ConfigDict, Field

from harness.conformance import play, rules, toy
from harness.conformance.rules import check_class, check_method
from harness.core import registry
from harness.core.errors import MissingPrerequisite, UnknownName
from harness.methods.best_quantile import BestQuantile, BestQuantileSettings
from harness.policy.sampler import sample

NEVER_BACK = {"awr", "base", "best_of_n", "conditional_pretraining", "filtering", "kto", "mle", "oracle", "quark", "rwr"}


def failing(checks) -> set[str]:
    return {c.name for c in checks if c.held is False}


EVERY = sorted(registry.table("method"))


@pytest.mark.parametrize("name", EVERY)
def test_every_method_that_is_listed(name, monkeypatch):
    """All rules and the rise of the reward; that it returns to the base takes longer runs: a test of its own."""
    kind = registry.load("method", name)
    rises = {k: v for k, v in kind.claims.items() if k == "reward_rises"} if hasattr(kind, "claims") else {}
    monkeypatch.setattr(kind, "claims", rises, raising=False)
    holds_every_rule(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in EVERY if n not in NEVER_BACK])
def test_every_method_returns_to_the_base_where_it_says_so(name, monkeypatch):
    """This rule alone, after the first, without which there are no others: the test above checks the rest."""
    assert "base_returns" in registry.load("method", name).claims
    monkeypatch.setattr(rules, "RULES", [rules.RULES[0], next(r for r in rules.RULES if r.name == "base returns")])
    holds_every_rule(name)


def test_those_that_do_not_claim_to_return_to_the_base():
    assert {n for n in EVERY if "base_returns" not in getattr(registry.load("method", n), "claims", {})} == NEVER_BACK


def holds_every_rule(name: str) -> None:
    try:
        checks = check_method(name)
    except MissingPrerequisite as e:
        pytest.skip(str(e))
    assert len(checks) == len(rules.RULES) + 1
    assert not failing(checks), "\n".join(
        f"{c.name}: expected {c.expected}; found {c.found}" for c in checks if c.held is False
    )


class Honest(BestQuantile):
    """A method that holds every rule and claims nothing."""

    claims: ClassVar = {}


class HasOneSeed(Honest):
    def train(self, trial):
        if trial.cost.updates == 0:
            trial.rng.manual_seed(0)
        yield from super().train(trial)


class DrawsFromElsewhere(Honest):
    def _learn(self, trial, batch):
        trial.prompts(int(torch.randint(1, 9, ())))
        return super()._learn(trial, batch) | {"luck": torch.rand(()).item()}


class UpdatesTheReference(Honest):
    def _learn(self, trial, batch):
        scalars = super()._learn(trial, batch)
        with torch.no_grad():
            trial.reference.model.transformer.wpe.weight[-1] += 1.0  # a position that no run reaches
        return scalars


class ForgetsItsState(Honest):
    def train(self, trial):
        trial.keep = lambda **state: SimpleNamespace(**state)
        yield from super().train(trial)


class CallsHome(Honest):
    def train(self, trial):
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), timeout=0.1)
        yield from super().train(trial)


class YieldsEveryOtherUpdate(Honest):
    def train(self, trial):
        rows = super().train(trial)
        for row in rows:
            next(rows)
            yield row


class YieldsLateWhereFlopsCount(Honest):
    def train(self, trial):
        rows = super().train(trial)
        for row in rows:
            if trial._budget.updates is None:
                next(rows)
            yield row


class IgnoresItsBudget(Honest):
    def train(self, trial):
        for _ in super().train(trial):
            pass
        yield {}


class StopsEarly(Honest):
    def train(self, trial):
        for _, row in zip(range(4 - trial.cost.updates), super().train(trial), strict=False):
            yield row


class ReadsForNothing(Honest):
    """A pass through a copy of the reference, which nobody charges."""

    def _learn(self, trial, batch):
        trial.reference.copy().logits(batch)
        return super()._learn(trial, batch)


class Leaky:
    """Gives a token behind the vocabulary, once in a while."""

    def __init__(self, policy):
        self.policy = policy

    def sample(self, prompts, *, decoding, rng, n):
        rollout = sample(self.policy, prompts, decoding=decoding, rng=rng, n=n)
        rollout.response[7] = toy.VOCAB
        return rollout


class SaysControlTokens(Honest):
    def train(self, trial):
        trial.deploy(Leaky(trial.policy))
        yield from super().train(trial)


class ScoresControlTokens(Honest):
    """Samples by itself, and only the rewards that it asks for show it."""

    def _learn(self, trial, batch):
        trial.reward(batch._replace(response=batch.response.clone().fill_(toy.VOCAB + 1)))
        return super()._learn(trial, batch)


class IdleSettings(BestQuantileSettings):
    temperature: float = Field(1.0, description="read by nobody")


class IgnoresASetting(Honest):
    Settings = IdleSettings


class ChoosySettings(BestQuantileSettings):
    variant: Literal["works", "fails"] = Field("works", description="one of two")


class FailsInAVariant(Honest):
    Settings = ChoosySettings

    def train(self, trial):
        if self.settings.variant == "fails":
            raise RuntimeError("not written yet")
        yield from super().train(trial)


class LaxSettings(BestQuantileSettings):
    model_config = ConfigDict(extra="ignore")


class TakesAnyKey(Honest):
    Settings = LaxSettings


class LosesPrecision(BestQuantileSettings):
    def model_dump(self, **options):
        return super().model_dump(**options) | {"kl_coef": 0.0}


class CannotBeRecorded(Honest):
    Settings = LosesPrecision


class TrainsEveryWeight(Honest):
    """Frozen weights too, which under LoRA are the reference's."""

    def _learn(self, trial, batch):
        for weight in trial.policy.parameters():
            weight.requires_grad_(True)
        return super()._learn(trial, batch)


class LearnsOtherwiseInParts(Honest):
    def _learn(self, trial, batch):
        return super()._learn(trial, batch.rows(torch.arange(2)) if trial.policy.setup.micro_batch else batch)


class ForgetsUnderLoRA(Honest):
    def train(self, trial):
        if trial.policy.setup.lora is not None:
            trial.keep = lambda **state: SimpleNamespace(**state)
        yield from super().train(trial)


class Drifts(Honest):
    claims: ClassVar = BestQuantile.claims | {"base_returns": {"lr": 1e-3, "kl_coef": 0.0}}


class StandsStill(Honest):
    """Near the base because it hardly moves at all, which is no regularisation."""

    claims: ClassVar = BestQuantile.claims | {"base_returns": {"lr": 1e-9, "kl_coef": 0.0}}


class LearnsTheWorst(Honest):
    claims: ClassVar = {"reward_rises": BestQuantile.claims["reward_rises"]}

    def train(self, trial):
        reward = trial.reward
        trial.reward = lambda rollout: -reward(rollout)
        yield from super().train(trial)


BROKEN = {
    HasOneSeed: {"seed"},
    DrawsFromElsewhere: {"seed", "resume", "setups"},  # what is not of the trial is not kept either
    UpdatesTheReference: {"base weights"},
    ForgetsItsState: {"resume", "setups"},  # under LoRA too
    CallsHome: {"network"},
    YieldsEveryOtherUpdate: {"budget"},
    YieldsLateWhereFlopsCount: {"budget"},
    IgnoresItsBudget: {"budget"},
    StopsEarly: {"budget"},
    ReadsForNothing: {"cost"},
    SaysControlTokens: {"control tokens"},
    ScoresControlTokens: {"control tokens"},
    IgnoresASetting: {"settings used"},
    FailsInAVariant: {"settings used"},
    TakesAnyKey: {"settings"},
    CannotBeRecorded: {"settings"},
    TrainsEveryWeight: {"setups"},
    LearnsOtherwiseInParts: {"setups"},
    ForgetsUnderLoRA: {"setups"},
    Drifts: {"base returns"},
    StandsStill: {"base returns"},
    LearnsTheWorst: {"reward rises"},
}


class NeverUpdates(Honest):
    def train(self, trial):
        while True:
            yield {"nothing": 0.0}


def test_a_method_that_yields_without_an_update_fails_instead_of_running_for_ever():
    (check, *_) = check_class(NeverUpdates)
    assert check.held is False and "yielded after update 0 without another" in check.found


def test_a_setting_without_a_description_is_named():
    class Mute(BestQuantileSettings):
        momentum: float = 0.9
        decay: float = Field(0.0, description=" ")

    found = rules.described(play.Subject(type("Silent", (Honest,), {"Settings": Mute}), ""))
    assert found == (False, "not described: momentum, decay")
    assert rules.described(play.Subject(Honest, ""))[0] is True


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_method_is_caught_by_the_rule_it_breaks(kind, monkeypatch):
    monkeypatch.setattr(play, "LONG", 25)  # updates; enough for this method to gain, and for these faults to show
    assert failing(check_class(kind)) == BROKEN[kind]


def test_whatever_a_method_raises_is_a_finding():
    class Raises(Honest):
        def train(self, trial):
            raise ZeroDivisionError("of mine")

    found = {c.name: c.found for c in check_class(Raises) if c.held is False}
    assert list(found) == ["contract"] and "raised ZeroDivisionError: of mine" in found["contract"]


def test_a_method_that_needs_something_is_not_judged():
    class Needy(Honest):
        def train(self, trial):
            raise MissingPrerequisite("trl is not installed")

    with pytest.raises(MissingPrerequisite, match="trl"):
        check_class(Needy)


def test_a_claim_that_nobody_knows():
    class Boasts(Honest):
        claims: ClassVar = {"reward_rise": {}}

    with pytest.raises(UnknownName, match="did you mean 'reward_rises'"):
        check_class(Boasts)


def test_an_honest_method_holds_and_the_kit_leaves_the_process_as_it_found_it():
    connect, state = socket.socket.connect, torch.get_rng_state()
    own = dict(socket.socket.__dict__)
    assert not failing(check_class(Honest))
    assert socket.socket.connect == connect and dict(socket.socket.__dict__) == own
    assert torch.equal(torch.get_rng_state(), state)


def test_the_toy_without_an_end_never_ends():
    task, policy = toy.ToyTask(ragged=False), toy.toy_policy(ends=False)
    rng = torch.Generator().manual_seed(0)
    rollout = sample(policy, task.train_prompts(2000, rng), decoding=task.decoding, rng=rng)
    assert (rollout.response != toy.EOS).all() and rollout.response_mask.all() and rollout.prompts.mask.all()
    assert 0.6 < task.reward(rollout).mean() < 0.9
    ragged = sample(toy.toy_policy(), toy.ToyTask().train_prompts(2000, rng), decoding=task.decoding, rng=rng)
    assert (ragged.response == toy.EOS).any() and not ragged.prompts.mask.all()
