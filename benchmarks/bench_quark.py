"""A Quark update through the suite against the same update as a plain loop: what counting, pools and trials cost.

    pytest -n 0 benchmarks --benchmark-only

The plain loop is what a researcher would write in one function: the same model, pool, batches, loss, clipping and Adam.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from bench_sampler import EOS, config, ragged_prompts
from paired import compare
from transformers import GPT2LMHeadModel

from harness.core.types import Decoding, Prompts
from harness.methods.quark import Quark, QuarkSettings
from harness.policy.policy import Policy
from harness.training.trial import Budget, OptimizerSettings, Trial

UPDATES, BATCH, EXPLORE, KL_COEF, QUANTILES = 5, 64, 256, 0.05, 5


class Task:
    """64 prompts; the reward is the share of even tokens."""

    decoding = Decoding(max_new_tokens=24)

    def __init__(self) -> None:
        self.all = ragged_prompts()

    def train_prompts(self, n, rng):
        rows = torch.randint(len(self.all.tokens), (n,), generator=rng)
        return Prompts(*(x[rows] for x in self.all))

    def reward(self, rollout):
        return ((rollout.response % 2 == 0) & rollout.response_mask).float().sum(1) / rollout.response_mask.sum(1)


def suite(policy):
    """One call is UPDATES updates of the plugin, after the exploration."""
    settings = QuarkSettings(lr=1e-4, explore_every=10**9, explore_prompts=EXPLORE, batch_size=BATCH, kl_coef=KL_COEF)
    trial = Trial(
        policy, policy.frozen_copy(), Task(), seed=0, budget=Budget(updates=10**9), lr=1e-4, optimizer=OptimizerSettings()
    )
    steps = Quark(settings).train(trial)
    next(steps)
    return trial.state_dict()["kept"]["pool"], lambda: [next(steps) for _ in range(UPDATES)]


def plain(policy, pool):
    """The same updates, written out."""
    model, reference, vocab = policy.model, policy.frozen_copy().model, policy.vocab_size
    part, quantile = pool["parts"][0], pool["quantile"]
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

    return lambda: [update() for _ in range(UPDATES)]


def forward(model, prompt, mask, response):
    tokens = torch.cat([prompt, response[:, :-1]], 1)
    whole = torch.cat([mask, torch.ones_like(response[:, :-1], dtype=torch.bool)], 1)
    positions = (whole.long().cumsum(1) - 1).clamp(min=0)
    out = model(input_ids=tokens, attention_mask=whole.long(), position_ids=positions, logits_to_keep=response.shape[1])
    return out.logits


def test_a_quark_update_against_a_plain_loop(benchmark, capsys):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = Policy(GPT2LMHeadModel(config()), bos=EOS, eos=EOS)
    pool, ours = suite(policy)
    twin = policy.copy()
    theirs = plain(twin, pool)
    line = compare(benchmark, ours, theirs, ("suite", "plain loop"), rounds=7)
    with capsys.disabled():
        print(f"\n{UPDATES} Quark updates of {BATCH} responses: {line}")
