"""`harness check task`: every task holds the rules, and each planted fault fails its own."""

import copy

import pytest
import torch

from harness.conformance import task_rules
from harness.conformance.task_rules import Examined, examine
from harness.core.errors import BadScorer, EmptySelection, MissingPrerequisite
from harness.core.settings import resolve
from harness.core.types import Metric, Prompts
from harness.runs import assemble
from harness.tasks import TASKS


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_task_holds_the_rules(name):
    checks = task_rules.check_task(name)
    assert len(checks) == 11 and not [c for c in checks if c.held is False]


@pytest.fixture(scope="module")
def parts(few_prompts):
    return assemble.parts(resolve("micro", "base", "toxicity"), "toxicity", offline=True)


def examined(parts, again=None, only=None, **methods) -> dict[str, task_rules.Check]:
    """The checks of the task with some of its methods (or attributes) replaced, by name."""
    task = copy.copy(parts.task)
    replaced = {k: v for k, v in methods.items() if callable(v)}
    task.__class__ = type("Broken", (type(task),), replaced)
    vars(task).update({k: v for k, v in methods.items() if not callable(v)})
    broken = parts._replace(task=task)
    chosen = [rule for rule in task_rules.RULES if only in (None, rule[0]) or rule is task_rules.RULES[0]]
    return {c.name: c for c in examine(Examined(broken, again or (lambda: broken)), chosen)}


def failed(checks) -> set[str]:
    return {name for name, c in checks.items() if c.held is False}


def test_a_task_without_fault(parts):
    assert failed(examined(parts, again=lambda: parts)) == set()


def of(parts):
    return type(parts.task)


COUNTER = iter(range(10**6))
RANDOM = torch.Generator().manual_seed(0)
FAULTS = {  # a fault: what the class has instead, the rule that fails, words of what was found
    "decoding": (lambda T: {"decoding": 3}, "protocol", "wrong: decoding"),
    "fluency": (lambda T: {"fluency": "micro"}, "protocol", "wrong: fluency"),
    "kinds": (lambda T: {"prompts": lambda s, x: T.prompts(s, x)._replace(kinds=[])}, "prompts", "0 kinds"),
    "left out": (lambda T: {"prompts": lambda s, x: _without_mask(T.prompts(s, x))}, "prompts", "mask torch.int64"),
    "right-padded": (lambda T: {"prompts": lambda s, x: _flipped(T.prompts(s, x))}, "prompts", "not on the left"),
    "shuffled": (lambda T: {"prompts": lambda s, x: _turned(T.prompts(s, x))}, "prompts", "a second call returns other"),
    "leaks": (lambda T: {"prompts": lambda s, x: T.prompts(s, "test")}, "splits", "in train and validation"),
    "empty": (lambda T: {"prompts": _raises(EmptySelection("no test prompts"))}, "prompts", "no test prompts"),
    "held out": (lambda T: {"train_prompts": lambda s, n, rng: _drawn(s, n, rng)}, "training prompts", "of them held"),
    "own generator": (
        lambda T: {"train_prompts": lambda s, n, rng: T.train_prompts(s, n, RANDOM)}, "training prompts", "gives other prompts",
    ),
    "no generator": (
        lambda T: {"train_prompts": lambda s, n, rng: T.train_prompts(s, n, torch.Generator())}, "training prompts", "the same",
    ),
    "too few": (lambda T: {"train_prompts": lambda s, n, rng: T.train_prompts(s, n - 1, rng)}, "training prompts", "for 64"),
    "documents": (lambda T: {"documents": lambda s, n, rng: T.documents(s, n, RANDOM)}, "documents", "other documents"),
    "segments": (lambda T: {"documents": lambda s, n, rng: _cut(T.documents(s, n, rng))}, "documents", "shapes"),
    "reward of a document": (lambda T: {"documents": lambda s, n, rng: _doubled(T.documents(s, n, rng))}, "documents", "to 2"),
    "above 1": (lambda T: {"reward": lambda s, r: T.reward(s, r) + 1}, "scores", "reward from 1"),
    "float64": (lambda T: {"judge": lambda s, r: T.judge(s, r).double()}, "scores", "judge: torch.float64"),
    "a column": (lambda T: {"judge": lambda s, r: T.judge(s, r)[:, None]}, "scores", "[16, 1]; expected float32 [16]"),
    "no score": (lambda T: {"reward": lambda s, r: T.reward(s, r) * torch.nan}, "scores", "every one is NaN"),
    "raises": (lambda T: {"reward": _raises(ZeroDivisionError("x"))}, "scores", "ZeroDivisionError: x"),
    "of a batch": (lambda T: {"judge": lambda s, r: T.judge(s, r) / len(r.response)}, "batch", "the judge differs alone"),
    "of the hour": (
        lambda T: {"reward": lambda s, r: T.reward(s, r) * 0 + 1 / (1 + next(COUNTER))}, "batch", "the reward differs again",
    ),
    "beyond the mask": (
        lambda T: {"texts": lambda s, r: T.texts(s, r._replace(response_mask=torch.ones_like(r.response_mask)))}, "texts",
        "texts differ",
    ),
    "fewer texts": (lambda T: {"texts": lambda s, r: T.texts(s, r)[1:]}, "texts", "15 texts of 16"),
    "a number": (lambda T: {"text_metrics": lambda s, texts: {"mine": 0.5}}, "metrics", "not a valid Metric: mine"),
    "no reason": (lambda T: {"paper_metrics": lambda s, said: {"m": Metric(None, None, 0)}}, "metrics", "valid Metric: m"),
    "no hash": (lambda T: {"identity": lambda s: {"task": {}}}, "identity", "has no data, decoding, fluency, scorers"),
    "a tuple": (lambda T: {"identity": lambda s: T.identity(s) | {"extra": (1, 2)}}, "identity", "when it is written"),
    "not a number": (lambda T: {"identity": lambda s: T.identity(s) | {"x": float("nan")}}, "identity", "ValueError"),
    "the clock": (lambda T: {"identity": lambda s: T.identity(s) | {"x": next(COUNTER)}}, "identity", "differ in x"),
    "network": (lambda T: {"text_metrics": lambda s, texts: _connect()}, "network", "tried "),
}  # fmt: skip


