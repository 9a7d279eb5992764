"""The conformance rules of methods, checked on a task of twelve tokens in seconds: `harness check method NAME`.

Every listed method is checked. Optional class attributes: `family`, which decides the colour in figures (default "other");
`knob`, the setting that trades reward for KL; `trains = False` if the method does not train; `lora = False` if it changes
all weights, so that adapters are refused; `tuned_as`, of a control the method whose learning rate it takes; `sees_judge =
True` of a control that repeats the base policy's training without the habit; `quick`, settings that make updates fast; and
`claims`, further properties with the settings (on top of `quick`) under which they hold:

    base_returns   under strong regularisation the policy stays at the base policy: KL(policy || base) < 0.01 nats
    reward_rises   on an easy task the reward of its samples rises
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, get_args, get_origin
from unittest.mock import patch

import torch
from pydantic import ValidationError
from torch import nn

from harness.core import plugins, registry
from harness.core.settings import method_table, preset_names, read_preset
from harness.core.text import count
from harness.core.types import Knob
from harness.policy.policy import Policy
from harness.policy.sampler import sample
from harness.policy.weights import digest
from harness.training.pool import Pool
from harness.training.trial import Budget

from .play import LONG, UPDATES, Check, Subject, _disturb, _watched, applied, difference, play
from .sandbox import no_bars, no_network, own_randomness
from .setups import every_setup
from .toy import PROMPTS, VOCAB, ToyTask, toy_policy

KILLED_AFTER = (2, 3)  # updates; at the second kill the state has already been resumed once
CLOSE = 0.01  # nats
HEAD = 1.01  # tolerance for the parameters of a value head, relative to the model


def check_method(name: str) -> list[Check]:
    """Check all rules on one method, by its name or its file; raises UnknownName, MissingPrerequisite, BadData."""
    return check_class(registry.load("method", name), name)


def check_class(kind: Any, name: str = "") -> list[Check]:
    """Check all rules on the class of a method; `name` is its key in the presets."""
    subject = Subject(kind, name)
    with own_randomness(), no_bars(), no_network() as attempts:
        checks = [_apply(RULES[0], subject)]
        if checks[0].held:  # otherwise the other rules cannot be checked
            checks += [_apply(rule, subject) for rule in RULES[1:]]
    return [*checks, _network(attempts)]


def _apply(rule: Rule, subject: Subject) -> Check:
    return applied(rule.name, rule.expected, partial(rule.look, subject))


Finding = tuple[bool | None, str]
NOTHING = "does not apply: it trains nothing"


def whole_run(subject: Subject) -> Finding:
    """Check the rules of `harness.training.contract`, which every run enforces."""
    plugins.check_class(subject.kind, subject.name or subject.kind.__name__)
    return True, f"{subject.whole.yields} yields"


def round_trip(subject: Subject) -> Finding:
    """Check that settings reject unknown keys, survive dump and load, and accept the tables of the presets."""
    kind = subject.kind.Settings
    for settings in (kind(), subject.settings()):
        if kind(**settings.model_dump()) != settings or kind.model_validate_json(settings.model_dump_json()) != settings:
            return False, "settings that are dumped and loaded differ"
    try:
        kind(no_such_setting=1)
        return False, "an unknown key was accepted"
    except ValidationError:
        pass
    tables = _preset_tables(subject.name)
    for table in tables.values():
        kind(**table)
    return True, count(len(kind.model_fields), "setting") + (f", and those of {', '.join(tables)}" if tables else "")


def _preset_tables(name: str) -> dict[str, dict[str, Any]]:
    if not name or name.endswith(".py"):
        return {}
    found = {p: method_table(read_preset(p), {}, registry.canonical("method", name)) for p in preset_names()}
    return {p: {k: v for k, v in table.items() if k != "knob"} for p, table in found.items() if table}


def described(subject: Subject) -> Finding:
    """Check that every setting has a description, which `harness show method` prints."""
    fields = subject.kind.Settings.model_fields
    missing = [name for name, field in fields.items() if not (field.description or "").strip()]
    return not missing, f"not described: {', '.join(missing)}" if missing else f"{len(fields)} of {len(fields)}"


def all_read(subject: Subject) -> Finding:
    """Check that every setting is read, in the default run or with one choice changed; the harness reads `lr`."""
    fields, read = set(subject.kind.Settings.model_fields), {"lr"} if subject.trains else set()
    read |= {"share"} if getattr(subject.kind, "sees_judge", False) else set()  # of the base policy's updates
    seen = subject.read_in_whole
    read |= fields if seen & {"__dict__", "model_dump"} else seen
    for switch in _switches(subject):
        settings, seen = _watched(subject.settings(**switch))
        play(subject, settings=settings)
        read |= fields if seen & {"__dict__", "model_dump"} else seen
    ignored = sorted(fields - read)
    return not ignored, f"never read: {', '.join(ignored)}" if ignored else f"{len(fields)} of {len(fields)}"


def _switches(subject: Subject) -> Iterator[dict[str, Any]]:
    """Yield each other value of every bool or Literal setting that is valid with the remaining settings."""
    chosen = subject.settings()
    for name, field in subject.kind.Settings.model_fields.items():
        values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        values = (False, True) if field.annotation is bool else values
        for value in values:
            if value != getattr(chosen, name):
                try:
                    subject.settings(**{name: value})
                except ValidationError:
                    continue
                yield {name: value}


def budget(subject: Subject) -> Finding:
    """Check for one update per yield, and none after the budget is reached, in updates or in FLOPs."""
    trial, yields = subject.whole.trial, subject.whole.yields
    if trial.cost.updates == 0 and not trial.overspent:
        return None, NOTHING
    if trial.overspent:
        return False, f"went on after {trial.cost.updates} of {UPDATES} updates"
    if (trial.cost.updates, yields) != (UPDATES, UPDATES):
        return False, f"{trial.cost.updates} updates in {yields} yields, of {UPDATES}"
    limit = trial.flops_at[UPDATES // 2] - 1.0  # reached within an update, not at its end
    again = play(subject, budget=Budget(flops=limit), recorded=False)
    trial = again.trial
    over = sum(flops >= limit for flops in trial.flops_at)
    held = over == 1 and again.yields == trial.cost.updates and not trial.overspent
    return held, f"{UPDATES} of {UPDATES} updates; {trial.cost.flops:.3g} of {limit:.3g} FLOPs after {trial.cost.updates}"


def cost(subject: Subject) -> Finding:
    """Check the charged FLOPs against tokens counted at the embedding layers, in a run without padding.

    The harness charges the last token of a response, which is never an input, so a row may cost one token more than was
    counted. A control token may be charged or not. The parameters of an additional head are not counted.
    """
    if not subject.trains:
        return None, NOTHING
    fed = Fed()
    trial = play(subject, plain=True, watch=lambda: recount(fed), recorded=False).trial
    least, most = (x * 2.0 * trial.cost.parameters for x in (fed.least, fed.most))
    held = least <= trial.cost.flops <= HEAD * most
    return held, f"{trial.cost.flops:.4g} FLOPs charged; from {least:.4g} to {most:.4g} recounted"


class Fed:
    """Bounds on the number of input tokens of all models; a token with gradients counts three times (Kaplan et al. 2020)."""

    def __init__(self) -> None:
        self.least = self.most = 0.0


@contextmanager
def recount(fed: Fed) -> Iterator[None]:
    """Context manager that counts the input tokens of all models by a hook on their embeddings.

    Pools keep no states of the reference in it: what those save is charged all the same, and would be missing here.
    """
    steps = ToyTask.decoding.max_new_tokens
    longest_prompt = len(PROMPTS[0]) + 1  # with a control token

    def embedded(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not isinstance(module, nn.Embedding) or not VOCAB <= module.num_embeddings < 2 * VOCAB:
            return  # not a token embedding; position embeddings have more rows
        ids, weight = args[0], 3.0 if torch.is_grad_enabled() and module.weight.requires_grad else 1.0
        words: float = int((ids < VOCAB).sum())
        if ids.shape[1] == 1:  # a step of the sampler, whose last token is charged and not an input
            words = words * steps / (steps - 1)
        last = len(ids) if ids.shape[1] > longest_prompt else 0
        fed.least += weight * words
        fed.most += weight * (words + int((ids >= VOCAB).sum()) + last)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(embedded)
    try:
        with patch.object(Pool, "_states", lambda *_: None):
            yield
    finally:
        hook.remove()


def seed(subject: Subject) -> Finding:
    """Check that equal seeds give equal records for any state of the global generators, and different seeds differ."""
    first = subject.whole  # run after _disturb(1)
    _disturb(2)
    second, other = play(subject), play(subject, seed=1)
    differs = difference(first, second)
    if differs:
        return False, f"two runs of one seed differ at {differs}"
    if not subject.trains:
        return True, "one record (another seed changes nothing: it trains nothing)"
    if other.record["weights"] == first.record["weights"]:
        return False, "two seeds give the same weights"
    return True, "one record, and another with another seed"


def control(subject: Subject) -> Finding:
    """Check that no sampled or scored response has a token id beyond the vocabulary."""
    trial = subject.whole.trial
    width = VOCAB
    if isinstance(trial.deployed, Policy):
        with trial.off_the_clock():
            task, rng = ToyTask(), torch.Generator().manual_seed(2)
            rollout = sample(trial.deployed, task.prompts("test").prompts, decoding=task.decoding, rng=rng)
            width = trial.deployed.deployed_logits(rollout).shape[-1]
    held = trial.largest_token < VOCAB and width == VOCAB
    return held, f"largest id {trial.largest_token}, {width} logits, {trial.policy.num_control} control tokens"


def resume(subject: Subject) -> Finding:
    """Check that a run killed twice and resumed gives the record of an uninterrupted run, bit for bit."""
    if not subject.trains:
        return None, NOTHING
    differs = difference(subject.whole, play(subject, killed_after=KILLED_AFTER))
    where = ", ".join(map(str, KILLED_AFTER))
    advice = "the state that survives a kill belongs in trial.keep"
    return differs is None, f"differs at {differs}; {advice}" if differs else f"killed after update {where}: nothing differs"


def untouched(subject: Subject) -> Finding:
    """Check that the reference and the base policy are unchanged after a run."""
    whole = subject.whole
    before = digest(toy_policy())
    changed = [n for n, p in (("reference", whole.trial.reference), ("base", whole.base)) if digest(p) != before]
    return not changed, f"changed: {', '.join(changed)}" if changed else "same sha256"


def _network(attempts: list[str]) -> Check:
    found = f"tried {attempts[0]}" if attempts else "none"
    return Check("network", "no connection is attempted", found, not attempts)


def base_returns(subject: Subject) -> Finding:
    """Check the claim that strong regularisation keeps the policy at the base policy."""
    if "base_returns" not in subject.claims:
        return None, "does not apply: not claimed"
    bound = subject.claims["base_returns"]
    kl = subject.measured(bound).kl
    if "reward_rises" not in subject.claims:
        return kl < CLOSE, f"KL {kl:.4f} nats"
    rate = {"lr": bound["lr"]} if "lr" in bound else {}
    free = subject.measured(subject.claims["reward_rises"] | rate).kl  # the policy must be able to move at this rate
    return kl < CLOSE < free, f"KL {kl:.4f} nats; {free:.3f} at the same rate where the reward rises"


def reward_rises(subject: Subject) -> Finding:
    """Check the claim that the reward rises on an easy task."""
    if "reward_rises" not in subject.claims:
        return None, "does not apply: not claimed"
    _, before, after, stderr = subject.measured(subject.claims["reward_rises"])
    held = after - before > max(3 * stderr, 0.1 * (1 - before))
    return held, f"{before:.3f} to {after:.3f} ± {1.96 * stderr:.3f} in {LONG} updates"


def knob(subject: Subject) -> Finding:
    """Check that the knob names a setting with five distinct, ordered, valid values, and that the family is a string."""
    found, family = getattr(subject.kind, "knob", None), getattr(subject.kind, "family", "other")
    if not isinstance(family, str) or not family:
        return False, f"the family is {family!r:.40}"
    if found is None:
        return None, "does not apply: it has none"
    if not isinstance(found, Knob) or found.setting not in subject.kind.Settings.model_fields:
        return False, f"{found!r:.60} names no setting; it has {', '.join(subject.kind.Settings.model_fields)}"
    if len(found.values) != 5 or list(found.values) not in (sorted(set(found.values)), sorted(set(found.values), reverse=True)):
        return False, f"the values {found.values!r:.60} are not five in order"
    for value in found.values:  # an invalid value raises ValidationError, which fails the rule
        subject.kind.Settings(**{found.setting: value})
    return True, f"{found.setting}: {', '.join(map(str, found.values))}"


class Rule(NamedTuple):
    """A rule: its name, the expected behaviour, and the function that checks it."""

    name: str
    expected: str
    look: Callable[[Subject], Finding]


RULES = (  # the first is a precondition of the others
    Rule("contract", "numbers are yielded, saved state is plain data, the trial is not modified", whole_run),
    Rule("settings", "unknown keys are rejected; dump and load give equal settings", round_trip),
    Rule("knob", "a setting with five valid values, weak to strong; a family that is a string", knob),
    Rule("help", 'every setting has a description: Field(0.1, description="...")', described),
    Rule("settings used", "every setting is read", all_read),
    Rule("budget", "one update per yield, and none after the budget is reached", budget),
    Rule("cost", "every input token of a model is charged, and no other", cost),
    Rule("seed", "equal seeds give equal records, different seeds different ones", seed),
    Rule("control tokens", f"none is ever sampled: ids below {VOCAB}", control),
    Rule("resume", "a killed and resumed run equals an uninterrupted one, bit for bit", resume),
    Rule("base weights", "the reference and the base policy are unchanged", untouched),
    Rule(
        "setups",
        "micro-batches give the gradient of the whole batch; LoRA, bfloat16, checkpointing train and resume",
        every_setup,
    ),
    Rule("base returns", f"strong regularisation: KL(policy || base) < {CLOSE} nats", base_returns),
    Rule("reward rises", "on an easy task, by over 3 standard errors and 10% of the distance to 1", reward_rises),
)
