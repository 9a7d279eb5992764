"""The one sampler of the suite: every response that is trained on or measured is drawn here.

Each row owns its uniform noise, drawn before the first step, and a token is the inverse of the cumulative
distribution at that noise. So a response depends on the seed and the policy alone, not on how rows are batched,
and two policies answer the same prompts with the same draws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import NotFinite
from harness.core.types import Decoding, DeployedPolicy, Prompts, Rollout

from . import configs
from .decoding import Decoder, decoder
from .models import processes, sharding
from .policy import Policy, samples_itself

Pick = Callable[["Distribution", Tensor, int], Tensor]
WORTH_DROPPING = 7 / 8  # of the rows alive; below it, copying the cache without the others costs less than carrying them
RESPONSES, MOST_RESPONSES = 256, 4096
BLOCK = 128  # tokens whose weights are summed at once, so that a draw searches sums and then one block
SHORTLIST = {"cpu": 64, "cuda": 1024}  # tokens among which top-p is tried before a vocabulary is sorted, by device
SORTED = 4096  # tokens in a vocabulary that is sorted as fast as a shortlist is found


@torch.no_grad()
def sample(
    policy: Policy | DeployedPolicy,
    prompts: Prompts,
    *,
    decoding: Decoding,
    rng: torch.Generator,
    n: int = 1,
    batch_size: int | None = None,
) -> Rollout:
    """n responses to each prompt by the deployed policy: [X, P] -> [X * n, R], those of a prompt in consecutive rows.

    A deployed policy with a `sample` of its own (best-of-n) is asked for it. The rollout holds the prompts without the
    policy's prefix and the log-probabilities, in nats, of the policy itself: before temperature, top-k and top-p. `rng` is a
    CPU generator on every device. `batch_size` is in responses; None takes what suits the device. Raises NotFinite if a logit
    is not finite.
    """
    if samples_itself(policy):
        return policy.sample(prompts, decoding=decoding, rng=rng, n=n)
    noise = torch.rand(len(prompts.tokens), n, decoding.max_new_tokens, generator=rng, dtype=torch.float64)
    prompts = prompts.to(policy.device)
    response, logprobs = _divided(policy, policy.condition(prompts), decoding, noise, batch_size)
    repeated = Prompts(*(x.repeat_interleave(n, 0) for x in prompts))
    return Rollout(repeated, response, until_eos(response, policy.ends), logprobs)


def _divided(
    policy: Policy, prompts: Prompts, decoding: Decoding, noise: Tensor, batch_size: int | None
) -> tuple[Tensor, Tensor]:
    """Responses to prompts at their noise [X, n, R], each process decoding its own: -> [X * n, R], [X * n, R].

    Prompts are divided; where there are more responses to each than prompts, the responses to each prompt.
    """
    x, n, steps = noise.shape

    def of_prompts(rows: slice) -> tuple[Tensor, ...]:
        some = Prompts(*(part[rows] for part in prompts))
        return tuple(part.view(-1, n, steps) for part in _decoded(policy, some, decoding, noise[rows], batch_size))

    def of_responses(rows: slice) -> tuple[Tensor, ...]:
        found = _decoded(policy, prompts, decoding, noise[:, rows], batch_size)
        return tuple(part.view(x, -1, steps).transpose(0, 1) for part in found)

    with sharding.gathered(policy):
        if x >= n:
            response, logprobs = processes.divided(x, of_prompts)
        else:
            response, logprobs = (part.transpose(0, 1) for part in processes.divided(n, of_responses))
    return response.reshape(x * n, steps), logprobs.reshape(x * n, steps)


def _decoded(
    policy: Policy, prompts: Prompts, decoding: Decoding, noise: Tensor, batch_size: int | None
) -> tuple[Tensor, Tensor]:
    """Responses to conditioned prompts at their noise [X, n, R], in batches: -> [X * n, R], [X * n, R]."""
    n, steps = noise.shape[1:]
    per_batch = max(1, (batch_size or responses_at_once(policy, prompts.tokens.shape[1] + steps)) // n)
    reader, parts = decoder(policy, n * min(per_batch, len(prompts.tokens))), []
    for i in range(0, len(prompts.tokens), per_batch):
        batch = Prompts(*(x[i : i + per_batch] for x in prompts))
        pick = partial(_drawn, decoding, noise[i : i + per_batch].flatten(0, 1).to(policy.device))
        parts.append(decode(policy, batch, n, steps, pick, reader))
    response, logprobs = (torch.cat(x) for x in zip(*parts, strict=True))
    return response, logprobs


def _drawn(decoding: Decoding, noise: Tensor, at: Distribution, rows: Tensor, t: int) -> Tensor:
    return choose(at, decoding, noise[rows, t])


@torch.no_grad()
def decode(
    policy: Policy, prompts: Prompts, n: int, steps: int, pick: Pick, reader: Decoder | None = None
) -> tuple[Tensor, Tensor]:
    """One batch: the prompts are read once, then their n responses grow a token a step: -> [B * n, R], [B * n, R].

    `pick` names the next token of each row that goes on: its distribution [A, V], rows [A], step -> [A]. Raises NotFinite if a
    logit is not finite.
    """
    reader = reader or decoder(policy, n * len(prompts.tokens))
    logits = reader.start(prompts, n, steps)
    device = logits.device
    response = torch.full((len(logits), steps), policy.eos, device=device)
    logprobs = torch.zeros(len(logits), steps, device=device)
    rows, alive = torch.arange(len(logits), device=device), torch.ones(len(logits), dtype=torch.bool, device=device)
    count = Count(len(logits))
    for t in range(steps):
        at, finite = distribution(logits)
        token = pick(at, rows, t).where(alive, policy.eos)
        response[rows, t] = token
        logprobs[rows, t] = at.logprobs(token).where(alive, 0.0)
        alive = alive & ~is_end(token, policy.ends)
        left = count(alive, finite, last=t + 1 == steps)
        if t + 1 == steps or not left:
            break
        if left < WORTH_DROPPING * len(alive) and reader.movable:
            going = (~alive).to(torch.uint8).argsort(stable=True)[:left]
            reader.keep(going)
            rows, token, alive = (x[going] for x in (rows, token, alive))
        logits = reader.step(token)
    return response, logprobs


class Count:
    """How many responses go on, as the host knows it: at once on a processor, a step late on a GPU, which need not wait.

    A number that is a step late is too large at most: the rows beyond it have ended.
    """

    def __init__(self, responses: int) -> None:
        self.left = responses
        self.late: tuple[Tensor, Any] | None = None

    def __call__(self, alive: Tensor, finite: Tensor, last: bool) -> int:
        """The number of True, [A], [] -> int; raises NotFinite where `finite` is False, at the latest at the last step."""
        number = alive.sum().where(finite, -1)
        if last or number.device.type != "cuda":
            return self._checked(int(number))
        before, self.late = self.late, self._sent(number)
        if before is not None:
            before[1].synchronize()
            self.left = self._checked(int(before[0]))
        return self.left

    def _sent(self, number: Tensor) -> tuple[Tensor, Any]:
        host = torch.empty((), dtype=torch.long, pin_memory=True).copy_(number, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event

    def _checked(self, number: int) -> int:
        if number < 0:
            raise NotFinite("the policy's logits are not finite: its weights are NaN or far too large; try a smaller lr")
        return number


def responses_at_once(policy: Policy, columns: int) -> int:
    """The batch that suits a device: a fixed number on a processor, on a GPU what a quarter of its memory holds.

    Of all its memory, not of what is free, so that the same command draws the same batches.
    """
    if policy.device.type != "cuda":
        return RESPONSES
    memory = torch.cuda.get_device_properties(policy.device).total_memory / 4
    numbers = configs.cached_numbers(policy.model) * columns + 8 * policy.vocab_size
    return int(min(MOST_RESPONSES, max(RESPONSES, memory / (4 * numbers))))


class Distribution(NamedTuple):
    """Next-token distributions, with the sums that log-probabilities and draws share."""

    logits: Tensor  # [A, V]
    top: Tensor  # [A, 1], the largest logit
    weights: Tensor  # [A, V], exp(logits - top)
    blocks: Tensor  # [A, number of blocks] float64, sums of BLOCK consecutive weights

    def logprobs(self, token: Tensor) -> Tensor:
        """Log-probability of one token of each row, in nats: [A] -> [A] float32."""
        log_total = self.top.squeeze(1).double() + self.blocks.sum(1).log()
        return (self.logits.gather(1, token[:, None]).squeeze(1).double() - log_total).float()


def distribution(logits: Tensor) -> tuple[Distribution, Tensor]:
    """The distributions of logits, and whether all of these are finite: [A, V] -> [A, V], []."""
    low, high = logits.aminmax(dim=1, keepdim=True)  # both are NaN if any logit is
    return weighed(logits, high), (low.isfinite() & high.isfinite()).all()


def weighed(logits: Tensor, top: Tensor | None = None) -> Distribution:
    """The distributions of logits that may be -inf, and the largest of each row: [A, V], [A, 1] -> [A, V]."""
    top = logits.amax(1, keepdim=True) if top is None else top
    rows, size = logits.shape
    padded = logits.new_zeros(rows, -(-size // BLOCK) * BLOCK)
    weights = padded[:, :size]
    torch.sub(logits, top, out=weights).exp_()
    return Distribution(logits, top, weights, padded.view(rows, -1, BLOCK).sum(-1).double())


def choose(logits: Tensor | Distribution, decoding: Decoding, noise: Tensor) -> Tensor:
    """The token of each row at its noise in [0, 1), by the inverse of the cumulative distribution: [A, V], [A] -> [A].

    Temperature first, then top-k, then top-p.
    """
    at = logits if isinstance(logits, Distribution) else weighed(logits)
    if decoding.temperature == 0:
        return at.logits.argmax(-1)
    if decoding.temperature != 1:
        at = weighed(at.logits / decoding.temperature)
    if decoding.top_k == 0 and decoding.top_p == 1.0:
        return _inverse(at.weights, at.blocks, noise)
    return _truncated(at, decoding, noise)


def _inverse(weights: Tensor, blocks: Tensor, noise: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds the noise, found by its block: [A, V], [A, K], [A] -> [A].

    So a token of weight 0 is never drawn. Sums are of float64: float32 loses a tail of small probabilities.
    """
    cdf = blocks.cumsum(1)
    target = noise * cdf[:, -1]
    block = torch.searchsorted(cdf, target[:, None], right=True).clamp(max=blocks.shape[1] - 1)  # beyond only for a NaN
    rest = target - (cdf.gather(1, block) - blocks.gather(1, block)).squeeze(1)
    columns = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(1, columns.clamp(max=weights.shape[1] - 1)).double().masked_fill(columns >= weights.shape[1], 0)
    within = inside.cumsum(1)
    share = (rest / blocks.gather(1, block).squeeze(1)).clamp(0, 1 - 2**-53)  # a block's sum may differ by its rounding
    at = torch.searchsorted(within, (share * within[:, -1])[:, None], right=True)
    return (block * BLOCK + at).squeeze(1).clamp(max=weights.shape[1] - 1)


