"""Filtering: which documents are learned."""

from __future__ import annotations

import pytest
import torch
from scored_documents import Shelf
from trials import new_trial

from harness.core.types import Documents
from harness.methods.filtering import Filtering, FilteringSettings
from harness.training import corpus


def test_filtering_learns_the_good_documents_only(monkeypatch):
    """Documents of reward 0.6, 0.6 and 0.4: those below the median 0.6 are thrown away."""
    seen: list[Documents] = []
    nll = corpus.nll
    monkeypatch.setattr(corpus, "nll", lambda trial, d: seen.append(d) or nll(trial, d))
    trial = new_trial(task=Shelf(), updates=6)
    method = Filtering(FilteringSettings(batch_size=8, mle_share=0.5))
    got = [scalars for _, scalars in zip(range(6), method.train(trial), strict=False)]
    assert all(row["threshold"] == pytest.approx(0.6) for row in got)
    first, last = (torch.cat([corpus.document_rewards(d) for d in part]) for part in (seen[:3], seen[3:]))
    assert len(first) == len(last) == 24
    assert (last >= 0.6 - 1e-6).all() and (first < 0.5).any()  # the first half of the budget takes all
