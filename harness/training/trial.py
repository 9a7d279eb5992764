"""One (method, task, seed) cell: the only door between a method and the rest of the suite."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor

from harness.core.errors import BadSetting, MethodFailed, NotFinite, RunFailed
from harness.core.text import count
from harness.core.types import BaseTraining, DeployedPolicy, Documents, Prompts, Rollout, Settings, Task
from harness.policy.logprobs import kl, masked_mean
from harness.policy.models import adapters, processes, sharding
from harness.policy.policy import Policy, tokens_of
from harness.policy.sampler import sample

from . import schedule
from .clock import Clock

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Budget(Settings):
    """What a run may spend; training stops after the first update that reaches any of the limits."""

    flops: float | None = Field(None, gt=0, description="estimated floating-point operations of training")
    updates: int | None = Field(None, ge=1, description="number of optimizer steps")

    @model_validator(mode="after")
    def _limited(self) -> Budget:
        if self.flops is None and self.updates is None:
            raise ValueError("a budget needs flops or updates")
        return self


Share = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Settings):
    """The optimizer of every method; the learning rate is the method's own."""

    betas: tuple[Share, Share] = Field((0.9, 0.999), description="Adam's two decay rates, each from 0 to below 1")
    eps: float = Field(1e-8, gt=0, description="Adam's epsilon")
    clip_norm: float = Field(1.0, gt=0, description="maximum gradient norm")
    warmup_updates: int = Field(10, ge=0, description="updates of linear learning-rate warm-up")
    decay: Literal["linear", "constant", "one_cycle"] = Field(
        "linear", description="learning-rate schedule over the budget; one_cycle needs budget.updates and moves betas[0]"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (AdamW)")

    def identity(self) -> dict[str, Any]:
        """What decides a result; weight decay came later and is left out where there is none."""
        return self.model_dump(exclude=None if self.weight_decay else {"weight_decay"})


@dataclass
class Cost:
    """What a method has used so far; evaluation is not charged to it."""

    parameters: int  # N, of the policy
    sampled_tokens: int = 0
    trained_tokens: int = 0
    forward_tokens: int = 0
    """Read without a gradient: prompts, the reference's passes."""
    scorer_calls: int = 0
    document_tokens: int = 0
    """Of the labelled corpus, for methods that learn from it."""
    documents: int = 0
    """Drawn from the labelled corpus, where their kinds are known."""
    own_documents: int = 0
    """Of these, documents with the task's own habit; the corpus of the micro world has every habit."""
    updates: int = 0
    beside_flops: int = 0
    """Of networks beside the policy (a value network), each by its own N."""

    @property
    def flops(self) -> float:
        """2N a forward token, 6N a trained token (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)."""
        read = 2.0 * self.parameters * (self.sampled_tokens + self.forward_tokens)
        return read + 6.0 * self.parameters * self.trained_tokens + self.beside_flops

    def record(self) -> dict[str, float]:
        return asdict(self) | {"flops": self.flops}


class Trial:
    """The interface between a method and the harness. It gives no access to the held-out prompts or the judge.

    - `policy`: the policy to train, with the same initial weights for every method
    - `reference`: a frozen copy of those weights
    - `rng`: the CPU generator for all randomness of the method
    - `cost`: tokens, scorer calls, updates and estimated FLOPs used so far
    - `clock`: seconds by activity, for `harness run --profile`
    - `shown`: called with what is to be shown of work between updates, such as {"round": "3 of 5"}
    """

    def __init__(
        self,
        policy: Policy,
        reference: Policy,
        task: Task,
        *,
        seed: int,
        budget: Budget,
        lr: float | None = None,
        optimizer: OptimizerSettings | None = None,
        state: dict[str, Any] | None = None,
        sees_judge: bool = False,
    ) -> None:
        self.policy, self.reference = policy, reference
        self.rng = torch.Generator().manual_seed(seed)
        self.cost = Cost(sum(p.numel() for p in reference.parameters()))
        self.unscored = 0
        self.clock = Clock()
        self.shown: Callable[[dict[str, str]], None] = lambda facts: None
        self.deployed: Policy | DeployedPolicy = policy
        self._spent = 0.0  # progress at the end of the last update, which the learning rate goes by
        self._task, self._budget, self._lr, self._sees_judge = task, budget, lr, sees_judge
        self._optimizer_settings = optimizer or OptimizerSettings()
        self._optimizer: torch.optim.Optimizer | None = None
        self._stepped: list[torch.nn.Parameter] = []  # what it changes: the weights, or the parts of a sharded policy
        self._beside: list[torch.nn.Module] = []  # trained with the policy, in the order of `train_also`
        self._kept: dict[str, Any] = {}
        self._restored = state
        for p in (policy, reference):
            p.on_forward = self._count_forward
        if state is not None:
            self.rng.set_state(state["rng"])
            self.cost = Cost(**state["cost"])
            self.unscored, self._spent = state["unscored"], state["spent"]

    @property
    def progress(self) -> float:
        """The fraction of the budget used, 0 to 1."""
        b = self._budget
        shares = [self.cost.flops / b.flops if b.flops else 0.0, self.cost.updates / b.updates if b.updates else 0.0]
        return min(1.0, max(shares))

    def prompts(self, n: int) -> Prompts:
        """n training prompts, drawn with replacement: -> [n, P]."""
        return self._task.train_prompts(n, self.rng).to(self.policy.device)

    def documents(self, n: int) -> Documents:
        """n scored documents of the corpus, for methods that learn from text instead of samples: -> [n, R].

        Each draw is charged the response tokens and one scorer call per segment. Raises EmptySelection if the task has none.
        """
        documents = self._task.documents(n, self.rng).to(self.policy.device)
        first = documents.starts()
        self.cost.document_tokens += int(documents.rollout.response_mask.sum())
        self.cost.scorer_calls += int(first.sum())
        self.cost.documents += 0 if documents.own is None else len(documents.own)
        self.cost.own_documents += 0 if documents.own is None else int(documents.own.sum())
        self.unscored += int((first & documents.reward.isnan()).sum())
        return documents

    def base_training(self) -> BaseTraining:
        """How the base policy was trained, on texts without the habit, as the judge says: for a control that `sees_judge`.

        Raises MethodFailed for any other method, MissingPrerequisite if the training of the base policy is unknown.
        """
        if not self._sees_judge:
            raise MethodFailed("trial.base_training, which the judge decides, is for controls: a class with sees_judge = True")
        return schedule.known(self._task)

    def sample(self, prompts: Prompts, *, policy: Policy | None = None, n: int = 1) -> Rollout:
        """n responses to each prompt by the current policy, prefix included, or by another one: [B, P] -> [B * n, R].

        Raises NotFinite if a logit is not finite.
        """
        policy = policy or self.policy
        with self.clock.at("sampling"):
            rollout = sample(policy, prompts, decoding=self._task.decoding, rng=self.rng, n=n)
        sampled, read = int(rollout.response_mask.sum()), int(prompts.mask.sum())
        self.cost.sampled_tokens += sampled
        self.cost.forward_tokens += read + (getattr(policy, "passes", 1) - 1) * (sampled + read)
        return rollout

    def reward(self, rollout: Rollout) -> Tensor:
        """The reward of each response, in [0, 1], higher is better, NaN where the scorer failed: [B, R] -> [B] float32."""
        self.cost.scorer_calls += len(rollout.response)
        with self.clock.at("scoring"):
            reward = processes.scores(self._task.reward, rollout)
        self.unscored += int(reward.isnan().sum())
        return reward

    def scored(self, rollout: Rollout, at_least: int = 2) -> tuple[Rollout, Tensor]:
        """The responses that could be scored, with their rewards on the policy's device: [B, R] -> [n, R], [n] float32.

        Raises RunFailed if there are fewer than `at_least`.
        """
        reward = self.reward(rollout).to(rollout.response.device)
        kept = ~reward.isnan()
        if int(kept.sum()) < at_least:
            found = f"the scorer gave {count(int(kept.sum()), 'reward')} for {count(len(kept), 'response')}"
            raise RunFailed(f"{found}, fewer than the {at_least} that an update needs; look at the scorer, or draw more")
        return rollout.rows(kept), reward[kept]

    @torch.no_grad()
    def reference_logits(self, rollout: Rollout) -> Tensor:
        """The reference's logits that predict each response token, float32, without a gradient: [B, R] -> [B, R, V].

        If a pool has kept the reference's states of these responses, it takes one matrix product instead of a forward pass.
        Both are charged as a forward pass, so that no method gains budget by the way its samples are kept.
        """
        if rollout.reference_states is None:
            return self.reference.logits(rollout)
        self.reference.count(tokens_of(rollout))
        return self.reference.head(rollout.reference_states, rollout.response_mask)

    def train_also(self, module: torch.nn.Module) -> None:
        """Train an auxiliary network, such as a value network: `update` steps and clips its weights with the policy's.

        Call it before the first update, pass the network to `keep` too, and charge its passes with `charge`. Raises
        ValueError after the first update.
        """
        if self._optimizer is not None:
            raise ValueError("train_also comes before the first update: the optimizer is built there")
        self._beside.append(module.to(self.policy.device))

    def charge(self, module: torch.nn.Module, tokens: int) -> None:
        """Charge a pass of an auxiliary network of N parameters: 2N FLOPs per token, 6N if it is trained."""
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
        self.cost.beside_flops += (6 if trained else 2) * tokens * sum(p.numel() for p in module.parameters())

    def update(self, loss: Tensor) -> None:
        """One optimizer step on a scalar loss, [] -> None: the same optimizer, clipping and schedule for every method.

        Raises NotFinite, with the weights unchanged, if the loss or its gradient is not finite.
        """
        optimizer = self._optimizer or self._build_optimizer()
        self._check_finite("loss", loss)
        optimizer.zero_grad()
        processes.check_same(self.rng, loss)
        processes.backward(loss)
        norm = self._clipped()
        self._check_finite("gradient norm", norm)
        for group in optimizer.param_groups:
            group |= self._rates()
        optimizer.step()
        self.cost.updates += 1
        self._spent = self.progress

    def settle(self, tokens: Tensor, updates: int, batch_size: int) -> None:
        """Train the embeddings of control tokens alone, until the policy behind any of them speaks as the reference does.

        [n] -> None. A step of Adam goes down KL(reference || policy), in nats per token, on fresh responses of the reference,
        each behind one of the n tokens; its rate falls from a tenth of the embeddings' standard deviation to 0. The passes
        are charged; it is no update of the schedule. No checkpoint falls into it, and an interrupt waits for its end: call
        it before the first update. Raises NotFinite, and BadSetting for a sharded policy, or after the first step if all
        would take more than half of the budget.
        """
        if not updates:
            return
        weight, rows = adapters.control_rows(self.policy.model, self.policy.vocab_size)
        if sharding.divided(weight):
            raise BadSetting("model.shard=full cannot train control tokens alone; set neutral_updates=0, or model.shard=none")
        own = weight[rows].detach().clone().requires_grad_()
        rate, adam, before = float(own.detach().std()) / 10, torch.optim.Adam([own]), self.progress
        for step in range(updates):
            drift = self._drift_behind(tokens, batch_size)
            self._check_finite("loss", drift)
            processes.check_same(self.rng, drift)
            processes.backward(drift)
            assert weight.grad is not None
            own.grad = weight.grad[rows].clone()
            processes.summed([own.grad])
            adam.param_groups[0]["lr"] = rate * (1 - step / updates)
            adam.step()
            with torch.no_grad():
                weight[rows] = own
            self.policy.zero_grad()
            self.shown({"neutral update": f"{step + 1} of {updates}", "nats per token": f"{drift.item():.3f}"})
            if step == 0 and (self.progress - before) * updates > SETTLED:
                raise BadSetting(_too_many(updates, self.progress - before))

    def _drift_behind(self, tokens: Tensor, n: int) -> Tensor:
        """KL(reference || policy behind a token drawn for each of n responses of the reference), nats per token: -> []."""
        rollout = self.sample(self.prompts(n), policy=self.reference)
        token = tokens[torch.randint(len(tokens), (n,), generator=self.rng).to(tokens.device)]
        logits = self.policy.logits(rollout._replace(prompts=self.policy.prepend(token, rollout.prompts)))
        return masked_mean(kl(self.reference_logits(rollout), logits), rollout.response_mask)

    def deploy(self, policy: Policy | DeployedPolicy) -> None:
        """Set what is measured and saved instead of `policy`, for a method whose policy is not a plain language model.

        It is a `Policy` or a `DeployedPolicy`, which has its own `sample`, and `kl_to_base` if its KL has a closed form.
        """
        self.deployed = policy

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Context manager in which nothing is charged to the method; the harness measures in it."""
        cost, unscored = replace(self.cost), self.unscored
        try:
            with self.clock.at("evaluation"):
                yield
        finally:
            self.cost, self.unscored = cost, unscored

    def keep(self, **state: Any) -> SimpleNamespace:
        """Register the method's own state for checkpoints, so that an interrupted run resumes exactly.

        Values are numbers, text, tensors, lists and dicts of those, or objects with `state_dict` and `load_state_dict`. They
        are returned as attributes: as given in a new run, as saved at the last checkpoint in a resumed one. Call it before
        any draw from `rng`. Raises MethodFailed for another type of value.
        """
        saved = self._restored["kept"] if self._restored else {}
        for name, value in saved.items():
            if hasattr(state[name], "load_state_dict"):
                sharding.fill(state[name], value)
            else:
                state[name] = value
        for name, value in state.items():
            _check_plain(name, value)
        kept = SimpleNamespace(**state)
        self._kept = kept.__dict__
        return kept

    def state_dict(self) -> dict[str, Any]:
        """The content of a checkpoint besides the policy: plain data and tensors."""
        cost = asdict(self.cost)
        before = self._restored or {"kept": {}, "optimizer": None}  # until the method has taken it up, it must not be lost
        for name, value in self._kept.items():
            _check_plain(name, value)
        kept = {k: sharding.state_of(v) if hasattr(v, "state_dict") else v for k, v in self._kept.items()} or before["kept"]
        optimizer = before["optimizer"]
        if self._optimizer is not None:
            optimizer = sharding.whole_moments(self._optimizer.state_dict(), self._trained())
        state = {"rng": self.rng.get_state(), "cost": cost, "unscored": self.unscored, "spent": self._spent}
        return state | {"kept": kept, "optimizer": optimizer}

    def _trained(self) -> list[torch.nn.Parameter]:
        # the order is the optimizer's, which a checkpoint goes by
        return [p for module in (self.policy, *self._beside) for p in module.parameters() if p.requires_grad]

    def _clipped(self) -> Tensor:
        """Sum the gradients over the processes and clip them by their norm, which is returned: -> []."""
        trained, most = self._trained(), self._optimizer_settings.clip_norm
        whole = [p for p in trained if not sharding.divided(p)]
        processes.summed(p.grad for p in whole if p.grad is not None)
        if len(whole) == len(trained):
            return torch.nn.utils.clip_grad_norm_(whole, most)
        return sharding.clipped(trained, self._stepped, most)

    def _build_optimizer(self) -> torch.optim.Optimizer:
        # built at the first update, after a method has added its control tokens
        if self._lr is None:
            raise ValueError("a method that updates the policy needs a setting lr")
        s = self._optimizer_settings
        narrow = next((p.dtype for p in self._trained() if torch.finfo(p.dtype).bits < 32), None)
        if narrow is not None:
            raise RunFailed(
                f"the weights to train are {str(narrow).removeprefix('torch.')}, in which small steps are lost; "
                f"expected float32 weights (model.dtype=bfloat16 computes in bfloat16 and keeps them)"
            )
        self._stepped = [sharding.stepped(p) for p in self._trained()]
        kind = partial(torch.optim.AdamW, weight_decay=s.weight_decay) if s.weight_decay else torch.optim.Adam
        self._optimizer = kind(self._stepped, lr=self._lr, betas=s.betas, eps=s.eps, fused=True)
        if self._restored and self._restored["optimizer"]:
            self._optimizer.load_state_dict(sharding.own_moments(self._restored["optimizer"], self._trained()))
        return self._optimizer

    def _rates(self) -> dict[str, Any]:
        """The learning rate of the next update, and Adam's decay rates where the schedule moves them."""
        s = self._optimizer_settings
        if s.decay != "one_cycle":
            return {"lr": self._learning_rate()}
        lr, first = schedule.one_cycle(self._lr, self._budget.updates, s.warmup_updates)[self.cost.updates]
        return {"lr": lr, "betas": (first, s.betas[1])}

    def _learning_rate(self) -> float:
        assert self._lr is not None
        s = self._optimizer_settings
        warm = min(1.0, (self.cost.updates + 1) / s.warmup_updates) if s.warmup_updates else 1.0
        # the update that overruns a budget in flops has a rate too: its own cost is not spent yet
        return self._lr * warm * (1.0 - self._spent if s.decay == "linear" else 1.0)

    def _count_forward(self, tokens: int, trained: bool) -> None:
        if trained:
            self.cost.trained_tokens += tokens
        else:
            self.cost.forward_tokens += tokens

    def _check_finite(self, what: str, value: Tensor) -> None:
        if not torch.isfinite(value):
            step = self.cost.updates + 1
            raise NotFinite(f"the {what} of update {step} is {value.item()}; expected a finite number; try a smaller lr")


SETTLED = 0.5  # largest share of the budget that neutral updates may take
PLAIN = (type(None), bool, int, float, complex, str, bytes)


def _too_many(updates: int, share: float) -> str:
    """What to do about neutral updates that each take this share of the budget."""
    most = int(SETTLED / share)
    return (
        f"{updates} neutral updates would take {updates * share:.0%} of the budget; expected {SETTLED:.0%} at most: set "
        f"neutral_updates={most}{' or fewer' * (most > 0)}, or raise budget.flops"
    )


def _check_plain(name: str, value: Any) -> None:
    """Raises MethodFailed where a checkpoint could not bring back what a method keeps."""
    unsaved = _unsaved_type(value.state_dict() if hasattr(value, "state_dict") else value)
    if unsaved is not None:
        raise MethodFailed(
            f"trial.keep holds a value of type {unsaved.__name__!r} in {name!r}; expected numbers, text, tensors, lists, "
            "tuples and dicts of those, or objects with state_dict"
        )


def _unsaved_type(value: Any) -> type | None:
    """The type of the first value inside that a checkpoint cannot hold; exact types, since reading one runs no code."""
    kind = type(value)
    if kind in PLAIN or isinstance(value, Tensor):
        return None
    if isinstance(value, dict) and kind in (dict, OrderedDict):
        return next(filter(None, (_unsaved_type(x) for pair in value.items() for x in pair)), None)
    if kind in (list, tuple, set):
        return next(filter(None, map(_unsaved_type, value)), None)
    return kind


class Method(Protocol):
    """An algorithm that changes a policy. One class, usually from one paper; its `Settings` is a subclass of `Settings`."""

    version: int
    """Raise it when a change moves results."""
    settings: Settings
    """The settings of this run."""

    def __init__(self, settings: Any) -> None:
        """`settings` is an instance of the class's own `Settings`."""

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        """Train `trial.policy`; yield a dict of scalars, which are recorded and plotted, once after each update."""
