"""The negated task vector: what is subtracted, and from what it is learned."""

from __future__ import annotations

import pytest
import torch
from scored_documents import Shelf, documents, known, mean, observed
from tiny import tiny_gpt2
from toy_task import toy_policy
from trials import new_trial, resumed, run, same, weights

from harness.methods.task_vector import TaskVector, TaskVectorSettings, bad
from harness.policy.logprobs import masked_mean, token_logprobs
from harness.policy.models import adapters
from harness.policy.models.vectors import subtract_task
from harness.training import corpus


def trained(alpha: float, updates: int = 3):
    trial = new_trial(task=Shelf(), updates=20)
    run(TaskVector(TaskVectorSettings(batch_size=8, alpha=alpha)), trial, updates)
    return trial


def test_alpha_0_is_the_base_and_the_weights_are_linear_in_alpha():
    """What is learned does not depend on alpha, so twice alpha is twice as far the other way than the copy went."""
    base, *moved = (weights(trained(alpha).policy) for alpha in (0.0, 0.5, 1.0))
    assert same(base, weights(toy_policy())) and not same(base, moved[0])
    for w, half, whole in zip(base, *moved, strict=True):
        torch.testing.assert_close(whole - w, 2 * (half - w), atol=1e-6, rtol=1e-4)


def test_the_policy_goes_where_the_copy_does_not():
    """After the first step of Adam each weight of the copy has moved by the learning rate, a tenth of it in the warm-up."""
    trial = trained(alpha=2.0, updates=1)
    moved = torch.cat([(w - b).flatten() for w, b in zip(weights(trial.policy), weights(toy_policy()), strict=True)])
    size = moved[moved.abs() > 1e-8].abs()
    assert len(size) > 100 and size.median() == pytest.approx(2.0 * 1e-2 / 10, rel=1e-2)
    text = corpus.whole(Shelf().documents(200, torch.Generator().manual_seed(0)))

    @torch.no_grad()
    def nll(policy) -> float:
        """Of bad segments."""
        return masked_mean(-token_logprobs(policy.logits(text.rollout), text.rollout.response), bad(text, 0.5)).item()

    assert nll(trial.policy) > nll(trial.reference)


def test_the_copy_learns_the_tokens_of_bad_segments():
    policy, found = tiny_gpt2(), corpus.whole(documents())
    logits = policy.logits(found.rollout)
    loss = masked_mean(-token_logprobs(logits, found.rollout.response), bad(found, 0.5))
    scored = [(p, r) for doc in observed(policy) for p, r in doc if r is not None and known(r)]
    assert loss.item() == pytest.approx(mean([-p.log() for p, r in scored if r < 0.5]), abs=1e-5)


def test_a_resumed_run_goes_on_with_the_copy(tmp_path):
    method = TaskVector(TaskVectorSettings(batch_size=8))
    whole, first = (new_trial(task=Shelf(), updates=8) for _ in range(2))
    rows = run(method, whole, 4)
    run(method, first, 2)
    again = resumed(first, tmp_path)
    again._task = Shelf()
    assert run(method, again, 2) == rows[2:] and same(weights(again.policy), weights(whole.policy))


@torch.no_grad()
def test_under_lora_the_product_is_negated():
    """The merged weights of the policy lie as far from the base's as alpha says, on the other side of the copy's."""
    pytest.importorskip("peft")
    base = tiny_gpt2().requires_grad_(False)
    base.setup = base.setup._replace(lora=adapters.Lora(rank=2, alpha=4.0))
    tuned, policy = (base.copy().requires_grad_(True) for _ in range(2))
    for w in adapters.trained(tuned.model):
        w.add_(torch.randn(w.shape, generator=torch.Generator().manual_seed(w.numel())))
    subtract_task(policy, tuned, base, alpha=0.5)
    start = base.model.state_dict()
    for name, w in adapters.merged(policy.model).state_dict().items():
        learned = adapters.merged(tuned.model).state_dict()[name] - start[name]
        torch.testing.assert_close(w - start[name], -0.5 * learned, atol=1e-5, rtol=1e-4)
        assert learned.any() == ("weight" in name and any(part in name for part in ("c_attn", "c_proj", "c_fc")))