def _truncated(at: Distribution, decoding: Decoding, noise: Tensor) -> Tensor:
    """A draw from the tokens that top-k and top-p keep.

    In a large vocabulary a shortlist of the likeliest usually contains them, and only the other rows are sorted.
    """
    vocab = at.logits.shape[1]
    if vocab <= SORTED:
        return _among_kept(at, decoding, noise)
    size = min(vocab, max(SHORTLIST.get(at.logits.device.type, SHORTLIST["cpu"]), decoding.top_k + 1))
    values, index = _shortlist(at.logits, size)
    weights = (values - at.top).double().exp()
    first = _first(weights, decoding, at.blocks.sum(1))
    token = _inverse_of_kept(weights, index, first, noise)
    beyond = ~_settled(values, first)
    if beyond.any():  # the shortlist is too short, or logits beyond it equal the last kept
        token[beyond] = _among_kept(Distribution(*(x[beyond] for x in at)), decoding, noise[beyond])
    return token


def _among_kept(at: Distribution, decoding: Decoding, noise: Tensor) -> Tensor:
    padded = at.weights.new_zeros(len(at.weights), at.blocks.shape[1] * BLOCK)
    weights = padded[:, : at.weights.shape[1]].copy_(at.weights.masked_fill(~kept(at, decoding), 0))
    return _inverse(weights, padded.view(len(padded), -1, BLOCK).sum(-1).double(), noise)


