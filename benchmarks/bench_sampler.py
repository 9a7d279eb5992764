"""The sampler against Hugging Face's `generate`: the same model, prompts, decoding and number of new tokens."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from counts import full_length, sampling, shape_of
from shapes import ENDS_AT_5_PERCENT, EOS, NEVER_ENDS, micro, new_policy, ragged_prompts, sized, smollm2, stock

from harness.core.types import Decoding, Prompts
from harness.policy.sampler import sample

CORES = os.cpu_count() or 1
FEW = 3  # pairs of a job that takes minutes
USUAL: dict[str, Any] = {
    "model": micro, "prompts": sized(64, 8), "n": 1, "steps": sized(24, 4), "log_odds": NEVER_ENDS, "top_p": 1.0,
}  # fmt: skip
LARGE = USUAL | {"model": smollm2, "prompts": sized(16, 2), "n": sized(25, 2), "steps": sized(20, 4), "top_p": 0.9}
BOUND = "random weights give a flat distribution, whose rows are all sorted for top-p; a trained model's fits a shortlist"
WORKLOADS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sampler, micro, 64 prompts x 1, 24 tokens, T = 1": (USUAL, {"rounds": 21}),
    "sampler, micro, 64 x 8, T = 1": (USUAL | {"n": sized(8, 2)}, {"rounds": 15}),
    "sampler, micro, 64 x 25, top-p 0.9, ends at 5 % a token": (
        USUAL | {"n": sized(25, 2), "log_odds": ENDS_AT_5_PERCENT, "top_p": 0.9}, {"rounds": 9, "note": BOUND}
    ),
    "sampler, SmolLM2-135M, 16 x 25, 20 tokens, top-p 0.9": (LARGE, {"warm": False, "threads": CORES, "rounds": FEW}),
}  # fmt: skip


@pytest.mark.parametrize("name", WORKLOADS)
def test_sampler_against_generate(name, workload):
    w, how = WORKLOADS[name]
    policy, prompts = new_policy(w["model"](), w["log_odds"]), ragged_prompts(w["prompts"])
    ours, before = sampler(policy, prompts, w), prompts.mask.sum(1)
    never = w["log_odds"] == NEVER_ENDS
    responses = full_length(before, w["n"], w["steps"]) if never else ours().response_mask.sum(1)
    work = sampling(shape_of(policy.model), before, responses)
    workload(name, "sampling", {"sample": ours, "generate": generate(policy, prompts, w)}, work=work, **how)


def sampler(policy, prompts: Prompts, w: dict[str, Any]):
    decoding = Decoding(max_new_tokens=w["steps"], top_p=w["top_p"])

    def ours():
        return sample(policy, prompts, decoding=decoding, rng=torch.Generator().manual_seed(0), n=w["n"], batch_size=512)

    return ours


def generate(policy, prompts: Prompts, w: dict[str, Any]):
    options = {"do_sample": True, "top_k": 0, "top_p": w["top_p"], "temperature": 1.0, "pad_token_id": EOS}
    options |= {"eos_token_id": EOS, "num_return_sequences": w["n"], "max_new_tokens": w["steps"]}
    model = stock(policy.model)

    def theirs() -> torch.Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            return model.generate(prompts.tokens, attention_mask=prompts.mask.long(), **options)

    return theirs


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="no bfloat16 in this processor")
def test_sampler_in_bfloat16_against_generate_in_float32(workload):
    policy, prompts = new_policy(smollm2()), ragged_prompts(LARGE["prompts"])
    theirs = generate(policy, prompts, LARGE)
    policy.precision = torch.bfloat16
    name = "sampler, SmolLM2-135M in bfloat16, 16 x 25, 20 tokens, top-p 0.9"
    sides = {"sample": sampler(policy, prompts, LARGE), "generate in float32": theirs}
    workload(name, "sampling", sides, warm=False, threads=CORES, rounds=FEW)


TOGETHER, STEPS = sized(8, 2), sized(6, 2)


def test_base_responses_of_several_prompts_at_once(workload):
    """The frontier's draws, 64 to each prompt, as `harness.measure.base_responses` makes them and as it did before.

    Of 43 prompts x 20 tokens 8 prompts x 6 tokens are timed: the others are more of the same steps.
    """
    policy, prompts, n = new_policy(smollm2()), ragged_prompts(TOGETHER), sized(64, 4)

    def draw(together: int) -> None:
        rng = torch.Generator().manual_seed(0)
        for x in range(0, len(prompts.tokens), together):
            some = Prompts(*(p[x : x + together] for p in prompts))
            sample(policy, some, decoding=Decoding(max_new_tokens=STEPS), rng=rng, n=n, batch_size=512)

    before = prompts.mask.sum(1)
    work = sampling(shape_of(policy.model), before, full_length(before, n, STEPS))
    sides = {"8 prompts at once": lambda: draw(TOGETHER), "one prompt at a time": lambda: draw(1)}
    workload(
        "base responses, SmolLM2-135M, 8 prompts x 64, 6 tokens", "sampling", sides, work=work, warm=False, threads=CORES,
        rounds=FEW,
        note="64 rows keep a processor's matrix products nearly as busy as 512; what is saved is reading the weights",
    )  # fmt: skip
