"""Fluency under a judge language model: the NLL of a response given its prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.api import Policy, Prompts, Rollout, masked_sum, token_logprobs

from ..data import in_context
from ..data.prompt_files import opening


class JudgeModel:
    """A language model with its own tokenizer that scores the text of any policy.

    A prompt begins with the opening special tokens of its tokenizer; a response that leaves no room for one token of the
    prompt is not scored.
    """

    def __init__(self, policy: Policy, tokenizer: Any, identity: dict[str, Any], batch_size: int = 256) -> None:
        self.policy, self.tokenizer, self.identity, self.batch_size = (
            policy,  # left as it is: it may be the base policy, of which a run makes the one that it trains
            tokenizer,
            identity,
            batch_size,
        )
        self._opening = opening(tokenizer)

    @torch.no_grad()
    def nll(self, prompts: list[str], responses: list[list[str]]) -> tuple[NDArray, NDArray]:
        """NLL in nats and number of tokens of each response: X prompts, [X][S] responses -> [X, S], [X, S].

        The NLL of a response that is longer than the judge's context is NaN.
        """
        pairs = [(p, r) for p, rs in zip(prompts, responses, strict=True) for r in rs]
        parts = [self._nll(pairs[i : i + self.batch_size]) for i in range(0, len(pairs), self.batch_size)]
        nll, tokens = (np.concatenate(x).reshape(len(prompts), -1) for x in zip(*parts, strict=True))
        return nll, tokens

    def _nll(self, pairs: list[tuple[str, str]]) -> tuple[NDArray, NDArray]:
        """[N] pairs -> [N], [N]."""
        texts, said = ([pair[i] for pair in pairs] for i in (0, 1))
        heads = {p: self._opening + self.tokenizer(p, add_special_tokens=False).input_ids for p in dict.fromkeys(texts)}
        prompts = [heads[p] for p in texts]
        responses = [ids for ids, _ in in_context.encoded(self.tokenizer, texts, said)]
        tokens = np.array([len(r) for r in responses], dtype=float)
        fits = tokens < self.policy.context
        rollout = self._rollout(prompts, [r if fit else [] for r, fit in zip(responses, fits, strict=True)])
        nll = masked_sum(-token_logprobs(self.policy.logits(rollout), rollout.response), rollout.response_mask)
        return np.where(fits, nll.double().cpu().numpy(), np.nan), tokens

    def _rollout(self, prompts: list[list[int]], responses: list[list[int]]) -> Rollout:
        """Pad prompts on the left and responses on the right; prompts that exceed the context lose their beginning."""
        prompts = [(p or [self.policy.bos])[len(r) - self.policy.context :] for p, r in zip(prompts, responses, strict=True)]
        width, length = max(map(len, prompts)), max(1, *map(len, responses))
        tokens = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=self.policy.device)
        mask = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts], device=self.policy.device)
        response = torch.tensor([r + [0] * (length - len(r)) for r in responses], device=self.policy.device)
        response_mask = torch.tensor(
            [[True] * len(r) + [False] * (length - len(r)) for r in responses], device=self.policy.device
        )
        return Rollout(Prompts(tokens, mask), response, response_mask)