def kept(at: Distribution, decoding: Decoding) -> Tensor:
    """The tokens that top-k keeps and, of these, the fewest whose probability reaches top-p: [A, V] -> [A, V] bool.

    Equal logits are kept in the order of the vocabulary. Holtzman et al. 2020 (arXiv:1904.09751), section 3.1.
    """
    values = _descending(at.logits)
    first = _first((values - at.top).exp(), decoding, at.blocks.sum(1))
    count = first.sum(1, keepdim=True)
    least = values.gather(1, count - 1)
    above, equal = at.logits > least, at.logits == least
    wanted = count - above.sum(1, keepdim=True)
    if (equal.sum(1, keepdim=True) != wanted).any():
        equal &= equal.cumsum(1) <= wanted
    return above | equal


def _first(weights: Tensor, decoding: Decoding, total: Tensor) -> Tensor:
    """Which of the weights, in descending order, are kept: [A, S], their sum over the vocabulary [A] -> [A, S] bool."""
    k = decoding.top_k if 0 < decoding.top_k < weights.shape[1] else None
    before = weights.cumsum(1, dtype=torch.float64) - weights
    among = total if k is None else before[:, k]
    first = before < decoding.top_p * among[:, None] if decoding.top_p < 1 else torch.ones_like(weights, dtype=torch.bool)
    first[:, 0] = True  # whatever the rounding
    if k is not None:
        first[:, k:] = False
    return first


