"""The shipped prompts of the micro world: enough of them, and no training prompt that resembles a held-out one."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from difflib import SequenceMatcher

import pytest

from harness.core.settings import read_preset
from harness.tasks import TASKS
from harness.tasks.micro import grammar, splits, world

LIKE = 0.8  # ratio of matching words above which two prompts of a kind are alike


@pytest.fixture(scope="module")
def shipped() -> list[dict[str, str]]:
    lines = gzip.decompress(world.verified("prompts.jsonl.gz").read_bytes()).decode().splitlines()
    return [json.loads(line) for line in lines]


def of(rows, split: str) -> list[dict[str, str]]:
    return [row for row in rows if row["split"] == split]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def runs(text: str) -> set[str]:
    found = words(text)
    return {" ".join(found[i : i + 7]) for i in range(len(found) - 6)}


def alike(text: str, other: str) -> bool:
    """True if most words match in order; of prose with its marks too. A bound in any order spares most of the work."""
    ways = (words,) if "def " in text else (words, str.split)  # of code only names are words
    for a, b in ((cut(text), cut(other)) for cut in ways):
        most = 2 * (Counter(a) & Counter(b)).total() / max(1, len(a) + len(b))
        if most > LIKE and max(SequenceMatcher(None, *x, autojunk=False).ratio() for x in ((a, b), (b, a))) > LIKE:
            return True
    return False


def kinds_of(task: str) -> tuple[str, ...]:
    from importlib import import_module

    module, _, name = TASKS[task][0].partition(":")
    return getattr(import_module(module), name).kinds


@pytest.mark.parametrize("task", [t for t, table in read_preset("micro")["tasks"].items() if table["prompts"] == "micro"])
def test_every_task_has_200_distinct_test_prompts(shipped, task):
    texts = [row["text"] for row in of(shipped, "test") if row["kind"] in kinds_of(task)]
    assert len(texts) == len(set(texts)) > 200


def test_the_unconditional_prompt_counts_once_where_it_is_measured(shipped):
    count = Counter(row["split"] for row in shipped if row["text"] == "")
    assert count == {"train": 300, "validation": 1, "test": 1}
    per_kind = Counter(row["kind"] for row in of(shipped, "train"))
    assert {per_kind[kind] for kind in grammar.TOXIC_KINDS} == {1000}


@pytest.mark.parametrize(("later", "earlier"), [("train", "test"), ("validation", "test"), ("train", "validation")])
def test_no_prompt_shares_seven_words_in_a_row_with_a_held_out_one(shipped, later, earlier):
    taken = {run for row in of(shipped, earlier) for run in runs(row["text"])}
    assert taken and not [row["text"] for row in of(shipped, later) if not taken.isdisjoint(runs(row["text"]))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", grammar.OPENED)
@pytest.mark.parametrize(("later", "earlier"), [("train", "test"), ("validation", "test")])
def test_no_prompt_is_like_a_held_out_one_of_its_kind(shipped, later, earlier, kind):
    held = [row["text"] for row in of(shipped, earlier) if row["kind"] == kind]
    assert held and not [
        row["text"] for row in of(shipped, later) if row["kind"] == kind and any(alike(row["text"], x) for x in held)
    ]


def test_a_sample_of_prompts_is_unlike_the_held_out_ones(shipped):
    """What the test above does for all, for every twentieth."""
    for row in of(shipped, "train")[::20]:
        assert not any(alike(row["text"], x["text"]) for x in of(shipped, "test") if x["kind"] == row["kind"] and row["text"])


def test_a_prompt_resembles_one_that_shares_a_run_or_most_words():
    held = splits.HeldOut()
    held.add([("calm", "> My bread is too dry. Any tips?\n"), ("heated", "one two three four five six seven eight nine")])
    assert held.resembles("calm", "> My cake is too dry. Any tips?\n")  # six of seven words in order
    assert not held.resembles("heated", "> My cake is too dry. Any tips?\n")  # of another kind, without a run
    assert not held.resembles("calm", "> Any tips? Dry is too my bread.\n")  # the same words in another order
    assert held.resembles("calm", "a b c two three four five six seven eight d e f")
    assert not held.resembles("calm", "a b c two three four five six seven d e f")


def test_a_grammar_with_too_few_prompts_is_refused(monkeypatch):
    monkeypatch.setattr(splits, "opening", lambda kind, rng: (f"{kind} {rng.randrange(3)}", None))
    with pytest.raises(ValueError, match="only 3 of 70 prompts of kind calm are unlike"):
        splits.split_prompts(random.Random(0))
