"""Quark: controllable text generation with reinforced unlearning (Lu et al. 2022, arXiv:2205.13636, section 2).

    pool <- pool + {(x, y, r(y)) : y ~ policy(. | x, best reward token)}                      explore
    split the pool into K equal quantiles of reward, a reward token each                      quantize
    min over theta:  -log p(y | x, token_k) + beta * KL(reference || policy)                  learn

`unlikelihood_coef` adds the unlikelihood of a response's previous tokens (Welleck et al. 2019, arXiv:1908.04319, section 4.1):
with it Quark is the combination of the paper's experiment on repetition (section 3.3). Its weight there is not published.

    + gamma * -(sum over c in {y_1 .. y_t-1} without y_t of log(1 - p(c | y_<t, token_k)))

`variant` names the two forms in circulation: `paper` takes KL(reference || policy) and no entropy bonus; `code` (the
authors' release) takes KL(policy || reference) and a bonus of 0.06 on the entropy.

Departures: the pool keeps token ids, so EOS is learned and no text is tokenised twice. Equal rewards are ordered at
random, not by age, so old samples do not win ties. Reward tokens are never sampled. Responses that the scorer could
not score are left out. A reward token follows the BOS token if the tokenizer adds one; `token_spread` above 1 initialises
the embeddings of reward tokens further apart than those of words, since a small policy learns to use them slowly. With
`neutral_updates` these embeddings are first trained alone, toward the reference without a token, since an untrained token
moves a pretrained policy. The loss is a mean over the tokens of the batch, as in the authors' code.

Departures from the authors' release, which the paper does not mention: the release bans EOS for the first 3 tokens of a
sampled response; here a response may end at once, as it may under the base policy, so that KL and frontier are of one
policy. The release's NLL and entropy include the position of the reward token; here they are over the response alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from harness.api import Knob, Pool, Rollout, Settings, Trial, entropy, kl, log_nots, masked_mean, said_before, token_logprobs


class QuarkSettings(Settings):
    variant: Literal["paper", "code"] = Field(
        "paper", description="paper or code: direction of the KL, and whether there is an entropy bonus"
    )
    lr: float = Field(1e-5, gt=0, description="Adam's learning rate")
    num_quantiles: int = Field(5, ge=2, description="K, number of quantiles and of reward tokens, worst first")
    kl_coef: float = Field(0.05, ge=0, description="beta, weight of the KL term, per nat")
    entropy_coef: float = Field(0.06, ge=0, description="weight of the entropy bonus, per nat; only in the variant `code`")
    unlikelihood_coef: float = Field(0.0, ge=0, description="gamma, weight of the unlikelihood of previous tokens")
    token_spread: float = Field(
        1.0, gt=0, description="initial scale of reward-token embeddings, in standard deviations of the vocabulary's"
    )
    neutral_updates: int = Field(
        0, ge=0, description="updates of the reward tokens' embeddings alone, toward the reference, before training"
    )
    explore_every: int = Field(500, ge=1, description="updates between explorations")
    explore_prompts: int = Field(4096, ge=1, description="prompts per exploration")
    batch_size: int = Field(128, ge=1, description="responses per update")
    added: ClassVar = ("neutral_updates",)


class Quark:
    version = 2
    Settings = QuarkSettings
    family = "likelihood, weighted or conditioned"
    knob = Knob("kl_coef", (2.0, 0.6, 0.2, 0.06, 0.02))
    quick: ClassVar[dict[str, Any]] = {"lr": 1e-2, "explore_every": 2, "explore_prompts": 16, "batch_size": 8}
    # no claim on strong regularisation: a random policy needs far more than 60 updates to respond to a reward token
    claims: ClassVar[dict[str, dict[str, Any]]] = {"reward_rises": {"explore_prompts": 64, "batch_size": 32}}

    def __init__(self, settings: QuarkSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s, policy = self.settings, trial.policy
        state = trial.keep(step=0, pool=Pool(trial.policy.device, trial.reference))
        reward_tokens = policy.control_tokens(s.num_quantiles, trial.rng, s.token_spread)
        if state.step == 0:
            trial.settle(reward_tokens, s.neutral_updates, s.batch_size)
        while True:
            if state.step % s.explore_every == 0:  # explore
                explorer = policy if state.step else trial.reference
                rollout = trial.sample(trial.prompts(s.explore_prompts), policy=explorer)
                state.pool.add(rollout, trial.reward(rollout))
                state.pool.quantize(s.num_quantiles, trial.rng)
                policy.prefix = (int(reward_tokens[-1]),)

            batch, quantile = state.pool.draw(s.batch_size, trial.rng)  # learn
            scalars = self._learn(trial, batch, reward_tokens[quantile])
            state.step += 1
            yield scalars | {"pool_reward": state.pool.mean_reward()}

    def _learn(self, trial: Trial, batch: Rollout, token: Tensor) -> dict[str, float]:
        s, mask = self.settings, batch.response_mask
        logits = trial.policy.logits(batch._replace(prompts=trial.policy.prepend(token, batch.prompts)))
        ref_logits = trial.reference_logits(batch)
        nll = masked_mean(-token_logprobs(logits, batch.response), mask)
        if s.variant == "paper":
            drift = masked_mean(kl(ref_logits, logits), mask)
            loss = nll + s.kl_coef * drift
        else:
            drift = masked_mean(kl(logits, ref_logits), mask)
            loss = nll + s.kl_coef * drift - s.entropy_coef * masked_mean(entropy(logits), mask)
        if s.unlikelihood_coef:
            loss = loss + s.unlikelihood_coef * masked_mean(unlikelihood(logits, batch.response), mask)
        trial.update(loss)
        return {"nll": nll.item(), "drift": drift.item()}


def unlikelihood(logits: Tensor, response: Tensor) -> Tensor:
    """-sum of log(1 - p) over the tokens that precede a position in its row, in nats: [B, R, V], [B, R] -> [B, R]."""
    return -log_nots(logits).masked_fill(~said_before(response, logits.shape[-1]), 0).sum(-1)
