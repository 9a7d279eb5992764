"""PPO with a KL penalty (Schulman et al. 2017, arXiv:1707.06347; for language models Ziegler et al. 2019, arXiv:1909.08593).

    y ~ policy(. | x),   R_t = 1[t = T] r(x, y) - beta * log (policy(y_t | .) / reference(y_t | .))    sample
    A_t = sum over s >= t of lambda^(s-t) (R_s + V_(s+1) - V_s),   G_t = A_t + V_t,   A whitened       GAE, gamma 1
    several epochs of minibatches, with rho_t = policy(y_t | .) / policy_old(y_t | .):                 learn
        min over theta:  mean over t of max(-rho A, -clip(rho, 1 - eps, 1 + eps) A)
                         + c/2 * max((V' - G)^2, (clip(V', V - eps_v, V + eps_v) - G)^2)

T is the last token, EOS if there is one: it is trained like any other and receives the score. beta is fixed, or follows
Ziegler's controller: each rollout beta *= 1 + clip(KL / target - 1, -0.2, 0.2) * min(1, responses / horizon).
The paper's rollouts are a twentieth of the horizon; one that is longer than it counts as one horizon, so that beta changes
by at most a fifth and stays above 0.
The Quark paper's PPO was never released; the remaining code shows this recipe and a separate trunk of the value network,
the default here (`value_trunk`); `shared` computes the values from the policy's last hidden states.

Departures: the optimizer is the suite's, with joint gradient clipping of policy and value network. Rewards are not whitened
before GAE (the shift would reward length). The value head starts at 0, so the first advantages are the rewards to go.
Responses that the scorer could not score are left out. TRL 1.12 places the score one position later.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.api import Knob, Policy, Prompts, Rollout, Settings, Trial, masked_mean, token_logprobs, tokens_of


class PPOSettings(Settings):
    lr: float = Field(1e-5, gt=0, description="Adam's learning rate of policy and value network")
    kl_coef: float = Field(0.15, ge=0, description="beta, reward per nat; initial value if adaptive")
    kl_controller: Literal["fixed", "adaptive"] = Field("adaptive", description="whether beta is adapted to reach kl_target")
    kl_target: float = Field(6.0, gt=0, description="target KL of the adaptive controller, nats per response")
    kl_horizon: int = Field(10_000, ge=1, description="horizon of the adaptive controller, responses")
    value_trunk: Literal["own", "shared"] = Field(
        "own", description="body of the value network: a copy of the base policy, or the policy itself"
    )
    value_coef: float = Field(0.1, ge=0, description="c, weight of the value loss")
    clip_range: float = Field(0.2, gt=0, description="eps, clip range of the ratio")
    value_clip_range: float = Field(0.2, gt=0, description="eps_v, clip range of the value, in units of reward")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="lambda of generalised advantage estimation")
    explore_prompts: int = Field(512, ge=2, description="prompts per rollout")
    epochs: int = Field(4, ge=1, description="passes over each rollout")
    minibatches: int = Field(4, ge=1, description="updates per pass")

    @property
    def sequences(self) -> int:
        """Sequences that an update reads at once, for estimates of memory."""
        return -(-self.explore_prompts // self.minibatches)

    @property
    def networks(self) -> int:
        """Networks of the policy's size that are trained, for estimates of memory."""
        return 2 if self.value_trunk == "own" else 1


class Value(nn.Module):
    """Value network: V(x, y_<t) by a linear head on the last hidden states of its trunk, or of the policy if trunk is None."""

    def __init__(self, width: int, trunk: Policy | None) -> None:
        super().__init__()
        # no default init, which would use the global generator
        self.trunk, self.head = trunk, nn.utils.skip_init(nn.Linear, width, 1)
        for weights in self.head.parameters():
            nn.init.zeros_(weights)

    def forward(self, states: Tensor) -> Tensor:
        return self.head(states).squeeze(-1)


