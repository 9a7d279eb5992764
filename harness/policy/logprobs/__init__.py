"""Log-probability arithmetic: each function is one line of a paper."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import one_hot

from .terms import KL, Entropy, TokenLogprobs, shared_by


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p(tokens) under logits, in nats: [B, R, V], [B, R] -> [B, R]."""
    found: Tensor = TokenLogprobs.apply(logits, tokens, shared_by(logits))  # type: ignore[no-untyped-call]
    return found


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Exact KL(p || q) at each position, in nats, over the whole vocabulary: [B, R, V], [B, R, V] -> [B, R].

    Summed over a sampled response it is the Rao-Blackwell estimate of the sequence KL (Amini et al. 2025).
    """
    found: Tensor = KL.apply(p_logits, q_logits, shared_by(p_logits), shared_by(q_logits))  # type: ignore[no-untyped-call]
    return found


def entropy(logits: Tensor) -> Tensor:
    """Entropy at each position, in nats: [B, R, V] -> [B, R]."""
    found: Tensor = Entropy.apply(logits, shared_by(logits))  # type: ignore[no-untyped-call]
    return found


def log_not(logits: Tensor, tokens: Tensor) -> Tensor:
    """log(1 - p(tokens)), in nats: [B, R, V], [B, R] -> [B, R].

    The term of unlikelihood training (Welleck et al. 2019, arXiv:1908.04319, section 4), as a log-sum-exp over the other
    tokens: unlike a clamped log(1 - p) it keeps its gradient where p is near 1.
    """
    others = logits.scatter(-1, tokens.unsqueeze(-1), float("-inf"))
    return others.logsumexp(-1) - logits.logsumexp(-1)


def log_nots(logits: Tensor) -> Tensor:
    """log(1 - p) of every token, in nats: [B, R, V] -> [B, R, V].

    Only the most likely token can have p near 1: `log_not` computes it, and log1p the others, exact for p below 1/2.
    """
    top = logits.argmax(-1)
    p = logits.softmax(-1).scatter(-1, top.unsqueeze(-1), 0.0)  # its log1p would be -inf, and the gradient NaN
    return (-p).log1p().scatter(-1, top.unsqueeze(-1), log_not(logits, top).unsqueeze(-1))


def said_before(response: Tensor, vocab: int) -> Tensor:
    """Mask of the tokens that precede a position in its row, except the token at the position: [B, R] -> [B, R, V].

    The candidates of token-level unlikelihood (Welleck et al. 2019, arXiv:1908.04319, section 4.1).
    """
    here = one_hot(response, vocab)
    return ((here.cumsum(1) - here) > 0) & (here == 0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the True positions of mask: [B, R], [B, R] -> []."""
    return x.masked_fill(~mask, 0).sum() / mask.sum()


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of x over the True positions of each row: [B, R], [B, R] -> [B]."""
    return x.masked_fill(~mask, 0).sum(1)
