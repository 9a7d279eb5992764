"""Conditional pretraining: where the control tokens stand, its loss by hand, and what is deployed."""

from __future__ import annotations

import pytest
import torch
from hand_worked import Bench
from scipy import stats
from scored_documents import WHOLE, Shelf, documents, mean
from tiny import left_padded, rng
from trials import new_trial

from harness.core.types import Documents, Rollout
from harness.methods.conditional_pretraining import ConditionalPretraining, ConditionalPretrainingSettings, first_is_scored
from harness.training import corpus


def conditional(**settings) -> ConditionalPretraining:
    return ConditionalPretraining(ConditionalPretrainingSettings(**settings))


def test_control_tokens_stand_before_their_segments():
    bench, found = Bench(), corpus.whole(documents())
    opening, control = conditional(drop=0.0)._control(bench, found, 0.5, bad=12, good=13)
    assert opening[[0, 2]].tolist() == [13, 12]
    # the second segment of the first document is bad, that of the second good; what is unscored has none of its own
    assert [row.tolist() for row in control] == [[-1] * 4 + [12] + [-1] * 2, [-1] * 3 + [13] + [-1] * 3, [-1] * 7]
    opening, control = conditional(drop=1.0)._control(bench, found, 0.5, bad=12, good=13)
    assert opening.tolist() == [12, 13, 12] and (control == -1).all()  # the only token speaks for the whole document


def long_documents(n: int) -> Documents:
    """n documents of eight segments of two tokens, the last of reward 0, the others of reward 1."""
    response = torch.randint(2, 12, (n, 16), generator=rng(4))
    segment = (torch.arange(16) // 2).expand(n, -1)
    rollout = Rollout(left_padded([[0]] * n), response, torch.ones(n, 16, dtype=torch.bool))
    return Documents(rollout, segment, (segment < 7).float())


def test_a_token_speaks_for_all_segments_up_to_the_next():
    n = 400
    opening, control = conditional(drop=0.25)._control(Bench(), long_documents(n), 0.5, bad=12, good=13)
    inner = control[:, 2::2]
    assert stats.binomtest(int((inner >= 0).sum()), n * 7, 0.75).pvalue > 1e-3
    assert (control[:, 1::2] == -1).all() and (control[:, 0] == -1).all()
    for first, row in zip(opening.tolist(), inner.tolist(), strict=True):
        tokens = [first, *(t for t in row if t >= 0)]
        assert tokens == [13] * (len(tokens) - 1) + [12]  # the last token of each document speaks for its bad end


def test_the_loss_of_conditional_pretraining_by_hand():
    bench = Bench()
    bad, good = bench.policy.control_tokens(2, rng()).tolist()
    found = corpus.whole(documents()).rows(torch.tensor([0, 2]))
    opening, control = conditional(drop=0.0)._control(bench, found, 0.5, bad, good)
    loss = conditional()._loss(bench, found, opening, control)
    texts = [[0, good, 5, 6, 2, 3, bad, 4, 8, 1], [0, bad, 4, 4, 1]]
    terms = []
    for text in texts:
        log_p = bench.policy.model(input_ids=torch.tensor([text])).logits[0, :, :12].log_softmax(-1)
        terms += [-log_p[t - 1, token] for t, token in enumerate(text) if t > 0 and token < 12]
    assert len(terms) == 10 and loss.item() == pytest.approx(mean(terms), abs=1e-5)


def test_the_deployed_policy_answers_behind_good_and_never_says_it():
    trial = new_trial(task=Shelf(), updates=4)
    seen = []
    for _, _scalars in zip(range(4), conditional(batch_size=8, mle_share=0.5).train(trial), strict=False):
        seen.append(trial.policy.prefix)
    assert seen == [(), (), (13,), (13,)]
    with torch.no_grad():  # however much the model wants to say one
        trial.policy.model.transformer.wte.weight[12:] *= 50
    rollout = trial.sample(trial.prompts(200))
    assert int(rollout.response.max()) < 12 == trial.policy.vocab_size
    assert [t.tolist() for t in trial.policy.condition(left_padded([[0, 5], [6, 7]])).tokens] == [[0, 13, 5], [13, 6, 7]]


def test_a_document_whose_first_segment_is_unscored_is_not_used():
    trial = new_trial(task=Shelf())
    found = corpus.draw(trial, 30, first_is_scored)
    assert {tuple(r[m].tolist()) for r, m in zip(found.rollout.response, found.rollout.response_mask, strict=True)} == {
        tuple(WHOLE[0][0]),
        tuple(WHOLE[2][0]),
    }
