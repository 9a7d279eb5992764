"""A model that is read with and without a text before the prompt: its formula, samples, divergence and folder."""

from __future__ import annotations

import math

import pytest
import torch
import world
from hand_worked import batch
from tiny import BOS, TINY, left_padded, ragged_rows, rng, tiny_gpt2

from harness.core.errors import BadData, BadSetting
from harness.core.types import Decoding, Rollout
from harness.measure.evaluator import divergence
from harness.policy.load_check import check_model
from harness.policy.loading import load_model
from harness.policy.logprobs import token_logprobs
from harness.policy.models.debiased import SelfDebiased, debiased
from harness.policy.policy import Policy
from harness.policy.sampler import sample

TOLD = (7, 3, 11)


def told_policy(decay: float = 4.0, make=tiny_gpt2, told=TOLD) -> Policy:
    base = make()
    return base.around(SelfDebiased(base.model, told, decay, BOS))


def test_the_formula_of_the_paper_on_three_tokens():
    """p (0.5, 0.3, 0.2), with the text (0.2, 0.6, 0.2): the second token loses exp(-0.3 lambda), the others nothing."""
    found = debiased(torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.6, 0.2]).log(), 10.0).softmax(-1)
    weights = [0.5, 0.3 * math.exp(-3.0), 0.2]
    assert found.tolist() == pytest.approx([w / sum(weights) for w in weights], abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("make", TINY.values(), ids=TINY)
def test_the_logits_are_those_of_two_readings_of_each_row(make):
    """The text stands after the BOS of a prompt that has one, else before the prompt."""
    policy, plain = told_policy(make=make), make().model
    prompts = left_padded([[5, 6], [BOS, 7, 8, 9], [8], [BOS]])
    response = torch.tensor([[2, 3, 4], [4, 1, 1], [10, 11, 2], [3, 9, 5]])
    part = Rollout(prompts, response, torch.tensor([[True] * 3, [True, True, False], [True] * 3, [True] * 3]))
    logits = policy.logits(part)
    for i, (prompt, size) in enumerate([([5, 6], 3), ([BOS, 7, 8, 9], 2), ([8], 3), ([BOS], 3)]):
        opening = [BOS] if prompt[0] == BOS else []
        told = [*opening, *TOLD, *prompt[len(opening) :]]
        for t in range(size):
            said = response[i, :t].tolist()
            p, q = (plain(input_ids=torch.tensor([x + said])).logits[0, -1].softmax(-1) for x in (prompt, told))
            expected = p * torch.where(p < q, (4.0 * (p - q)).exp(), 1.0)
            torch.testing.assert_close(logits[i, t].softmax(-1), expected / expected.sum(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_decay_0_is_the_base():
    part = batch()
    found, mask = told_policy(decay=0.0).logits(part), part.response_mask
    torch.testing.assert_close(found[mask], tiny_gpt2().logits(part)[mask], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("make", TINY.values(), ids=TINY)
def test_with_its_caches_it_is_the_one_without(make):
    policy, prompts = told_policy(make=make), left_padded([*ragged_rows(), [BOS, 4], [BOS]])
    drawn = sample(policy, prompts, decoding=Decoding(max_new_tokens=9, temperature=3.0), rng=rng(), n=5)
    lengths = drawn.response_mask.sum(1)
    assert (lengths < 9).sum() > 5 and (lengths == 9).any()
    uncached = token_logprobs(policy.logits(drawn), drawn.response).masked_fill(~drawn.response_mask, 0)
    torch.testing.assert_close(drawn.logprobs, uncached, atol=1e-4, rtol=0)
    check_model(policy, "here")


def test_its_divergence_is_exact():
    """Against the enumerated world, whose tables come from the combined logits of every path."""
    base = world.policy()
    policy = base.around(SelfDebiased(base.model, (3,), 8.0, base.bos))
    exact = world.kl(world.log_probs(policy), world.log_probs(base)).mean()
    drawn = sample(policy, world.prompts(), decoding=Decoding(max_new_tokens=world.STEPS), rng=rng(), n=200)
    per_prompt = divergence(policy, base, drawn).kl.view(8, -1).double()
    stderr = float((per_prompt.var(1) / per_prompt.shape[1]).sum().sqrt()) / 8
    assert exact > 0.02 and abs(float(per_prompt.mean()) - exact) < 4 * stderr < 0.3 * exact


def test_it_survives_its_folder_and_is_no_base(tmp_path):
    policy, part = told_policy(), batch()
    policy.save(tmp_path)
    again = Policy.load(tmp_path)
    assert isinstance(again.model, SelfDebiased) and again.passes == 2 and again.context == 32 - len(TOLD)
    assert torch.equal(again.logits(part), policy.logits(part))
    with pytest.raises(BadData, match=r"debiased\.json.*harness eval --policy .*/base"):
        load_model(str(tmp_path))


def test_a_text_that_leaves_no_room_is_refused():
    with pytest.raises(BadSetting, match=r"has 30 tokens, prompt and response 4, .* reads 32 at once; shorten"):
        told_policy(told=(3,) * 30).logits(batch())
