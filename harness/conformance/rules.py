"""What every method must hold, checked on a world of twelve tokens in seconds: `harness check method NAME`.

A method is covered by being listed. Class attributes help: `family`, whose hue it has in figures ("other" without one);
`knob`, the setting that trades reward for drift; `trains = False` of one that trains nothing; `quick`, settings with which a
few updates take a moment; and `claims`, what it promises beyond the rules, with the settings (on top of `quick`):

    base_returns   under strong regularisation the policy stays the base: KL(policy || base) < 0.01 nats
    reward_rises   on an easy task the reward of its samples rises
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args, get_origin

import torch
from pydantic import ValidationError
from torch import nn

from harness.core import plugins, registry
from harness.core.errors import BenchError, MissingPrerequisite, one_line
from harness.core.settings import preset_names, read_preset
from harness.core.types import Knob
from harness.policy.policy import Policy
from harness.policy.sampler import sample
from harness.training.trial import Budget

from .play import LONG, UPDATES, Check, Subject, _disturb, _watched, difference, digest, play
from .sandbox import no_bars, no_network, own_randomness
from .toy import PROMPTS, VOCAB, ToyTask, toy_policy

KILLED_AFTER = (2, 3)  # updates; the second kill finds state that has been taken up once already
CLOSE = 0.01  # nats
HEAD = 1.01  # a value head and the like, as a share of the model below it


def check_method(name: str) -> list[Check]:
    """Every rule on one method, by its name or its file.

    Raises MissingPrerequisite where the method needs something that is not there, and UnknownName.
    """
    return check_class(registry.load("method", name), name)


def check_class(kind: Any, name: str = "") -> list[Check]:
    """Every rule on a method's class; its name finds its settings in the presets."""
    subject = Subject(kind, name)
    with own_randomness(), no_bars(), no_network() as attempts:
        checks = [_apply(RULES[0], subject)]
        if checks[0].held:  # else a run ends too early to show anything more
            checks += [_apply(rule, subject) for rule in RULES[1:]]
    return [*checks, _network(attempts)]


def _apply(rule: Rule, subject: Subject) -> Check:
    try:
        held, found = rule.look(subject)
    except MissingPrerequisite:
        raise
    except Exception as e:  # whatever a method raises is a finding
        held, found = False, one_line(e) if isinstance(e, BenchError) else f"{type(e).__name__}: {one_line(e)}"
    return Check(rule.name, rule.expected, found, held)


Finding = tuple[bool | None, str]
NOTHING = "does not apply: it trains nothing"


def whole_run(subject: Subject) -> Finding:
    """The rules of `harness.training.contract`, which every run holds a method to."""
    plugins.check_class(subject.kind, subject.name or subject.kind.__name__)
    return True, f"{subject.whole.yields} yields"


def round_trip(subject: Subject) -> Finding:
    """An unknown key is refused, what is dumped loads as equal, and so does each preset's table."""
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
    return True, f"{len(kind.model_fields)} settings" + (f", and those of {', '.join(tables)}" if tables else "")


def _preset_tables(name: str) -> dict[str, dict[str, Any]]:
    if not name or name.endswith(".py"):
        return {}
    found = {p: read_preset(p).get("methods", {}).get(registry.canonical("method", name)) for p in preset_names()}
    return {p: table for p, table in found.items() if table}


def all_read(subject: Subject) -> Finding:
    """Every setting is read in a run, or in one that differs by one switch; `lr` is read by the harness for whoever trains."""
    fields, read = set(subject.kind.Settings.model_fields), {"lr"} if subject.trains else set()
    seen = subject.read_in_whole
    read |= fields if seen & {"__dict__", "model_dump"} else seen
    for switch in _switches(subject):
        settings, seen = _watched(subject.settings(**switch))
        play(subject, settings=settings)
        read |= fields if seen & {"__dict__", "model_dump"} else seen
    ignored = sorted(fields - read)
    return not ignored, f"never read: {', '.join(ignored)}" if ignored else f"{len(fields)} of {len(fields)}"


