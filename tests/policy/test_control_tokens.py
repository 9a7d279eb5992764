"""Control tokens in the middle of a text: where they are put, and what is read behind them."""

from __future__ import annotations

import pytest
import torch
from hand_worked import batch
from tiny import rng, tiny_gpt2

from harness.policy.policy import insert


def test_control_tokens_are_put_where_they_are_told():
    rollout = batch()
    control = torch.tensor([[20, -1, 21], [-1, 22, -1], [-1, -1, -1]])
    found, at = insert(control, rollout)
    expected = [[20, 2, 3, 21, 1], [4, 22, 1], [10, 11, 2]]
    assert [r[m].tolist() for r, m in zip(found.response, found.response_mask, strict=True)] == expected
    assert torch.equal(found.response.gather(1, at)[rollout.response_mask], rollout.response[rollout.response_mask])
    with pytest.raises(ValueError, match="before the padding"):
        insert(torch.tensor([[-1] * 3, [-1, -1, 20], [-1] * 3]), rollout)


@torch.no_grad()
def test_logits_behind_control_tokens_in_the_text():
    policy = tiny_gpt2()
    a, b = policy.control_tokens(2, rng()).tolist()
    control = torch.tensor([[-1, a, b], [b, -1, -1], [-1, -1, a]])
    found = policy.steered_logits(batch(), control)
    for i, (prompt, response) in enumerate([([5, 6], [2, a, 3, b, 1]), ([7], [b, 4, 1]), ([8, 9], [10, 11, a, 2])]):
        out = policy.model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1, :12]
        text = [t for t, token in enumerate(response) if token < 12]
        torch.testing.assert_close(found[i, : len(text)], out[text], atol=1e-5, rtol=0)
