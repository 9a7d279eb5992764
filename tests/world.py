"""A world small enough to enumerate: 5 tokens, at most 4 steps, 341 responses to a prompt.

Every quantity that the suite estimates from samples has an exact value here, found by arithmetic of its own: nothing
from `harness.measure.frontier`, `harness.policy.logprobs` or the sampler is used. A table is [X, N]: X prompts, N responses.
"""

from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from transformers import GPT2Config, GPT2LMHeadModel

from harness.core.types import Decoding, Prompts, Rollout
from harness.policy.policy import Policy, without_dropout

VOCAB, EOS, STEPS = 5, 0, 4
PROMPTS = ([1], [2], [3, 1], [4, 4], [2, 3, 1], [1, 4, 2], [3, 3, 3], [4, 1, 2, 3])


def policy(seed: int = 0, width: int = 8, layers: int = 1) -> Policy:
    """A GPT-2 whose random weights are large enough that its distributions are far from uniform.

    One layer of width 8 is a policy to measure; it takes a wider one to be trained to any distribution.
    """
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=12, n_embd=width, n_layer=layers, n_head=2, bos_token_id=EOS, eos_token_id=EOS
    )
    model = GPT2LMHeadModel(config)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if not name.endswith(("bias", "ln_1.weight", "ln_2.weight", "ln_f.weight")):
                weights.copy_(torch.randn(weights.shape, generator=rng) * 0.55 * (8 / width) ** 0.5)
    return Policy(without_dropout(model), bos=EOS, eos=EOS)


def perturbed(base: Policy, scale: float, seed: int, num_control: int = 0) -> Policy:
    """A copy with noise on every weight; with control tokens, its prefix is the last of them."""
    rng = torch.Generator().manual_seed(seed)
    tuned = base.frozen_copy()
    if num_control:
        tuned.prefix = (int(tuned.control_tokens(num_control, rng)[-1]),)
    for weights in tuned.parameters():
        weights.add_(torch.randn(weights.shape, generator=rng) * scale)
    return tuned


def prompts(rows: NDArray | None = None) -> Prompts:
    """The prompts of those rows of PROMPTS (all by default), left-padded: -> [X, 4]."""
    chosen = [PROMPTS[i] for i in (range(len(PROMPTS)) if rows is None else rows)]
    tokens = torch.tensor([[EOS] * (4 - len(p)) + p for p in chosen])
    return Prompts(tokens, torch.tensor([[False] * (4 - len(p)) + [True] * len(p) for p in chosen]))


def responses() -> list[tuple[int, ...]]:
    """Every response once: EOS ends it, or the fourth token does."""
    words = [t for t in range(VOCAB) if t != EOS]
    ended = [(*head, EOS) for n in range(STEPS) for head in product(words, repeat=n)]
    return ended + list(product(words, repeat=STEPS))


RESPONSES = responses()
INDEX = {r: i for i, r in enumerate(RESPONSES)}


def index(response: torch.Tensor) -> NDArray:
    """Where each sampled response stands in RESPONSES: [B, 4] -> [B]."""
    return np.array([INDEX[tuple(row[: row.index(EOS) + 1] if EOS in row else row)] for row in response.tolist()])


@torch.no_grad()
def log_probs(policy: Policy) -> NDArray:
    """log pi(y | x) of every response to every prompt, nats: -> [X, N]; no padding, no cache, float64."""
    return log_probs_of(policy.frozen_copy().model.double(), policy.prefix).numpy()


def log_probs_of(model: GPT2LMHeadModel, prefix: tuple[int, ...] = ()) -> torch.Tensor:
    """The same for a model itself, in its own precision, with the gradient: -> [X, N]."""
    return torch.stack([_log_probs(model, [*prefix, *prompt]) for prompt in PROMPTS])


PATHS = list(product(range(VOCAB), repeat=STEPS - 1))  # all that the model can have said before its last token


