"""The conformance rules of tasks, checked on the prompts of the preset `micro`: `harness check task NAME`.

Responses are sampled from the base policy or built from unusual texts; nothing is trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import EmptySelection
from harness.core.hashing import canonical
from harness.core.types import Decoding, Metric, Prompts, PromptSet, Responses, Rollout
from harness.policy.sampler import sample
from harness.runs import assemble, named

from .play import Check, applied
from .sandbox import no_network, own_randomness
from .texts import texts

SPLITS = ("train", "validation", "test")
PROMPTS, EACH, DRAWN = 8, 2, 64
CLOSE = 1e-5
IDENTITY = {"task", "data", "scorers", "fluency", "decoding"}
Finding = tuple[bool | None, str]
Rule = tuple[str, str, Callable[["Examined"], Finding]]


class Examined:
    """A task under check with the base policy and its tokenizer; `again` builds an equal one."""

    def __init__(self, parts: assemble.Parts, again: Callable[[], assemble.Parts]) -> None:
        self.parts, self.task, self.again = parts, parts.task, again

    @cached_property
    def sets(self) -> dict[str, PromptSet]:
        return {split: self.task.prompts(split) for split in SPLITS}

    @cached_property
    def rollout(self) -> Rollout:
        """Responses of the base policy to the first test prompts: [PROMPTS * EACH, R]."""
        prompts = Prompts(*(x[:PROMPTS] for x in self.sets["test"].prompts))
        return sample(self.parts.model.policy, prompts, decoding=self.task.decoding, rng=_rng(0), n=EACH)

    @cached_property
    def odd(self) -> Rollout:
        """Unusual texts as responses to the first test prompts, with arbitrary tokens outside the mask."""
        tokenizer, width = self.parts.model.tokenizer, self.task.decoding.max_new_tokens
        responses = [r.encode("utf-8", "replace").decode() for r in texts()[1]]
        ids = [row[:width] for r in responses if (row := tokenizer(r, add_special_tokens=False).input_ids)]
        response = torch.tensor([row + [7] * (width - len(row)) for row in ids])
        mask = torch.arange(width) < torch.tensor([[len(row)] for row in ids])
        rows = torch.arange(len(ids)) % min(PROMPTS, len(self.sets["test"].texts))
        return Rollout(Prompts(*(x[rows] for x in self.sets["test"].prompts)), response, mask)


def check_task(name: str) -> list[Check]:
    """Check all rules on one task, by its name or its file, with its settings in the preset `micro`.

    Raises UnknownName, BadSetting, MissingPrerequisite, BadData if it cannot be built.
    """
    settings = named.settings("micro", "base", name)
    assemble.check(settings, "base")

    def build() -> assemble.Parts:
        return assemble.parts(settings, name, offline=True)

    return examine(Examined(build(), build))


def examine(subject: Examined, rules: Sequence[Rule] | None = None) -> list[Check]:
    """Check some rules, or all, on a task that can be built; the first is a precondition of the others."""
    rules = RULES if rules is None else rules
    with own_randomness(), no_network() as attempts:
        checks = [_applied(rules[0], subject)]
        if checks[0].held:
            checks += [_applied(rule, subject) for rule in rules[1:]]
    found = f"tried {attempts[0]}" if attempts else "none"
    return [*checks, Check("network", "no connection is attempted", found, not attempts)]


def _applied(rule: tuple[str, str, Callable[[Examined], Finding]], subject: Examined) -> Check:
    name, expected, look = rule
    return applied(name, expected, partial(look, subject))


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def protocol(s: Examined) -> Finding:
    """Check the attributes of the built task, and that its decoding is not truncated."""
    t = s.task
    right = {
        "name": isinstance(t.name, str), "version": type(t.version) is int, "decoding": isinstance(t.decoding, Decoding),
        "paper_decodings": all(isinstance(d, Decoding) for d in t.paper_decodings.values()),
        "fluency": t.fluency is None or callable(getattr(t.fluency, "nll", None)), "hygiene": isinstance(t.hygiene, dict),
    }  # fmt: skip
    wrong = [name for name, good in right.items() if not good]
    if not wrong and t.decoding.model_dump() != Decoding(max_new_tokens=t.decoding.max_new_tokens).model_dump():
        return False, "decoding is truncated or not at temperature 1"
    return not wrong, f"wrong: {', '.join(wrong)}" if wrong else "complete"


def _prompt_fault(prompts: Prompts, n: int) -> str | None:
    tokens, mask = prompts
    if tokens.dtype != torch.int64 or mask.dtype != torch.bool or tokens.shape != mask.shape or len(tokens) != n:
        return f"tokens {tokens.dtype} {list(tokens.shape)}, mask {mask.dtype} {list(mask.shape)} for {n} prompts"
    if (mask[:, :-1] & ~mask[:, 1:]).any() or not mask[:, -1].all():
        return "padding that is not on the left"
    return None


def prompts(s: Examined) -> Finding:
    """Check that each split has left-padded prompts that are the same in each call."""
    for split, found in s.sets.items():
        n, again = len(found.texts), s.task.prompts(split)
        if n == 0 or len(found.kinds) != n:
            return False, f"{split}: {n} texts and {len(found.kinds)} kinds"
        if fault := _prompt_fault(found.prompts, n):
            return False, f"{split}: {fault}"
        if again.texts != found.texts or not torch.equal(again.prompts.tokens, found.prompts.tokens):
            return False, f"{split}: a second call returns other prompts"
    return True, ", ".join(f"{len(found.texts)} {split}" for split, found in s.sets.items())


def apart(s: Examined) -> Finding:
    """Check that no prompt is in two splits, the empty prompt excepted."""
    sets = {split: set(found.texts) - {""} for split, found in s.sets.items()}
    pairs = [(a, b) for i, a in enumerate(SPLITS) for b in SPLITS[i + 1 :]]
    shared = [f"{len(sets[a] & sets[b])} in {a} and {b}" for a, b in pairs if sets[a] & sets[b]]
    return not shared, ", ".join(shared) or "no prompt in two splits"


def training(s: Examined) -> Finding:
    """Check that training prompts come from the train split and depend on the generator only."""
    first, second, other = (s.task.train_prompts(DRAWN, _rng(seed)) for seed in (0, 0, 1))
    if fault := _prompt_fault(first, DRAWN):
        return False, fault
    if not torch.equal(first.tokens, second.tokens):
        return False, "the same generator gives other prompts"
    if torch.equal(first.tokens, other.tokens):
        return False, "another generator gives the same prompts"
    known, held_out = (_rows(*(s.sets[split].prompts for split in of)) for of in (("train",), ("validation", "test")))
    lost = [row for row in _rows(first) if row not in known]
    leaked = [row for row in lost if row in held_out]
    return not lost, f"{len(lost)} are not in the train split, {len(leaked)} of them held out" if lost else f"{DRAWN} drawn"


def _rows(*sets: Prompts) -> set[tuple[int, ...]]:
    """The token sequences of prompts without padding."""
    return {tuple(row[len(row) - n :]) for p in sets for row, n in zip(p.tokens.tolist(), p.mask.sum(1).tolist(), strict=True)}


def documents(s: Examined) -> Finding:
    """Check shapes, range and reproducibility of the documents, if the task has any."""
    try:
        found, again = (s.task.documents(8, _rng(0)) for _ in range(2))
    except EmptySelection:
        return None, "does not apply: it has none"
    shapes = {x.shape for x in (found.rollout.response, found.rollout.response_mask, found.segment, found.reward)}
    if len(shapes) != 1 or len(found.reward) != 8:
        return False, f"shapes {sorted(map(list, shapes))} for 8 documents"
    if not torch.equal(found.rollout.response, again.rollout.response):
        return False, "the same generator gives other documents"
    return _range(found.reward, found.reward.shape, "reward")


def _range(values: Tensor, expected: torch.Size, what: str) -> Finding:
    if values.shape != expected or values.dtype != torch.float32:
        return False, f"{what}: {values.dtype} {list(values.shape)}; expected float32 {list(expected)}"
    scored = values[~values.isnan()]
    if not len(scored):
        return False, f"{what}: every one is NaN"
    return bool(((scored >= 0) & (scored <= 1)).all()), f"{what} from {scored.min():.3g} to {scored.max():.3g}"


def scores(s: Examined) -> Finding:
    """Check shape, dtype and range of reward and judge scores."""
    words = []
    for what, score in (("reward", s.task.reward), ("judge", s.task.judge)):
        for rollout in (s.rollout, s.odd):
            held, found = _range(score(rollout), torch.Size([len(rollout.response)]), what)
            if not held:
                return False, found
            words.append(found)
    return True, ", ".join(words[::2])


def alone(s: Examined) -> Finding:
    """Check that the scores of a response are reproducible and do not depend on the batch."""
    for what, score in (("reward", s.task.reward), ("judge", s.task.judge)):
        whole = score(s.rollout)
        single = torch.cat([score(s.rollout.rows(torch.tensor([i]))) for i in range(len(whole))])
        for word, found in (("again", score(s.rollout)), ("alone", single)):
            if not torch.allclose(found, whole, rtol=0, atol=CLOSE, equal_nan=True):
                return False, f"the {what} differs {word}"
    return True, f"1 against {len(s.rollout.response)}: within {CLOSE:g}"


def said(s: Examined) -> Finding:
    """Check that decoding returns the encoded texts and ignores tokens outside the mask."""
    found = s.task.texts(s.rollout)
    if len(found) != len(s.rollout.response) or not all(isinstance(text, str) for text in found):
        return False, f"{len(found)} texts of {len(s.rollout.response)} responses"
    rows = [row[:n] for row, n in zip(s.odd.response.tolist(), s.odd.response_mask.sum(1).tolist(), strict=True)]
    expected = s.parts.model.tokenizer.batch_decode(rows, skip_special_tokens=True)
    wrong = [a for a, b in zip(s.task.texts(s.odd), expected, strict=True) if a != b]
    return not wrong, f"{len(wrong)} of {len(expected)} texts differ" if wrong else f"{len(expected)} texts are the same"


def identity(s: Examined) -> Finding:
    """Check that the identity is complete, survives JSON, and is the same for an equal task."""
    made, other = s.parts.identity(), s.again().identity()
    missing = sorted(IDENTITY - set(made))
    if missing:
        return False, f"has no {', '.join(missing)}"
    if json.loads(canonical(made)) != made:
        return False, "it changes when it is written as JSON and read"
    differ = [key for key in made if canonical(made[key]) != canonical(other.get(key))]
    return not differ, f"two equal tasks differ in {', '.join(differ)}" if differ else ", ".join(made)


def measures(s: Examined) -> Finding:
    """Check the further metrics and the papers' metrics, on several prompts and on one."""
    flat, n = s.task.texts(s.rollout), len(s.rollout.response) // EACH
    rows = [flat[EACH * x : EACH * (x + 1)] for x in range(n)]
    judge = s.task.judge(s.rollout).double().numpy().reshape(n, EACH)
    answers = Responses(s.sets["test"].texts[:n], rows, judge)
    found = dict(s.task.text_metrics(rows))
    for part in (answers, answers.of([0])):
        if s.task.paper_decodings:
            found |= s.task.paper_metrics(dict.fromkeys(s.task.paper_decodings, part))
        wrong = [name for name, metric in found.items() if not isinstance(name, str) or not _is_metric(metric)]
        if wrong:
            return False, f"not a valid Metric: {', '.join(map(str, wrong))}"
    return True, ", ".join(found) or "none"


def _is_metric(metric: Any) -> bool:
    if not isinstance(metric, Metric):
        return False
    value = metric.value
    return bool(metric.reason) if value is None else isinstance(value, (float, int, np.floating)) and not math.isinf(value)


RULES: tuple[Rule, ...] = (
    ("protocol", "the attributes of harness.api.Task, and a decoding without truncation", protocol),
    ("prompts", "left-padded prompts in each split, the same in each call", prompts),
    ("splits", "no prompt is in two splits", apart),
    ("training prompts", "from the train split, decided by the generator only", training),
    ("documents", "decided by the generator only, rewards in [0, 1] or NaN", documents),
    ("scores", "reward and judge: float32 [B] in [0, 1] or NaN", scores),
    ("batch", "a response's scores do not depend on the others", alone),
    ("texts", "decoding an encoded text returns it", said),
    ("metrics", "numbers by name, or None with a reason", measures),
    ("identity", "strict JSON, the same for the same task", identity),
)
