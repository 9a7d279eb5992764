"""Estimated and measured peak of an update's memory: `python benchmarks/memory.py [CASE...]`.

Each case is one update of a policy and its reference (negative log-likelihood and a KL), in a process of its own, with random
weights of a real shape and the pass that a GPU takes. On a GPU the peak is that of its allocator, elsewhere the resident
memory above that of a process with nothing loaded. The estimate is that of `harness run --dry-run`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import Any

# shape, sequences, tokens of a response, settings of the model
CASES: dict[str, tuple[str, int, int, list[str]]] = {
    "gpt2": ("gpt2", 32, 20, []),
    "gpt2, 128 tokens": ("gpt2", 16, 128, []),
    "gpt2, micro-batches of 8": ("gpt2", 32, 20, ["model.micro_batch=8"]),
    "gpt2, checkpointing": ("gpt2", 32, 20, ["model.checkpointing=true"]),
    "gpt2, LoRA, micro-batches of 8": ("gpt2", 32, 20, ["model.lora.rank=8", "model.micro_batch=8"]),
    "smollm2": ("smollm2", 32, 20, []),
    "smollm2, LoRA, micro-batches of 8": ("smollm2", 32, 20, ["model.lora.rank=8", "model.micro_batch=8"]),
}


def made(name: str) -> Any:
    """A model of this shape with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config())
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True))


def resident(peak: bool) -> float:
    """Resident memory of this process in GB, now or at its peak."""
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9


def measured(case: str) -> dict[str, float]:
    """The estimated and the measured peak of a case in GB."""
    import torch

    from harness.api import Prompts, Rollout, kl, masked_mean, token_logprobs
    from harness.policy.models.setup import setup_of
    from harness.policy.policy import Policy
    from harness.runs import named
    from harness.runs.cost.memory import PROMPT, Load, estimate
    from harness.runs.cost.shapes import SHAPES

    torch.set_num_threads(1)
    name, rows, length, told = CASES[case]
    settings = named.settings(
        "gpt2", "quark", "toxicity", [*told, "task.fluency=none", f"task.decoding.max_new_tokens={length}"]
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = resident(peak=False)
    Policy._direct = lambda self: None  # type: ignore[method-assign]  # the pass of a GPU
    policy = Policy(made(name).eval(), bos=0, eos=0)
    policy.setup = setup_of(settings.model, policy.model, "0" * 64)
    reference = policy.to(device).frozen_copy()
    trained = [weight for weight in policy.requires_grad_(True).parameters() if weight.requires_grad]
    adam = torch.optim.Adam(trained, lr=1e-5, fused=True)
    drawn = torch.randint(policy.vocab_size, (rows, PROMPT + length), generator=torch.Generator().manual_seed(0)).to(device)
    mask = torch.ones_like(drawn, dtype=torch.bool)
    rollout = Rollout(Prompts(drawn[:, :PROMPT], mask[:, :PROMPT]), drawn[:, PROMPT:], mask[:, PROMPT:])
    for _ in range(2):  # Adam's moments come with the first update
        logits = policy.logits(rollout)
        with torch.no_grad():
            base = reference.logits(rollout)
        drift = masked_mean(kl(logits, base), rollout.response_mask)
        loss = masked_mean(-token_logprobs(logits, rollout.response), rollout.response_mask) + 0.1 * drift
        adam.zero_grad()
        loss.backward()
        adam.step()
        del logits, base, drift, loss
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else resident(peak=True) - before
    return {"estimate": estimate(settings, SHAPES[name], Load(rows, 1, PROMPT + length, length)).peak, "peak": peak}


def main(cases: list[str]) -> None:
    """Measure cases, each in a process of its own, and print a line of each."""
    unset = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # freed memory goes back at once
    print(f"{'one update':36}{'estimate':>12}{'measured':>12}{'ratio':>8}")
    for case in cases or list(CASES):
        command = [sys.executable, "-P", __file__, "--case", case]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | unset)
        found = json.loads(done.stdout.splitlines()[-1])
        ratio = found["estimate"] / found["peak"]
        print(f"{case:36}{found['estimate']:9.2f} GB{found['peak']:9.2f} GB{ratio:8.2f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measured(sys.argv[2])))
    else:
        main(sys.argv[1:])