def _switches(subject: Subject) -> Iterator[dict[str, Any]]:
    """Every other value of each setting that is a choice, where the rest of the settings allows it."""
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
    """One update a yield, and none after the one that reaches the budget, be it in updates or in FLOPs."""
    trial, yields = subject.whole.trial, subject.whole.yields
    if trial.cost.updates == 0 and not trial.overspent:
        return None, NOTHING
    if trial.overspent:
        return False, f"went on after {trial.cost.updates} of {UPDATES} updates"
    if (trial.cost.updates, yields) != (UPDATES, UPDATES):
        return False, f"{trial.cost.updates} updates in {yields} yields, of {UPDATES}"
    limit = trial.flops_at[UPDATES // 2] - 1.0  # reached in the course of an update, not at its end
    again = play(subject, budget=Budget(flops=limit), recorded=False)
    trial = again.trial
    over = sum(flops >= limit for flops in trial.flops_at)
    held = over == 1 and again.yields == trial.cost.updates and not trial.overspent
    return held, f"{UPDATES} of {UPDATES} updates; {trial.cost.flops:.3g} of {limit:.3g} FLOPs after {trial.cost.updates}"


def cost(subject: Subject) -> Finding:
    """Tokens recounted where every model looks up its embeddings, in a world without padding.

    The harness charges a response's last token, which is scored and never fed, so a row may cost one token more than was
    fed. A control token may be charged or not. A head beside a model has parameters that are not recounted.
    """
    if not subject.trains:
        return None, NOTHING
    fed = Fed()
    trial = play(subject, plain=True, watch=lambda: recount(fed), recorded=False).trial
    least, most = (x * 2.0 * trial.cost.parameters for x in (fed.least, fed.most))
    held = least <= trial.cost.flops <= HEAD * most
    return held, f"{trial.cost.flops:.4g} FLOPs charged; from {least:.4g} to {most:.4g} recounted"


class Fed:
    """Tokens fed to models while watched; a trained token counts as three (Kaplan et al. 2020)."""

    def __init__(self) -> None:
        self.least = self.most = 0.0


@contextmanager
def recount(fed: Fed) -> Iterator[None]:
    steps = ToyTask.decoding.max_new_tokens
    longest_prompt = len(PROMPTS[0]) + 1  # with a control token

    def embedded(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not isinstance(module, nn.Embedding) or not VOCAB <= module.num_embeddings < 2 * VOCAB:
            return  # the table of positions is longer
        ids, weight = args[0], 3.0 if torch.is_grad_enabled() and module.weight.requires_grad else 1.0
        words: float = int((ids < VOCAB).sum())
        if ids.shape[1] == 1:  # a step of the sampler; the last of its tokens is charged and not fed
            words = words * steps / (steps - 1)
        last = len(ids) if ids.shape[1] > longest_prompt else 0
        fed.least += weight * words
        fed.most += weight * (words + int((ids >= VOCAB).sum()) + last)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(embedded)
    try:
        yield
    finally:
        hook.remove()


def seed(subject: Subject) -> Finding:
    """The same seed gives the same record, whatever the global generators; another seed gives another."""
    first = subject.whole  # after _disturb(1)
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
    """No response that was drawn, scored or given holds a token behind the vocabulary."""
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
    """Killed twice and resumed in a new trial, a run gives the record of an uninterrupted one, bit for bit."""
    if not subject.trains:
        return None, NOTHING
    differs = difference(subject.whole, play(subject, killed_after=KILLED_AFTER))
    where = ", ".join(map(str, KILLED_AFTER))
    return differs is None, f"differs at {differs}" if differs else f"killed after update {where}: nothing differs"


def untouched(subject: Subject) -> Finding:
    """The reference, and the base policy that all runs copy, are the same bytes before and after."""
    whole = subject.whole
    before = digest(toy_policy())
    changed = [n for n, p in (("reference", whole.trial.reference), ("base", whole.base)) if digest(p) != before]
    return not changed, f"changed: {', '.join(changed)}" if changed else "same sha256"


def _network(attempts: list[str]) -> Check:
    found = f"tried {attempts[0]}" if attempts else "none"
    return Check("network", "no connection is tried", found, not attempts)


def base_returns(subject: Subject) -> Finding:
    if "base_returns" not in subject.claims:
        return None, "does not apply: not claimed"
    bound = subject.claims["base_returns"]
    kl = subject.measured(bound).kl
    if "reward_rises" not in subject.claims:
        return kl < CLOSE, f"KL {kl:.4f} nats"
    rate = {"lr": bound["lr"]} if "lr" in bound else {}
    free = subject.measured(subject.claims["reward_rises"] | rate).kl  # a policy that cannot move proves nothing
    return kl < CLOSE < free, f"KL {kl:.4f} nats; {free:.3f} at the same rate where the reward rises"


def reward_rises(subject: Subject) -> Finding:
    if "reward_rises" not in subject.claims:
        return None, "does not apply: not claimed"
    _, before, after, stderr = subject.measured(subject.claims["reward_rises"])
    held = after - before > max(3 * stderr, 0.1 * (1 - before))
    return held, f"{before:.3f} to {after:.3f} ± {1.96 * stderr:.3f} in {LONG} updates"


def knob(subject: Subject) -> Finding:
    """The knob names a setting and has five different values, all valid, in order; the family is a word, or none is named."""
    found, family = getattr(subject.kind, "knob", None), getattr(subject.kind, "family", "other")
    if not isinstance(family, str) or not family:
        return False, f"the family is {family!r:.40}"
    if found is None:
        return None, "does not apply: it has none"
    if not isinstance(found, Knob) or found.setting not in subject.kind.Settings.model_fields:
        return False, f"{found!r:.60} names no setting; it has {', '.join(subject.kind.Settings.model_fields)}"
    if len(found.values) != 5 or list(found.values) not in (sorted(set(found.values)), sorted(set(found.values), reverse=True)):
        return False, f"the values {found.values!r:.60} are not five in order"
    for value in found.values:  # raises ValidationError, a finding, where one is not valid
        subject.kind.Settings(**{found.setting: value})
    return True, f"{found.setting}: {', '.join(map(str, found.values))}"


class Rule(NamedTuple):
    name: str
    expected: str
    look: Callable[[Subject], Finding]


RULES = (  # the first is what a run needs to get anywhere
    Rule("contract", "numbers are yielded, plain data is kept, the trial is left as it is", whole_run),
    Rule("settings", "an unknown key is refused; dumped and loaded they are equal", round_trip),
    Rule("knob", "a setting with five valid values, weak to strong; a family that is a word", knob),
    Rule("settings used", "every setting is read", all_read),
    Rule("budget", "one update a yield, and none after the one that reaches the budget", budget),
    Rule("cost", "every token that a model is fed is charged, and no other", cost),
    Rule("seed", "the same seed gives the same record, another seed another", seed),
    Rule("control tokens", f"none is ever sampled: ids below {VOCAB}", control),
    Rule("resume", "killed and resumed is uninterrupted, bit for bit", resume),
    Rule("base weights", "the reference and the base policy are untouched", untouched),
    Rule("base returns", f"strong regularisation: KL(policy || base) < {CLOSE} nats", base_returns),
    Rule("reward rises", "on an easy task, beyond three errors and a tenth of what is missing", reward_rises),
)
