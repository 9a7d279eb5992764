"""Seconds by activity, on a clock that the test moves."""

from __future__ import annotations

import pytest

from harness.training import clock
from harness.training.clock import Clock


@pytest.fixture
def hand(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    return now


def test_only_the_inner_activity_counts(hand):
    made = Clock({"loading": 2.0})
    with made.at("training"):
        hand[0] += 1
        with made.at("sampling"):
            hand[0] += 10
        hand[0] += 3
        with made.at("sampling"):
            hand[0] += 20
    hand[0] += 1000  # of no activity
    with made.at("loading"):
        hand[0] += 0.5
    assert made.seconds == {"loading": 2.5, "training": 4.0, "sampling": 30.0}


def test_an_error_ends_an_activity(hand):
    made = Clock()
    with pytest.raises(ValueError), made.at("scoring"):
        hand[0] += 1
        raise ValueError
    hand[0] += 5
    with made.at("writing"):
        hand[0] += 2
    assert made.seconds == {"scoring": 1.0, "writing": 2.0}
