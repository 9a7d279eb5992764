"""A Quark update through the suite against the same update as a plain loop: what counting, pools and trials cost.

    pytest -n 0 benchmarks --benchmark-only
    python benchmarks/bench_quark.py suite|"plain loop"        peak memory of one side, SmolLM2-135M's shapes

The plain loop is what a researcher would write in one function: the same model, pool, batches, loss, clipping and Adam.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bench_sampler import EOS, config, ragged_prompts, smollm2
from paired import compare
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from harness.core.types import Decoding, Prompts
from harness.methods.quark import Quark, QuarkSettings
from harness.policy.policy import Policy
from harness.training.pool import unpacked
from harness.training.trial import Budget, OptimizerSettings, Trial

BATCH, EXPLORE, KL_COEF, QUANTILES = 64, 256, 0.05, 5


class Task:
    """64 prompts; the reward is the share of even tokens."""

    def __init__(self, steps: int = 24) -> None:
        self.all, self.decoding = ragged_prompts(), Decoding(max_new_tokens=steps)

    def train_prompts(self, n, rng):
        rows = torch.randint(len(self.all.tokens), (n,), generator=rng)
        return Prompts(*(x[rows] for x in self.all))

    def reward(self, rollout):
        return ((rollout.response % 2 == 0) & rollout.response_mask).float().sum(1) / rollout.response_mask.sum(1)


def suite(policy, explore=EXPLORE, steps=24):
    """One call is an update of the plugin, after the exploration."""
    settings = QuarkSettings(lr=1e-4, explore_every=10**9, explore_prompts=explore, batch_size=BATCH, kl_coef=KL_COEF)
    trial = Trial(
        policy, policy.frozen_copy(), Task(steps), seed=0, budget=Budget(updates=10**9), lr=1e-4, optimizer=OptimizerSettings()
    )
    updates = Quark(settings).train(trial)
    next(updates)
    return trial.state_dict()["kept"]["pool"], lambda: next(updates)


def plain(policy, pool):
    """The same updates, written out."""
    """The same update, on the library's own modules, with the pool as padded tensors."""
    model, reference, vocab = stock(policy.model), stock(policy.model).requires_grad_(False), policy.vocab_size
    rollout, quantile = unpacked(pool["parts"][0]), pool["quantile"]
    part = {"tokens": rollout.prompts.tokens, "mask": rollout.prompts.mask}
    part |= {"response": rollout.response, "response_mask": rollout.response_mask}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    rng = torch.Generator().manual_seed(0)

    def update():
        rows = torch.randint(len(quantile), (BATCH,), generator=rng)
        prompt, mask, response, counts = (part[k][rows] for k in ("tokens", "mask", "response", "response_mask"))
        first = mask.int().argmax(1, keepdim=True)
        prompt = torch.cat([torch.zeros_like(prompt[:, :1]), prompt], 1).scatter(1, first, vocab + quantile[rows][:, None])
        longer = torch.cat([torch.zeros_like(mask[:, :1]), mask], 1).scatter(1, first, True)
        logits = forward(model, prompt, longer, response)[..., :vocab]
        with torch.no_grad():
            target = forward(reference, part["tokens"][rows], mask, response)[..., :vocab].log_softmax(-1)
        logp = logits.log_softmax(-1)
        nll = -logp.gather(-1, response[..., None]).squeeze(-1)
        drift = F.kl_div(logp, target, log_target=True, reduction="none").sum(-1)
        loss = ((nll + KL_COEF * drift) * counts).sum() / counts.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return update


def stock(model):
    """A copy of the model as the library makes it: the suite puts another activation into GPT-2."""
    fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


def forward(model, prompt, mask, response):
    tokens = torch.cat([prompt, response[:, :-1]], 1)
    whole = torch.cat([mask, torch.ones_like(response[:, :-1], dtype=torch.bool)], 1)
    positions = (whole.long().cumsum(1) - 1).clamp(min=0)
    out = model(input_ids=tokens, attention_mask=whole.long(), position_ids=positions, logits_to_keep=response.shape[1])
    return out.logits


SHAPES = {
    "micro": (GPT2LMHeadModel, config, EXPLORE, 24, 15),
    "SmolLM2-135M": (LlamaForCausalLM, smollm2, 64, 20, 5),
}


def sides(shape):
    kind, config, explore, steps, _ = SHAPES[shape]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = Policy(kind(config()), bos=EOS, eos=EOS)
    pool, ours = suite(policy, explore, steps)
    return policy, pool, ours


@pytest.mark.parametrize("shape", SHAPES)
def test_a_quark_update_against_a_plain_loop(shape, benchmark, capsys):
    policy, pool, ours = sides(shape)
    line = compare(benchmark, ours, plain(policy.copy(), pool), ("suite", "plain loop"), rounds=SHAPES[shape][-1])
    with capsys.disabled():
        print(f"\na Quark update of {BATCH} responses, {shape}: {line}")


def test_its_peak_memory(capsys):
    """Each side in a process of its own, beyond what it holds before its first update."""
    peaks = {
        side: subprocess.run([sys.executable, __file__, side], capture_output=True, text=True).stdout
        for side in ("suite", "plain loop")
    }
    with capsys.disabled():
        print("\npeak memory of an update, SmolLM2-135M:", "; ".join(f"{side} {mb.strip()} MB" for side, mb in peaks.items()))


def peak(side: str) -> float:
    """MB that two updates add to what was held before, at their peak."""
    policy, pool, ours = sides("SmolLM2-135M")
    update = ours if side == "suite" else plain(policy.copy(), pool)
    gc.collect()
    with Path("/proc/self/clear_refs").open("w") as reset:  # the peak starts anew
        reset.write("5")
    before = held("VmRSS")
    update()
    update()
    return held("VmHWM") - before


def held(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


if __name__ == "__main__":
    print(round(peak(sys.argv[1])))