def _without_mask(found):
    return found._replace(prompts=Prompts(found.prompts.tokens, found.prompts.mask.long()))


def _flipped(found):
    return found._replace(prompts=Prompts(*(x.flip(1) for x in found.prompts)))


def _turned(found):
    k = next(COUNTER) % len(found.texts)
    return found._replace(texts=found.texts[k:] + found.texts[:k])


def _drawn(task, n, rng):
    prompts = task.prompts("test").prompts
    rows = torch.randint(len(prompts.tokens), (n,), generator=rng)
    return Prompts(*(x[rows] for x in prompts))


def _cut(found):
    return found._replace(segment=found.segment[:, 1:])


def _doubled(found):
    return found._replace(reward=found.reward * 0 + 2)


def _raises(error):
    def raising(*args):
        raise error

    return raising


def _connect():
    import socket

    try:
        socket.create_connection(("127.0.0.1", 9), 1)
    except OSError:
        return {}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_fails_its_rule(parts, fault):
    make, rule, said = FAULTS[fault]
    checks = examined(parts, only="metrics" if rule == "network" else rule, **make(of(parts)))
    assert rule in failed(checks) and said in checks[rule].found, checks[rule]


def test_a_task_without_documents(parts):
    checks = examined(parts, documents=_raises(EmptySelection("none")))
    assert checks["documents"].held is None


def test_what_is_missing_here_is_no_fault_of_the_task(parts):
    with pytest.raises(MissingPrerequisite):
        examined(parts, reward=_raises(MissingPrerequisite("no model")))
    checks = examined(parts, reward=_raises(BadScorer("scores above 1")))
    assert checks["scores"].held is False and "scores above 1" in checks["scores"].found
