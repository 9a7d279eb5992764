"""A pool of responses with their rewards, split into quantiles: what methods that learn from own samples keep."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.core.errors import RunFailed
from harness.core.types import Prompts, Rollout

if TYPE_CHECKING:
    from harness.policy.policy import Policy

PAGE = 16  # responses whose reference states are computed together: a fixed set, so that a resumed run computes the same
MOST_STATES = 2**29  # bytes of reference states that are kept


class Pool:
    """All responses so far with their rewards and quantiles, as in Quark (Lu et al. 2022, section 2); nothing is removed.

    With a reference, the responses that it draws carry the reference's last hidden states, computed once for each response,
    from which `Trial.reference_logits` has its logits without a forward pass.
    """

    def __init__(self, device: torch.device | str = "cpu", reference: Policy | None = None) -> None:
        self.device = device  # where responses are drawn to; the pool itself stays in the machine's memory
        self.reference = reference
        self.parts: list[dict[str, Tensor]] = []  # one an exploration
        self.quantile: Tensor = torch.empty(0, dtype=torch.long)
        self._among: dict[str, Tensor] = {}  # the rows of quantiles that were drawn from since the last `quantize`
        self._pages: dict[tuple[int, int], Tensor] = {}  # reference states by part and page

    def add(self, rollout: Rollout, reward: Tensor) -> None:
        """Add the responses that have a reward, as token ids: [B, R], [B] -> None; one call is one exploration."""
        scored = ~reward.isnan()
        self.parts.append(packed(rollout.to("cpu").rows(scored.cpu())) | {"reward": reward[scored]})

    def quantize(self, k: int, rng: torch.Generator) -> None:
        """Assign each response one of k quantiles of reward, 0 the lowest, k - 1 the highest; ties are ordered at random.

        Raises RunFailed if the pool holds fewer than k responses.
        """
        reward = self.rewards()
        if len(reward) < k:
            raise RunFailed(
                f"the pool holds {len(reward)} scored responses, fewer than its {k} quantiles; raise explore_prompts"
            )
        shuffled = torch.randperm(len(reward), generator=rng)
        rank = torch.empty_like(shuffled)
        rank[shuffled[reward[shuffled].argsort(stable=True)]] = torch.arange(len(reward))
        self.quantile = rank * k // len(reward)
        self._among = {}

    def line(self, share: float) -> float:
        """The reward at or below which this share of the responses lies, as nearly as equal rewards allow; below the highest.

        Responses of one reward are never on both sides. Raises RunFailed if all rewards are equal, so that none is bad.
        """
        reward = self.rewards()
        below = reward[reward < reward.max()] if len(reward) else reward
        if not len(below):
            what = f"all have reward {reward[0]:g}" if len(reward) else "none could be scored"
            raise RunFailed(f"of {len(reward)} responses {what}, so there is nothing to forget; look at the scorer")
        return min(float(reward.quantile(share, interpolation="lower")), float(below.max()))

    def divide(self, line: float) -> None:
        """Assign each response to quantile 0, at or below the line, or to quantile 1, above it."""
        self.quantile = (self.rewards() > line).long()
        self._among = {}

    def draw_both(self, n_below: int, n_above: int, rng: torch.Generator) -> tuple[Rollout, Tensor]:
        """Random responses of both sides of the line, with replacement: -> rollout [n, R], quantile [n] int64."""
        sides = [(self._rows_of(side), n) for side, n in ((0, n_below), (1, n_above))]
        rows = torch.cat([among[torch.randint(len(among), (n,), generator=rng)] for among, n in sides])
        return self._rollout(rows), self.quantile[rows]

    def draw(self, n: int, rng: torch.Generator, quantile: int | range | None = None) -> tuple[Rollout, Tensor]:
        """n random responses, with replacement, of one quantile, several or all: -> rollout [n, R], quantile [n] int64."""
        if quantile is None:
            rows = torch.randint(len(self.quantile), (n,), generator=rng)
        else:
            among = self._rows_of(quantile)
            rows = among[torch.randint(len(among), (n,), generator=rng)]
        return self._rollout(rows), self.quantile[rows]

    def draw_scored(self, n: int, rng: torch.Generator) -> tuple[Rollout, Tensor]:
        """n random responses, with replacement, and their rewards, on the pool's device: -> rollout [n, R], reward [n].

        Raises RunFailed if the pool is empty.
        """
        reward = self.rewards()
        if not len(reward):
            raise RunFailed("the pool holds no scored response; look at the scorer, or raise explore_prompts")
        rows = torch.randint(len(reward), (n,), generator=rng)
        return self._rollout(rows), reward[rows].to(self.device)

    def rewards(self) -> Tensor:
        """The rewards of all responses: -> [number of responses] float32."""
        return torch.cat([p["reward"] for p in self.parts])

    def mean_reward(self) -> float:
        """The mean reward of the last exploration, in [0, 1]."""
        return self.parts[-1]["reward"].mean().item()

    def _rows_of(self, quantile: int | range) -> Tensor:
        """The responses of these quantiles, in the order of the pool: -> ids."""
        if str(quantile) not in self._among:
            allowed = torch.tensor([quantile] if isinstance(quantile, int) else list(quantile))
            self._among[str(quantile)] = torch.isin(self.quantile, allowed).nonzero().flatten()
        return self._among[str(quantile)]

    def _rollout(self, rows: Tensor) -> Rollout:
        ends = torch.tensor(list(accumulate(len(p["reward"]) for p in self.parts)))
        part = torch.searchsorted(ends, rows, right=True)
        within = rows - torch.cat([ends.new_zeros(1), ends])[part]
        found = unpacked({name: self._gathered(name, part, within) for name in PACKED})
        return found._replace(reference_states=self._states(part, within)).to(self.device)

    def _gathered(self, name: str, part: Tensor, within: Tensor) -> Tensor:
        """One field of the responses at these places, of parts that hold them: [n], [n] -> [n, ...]."""
        first = self.parts[0][name]
        found = first.new_empty(len(part), *first.shape[1:])
        for i in part.unique().tolist():
            found[part == i] = self.parts[i][name][within[part == i]]
        return found

    def _states(self, part: Tensor, within: Tensor) -> Tensor | None:
        """The reference's states of responses, [n, R, D], None without a reference or beyond the memory for them."""
        if self.reference is None or not self.reference.plain_head:
            return None
        pages = list(zip(part.tolist(), (within // PAGE).tolist(), strict=True))
        width = self.parts[0]["response"].shape[1] * self.reference.width
        # by the place in the pool, not by what is there already: a resumed run keeps the same pages
        most = MOST_STATES // (4 * width * PAGE)
        before = [0, *accumulate(-(-len(p["reward"]) // PAGE) for p in self.parts)]
        if max(before[i] + page for i, page in pages) >= most:
            return None
        for key in dict.fromkeys(pages):
            if key not in self._pages:
                self._pages[key] = self._computed(*key)
        return torch.stack([self._pages[key][row] for key, row in zip(pages, (within % PAGE).tolist(), strict=True)])

    @torch.no_grad()
    def _computed(self, part: int, page: int) -> Tensor:
        assert self.reference is not None
        rows = slice(page * PAGE, (page + 1) * PAGE)
        rollout = unpacked({name: self.parts[part][name][rows] for name in PACKED}).to(self.reference.device)
        return self.reference.uncounted_states(rollout)

    def state_dict(self) -> dict[str, Any]:
        """All responses, rewards and quantiles, for a checkpoint."""
        return {"parts": self.parts, "quantile": self.quantile}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.parts, self.quantile = [_of_checkpoint(part) for part in state["parts"]], state["quantile"]
        self._among, self._pages = {}, {}


PACKED = ("prompt", "prompt_length", "response", "response_length")


def packed(rollout: Rollout) -> dict[str, Tensor]:
    """Tokens in 16 bits if they fit, and lengths in place of masks: a quarter of the memory."""
    largest = max(int(x.max()) if x.numel() else 0 for x in (rollout.prompts.tokens, rollout.response))
    kind = torch.int16 if largest < 2**16 else torch.int32
    tokens = {"prompt": rollout.prompts.tokens.to(kind), "response": rollout.response.to(kind)}
    lengths = {"prompt_length": rollout.prompts.mask.sum(1), "response_length": rollout.response_mask.sum(1)}
    return tokens | {name: x.to(torch.int32) for name, x in lengths.items()}


def _of_checkpoint(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """A part as it is kept now; older checkpoints hold masks."""
    if "prompt" in part:
        return part
    rollout = Rollout(Prompts(part["tokens"], part["mask"]), part["response"], part["response_mask"])
    return packed(rollout) | {"reward": part["reward"]}


def unpacked(fields: dict[str, Tensor]) -> Rollout:
    """The rollout that was packed: prompts padded on the left, responses on the right."""
    prompt, response = (whole(fields[name]) for name in ("prompt", "response"))
    at, step = torch.arange(prompt.shape[1]), torch.arange(response.shape[1])
    mask = at >= prompt.shape[1] - fields["prompt_length"][:, None]
    return Rollout(Prompts(prompt, mask), response, step < fields["response_length"][:, None])


def whole(tokens: Tensor) -> Tensor:
    """Token ids as int64; those of 16 bits are read without a sign."""
    return tokens.long() & 0xFFFF if tokens.dtype == torch.int16 else tokens.long()
