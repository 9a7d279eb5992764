"""What the methods that learn from scored text share: whole documents, their rewards, and which are drawn."""

from __future__ import annotations

import pytest
import torch
from scored_documents import NAN, WHOLE, Shelf, documents, known
from trials import new_trial

from harness.core.errors import RunFailed
from harness.training import corpus


def test_whole_documents():
    found = corpus.whole(documents())
    assert found.rollout.prompts.tokens.tolist() == [[0], [0], [0]] and found.rollout.prompts.mask.all()
    for i, (tokens, rewards) in enumerate(WHOLE):
        n = len(tokens)
        assert found.rollout.response[i, :n].tolist() == tokens and found.rollout.response_mask[i].sum() == n
        assert found.reward[i, :n].tolist() == pytest.approx([NAN if r is None else r for r in rewards], nan_ok=True)
        assert (found.segment[i, n:] == -1).all() and found.reward[i, n:].isnan().all()
        assert corpus.plain(found)[i, :n].tolist() == [r is None for r in rewards]
        assert corpus.scored(found)[i].tolist() == [r is not None and known(r) for r in rewards] + [False] * (7 - n)
    assert corpus.segment_rewards(found).tolist() == pytest.approx([1.0, 0.2, NAN, 0.6, 0.4], nan_ok=True)
    assert corpus.document_rewards(found).tolist() == pytest.approx([0.6, 0.6, 0.4])
    assert corpus.document_rewards(documents().rows(torch.tensor([1])))[0] == pytest.approx(0.6)
    unscored = documents()._replace(reward=documents().reward * NAN)
    assert corpus.document_rewards(unscored).isnan().all()


def test_the_threshold_is_a_reward_that_occurs():
    rewards = torch.tensor([0.0, 0.2, NAN, 0.5, 1.0, 1.0, 1.0])
    assert corpus.threshold(rewards, 0.5) == 0.5  # of 0, 0.2, 0.5, 1, 1, 1
    assert corpus.threshold(rewards, 0.9) == 1.0
    with pytest.raises(RunFailed, match=r"no reward of the corpus is below 0, its quantile 0\.1; raise the quantile"):
        corpus.threshold(rewards, 0.1)
    with pytest.raises(RunFailed, match="could be scored"):
        corpus.threshold(torch.tensor([NAN, NAN]), 0.5)


def test_wanted_documents_only_and_all_are_charged():
    trial = new_trial(task=Shelf())
    found = corpus.draw(trial, 50, lambda d: (d.reward < 0.3) & (d.segment == 1))
    assert found.segment.shape[0] == 50
    for i in range(50):
        assert found.rollout.response[i][found.rollout.response_mask[i]].tolist() == WHOLE[0][0]
    assert trial.cost.document_tokens > 3 * 50 * 3  # about a third of what was read is wanted
    assert trial.cost.scorer_calls > trial.cost.document_tokens / 4
    with pytest.raises(RunFailed, match="none of 5000 documents drawn can be used"):
        corpus.draw(trial, 50, lambda d: d.reward > 2)