class PPO:
    version = 1
    Settings = PPOSettings
    family = "policy gradients"
    knob = Knob("kl_coef", (0.5, 0.15, 0.05, 0.015, 0.005))
    quick: ClassVar[dict[str, Any]] = {"explore_prompts": 16, "epochs": 2, "minibatches": 2}
    claims: ClassVar[dict[str, dict[str, Any]]] = {
        "base_returns": {"kl_coef": 10.0, "kl_controller": "fixed", "explore_prompts": 64},
        "reward_rises": {"kl_coef": 0.01, "kl_controller": "fixed", "lr": 1e-2, "explore_prompts": 64},
    }

    def __init__(self, settings: PPOSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        trunk = trial.reference.copy().requires_grad_(True) if s.value_trunk == "own" else None
        value = Value(trial.policy.width, trunk)
        trial.train_also(value)
        state = trial.keep(step=0, value=value, kl_coef=s.kl_coef, facts={}, experience={}, order=torch.empty(0))
        while True:
            epoch, part = divmod(state.step % (s.epochs * s.minibatches), s.minibatches)
            if epoch == part == 0:
                state.experience, state.facts = self._explore(trial, value, state.kl_coef)
                state.kl_coef = self._controlled(state.kl_coef, state.facts["kl"])
            if part == 0:
                state.order = torch.randperm(len(state.experience["response"]), generator=trial.rng)

            rows = state.order.tensor_split(s.minibatches)[part]
            scalars = self._learn(trial, value, {k: v[rows].to(trial.policy.device) for k, v in state.experience.items()})
            state.step += 1
            yield scalars | state.facts

    @torch.no_grad()
    def _explore(self, trial: Trial, value: Value, kl_coef: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Sample a rollout; return it with advantages and returns as plain tensors for `keep`, and its scalars."""
        s = self.settings
        rollout, reward = trial.scored(trial.sample(trial.prompts(s.explore_prompts)), at_least=max(2, s.minibatches))
        logprobs, mask = rollout.logprobs, rollout.response_mask
        assert logprobs is not None  # set by the sampler
        parts = [rollout.rows(rows) for rows in torch.arange(len(reward)).tensor_split(s.minibatches)]
        ref_logprobs = torch.cat([token_logprobs(trial.reference.logits(part), part.response) for part in parts])
        values = torch.cat([self._values(trial, value, part) for part in parts])
        log_ratio = (logprobs - ref_logprobs).masked_fill(~mask, 0)
        advantage = gae(shaped(reward, log_ratio, mask, kl_coef), values, mask, s.gae_lambda)
        experience = {
            "tokens": rollout.prompts.tokens, "mask": rollout.prompts.mask, "response": rollout.response, "response_mask": mask,
            "logprobs": logprobs, "values": values, "returns": advantage + values, "advantage": whiten(advantage, mask),
        }  # fmt: skip
        return experience, {"reward": reward.mean().item(), "kl": log_ratio.sum(1).mean().item(), "kl_coef": kl_coef}

    def _learn(self, trial: Trial, value: Value, batch: dict[str, Tensor]) -> dict[str, float]:
        s, mask = self.settings, batch["response_mask"]
        rollout = Rollout(Prompts(batch["tokens"], batch["mask"]), batch["response"], mask, batch["logprobs"])
        logits, states = trial.policy.logits_and_states(rollout)
        ratio = (token_logprobs(logits, rollout.response) - batch["logprobs"]).exp()
        policy_cost = masked_mean(policy_loss(ratio, batch["advantage"], s.clip_range), mask)
        values = self._values(trial, value, rollout, states)
        value_cost = masked_mean(value_loss(values, batch["values"], batch["returns"], s.value_clip_range), mask)
        trial.update(policy_cost + s.value_coef * value_cost)
        return {"policy_loss": policy_cost.item(), "value_loss": value_cost.item()}

    def _values(self, trial: Trial, value: Value, rollout: Rollout, states: Tensor | None = None) -> Tensor:
        """V before each response token; `states` are the policy's hidden states if already computed: -> [B, R]."""
        trial.charge(value, tokens_of(rollout))
        if states is None or value.trunk is not None:
            states = (value.trunk or trial.policy).states(rollout)
        return value(states)

    def _controlled(self, kl_coef: float, kl: float) -> float:
        """The beta of the next rollout."""
        s = self.settings
        if s.kl_controller == "fixed":
            return kl_coef
        error = min(max(kl / s.kl_target - 1, -0.2), 0.2)
        return kl_coef * (1 + error * min(1.0, s.explore_prompts / s.kl_horizon))


def shaped(reward: Tensor, log_ratio: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """The reward of each token, its KL penalty plus the score on the last token: [B], [B, R], [B, R] -> [B, R]."""
    last = mask.sum(1, keepdim=True) - 1
    return (-kl_coef * log_ratio).scatter_add(1, last, reward[:, None])


def gae(rewards: Tensor, values: Tensor, mask: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimates with gamma 1 and value 0 after the last token: all [B, R] -> [B, R], 0 off the mask."""
    rewards, values = rewards.masked_fill(~mask, 0), values.masked_fill(~mask, 0)
    advantage, ahead, next_value = torch.zeros_like(values), torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        ahead = rewards[:, t] + next_value - values[:, t] + lam * ahead
        advantage[:, t], next_value = ahead, values[:, t]
    return advantage


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Standardise to mean 0 and standard deviation 1 over the mask: [B, R] -> [B, R], 0 off the mask."""
    kept = x[mask]
    return ((x - kept.mean()) * (kept.var() + 1e-8).rsqrt()).masked_fill(~mask, 0)


def policy_loss(ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """The clipped surrogate loss of each token: [B, R], [B, R] -> [B, R]."""
    return torch.max(-ratio * advantage, -ratio.clamp(1 - clip_range, 1 + clip_range) * advantage)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Half the squared error of each value, or of the value clipped around the old one if larger: [B, R] -> [B, R]."""
    held = old + (values - old).clamp(-clip_range, clip_range)
    return torch.max((values - returns).square(), (held - returns).square()) / 2