def _descending(logits: Tensor) -> Tensor:
    """Each row in descending order: [A, V] -> [A, V]. Numpy sorts numbers alone ten times as fast as torch on a processor."""
    if logits.device.type == "cpu":
        return torch.from_numpy(np.sort(logits.numpy(), axis=1)).flip(1)
    return logits.sort(dim=1, descending=True).values


def _inverse_of_kept(weights: Tensor, index: Tensor, kept: Tensor, noise: Tensor) -> Tensor:
    """As `_inverse` among the kept tokens, in the order of the vocabulary: [A, S] each, [A] -> [A]."""
    order = index.masked_fill(~kept, torch.iinfo(index.dtype).max).argsort(1)
    cdf = weights.masked_fill(~kept, 0).gather(1, order).cumsum(1)
    at = torch.searchsorted(cdf, (noise * cdf[:, -1])[:, None], right=True)
    return index.gather(1, order.gather(1, at)).squeeze(1)


def _shortlist(logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The largest logits in descending order, equal ones in the order of the vocabulary: [A, V] -> values and ids [A, S]."""
    index = logits.topk(size, dim=1, sorted=False).indices.sort(1).values
    values, order = logits.gather(1, index).sort(dim=1, descending=True, stable=True)
    return values, index.gather(1, order)


def _settled(values: Tensor, first: Tensor) -> Tensor:
    """Whether a shortlist decides which tokens of the vocabulary are kept: it holds all that equal the last: [A, S] -> [A]."""
    last = first.sum(1, keepdim=True)
    return (values[:, -1:] < values.gather(1, last - 1)).squeeze(1)


def until_eos(response: Tensor, eos: int | tuple[int, ...]) -> Tensor:
    """True up to and including the first EOS of each row, or the first of several: [B, R] -> [B, R]."""
    end = is_end(response, (eos,) if isinstance(eos, int) else eos).long()
    return end.cumsum(1) - end == 0


def is_end(tokens: Tensor, ends: tuple[int, ...]) -> Tensor:
    """Whether each token is one of those that end a response: any shape -> the same, bool."""
    return torch.stack([tokens == end for end in ends]).any(0)
