"""The sampler against Hugging Face's `generate`: the same model, prompts, decoding and number of new tokens.

    pytest -n 0 benchmarks --benchmark-only

Nothing is asserted about time: the ratios are printed, and are in the JSON that --benchmark-json writes.
"""

from __future__ import annotations

import pytest
import torch
from paired import compare
from transformers import GPT2Config, GPT2LMHeadModel

from harness.core.types import Decoding, Prompts
from harness.policy.policy import Policy
from harness.policy.sampler import sample

VOCAB, NEW_TOKENS, NUM_PROMPTS, EOS = 1024, 24, 64, 0
ENDING = {"never ends": -100.0, "ends at 5% a token": -2.94}  # the logit of EOS against all other tokens together


class Ending(GPT2LMHeadModel):
    """A GPT-2 that ends a response with a fixed probability at each token, so that both samplers do the same work."""

    log_odds: float

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits[..., EOS] = out.logits[..., 1:].logsumexp(-1) + self.log_odds
        return out


def config() -> GPT2Config:
    """About a million parameters."""
    shape = {"vocab_size": VOCAB, "n_positions": 128, "n_embd": 128, "n_layer": 4, "n_head": 4}
    return GPT2Config(**shape, initializer_range=0.05, bos_token_id=EOS, eos_token_id=EOS)


def new_policy(log_odds: float) -> Policy:
    """A random policy that ends its responses at a known rate."""
    torch.manual_seed(0)
    model = Ending(config())
    model.log_odds = log_odds
    return Policy(model, bos=EOS, eos=EOS)


def ragged_prompts() -> Prompts:
    """Of 4 to 16 tokens, padded on the left."""
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCAB, (NUM_PROMPTS, 16), generator=rng)
    length = torch.randint(4, 17, (NUM_PROMPTS, 1), generator=rng)
    return Prompts(tokens, torch.arange(16) >= 16 - length)


@pytest.mark.parametrize("ending", ENDING)
@pytest.mark.parametrize("n", [1, 8])
def test_sampler_against_generate(n, ending, benchmark, capsys):
    torch.set_num_threads(1)
    policy, prompts, decoding = new_policy(ENDING[ending]), ragged_prompts(), Decoding(max_new_tokens=NEW_TOKENS)
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "pad_token_id": EOS, "eos_token_id": EOS}

    def ours():
        return sample(policy, prompts, decoding=decoding, rng=torch.Generator().manual_seed(0), n=n).response

    def theirs():
        mask = prompts.mask.long()
        tokens = policy.model.generate(
            prompts.tokens, attention_mask=mask, max_new_tokens=NEW_TOKENS, num_return_sequences=n, **options
        )
        return tokens[:, prompts.tokens.shape[1] :]

    assert ours().shape == theirs().shape  # neither stops before the other
    line = compare(benchmark, ours, theirs, ("sample", "generate"))
    with capsys.disabled():
        print(f"\n{NUM_PROMPTS} prompts x {n}, {NEW_TOKENS} tokens, {ending}: {line}")
