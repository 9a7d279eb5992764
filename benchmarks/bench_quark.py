"""A Quark update through the suite against the same update as a plain loop: what counting, pools and trials cost.

The plain loop is what a researcher would write in one function: the same model, pool, batches, loss, clipping and Adam.
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from counts import head_alone, shape_of, update
from paired import alone, peak_of
from shapes import even_share, micro, new_policy, ragged_prompts, sized, smollm2, stock

from harness.core.types import Decoding, Prompts
from harness.methods.quark import Quark, QuarkSettings
from harness.training.pool import Pool
from harness.training.trial import Budget, OptimizerSettings, Trial

BATCH, KL_COEF, QUANTILES = sized(64, 8), 0.05, 5


class Task:
    """64 prompts; the reward is the share of even tokens."""

    def __init__(self, steps: int) -> None:
        self.all, self.decoding = ragged_prompts(64), Decoding(max_new_tokens=steps)

    def train_prompts(self, n, rng):
        rows = torch.randint(len(self.all.tokens), (n,), generator=rng)
        return Prompts(*(x[rows] for x in self.all))

    def reward(self, rollout):
        return even_share(rollout)


def suite(policy, explore: int, steps: int):
    """The pool after the exploration, and a call that is an update of the plugin."""
    settings = QuarkSettings(lr=1e-4, explore_every=10**9, explore_prompts=explore, batch_size=BATCH, kl_coef=KL_COEF)
    trial = Trial(
        policy, policy.frozen_copy(), Task(steps), seed=0, budget=Budget(updates=10**9), lr=1e-4, optimizer=OptimizerSettings()
    )
    updates = Quark(settings).train(trial)
    next(updates)
    pool = Pool()
    pool.load_state_dict(trial.state_dict()["kept"]["pool"])
    return pool, lambda: next(updates)


def plain(policy, pool: Pool):
    """The same update, on the library's own modules, with the pool as padded tensors."""
    model, reference, vocab = stock(policy.model), stock(policy.model).requires_grad_(False), policy.vocab_size
    quantile = pool.quantile
    rollout = pool._rollout(torch.arange(len(pool)))
    part = {"tokens": rollout.prompts.tokens, "mask": rollout.prompts.mask}
    part |= {"response": rollout.response, "response_mask": rollout.response_mask}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    rng = torch.Generator().manual_seed(0)

    def step():
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

    return step


def forward(model, prompt, mask, response):
    tokens = torch.cat([prompt, response[:, :-1]], 1)
    whole = torch.cat([mask, torch.ones_like(response[:, :-1], dtype=torch.bool)], 1)
    positions = (whole.long().cumsum(1) - 1).clamp(min=0)
    out = model(input_ids=tokens, attention_mask=whole.long(), position_ids=positions, logits_to_keep=response.shape[1])
    return out.logits


SHAPES = {
    "micro": (micro, sized(256, 16), sized(24, 4), {"rounds": 21}),
    "SmolLM2-135M": (smollm2, 64, sized(20, 4), {"warm": False, "threads": os.cpu_count() or 1}),
}


def sides(shape: str):
    config, explore, steps, _ = SHAPES[shape]
    policy = new_policy(config())
    pool, ours = suite(policy, explore, steps)
    return policy, pool, ours


@pytest.mark.parametrize("shape", SHAPES)
def test_a_quark_update_against_a_plain_loop(shape, workload):
    memory = {side: alone("bench_quark", "peak", shape, side) for side in ("suite", "plain loop")}
    policy, pool, ours = sides(shape)
    batch, _ = pool.draw(BATCH, torch.Generator().manual_seed(0))
    s = shape_of(policy.model)
    _, _, steps, how = SHAPES[shape]
    name, both = f"Quark update, {shape}, B = {BATCH}, R = {steps}", {"suite": ours, "plain loop": plain(policy.copy(), pool)}
    workload(name, "training", both, work=update(s, batch) + head_alone(s, batch), memory=memory, **how)


def peak(shape: str, side: str) -> float:
    """MB that an update holds at its peak beyond the weights and the moments of Adam, which the update before it has made."""
    torch.set_num_threads(os.cpu_count() or 1)
    policy, pool, ours = sides(shape)
    if side == "suite":
        return peak_of(ours)
    theirs = plain(policy.copy(), pool)
    theirs()
    return peak_of(theirs)