def _log_probs(model: GPT2LMHeadModel, head: list[int]) -> torch.Tensor:
    """log pi(y | head) of every response: -> [N]."""
    logits = model(input_ids=torch.tensor([head + list(path) for path in PATHS])).logits[:, len(head) - 1 :, :VOCAB]
    steps = logits - logits.exp().sum(-1, keepdim=True).log()
    padded = [(*response, *[EOS] * STEPS) for response in RESPONSES]
    rows = torch.tensor([PATHS.index(response[: STEPS - 1]) for response in padded])
    tokens = torch.tensor([response[:STEPS] for response in padded])
    said = torch.tensor([[t < len(response) for t in range(STEPS)] for response in RESPONSES])
    return steps[rows].gather(-1, tokens[..., None]).squeeze(-1).where(said, 0.0).sum(1)


def rewards(seed: int = 0) -> NDArray:
    """A reward in {0, 0.1, ..., 1} for every response, one table for all prompts, so that rewards tie: -> [N]."""
    return np.random.default_rng(seed).integers(0, 11, len(RESPONSES)) / 10


def expected(log_p: NDArray, values: NDArray) -> NDArray:
    """E[values] for each prompt: [X, N], [N] -> [X]."""
    return np.exp(log_p) @ values


def kl(log_p: NDArray, log_q: NDArray) -> NDArray:
    """KL(p || q) for each prompt, nats: [X, N], [X, N] -> [X]; a response of probability 0 adds nothing."""
    held = log_p > -np.inf
    ratio = np.subtract(log_p, log_q, out=np.zeros_like(log_p), where=held)
    return (np.exp(log_p) * ratio).sum(1)


def entropy(log_p: NDArray) -> NDArray:
    """Entropy over whole responses for each prompt, nats: [X, N] -> [X]."""
    return -(np.exp(log_p) * log_p).sum(1)


def tilted(log_p: NDArray, reward: NDArray, lam: float) -> NDArray:
    """log of pi0 exp(lambda r) / Z: [X, N], [N] -> [X, N]."""
    scores = log_p + lam * (reward - reward.max())
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def frontier_reward(log_p: NDArray, reward: NDArray, nats: float) -> float:
    """R*(K), by the policy itself: the reward of the tilted policy whose mean KL is K."""
    lam = brentq(lambda s: kl(tilted(log_p, reward, s), log_p).mean() - nats, 0, 500, xtol=1e-12)
    return float(expected(tilted(log_p, reward, lam), reward).mean())


def frontier_kl(log_p: NDArray, reward: NDArray, goal: float) -> float:
    """K*(R), by the policy itself: the KL of the tilted policy whose mean reward is R."""
    lam = brentq(lambda s: expected(tilted(log_p, reward, s), reward).mean() - goal, 0, 500, xtol=1e-12)
    return float(kl(tilted(log_p, reward, lam), log_p).mean())


def best_of_n(log_p: NDArray, reward: NDArray, n: int) -> NDArray:
    """log-probability of each response to be the best of n, ties by a coin: -> [X, N].

    One draw after another: the new response wins against the best so far, or ties with it. (A coin between two of a tie
    is fair whatever n: within a level both are drawn from the base policy.)
    """
    p = np.exp(log_p)
    beats = (reward[:, None] > reward) + 0.5 * (reward[:, None] == reward)
    best = p
    for _ in range(n - 1):
        best = best * (p @ beats.T) + p * (best @ beats.T)
    return np.log(best)


class WorldTask:
    """Its prompts in turn, and a reward from a table: NaN in the table is a response that cannot be scored."""

    name, version = "world", 1
    decoding = Decoding(max_new_tokens=STEPS)

    def __init__(self, reward: NDArray) -> None:
        self.table = torch.tensor(reward, dtype=torch.float32)  # [N]

    def train_prompts(self, n: int, rng: torch.Generator) -> Prompts:
        return prompts(np.arange(n) % len(PROMPTS))

    def reward(self, rollout: Rollout) -> torch.Tensor:
        return self.table[torch.from_numpy(index(rollout.response))]
