"""Three models as one policy: its logits, samples, divergence, folder and price."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import world
from hand_worked import batch
from scipy import stats
from tiny import left_padded, ragged_rows, rng, tiny_gpt2
from toy_task import toy_policy
from trials import new_trial

from harness.core.errors import BadData
from harness.core.types import Decoding, Rollout
from harness.measure.evaluator import divergence
from harness.policy.logprobs import token_logprobs
from harness.policy.models.ensemble import Ensemble
from harness.policy.policy import Policy
from harness.policy.sampler import sample


def assembled(alpha: float = 1.5, make=tiny_gpt2) -> Policy:
    parts = [make(seed=s).model for s in (0, 1, 2)]
    return make(seed=0).around(Ensemble(*parts, alpha=alpha))


@torch.no_grad()
def test_the_logits_of_an_ensemble_are_the_formula():
    policy, part = assembled(), batch()
    base, expert, anti_expert = (tiny_gpt2(seed=s).logits(part) for s in (0, 1, 2))
    expected, mask = base + 1.5 * (expert - anti_expert), part.response_mask
    torch.testing.assert_close(policy.logits(part)[mask], expected[mask], atol=1e-4, rtol=0)
    torch.testing.assert_close(assembled(alpha=0.0).logits(part)[mask], base[mask], atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_ensemble_is_sampled_as_its_formula_says():
    """Pairs of tokens, against the probabilities of three separate forward passes."""
    policy, prompt, n = assembled(alpha=0.7), [3, 4], 20_000
    drawn = sample(policy, left_padded([prompt]), decoding=Decoding(max_new_tokens=2), rng=rng(), n=n)
    pairs = torch.tensor([[a, b] for a in range(12) for b in range(12)])
    logits = [tiny_gpt2(seed=s).model(input_ids=torch.cat([torch.tensor([prompt] * 144), pairs], 1)).logits for s in (0, 1, 2)]
    steps = (logits[0] + 0.7 * (logits[1] - logits[2])).log_softmax(-1)
    logp = steps[:, 1].gather(1, pairs[:, :1]) + steps[:, 2].gather(1, pairs[:, 1:])
    p, first = logp.exp().flatten().double().numpy(), pairs[:, 0].numpy()
    ends = first == 1  # after an EOS nothing more is drawn: one outcome
    law = np.append(p[~ends], p[ends].sum())
    code = (drawn.response[:, 0] * 12 + drawn.response[:, 1]).numpy()
    seen = np.bincount(code, minlength=144)
    counts = np.append(seen[~ends], seen[ends].sum())
    common = law * n > 5
    expected = np.append(law[common], law[~common].sum()) * n
    got = np.append(counts[common], counts[~common].sum())
    assert law.sum() == pytest.approx(1, abs=1e-5)
    assert stats.chisquare(got, expected / expected.sum() * n).pvalue > 1e-3


@torch.no_grad()
def test_an_ensemble_with_its_caches_is_the_one_without():
    """Greedy token by token, and sampled with rows that end early: the caches repeat and lose rows together."""
    policy, prompts = assembled(), left_padded(ragged_rows())
    greedy = sample(policy, prompts, decoding=Decoding(max_new_tokens=6, temperature=0), rng=rng())
    for row in range(4):
        text = prompts.tokens[row][prompts.mask[row]].tolist()
        for t in range(int(greedy.response_mask[row].sum())):
            logits = policy.logits(Rollout(left_padded([text]), torch.tensor([[0]]), torch.tensor([[True]])))[0, 0]
            assert greedy.response[row, t] == logits.argmax()
            text.append(int(logits.argmax()))
    policy.eos = int(greedy.response[0, 3])
    policy.ends = (policy.eos,)
    drawn = sample(policy, prompts, decoding=Decoding(max_new_tokens=9, temperature=3.0), rng=rng(), n=5)
    lengths = drawn.response_mask.sum(1)
    assert (lengths < 9).sum() > 5 and (lengths == 9).any()
    uncached = token_logprobs(policy.logits(drawn), drawn.response).masked_fill(~drawn.response_mask, 0)
    torch.testing.assert_close(drawn.logprobs, uncached, atol=1e-4, rtol=0)


def test_the_divergence_of_an_ensemble_is_exact():
    """Against the enumerated world, whose tables come from the combined logits of every path."""
    base = world.policy()
    expert, anti_expert = world.perturbed(base, 0.2, seed=1), world.perturbed(base, 0.2, seed=2)
    policy = base.around(Ensemble(base.model, expert.model, anti_expert.model, alpha=1.2))
    exact = world.kl(world.log_probs(policy), world.log_probs(base)).mean()
    drawn = sample(policy, world.prompts(), decoding=Decoding(max_new_tokens=world.STEPS), rng=rng(), n=800)
    per_prompt = divergence(policy, base, drawn).kl.view(8, -1).double()
    stderr = float((per_prompt.var(1) / per_prompt.shape[1]).sum().sqrt()) / 8
    assert exact > 0.05 and abs(float(per_prompt.mean()) - exact) < 4 * stderr < 0.08 * exact


def test_an_ensemble_survives_its_folder(tmp_path):
    policy, part = assembled(), batch()
    policy.save(tmp_path)
    again = Policy.load(tmp_path)
    assert isinstance(again.model, Ensemble) and again.model.alpha == 1.5 and again.context == 32
    assert torch.equal(again.logits(part), policy.logits(part))
    assert torch.equal(policy.frozen_copy().logits(part), policy.logits(part))
    (tmp_path / "expert" / "model.safetensors").unlink()
    with pytest.raises(BadData, match="cannot load a causal language model"):
        Policy.load(tmp_path)


def test_an_ensemble_costs_three_passes():
    trial = new_trial(assembled(make=lambda seed: tiny_gpt2(seed=seed, eos=99)), reference=toy_policy().frozen_copy())
    prompts = trial.prompts(4)
    length = int(prompts.mask.sum())
    rollout = trial.sample(prompts)
    assert trial.cost.sampled_tokens == 20 and trial.cost.forward_tokens == length + 2 * (length + 20)
    assert trial.cost.flops == 2 * trial.cost.parameters * 3 * (length + 20)
    with torch.no_grad():
        trial.policy.logits(rollout)
    assert trial.cost.flops == 2 * trial.cost.parameters * 6 * (length + 20)
