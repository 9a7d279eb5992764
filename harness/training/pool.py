"""A pool of responses with their rewards, split into quantiles: what methods that learn from own samples keep."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.core.errors import RunFailed
from harness.core.types import Prompts, Rollout
from harness.policy.models import processes

if TYPE_CHECKING:
    from harness.policy.policy import Policy

BLOCK = 2**16  # responses that are stored together: one allocation an exploration would leave gaps between its temporaries
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
        self.ends: list[int] = []  # number of responses after each exploration
        self.quantile: Tensor = torch.empty(0, dtype=torch.long)
        self._blocks: list[dict[str, Tensor]] = []  # of BLOCK rows each, the last one filled in part
        self._among: dict[str, Tensor] = {}  # the rows of quantiles that were drawn from since the last `quantize`
        self._pages: dict[tuple[int, int], Tensor] = {}  # reference states by exploration and page

    def __len__(self) -> int:
        """The number of responses."""
        return self.ends[-1] if self.ends else 0

    def add(self, rollout: Rollout, reward: Tensor) -> None:
        """Add the responses that have a reward, as token ids: [B, R], [B] -> None; one call is one exploration."""
        scored = ~reward.isnan()
        self._explored(packed(rollout.to("cpu").rows(scored.cpu())) | {"reward": reward[scored].cpu()})

    def quantize(self, k: int, rng: torch.Generator) -> None:
        """Assign each response one of k quantiles of reward, 0 the lowest, k - 1 the highest; ties are ordered at random.

        Raises RunFailed if the pool holds fewer than k responses.
        """
        n = len(self)
        if n < k:
            raise RunFailed(f"the pool holds {n} scored responses, fewer than its {k} quantiles; raise explore_prompts")
        self._among, self.quantile = {}, torch.empty(0)  # the old ones are not held beside the new
        shuffled = torch.randperm(n, generator=rng)
        # numpy sorts in less memory than torch
        order = shuffled[torch.from_numpy(np.argsort(self.rewards()[shuffled].numpy(), kind="stable"))]
        self.quantile = torch.empty_like(order).index_put_((order,), torch.arange(n).mul_(k).floor_divide_(n))

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
        if not len(self):
            raise RunFailed("the pool holds no scored response; look at the scorer, or raise explore_prompts")
        rows = torch.randint(len(self), (n,), generator=rng)
        return self._rollout(rows), self._gathered("reward", rows).to(self.device)

    def rewards(self) -> Tensor:
        """The rewards of all responses: -> [number of responses] float32."""
        return self._slice("reward", 0, len(self))

    def mean_reward(self) -> float:
        """The mean reward of the last exploration, in [0, 1]."""
        return self._slice("reward", *self._span(len(self.ends) - 1)).mean().item()

    def _rows_of(self, quantile: int | range) -> Tensor:
        """The responses of these quantiles, in the order of the pool: -> ids."""
        if str(quantile) not in self._among:
            allowed = torch.tensor([quantile] if isinstance(quantile, int) else list(quantile))
            self._among[str(quantile)] = torch.isin(self.quantile, allowed).nonzero().flatten()
        return self._among[str(quantile)]

    def _rollout(self, rows: Tensor) -> Rollout:
        found = unpacked({name: self._gathered(name, rows) for name in PACKED})
        return found._replace(reference_states=self._states(rows)).to(self.device)

    def _explored(self, fields: dict[str, Tensor]) -> None:
        """Store the fields of an exploration: [B, ...] each."""
        self.ends.append(len(self) + len(fields["reward"]))
        start, end = self._span(len(self.ends) - 1)
        for at in (start, *range((start // BLOCK + 1) * BLOCK, end, BLOCK)):
            if at == BLOCK * len(self._blocks):
                self._blocks.append({name: x.new_empty(BLOCK, *x.shape[1:]) for name, x in fields.items()})
            rows = slice(at - start, min(end, (at // BLOCK + 1) * BLOCK) - start)
            for name, x in fields.items():
                _write(self._blocks[-1], name, at % BLOCK, x[rows])

    def _span(self, exploration: int) -> tuple[int, int]:
        """The first row of an exploration and the one after its last."""
        return (self.ends[exploration - 1] if exploration else 0), self.ends[exploration]

    def _slice(self, name: str, start: int, end: int) -> Tensor:
        """One field of consecutive responses: -> [end - start, ...]."""
        blocks = range(start // BLOCK, max(start, end - 1) // BLOCK + 1)
        return torch.cat([self._blocks[i][name][max(0, start - i * BLOCK) : end - i * BLOCK] for i in blocks])

    def _gathered(self, name: str, rows: Tensor) -> Tensor:
        """One field of responses, token ids and lengths as int64: [n] -> [n, ...]."""
        block, within = rows // BLOCK, rows % BLOCK
        first = self._blocks[0][name]
        kind = first.dtype if first.is_floating_point() else torch.int64
        found = torch.empty(len(rows), *first.shape[1:], dtype=kind)
        for i in block.unique().tolist():
            part = self._blocks[i][name][within[block == i]]
            found[block == i] = part if part.is_floating_point() else whole(part)  # blocks may differ in bits
        return found

    def _states(self, rows: Tensor) -> Tensor | None:
        """The reference's states of responses, [n, R, D], None without a reference or beyond the memory for them."""
        if self.reference is None or not self.reference.plain_head:
            return None
        ends = torch.tensor(self.ends)
        part = torch.searchsorted(ends, rows, right=True)
        within = rows - torch.cat([ends.new_zeros(1), ends])[part]
        pages = list(zip(part.tolist(), (within // PAGE).tolist(), strict=True))
        width = self._blocks[0]["response"].shape[1] * self.reference.width
        # by the place in the pool, not by what is there already: a resumed run keeps the same pages
        most = MOST_STATES // (4 * width * PAGE)
        spans = map(self._span, range(len(self.ends)))
        before = [0, *accumulate(-(-(end - start) // PAGE) for start, end in spans)]
        if max(before[i] + page for i, page in pages) >= most:
            return None
        missing = [key for key in dict.fromkeys(pages) if key not in self._pages]
        self._pages |= zip(missing, self._read(missing), strict=True)
        return torch.stack([self._pages[key][row] for key, row in zip(pages, (within % PAGE).tolist(), strict=True)])

    def _read(self, pages: list[tuple[int, int]]) -> list[Tensor]:
        """The reference's states of pages, each process computing some of them: [rows of a page, R, D] each."""
        if processes.size() == 1 or not pages:
            return [self._computed(*page) for page in pages]

        def own(part: slice) -> tuple[Tensor]:
            found = [self._computed(*page) for page in pages[part]]
            return (torch.stack([pad(x, (0, 0, 0, 0, 0, PAGE - len(x))) for x in found]),)  # the last page may have fewer rows

        return list(processes.divided(len(pages), own)[0])

    @torch.no_grad()
    def _computed(self, part: int, page: int) -> Tensor:
        assert self.reference is not None
        start, end = self._span(part)
        start += page * PAGE
        fields = {name: self._slice(name, start, min(start + PAGE, end)) for name in PACKED}
        rollout = unpacked(fields).to(self.reference.device)
        return self.reference.uncounted_states(rollout)

    def state_dict(self) -> dict[str, Any]:
        """All responses, rewards and quantiles, for a checkpoint."""
        parts = [self._stored(i) for i in range(len(self.ends))]
        return {"parts": parts, "quantile": self.quantile}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.ends, self._blocks, self._among, self._pages = [], [], {}, {}
        for part in state["parts"]:
            self._explored(_of_checkpoint(part))
        self.quantile = state["quantile"]

    def _stored(self, exploration: int) -> dict[str, Tensor]:
        return {name: self._slice(name, *self._span(exploration)) for name in (*PACKED, "reward")}


PACKED = ("prompt", "prompt_length", "response", "response_length")


def packed(rollout: Rollout) -> dict[str, Tensor]:
    """Tokens in 16 bits if they fit, and lengths in place of masks: a quarter of the memory."""
    largest = max(int(x.max()) if x.numel() else 0 for x in (rollout.prompts.tokens, rollout.response))
    kind = torch.int16 if largest < 2**16 else torch.int32
    tokens = {"prompt": rollout.prompts.tokens.to(kind), "response": rollout.response.to(kind)}
    lengths = {"prompt_length": rollout.prompts.mask.sum(1), "response_length": rollout.response_mask.sum(1)}
    return tokens | {name: x.to(torch.int32) for name, x in lengths.items()}


def _write(block: dict[str, Tensor], name: str, at: int, rows: Tensor) -> None:
    """Write rows of one field into a block, which takes wider tokens if they are."""
    if rows.dtype != block[name].dtype:
        block[name], rows = (whole(x).to(torch.int32) for x in (block[name], rows))
    block[name][at : at + len(rows)] = rows


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
