"""What differs on a GPU, against the processor: the captured step, draws without waiting, a whole update."""

from __future__ import annotations

import pytest
import torch
from tiny import left_padded, ragged_rows, rng, steered, tiny_gpt2, tiny_llama

from harness.core.errors import NotFinite
from harness.core.types import Decoding
from harness.policy import sampler
from harness.policy.decoding import Captured, Direct, OwnForward, decoder
from harness.policy.policy import Policy
from harness.policy.sampler import choose, sample

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DECODINGS = [{}, {"top_p": 0.9}, {"top_k": 5}, {"temperature": 0.0}]


@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
@pytest.mark.parametrize("kind", [tiny_gpt2, tiny_llama])
def test_the_same_responses_as_on_the_processor(kind, decoding):
    policy, prompts = steered(kind()), left_padded(ragged_rows())
    how = {"decoding": Decoding(max_new_tokens=12, **decoding), "n": 25, "batch_size": 50}
    here = sample(policy, prompts, rng=rng(), **how)
    there = sample(policy.to("cuda"), prompts, rng=rng(), **how)
    assert (there.response.cpu() == here.response).float().mean() > 0.99  # a draw at the edge of a token may round otherwise
    same = (there.response.cpu() == here.response).all(1)
    torch.testing.assert_close(there.logprobs.cpu()[same], here.logprobs[same], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [tiny_gpt2, tiny_llama])
def test_captured_direct_and_own_steps_agree(kind, precision):
    policy = steered(kind()).to("cuda")
    policy.precision = precision
    few, many = decoder(policy, rows=8), decoder(policy, rows=10**6)
    assert isinstance(few, Captured) and isinstance(many, Direct)
    prompts, tokens = left_padded(ragged_rows()).to("cuda"), torch.randint(2, 12, (6, 200), generator=rng(5)).cuda()
    with torch.no_grad():
        for n in (3, 2, 3):
            own = OwnForward(policy)
            logits = [made.start(prompts, n, 7) for made in (own, many, few)]
            for t in range(6):
                probabilities = [x.softmax(-1) for x in logits]
                for other in probabilities[1:]:
                    assert (other - probabilities[0]).abs().max() < (1e-4 if precision == torch.float32 else 0.05)
                logits = [made.step(tokens[t, : len(logits[0])]) for made in (own, many, few)]


def test_weights_that_are_not_finite_are_an_error_and_leave_the_device_usable():
    policy = tiny_gpt2().to("cuda")
    policy.model.transformer.wte.weight.data.fill_(float("nan"))
    for top_p in (1.0, 0.9):
        with pytest.raises(NotFinite):
            sample(policy, left_padded(ragged_rows()), decoding=Decoding(max_new_tokens=8, top_p=top_p), rng=rng())
    assert int(torch.ones(3, device="cuda").sum()) == 3


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_draws_of_a_large_vocabulary(scale):
    logits = scale * torch.randn(64, 6000, generator=rng())
    noise = torch.rand(64, generator=rng(1), dtype=torch.float64)
    for d in ({"top_p": 0.9}, {"top_k": 40, "top_p": 0.8}, {}):
        decoding = Decoding(max_new_tokens=1, **d)
        there = choose(logits.cuda(), decoding, noise.cuda())
        assert int((there.cpu() != choose(logits, decoding, noise)).sum()) <= 1


def test_nothing_waits_for_the_device_between_steps():
    policy, prompts = tiny_gpt2().to("cuda"), left_padded(ragged_rows()).to("cuda")
    reader = decoder(policy, 8)
    noise = torch.rand(8, dtype=torch.float64, device="cuda")

    def pick(at, rows, t):
        if t == 1:  # everything up to here may be done once
            torch.cuda.set_sync_debug_mode("error")
        if t == 5:
            torch.cuda.set_sync_debug_mode("default")
        return choose(at, Decoding(max_new_tokens=6), noise[rows])

    try:
        sampler.decode(policy, prompts, 2, 6, pick, reader)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_one_update_is_that_of_the_processor():
    from harness.policy.logprobs import entropy, kl, token_logprobs

    policy, prompts = steered(tiny_gpt2()), left_padded(ragged_rows())
    rollout = sample(policy, prompts, decoding=Decoding(max_new_tokens=6), rng=rng())
    grads = []
    for device in ("cpu", "cuda"):
        here: Policy = policy.copy().to(device)
        logits, there = here.logits(rollout.to(device)), rollout.to(device)
        terms = token_logprobs(logits, there.response) + kl(logits, logits.detach() * 0.5) + entropy(logits)
        terms.masked_fill(~there.response_mask, 0).sum().backward()
        grads.append(here.model.transformer.wte.weight.grad.cpu())
    torch.testing.assert_close(*grads, atol=1e-3, rtol=1e-3)
