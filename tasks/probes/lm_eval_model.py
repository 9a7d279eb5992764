"""A policy as a model of lm-evaluation-harness: what the deployed policy answers, with its prefix, adapters and parts.

Import it only where lm-eval is installed. Texts become tokens as by lm-eval's own `hf` model, and on a plain policy the
log-likelihoods are the same; `hf` itself knows nothing of a prefix, of control tokens or of a policy of several models.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from harness.api import BadSetting, Decoding, Policy, Prompts, Rollout, sample, token_logprobs

BATCH = 16  # responses a pass
LONGEST = 256  # tokens that are generated where a task names no number

Pair = tuple[list[int], list[int]]  # tokens of a context and of its continuation


class PolicyLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A frozen policy as deployed, on which lm-eval's tasks run."""

    backend = "causal"

    def __init__(self, policy: Policy, tokenizer: Any, rng: torch.Generator) -> None:
        super().__init__()
        self.policy, self.tokenizer, self.rng = policy, tokenizer, rng

    @property
    def eot_token_id(self) -> int:
        """The id of the token that ends a text."""
        return self.policy.eos

    @property
    def prefix_token_id(self) -> int:
        """The id of the token that stands for an empty context."""
        return self.policy.bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **told: Any) -> list[int]:
        """Token ids of a text: -> [n]."""
        more = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        found: list[int] = self.tokenizer(string, verbose=False, **more).input_ids
        return found

    def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = False, **told: Any) -> list[tuple[float, bool]]:
        found = self._scored([(context, continuation) for _, context, continuation in requests])
        for (asked, _, _), answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", asked, answer)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in nats, each in windows of the policy's context: -> [n]."""
        return [sum(score for score, _ in self._scored(self._windows(request.args[0]))) for request in requests]

    def _windows(self, text: str) -> list[Pair]:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        ids, most = self.tok_encode(text), self._room()
        windows = get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=most, context_len=1)
        return [make_disjoint_window(window) for window in windows]

    def _room(self) -> int:
        """Tokens that a window may predict."""
        return self.policy.context - len(self.policy.prefix) - 1

    @torch.no_grad()
    def _scored(self, pairs: list[Pair]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation in nats, and whether greedy decoding gives it: -> [n]."""
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        order = sorted((i for i in range(len(pairs)) if pairs[i][1]), key=lambda i: -sum(map(len, pairs[i])))
        for first in range(0, len(order), BATCH):
            rows = order[first : first + BATCH]
            rollout = as_rollout([self._fitted(pairs[i]) for i in rows]).to(self.policy.device)
            logits = self.policy.deployed_logits(rollout)
            mask = rollout.response_mask
            scores = token_logprobs(logits, rollout.response).masked_fill(~mask, 0).double().sum(1)
            greedy = ((logits.argmax(-1) == rollout.response) | ~mask).all(1)
            for i, score, same in zip(rows, scores.tolist(), greedy.tolist(), strict=True):
                found[i] = (score, same)
        return found

    def _fitted(self, pair: Pair) -> Pair:
        """A context without its beginning if both are too long, as lm-eval cuts; raises BadSetting if that is not enough."""
        context, continuation = pair
        room = self._room() + 1 - len(continuation)
        if room < 1:
            raise BadSetting(f"a continuation of {len(continuation)} tokens exceeds the policy's context; choose another task")
        return context[-room:], continuation

    @torch.no_grad()
    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each context up to the first of its stop strings: -> [n] texts."""
        return [self._generated(*request.args) for request in requests]

    def _generated(self, context: str, told: dict[str, Any]) -> str:
        asked = normalize_gen_kwargs(told, LONGEST)
        most = min(int(asked["max_gen_toks"]), self.policy.context - len(self.policy.prefix) - 1)
        temperature = float(asked.get("temperature", 0.0)) if asked.get("do_sample") else 0.0
        ids = self.tok_encode(context)[-(self.policy.context - len(self.policy.prefix) - most) :] or [self.prefix_token_id]
        prompt = as_rollout([(ids, [])]).prompts.to(self.policy.device)
        decoding = Decoding(max_new_tokens=most, temperature=temperature, top_p=float(asked.get("top_p", 1.0)))
        response = sample(self.policy, prompt, decoding=decoding, rng=self.rng).response[0].tolist()
        ends = [i for i, token in enumerate(response) if token in self.policy.ends]
        text: str = self.tokenizer.decode(response[: ends[0] if ends else None], skip_special_tokens=True)
        return text[: min([at for stop in asked["until"] if stop and (at := text.find(stop)) >= 0], default=sys.maxsize)]


def as_rollout(pairs: list[Pair]) -> Rollout:
    """Contexts and continuations as a batch, padded on the left and on the right: -> [B, R]."""
    before, after = (max(len(pair[i]) for pair in pairs) for i in (0, 1))
    tokens = torch.tensor([[0] * (before - len(c)) + c for c, _ in pairs])
    mask = torch.tensor([[False] * (before - len(c)) + [True] * len(c) for c, _ in pairs])
    response = torch.tensor([r + [0] * (after - len(r)) for _, r in pairs], dtype=torch.int64)
    response_mask = torch.tensor([[True] * len(r) + [False] * (after - len(r)) for _, r in pairs], dtype=torch.bool)
    return Rollout(Prompts(tokens, mask), response, response_mask)
