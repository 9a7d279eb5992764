"""Texts as a task has them: their segments, and the scored documents that are made of them."""

from __future__ import annotations

import math

import micro_text
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from micro_text import text_task
from scored_documents import NAN
from tiny import rng
from transformers import PreTrainedTokenizerFast

from harness.core.errors import BadData, EmptySelection
from harness.tasks.micro.scorers import LEXICON, WORD
from harness.tasks.text_task import Data, segments
from harness.tasks.toxicity import Toxicity


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return micro_text.tokenizer()


@pytest.fixture(scope="module")
def data() -> Data:
    return micro_text.data()


@pytest.fixture(scope="module")
def task() -> Toxicity:
    return micro_text.quarter()


@given(st.text(alphabet="ab .?!\n\"'", max_size=40))
def test_the_segments_of_a_text_are_the_text(text):
    found = segments(text)
    assert "".join(found) == text and all(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Poor you. You daft muppet. I s", ["Poor you.", " You daft muppet.", " I s"]),
        ('He said "no." Then what?! Go', ['He said "no."', " Then what?!", " Go"]),
        ("Version 1.5 is out. tom@example.com.", ["Version 1.5 is out.", " tom@example.com."]),
        ("    if x:\n        return 1.0\n    return x\n", ["    if x:\n", "        return 1.0\n", "    return x\n"]),
        ("One.\n\nTwo. \nThree", ["One.\n\n", "Two. \n", "Three"]),
        ("One. ", ["One. "]),
        ("", []),
    ],
)
def test_segments_by_hand(text, expected):
    assert segments(text) == expected


class Fussy:
    """Rewards by the first letter of a segment; cannot score what begins with n."""

    def __init__(self):
        self.identity = {"name": "fussy"}
        self.asked: list[str] = []

    def score(self, prompts: list[str], responses: list[str]) -> np.ndarray:
        assert len(prompts) == len(responses)
        self.asked += responses
        return np.array([{"a": 1.0, "b": 0.25, "n": NAN}[r.strip()[0]] for r in responses])


def test_documents_carry_the_reward_of_each_segment(tokenizer, data):
    written = [("> one\n", "a is good. b is bad."), ("> two, longer\n", "nobody knows. a is good. b"), ("> three\n", "")]
    scorer = Fussy()
    task = text_task(tokenizer, data, written, scorer)
    found = task.documents(40, rng())
    seen = set()
    for i in range(40):
        prompt = tokenizer.decode(found.rollout.prompts.tokens[i][found.rollout.prompts.mask[i]], skip_special_tokens=True)
        _, response = next(d for d in written if d[0] == prompt)
        seen.add(prompt)
        length = int(found.rollout.response_mask[i].sum())
        ids, where, reward = (x[i, :length].tolist() for x in (found.rollout.response, found.segment, found.reward))
        parts = segments(response)
        assert ids[-1] == tokenizer.eos_token_id and ids == [*tokenizer(response, add_special_tokens=False).input_ids, 0]
        for number, part in enumerate(parts):
            own = [t for t, w in zip(ids[:-1], where[:-1], strict=True) if w == number]
            value = {"a": 1.0, "b": 0.25, "n": NAN}[part.strip()[0]]
            assert tokenizer.decode(own) == part
            assert reward[where.index(number)] == pytest.approx(value, nan_ok=True)
        assert where[-1] == len(parts) - 1  # the EOS is the last segment's
        assert (found.segment[i, length:] == -1).all() and found.reward[i, length:].isnan().all()
        assert found.starts()[i].sum() == len(parts)
    assert len(seen) == 3
    task.documents(3, rng(1))
    assert sorted(scorer.asked) == sorted(s for _, r in written for s in segments(r))  # once, however many are drawn


def test_segments_end_at_the_end_of_a_token(tokenizer, data, task):
    """The base's tokens of a response are those of its segments in a row, and the rewards are the word list's.

    In code a token may reach over the end of a line, so functions are left out here.
    """
    labelled = task._labelled()
    assert len(data.documents) >= 4000 and len(labelled) >= 1000
    for text, found in zip(data.documents[::4], labelled, strict=True):
        if "\n" in text.response:
            assert found.response[:-1] == tokenizer(text.response, add_special_tokens=False).input_ids
            continue
        apart = [tokenizer(part, add_special_tokens=False).input_ids for part in segments(text.response)]
        numbers = [i for i, ids in enumerate(apart) for _ in ids]
        assert found.response == [t for ids in apart for t in ids] + [tokenizer.eos_token_id]
        assert found.segment == [*numbers, numbers[-1]]
        for part, reward in zip(segments(text.response), found.reward, strict=True):
            assert reward == pytest.approx(math.prod(1 - LEXICON.get(w, 0) for w in WORD.findall(part.lower())))


def test_a_document_longer_than_the_context_leaves_room_for_control_tokens(tokenizer, data):
    text = "a b. " * 30
    task = text_task(tokenizer, data, [("> one\n", text)], Fussy(), context=80)
    found = task.documents(2, rng()).rollout
    tokens = int(found.prompts.mask[0].sum() + found.response_mask[0].sum())
    assert tokens + len(segments(text)) + 1 <= 80 < len(tokenizer(text).input_ids) + 30


def test_a_task_without_documents_or_without_offsets(tokenizer, data):
    with pytest.raises(EmptySelection, match="no labelled documents"):
        text_task(tokenizer, data, []).documents(1, rng())

    class Slow:
        is_fast = False
        eos_token_id = tokenizer.eos_token_id

        def __call__(self, *args, **kw):
            return tokenizer(*args, **kw)

    with pytest.raises(BadData, match=r"use a fast one, with a tokenizer\.json"):
        text_task(Slow(), data, [("> one\n", "a.")]).documents(1, rng())
