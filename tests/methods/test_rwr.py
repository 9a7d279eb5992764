"""Reward-weighted regression: its loss by hand, its mean update against the exact gradient, its published beta."""

from __future__ import annotations

import math

import micro_text
import numpy as np
import pytest
import torch
import world
from hand_worked import Bench
from scored_documents import NAN, documents, finite, known, mean, observed
from tiny import rng
from torch import Tensor
from toy_task import ToyTask
from trials import new_trial

from harness.core.types import Decoding, Prompts, Rollout
from harness.methods.rwr import RWR, RWRSettings
from harness.policy.policy import Policy
from harness.training import corpus
from harness.training.pool import Pool


def test_the_loss_of_rwr_on_the_corpus_by_hand():
    bench, rwr = Bench(), RWR(RWRSettings(beta=0.5))
    log_mean = rwr._log_mean(torch.tensor([1.0, 0.2, NAN, 0.6, 0.4]))
    loss = rwr._corpus_loss(bench, corpus.whole(documents()), log_mean)
    scale = sum(math.exp(r / 0.5) for r in (1.0, 0.2, 0.6, 0.4)) / 4
    terms = [
        -p.log() * (1.0 if r is None else math.exp(r / 0.5) / scale)
        for doc in observed(bench.policy)
        for p, r in doc
        if known(r)
    ]
    assert loss.item() == pytest.approx(mean(terms), abs=1e-5)
    loss.backward()
    assert finite(bench.policy)  # unscored segments are left out of the gradient too


class WorldTask(ToyTask):
    """The enumerable world with a table of rewards."""

    decoding = Decoding(max_new_tokens=world.STEPS)

    def train_prompts(self, n: int, rng: torch.Generator) -> Prompts:
        table = world.prompts()
        chosen = torch.randint(len(table.tokens), (n,), generator=rng)
        return Prompts(table.tokens[chosen], table.mask[chosen])

    def reward(self, rollout: Rollout) -> Tensor:
        return torch.tensor(world.rewards()[world.index(rollout.response)], dtype=torch.float32)


def log_prob_table(policy: Policy) -> Tensor:
    """log pi(y | x) with its gradient, a response at a time, in the policy's own model: [X, N]."""
    table = []
    for prompt in world.PROMPTS:
        for length in range(1, world.STEPS + 1):
            chosen = [r for r in world.RESPONSES if len(r) == length]
            steps = policy.model(input_ids=torch.tensor([[*prompt, *r] for r in chosen])).logits.log_softmax(-1)
            at = len(prompt) - 1 + torch.arange(length)
            table.append((chosen, steps[:, at].gather(-1, torch.tensor(chosen)[..., None]).squeeze(-1).sum(1)))
    width = len(world.PROMPTS)
    found = torch.zeros(width, len(world.RESPONSES))
    for i, (chosen, logp) in enumerate(table):
        found = found.index_put((torch.tensor(i // world.STEPS), torch.tensor([world.INDEX[r] for r in chosen])), logp)
    return found


def flat(gradients) -> Tensor:
    return torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("beta", [0.2, 0.5])
def test_the_expected_update_of_rwr_is_the_gradient_of_its_objective(beta, monkeypatch):
    """Weighted maximum likelihood toward base exp(r / beta) / Z, by enumeration: cosine 0.99 or more, and the same length."""
    base = world.policy()
    policy = world.perturbed(base, 0.3, seed=1).requires_grad_(True)
    posterior = np.exp(world.log_probs(base) + world.rewards() / beta)
    target = torch.tensor(posterior / posterior.sum(1).mean(), dtype=torch.float32)
    exact = -(target * log_prob_table(policy)).sum(1).mean()
    exact_gradient = flat(torch.autograd.grad(exact, list(policy.parameters())))

    n = 10_000
    trial = new_trial(policy, reference=base.frozen_copy(), task=WorldTask())
    monkeypatch.setattr(trial, "update", lambda loss: loss.backward())
    settings = RWRSettings(source="samples", beta=beta, batch_size=n, explore_prompts=n)
    monkeypatch.setattr(Pool, "draw_scored", lambda pool, n, rng: (pool._rollout(torch.arange(n)), pool.rewards()))
    scalars = next(RWR(settings).train(trial))
    ours = flat(p.grad for p in policy.parameters())
    cosine = float(ours @ exact_gradient / (ours.norm() * exact_gradient.norm()))
    print(f"rwr, beta {beta}: cosine {cosine:.5f}, ratio of lengths {float(ours.norm() / exact_gradient.norm()):.3f}")
    assert cosine >= 0.99 and float(ours.norm() / exact_gradient.norm()) == pytest.approx(1, abs=0.05)
    assert scalars["nll"] == pytest.approx(exact.item(), rel=0.02)


def test_the_optimum_of_rwr_is_the_posterior():
    """Where the policy is the posterior of each prompt, the exact gradient of the objective is nothing beside the base's."""
    log_p = torch.tensor(world.log_probs(world.policy()))
    tilt = (log_p + torch.tensor(world.rewards() / 0.5)).exp()
    target, logits = tilt / tilt.sum(1).mean(), (tilt / tilt.sum(1, keepdim=True)).log().requires_grad_(True)
    (-(target * logits.log_softmax(1)).sum(1).mean()).backward()
    assert logits.grad.abs().max() < 1e-9


def test_rwr_at_the_papers_beta_is_maximum_likelihood():
    """On the micro corpus: the first gradient, and the policy after four updates, equal to three digits at 10, not at 0.1."""
    task, base = micro_text.quarter(), micro_text.base()
    read, held_out = [corpus.whole(task.documents(24, rng(i))) for i in range(4)], corpus.whole(task.documents(48, rng(9)))
    rewards = corpus.segment_rewards(task.documents(1000, rng(8)))

    def after(objective) -> tuple[float, Tensor]:
        """The held-out loss after four steps, and the direction of the first."""
        bench = Bench(base.copy().requires_grad_(True), base)
        optimizer, first = torch.optim.Adam(bench.policy.parameters(), lr=5e-4), torch.zeros(0)
        for found in read:
            optimizer.zero_grad()
            objective(bench, found).backward()
            first = first if len(first) else flat(p.grad for p in bench.policy.parameters())
            optimizer.step()
        with torch.no_grad():
            return corpus.nll(bench, held_out).item(), first / first.norm()

    def weighted(beta: float):
        rwr = RWR(RWRSettings(beta=beta))
        return lambda bench, found: rwr._corpus_loss(bench, found, rwr._log_mean(rewards))

    found = {name: after(f) for name, f in (("mle", corpus.nll), ("10", weighted(10.0)), ("0.1", weighted(0.1)))}
    cosine = {name: float(found["mle"][1] @ direction) for name, (_, direction) in found.items()}
    print({name: (round(loss, 5), round(cosine[name], 5)) for name, (loss, _) in found.items()})
    assert cosine["10"] > 0.999 > 0.99 > cosine["0.1"]
    assert found["10"][0] == pytest.approx(found["mle"][0], abs=5e-4)
    far, near = (abs(found[beta][0] - found["mle"][0]) for beta in ("0.1", "10"))
    assert far > 5 * near
