"""Evaluation of a policy, identical for all methods: same held-out prompts, same metrics, same random numbers within a seed.

The draws depend on the seed of the run: methods are paired within a seed, and seeds are independent samples of the responses.

Two distributions are measured and never mixed. Samples at temperature 1 without truncation give KL, reward, judge score,
fluency, diversity and collapse; samples under the papers' decoding (top-p) give the papers' metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.core.errors import BadScorer
from harness.core.settings import EvaluationSettings
from harness.core.types import Decoding, DeployedPolicy, Metric, PromptSet, Responses, Rollout, Task
from harness.policy.logprobs import entropy, kl, masked_sum, token_logprobs
from harness.policy.models import processes, sharding
from harness.policy.policy import Policy, has_closed_kl
from harness.policy.sampler import is_end, sample

from . import metrics as m
from .frontier import Frontier
from .optimum import judge_along, judge_at_reward
from .teacher_forced import batches, teacher_forced_repetition

EVALUATION_VERSION = 3
BEYOND = "beyond the solid range of the frontier"
OF_THE_POLICY = (
    "kl", "kl_log_ratio", "kl_per_token", "entropy", "efficiency", "excess_kl", "regret", "overoptimisation",
)  # fmt: skip
Fluency = tuple[NDArray[Any], NDArray[Any]]
"""NLL in nats and number of tokens of each response, of whatever type the model of a plug-in gives: [X, S], [X, S]."""


class Base(NamedTuple):
    """The base policy on one split: responses, scores and frontier."""

    prompts: PromptSet
    responses: Tensor  # [X, M, R] int64
    response_mask: Tensor  # [X, M, R] bool
    reward: NDArray[np.float64]  # [X, M]
    judge: NDArray[np.float64]  # [X, M]
    frontier: Frontier


class Evaluation(NamedTuple):
    """The result of one evaluation: metrics, samples, and means per prompt."""

    metrics: dict[str, Metric]
    rows: list[dict[str, Any]]  # one per response: its text and scores
    unscored_share: float
    prompts: dict[str, list[Any]]  # {column: one entry per prompt}, for paired differences
    papers: list[dict[str, Any]]  # one per response under the papers' decodings


class Divergence(NamedTuple):
    """Divergence from the reference along each response, in nats, all [B]."""

    kl: Tensor  # KL(policy || reference), exact at each step along the response (Rao-Blackwell)
    log_ratio: Tensor  # log policy - log reference of the response: the single-sample estimate of the KL
    entropy: Tensor  # exact at each step along the response


@torch.no_grad()
def divergence(policy: Policy, reference: Policy, rollout: Rollout, batch_size: int = 256) -> Divergence:
    """The divergence of the deployed policy from the reference on responses that it sampled: -> [B] each.

    The KL is the Rao-Blackwellised estimate of Amini et al. 2025.
    """

    def read(rows: Rollout) -> tuple[Tensor, ...]:
        parts = [_divergence(policy, reference, part) for part in batches(rows, batch_size)]
        return tuple(torch.cat(x) for x in zip(*parts, strict=True))

    return Divergence(*sharding.by_rows(read, rollout, policy, reference))


def _divergence(policy: Policy, reference: Policy, rollout: Rollout) -> Divergence:
    ours, theirs, mask = policy.deployed_logits(rollout), reference.logits(rollout), rollout.response_mask
    ratio = token_logprobs(ours, rollout.response) - token_logprobs(theirs, rollout.response)
    return Divergence(masked_sum(kl(ours, theirs), mask), masked_sum(ratio, mask), masked_sum(entropy(ours), mask))


@torch.no_grad()
def mean_nll(policy: Policy, rollout: Rollout, batch_size: int = 256) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """NLL in nats under the deployed policy, and number of tokens, of each response: -> [B], [B]."""

    def read(rows: Rollout) -> tuple[Tensor]:
        parts = batches(rows, batch_size)
        return (
            torch.cat([masked_sum(-token_logprobs(policy.deployed_logits(p), p.response), p.response_mask) for p in parts]),
        )

    (nll,) = sharding.by_rows(read, rollout, policy)
    return nll.double().cpu().numpy(), rollout.response_mask.sum(1).cpu().numpy()


class Kept(Protocol):
    """Where the evaluations of the base policy, full or short, are kept between runs, and whether it lay above the frontier."""

    def read(self, full: bool) -> tuple[Evaluation, bool] | None: ...
    def write(self, full: bool, evaluation: Evaluation, above: bool) -> None: ...


class Evaluator:
    """Measures policies on one task's held-out prompts."""

    def __init__(
        self,
        task: Task,
        reference: Policy,
        base: Base,
        settings: EvaluationSettings,
        say: Callable[[str], None],
        kept: Kept | None = None,
        seed: int = 0,
    ) -> None:
        self.task, self.reference, self.base, self.settings, self.say = task, reference, base, settings, say
        self.kept, self.seed = kept, seed  # the seed of the run, on which the draws depend
        self._of_base: dict[bool, Evaluation] = {}
        self.above = False  # True if a measured policy lay above the frontier by more than its error, which is a bug

    def base_evaluation(self) -> Evaluation:
        """The evaluation of the base policy, whose KL is 0 by definition; computed once for all runs that can share it."""
        return self._base(full=True)

    def base_point(self) -> Evaluation:
        """The short evaluation of the base policy, where training starts; computed once for all runs that can share it."""
        return self._base(full=False)

    def _base(self, full: bool) -> Evaluation:
        if full not in self._of_base:
            known = processes.first(partial(self.kept.read, full)) if self.kept is not None else None
            self._of_base[full] = self._measured_base(full) if known is None else known[0]
            self.above |= known is not None and known[1]
        return self._of_base[full]

    def _measured_base(self, full: bool) -> Evaluation:
        if full:
            self.say("measuring the base policy, once per task")
        before, self.above = self.above, False
        n = self.settings.samples if full else self.settings.point_samples
        found = self._of_base_responses(self._evaluate(self.reference, n, full, stream="base"), full)
        if self.kept is not None:
            processes.first(partial(self.kept.write, full, found, self.above))
        self.above |= before
        return found

    def _of_base_responses(self, drawn: Evaluation, full: bool) -> Evaluation:
        """The base policy's evaluation with reward, judge and place by all base responses, far more than its draws."""
        base, still = self.base, np.zeros_like(self.base.reward)
        scores = {"reward": base.reward, "judge": base.judge}
        metrics = {name: m.cluster_mean(values) for name, values in scores.items()} | (self._by_kind(scores) if full else {})
        place, _ = self._optimum(scores, still)
        metrics |= place
        return drawn._replace(
            metrics=drawn.metrics | metrics,
            prompts=drawn.prompts | {name: m.prompt_means(values).tolist() for name, values in scores.items()},
        )

    def frontier_record(self) -> dict[str, Any]:
        """The frontier as plain data, with the judge scores of the policies on it."""
        frontier = self.base.frontier
        return frontier.record() | {"judge_at": judge_along(frontier, self.base.reward, self.base.judge)}

    def point(self, policy: Policy | DeployedPolicy) -> Evaluation:
        """The short evaluation during training: few responses per prompt, without the papers' metrics."""
        return self._evaluate(policy, self.settings.point_samples, full=False, stream=str(self.seed))

    def final(self, policy: Policy | DeployedPolicy) -> Evaluation:
        """The full evaluation at the end of a run."""
        return self._evaluate(policy, self.settings.samples, full=True, stream=str(self.seed))

    def probed(self, policy: Policy, n: int, decoding: Decoding | None = None) -> dict[str, Metric]:
        """The short evaluation of a policy under a probe, by n responses to each prompt, the draws the same at every call.

        Under another decoding than the task's there is no KL, nor what follows from it: they are of the policy itself.
        """
        found = self._evaluate(policy, n, full=False, stream="probe", decoding=decoding).metrics
        return {name: metric for name, metric in found.items() if decoding is None or name not in OF_THE_POLICY}

    def judged(self, rollout: Rollout) -> NDArray[np.float64]:
        """The judge's score of each response, NaN where it failed: [B, R] -> [B]; raises BadScorer for an impossible one."""
        return scored("judge", self.task.judge(rollout), len(rollout.response))

    def _evaluate(
        self, policy: Policy | DeployedPolicy, n: int, full: bool, stream: str, decoding: Decoding | None = None
    ) -> Evaluation:
        rng = torch.Generator().manual_seed(stream_seed(self.settings.seed, stream))
        rollout = sample(policy, self.base.prompts.prompts, decoding=decoding or self.task.decoding, rng=rng, n=n)
        flat = self.task.texts(rollout)
        texts = [flat[i : i + n] for i in range(0, len(flat), n)]
        scores = self._scores(rollout, texts)
        found = {k: m.cluster_mean(scores[k]) for k in ("reward", "judge")}
        drift, along = self._drift(policy, rollout, scores["reward"])
        kl_x = along["kl"]
        found |= drift
        place, optimum = self._optimum(scores, kl_x)
        found |= place
        fluency = self._nll(texts)
        ended = is_end(rollout.response, getattr(policy, "ends", self.reference.ends)).any(1).cpu().numpy().reshape(-1, n)
        found |= self._text_metrics(rollout, texts, ended, fluency, full) | self._own(policy)
        responses: dict[str, Responses] = {}
        if full:
            found |= self._forgetting(policy)
            responses = self._all_responses(policy, rng)
            found |= self._papers(responses)
            found |= self._by_kind({"reward": scores["reward"], "judge": scores["judge"], "kl": kl_x})
        missing = np.isnan(np.stack([scores["reward"], scores["judge"]])).mean()
        by_prompt = self._by_prompt(scores, kl_x, fluency) | optimum
        rows = self._rows(rollout, texts, scores | along | _of_responses(ended, fluency))
        return Evaluation(found, rows, float(missing), by_prompt, self._paper_rows(responses))

    def _scores(self, rollout: Rollout, texts: list[list[str]]) -> dict[str, NDArray[np.float64]]:
        scorers = {"reward": self.task.reward, "judge": self.task.judge}
        found = {name: processes.scores(score, rollout) for name, score in scorers.items()}
        shape = (len(texts), len(texts[0]))
        return {name: scored(name, values, len(rollout.response)).reshape(shape) for name, values in found.items()}

    def _drift(
        self, policy: Policy | DeployedPolicy, rollout: Rollout, reward: NDArray[np.float64]
    ) -> tuple[dict[str, Metric], dict[str, NDArray[np.float64]]]:
        """KL and entropy metrics, and the values per response [X, S]; only the KL for a policy with a closed form."""
        x = len(reward)
        if has_closed_kl(policy):
            kl_x = np.repeat(policy.kl_to_base(self.base.reward)[:, None], reward.shape[1], 1)
            none = m.unmeasured("the policy has no token probabilities; its KL is a closed form")
            return {"kl": m.cluster_mean(kl_x), "kl_log_ratio": none, "entropy": none, "kl_per_token": none}, {"kl": kl_x}
        d = divergence(policy, self.reference, rollout, self.settings.batch_size)
        kl_x, ratio, entropies = (v.double().cpu().numpy().reshape(x, -1) for v in d)
        tokens = rollout.response_mask.sum(1).double().cpu().numpy().reshape(x, -1)
        found = {"kl": m.cluster_mean(kl_x), "kl_log_ratio": m.cluster_mean(ratio), "entropy": m.cluster_mean(entropies)}
        found |= {"kl_per_token": m.ratio(kl_x.sum(1), tokens.sum(1))}
        return found, {"kl": kl_x, "log_ratio": ratio, "entropy": entropies}

    def _optimum(
        self, scores: dict[str, NDArray[np.float64]], kl_x: NDArray[np.float64]
    ) -> tuple[dict[str, Metric], dict[str, list[float]]]:
        """Metrics of the policy relative to the frontier, and their terms by prompt, whose means are those of the optimum."""
        reward, judge = (m.prompt_means(scores[name]) for name in ("reward", "judge"))
        placed = self.base.frontier.place(reward, kl_x.mean(1))
        optimal = judge_at_reward(self.base.reward, self.base.judge, reward, placed.lam)
        over = m.cluster_mean((optimal - judge)[:, None])
        terms = {"least_kl": placed.least_kl, "highest_reward": placed.highest, "optimal_judge": optimal}
        by_prompt = {name: values.tolist() for name, values in terms.items()}
        if unscored := int(np.isnan(reward).sum()):
            none = m.unmeasured(f"no response to {unscored} of the prompts could be scored")
            return dict.fromkeys(("efficiency", "excess_kl", "regret", "overoptimisation"), none), by_prompt
        self.above |= placed.above
        place = {"efficiency": placed.efficiency, "excess_kl": placed.excess_kl, "regret": placed.regret}
        return place | {"overoptimisation": over._replace(reason=placed.excess_kl.reason and BEYOND)}, by_prompt

    def _text_metrics(
        self,
        rollout: Rollout,
        texts: list[list[str]],
        ended: NDArray[np.bool_],
        fluency: Fluency | None,
        full: bool,
    ) -> dict[str, Metric]:
        x = len(texts)
        length = rollout.response_mask.sum(1).double().cpu().numpy().reshape(x, -1)
        ppl = m.perplexity(*fluency) if fluency else m.unmeasured("no fluency model in this preset")
        found = {"ppl": ppl, "length": m.cluster_mean(length), "eos_rate": m.cluster_mean(ended.astype(float))}
        found |= {f"distinct_{n}": m.distinct(texts, n) for n in (1, 2, 3)}
        found |= {f"rep_{n}": m.repetition_rate(texts, n) for n in (2, 3, 4)}
        found |= {"unique": m.unique_share(texts), "modal_mass": m.modal_mass(texts)}
        found |= self.task.text_metrics(texts)
        return found | ({"self_bleu": m.self_bleu(texts)} if full else {})

    def _own(self, policy: Policy | DeployedPolicy) -> dict[str, Metric]:
        """The metrics of the task's own, of a task that measures some."""
        measures = getattr(self.task, "measures", None)
        return {} if measures is None else measures(policy)

    def _nll(self, texts: list[list[str]]) -> Fluency | None:
        """NLL in nats of the responses given their prompts under the fluency model, and tokens: [X, S], [X, S].

        An empty response has no tokens and contributes nothing; None without a fluency model.
        """
        model, prompts = self.task.fluency, self.base.prompts.texts
        if model is None or processes.size() == 1:
            return None if model is None else model.nll(prompts, texts)
        found = processes.divided(
            len(texts), lambda own: tuple(torch.as_tensor(x) for x in model.nll(prompts[own], texts[own]))
        )
        return found[0].numpy(), found[1].numpy()

    def _forgetting(self, policy: Policy | DeployedPolicy) -> dict[str, Metric]:
        """Metrics of forgetting: KL(base || policy) on base responses, and the NLL of clean held-out text."""
        if has_closed_kl(policy):
            none = m.unmeasured("the policy has no token probabilities")
            return {"forward_kl": none, "clean_nll": none}
        per_prompt = min(4, self.base.responses.shape[1])
        rollout = base_rollout(self.base, per_prompt)
        back = _forward_kl(policy, self.reference, rollout, self.settings.batch_size).reshape(-1, per_prompt)
        found = {"forward_kl": m.cluster_mean(back)}
        clean = self.task.clean_documents()
        if clean is None:
            return found | {"clean_nll": m.unmeasured("this task's data has no clean held-out text")}
        clean = clean.to(policy.device)
        nll, tokens = mean_nll(policy, clean, self.settings.batch_size)
        return found | {"clean_nll": m.ratio(nll, tokens.astype(float))} | self._teacher_forced(policy, clean)

    def _teacher_forced(self, policy: Policy, text: Rollout) -> dict[str, Metric]:
        """rep and wrep by teacher forcing on held-out text, for tasks with a `window`; else empty."""
        window = getattr(self.task, "window", None)
        if window is None:
            return {}
        rep, wrep, tokens = teacher_forced_repetition(policy, text, window, self.settings.batch_size)
        return {f"rep_{window}": m.ratio(rep, tokens), f"wrep_{window}": m.ratio(wrep, tokens)}

    def _all_responses(self, policy: Policy | DeployedPolicy, rng: torch.Generator) -> dict[str, Responses]:
        """Responses with judge scores under each of the papers' decodings; empty if paper_samples is 0."""
        n = self.settings.paper_samples
        if n == 0:
            return {}
        return {name: self._responses(policy, decoding, rng, n) for name, decoding in self.task.paper_decodings.items()}

    def _papers(self, responses: dict[str, Responses]) -> dict[str, Metric]:
        """The papers' metrics, over all prompts and over the prompts of each kind."""
        if not responses:
            return {}
        found: dict[str, Metric] = self.task.paper_metrics(responses)
        for kind, rows in self._kinds().items():
            parts = self.task.paper_metrics({name: s.of(rows) for name, s in responses.items()})
            found |= {f"{name}@{kind}": metric for name, metric in parts.items()}
        return found

    def _paper_rows(self, responses: dict[str, Responses]) -> list[dict[str, Any]]:
        """One row per response; text and kind of the prompt are stored with the other samples."""
        return [
            {"decoding": name, "prompt_id": x, "response": text, "judge": s.judge[x, i]}
            for name, s in responses.items()
            for x, texts in enumerate(s.texts)
            for i, text in enumerate(texts)
        ]

    def _responses(self, policy: Policy | DeployedPolicy, decoding: Decoding, rng: torch.Generator, n: int) -> Responses:
        prompts = self.base.prompts
        n = 1 if decoding.temperature == 0 else n  # greedy decoding is deterministic
        rollout = sample(policy, prompts.prompts, decoding=decoding, rng=rng, n=n)
        flat = self.task.texts(rollout)
        judge = scored("judge", processes.scores(self.task.judge, rollout), len(rollout.response)).reshape(-1, n)
        return Responses(prompts.texts, [flat[i : i + n] for i in range(0, len(flat), n)], judge)

    def _by_kind(self, scores: dict[str, NDArray[np.float64]]) -> dict[str, Metric]:
        """Means of scores [X, S] over the prompts of each kind, named `judge@heated`; empty if there is only one kind."""
        kinds = self._kinds()
        return {f"{name}@{kind}": m.cluster_mean(s[rows]) for kind, rows in kinds.items() for name, s in scores.items()}

    def _kinds(self) -> dict[str, list[int]]:
        """The indices of the prompts of each kind, in order of first occurrence; empty if there is only one kind."""
        kinds = self.base.prompts.kinds
        rows = {kind: [x for x, k in enumerate(kinds) if k == kind] for kind in dict.fromkeys(kinds)}
        return rows if len(rows) > 1 else {}

    def _by_prompt(
        self, scores: dict[str, NDArray[np.float64]], kl_x: NDArray[np.float64], fluency: Fluency | None
    ) -> dict[str, list[Any]]:
        """Means over the responses of each prompt, NaN if none could be scored; the id is a hash of the prompt's text."""
        prompts = self.base.prompts
        columns: dict[str, list[Any]] = {
            "id": [sha256(text.encode("utf-8", "replace")).hexdigest()[:8] for text in prompts.texts],
            "kind": list(prompts.kinds),
        }
        columns |= {name: m.prompt_means(v).tolist() for name, v in {**scores, "kl": kl_x}.items()}
        columns["nll_per_token"] = m.prompt_nll(*fluency).tolist() if fluency else [float("nan")] * len(prompts.texts)
        if fluency:
            columns["nll_tokens"] = np.where(np.isnan(fluency[0]), 0.0, fluency[1]).sum(1).tolist()
        base = {"base_reward": self.base.reward, "base_judge": self.base.judge}  # of all base responses
        columns |= {name: m.prompt_means(values).tolist() for name, values in base.items()}
        scored = ~np.isnan(scores["reward"] + scores["judge"])
        return columns | {"n_scored": scored.sum(1).tolist()}

    def _rows(self, rollout: Rollout, texts: list[list[str]], columns: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
        """One row per response: its prompt, its text, its tokens, and its value in each of the columns [X, S]."""
        prompts, ids = self.base.prompts, rollout.response.tolist()
        lengths = rollout.response_mask.sum(1).tolist()
        rows = []
        for x, responses in enumerate(texts):
            for s, text in enumerate(responses):
                i = x * len(responses) + s
                row = {"prompt_id": x, "kind": prompts.kinds[x], "prompt": prompts.texts[x], "response": text}
                row |= {name: values[x, s] for name, values in columns.items()}
                rows.append(row | {"tokens": ids[i][: lengths[i]]})
        return rows


def own_metrics(task: Task) -> dict[str, Any]:
    """How the metrics of a task's own are shown, for its summary; empty for a task without any."""
    own = getattr(task, "own_metrics", {})
    return {"own_metrics": dict(own)} if own else {}


def stream_seed(seed: int, stream: str) -> int:
    """The seed of one stream of draws, a 63-bit integer; streams of different names or seeds are independent."""
    return int.from_bytes(sha256(f"evaluation {seed} {stream}".encode()).digest()[:8]) >> 1


@torch.no_grad()
def _forward_kl(policy: Policy, reference: Policy, rollout: Rollout, batch_size: int) -> NDArray[np.float64]:
    def read(rows: Rollout) -> tuple[Tensor]:
        parts = batches(rows, batch_size)
        return (torch.cat([masked_sum(kl(reference.logits(p), policy.deployed_logits(p)), p.response_mask) for p in parts]),)

    return sharding.by_rows(read, rollout, policy, reference)[0].double().cpu().numpy()


def _of_responses(ended: NDArray[np.bool_], fluency: Fluency | None) -> dict[str, NDArray[Any]]:
    """Further values per response, [X, S] each: whether it ended, and its NLL (nats) and tokens under the fluency model."""
    return {"ended": ended} | (dict(zip(("nll", "nll_tokens"), fluency, strict=True)) if fluency else {})


def scored(name: str, scores: Tensor, n: int) -> NDArray[np.float64]:
    """A task's scores of n responses as an array: -> [n] float64; raises BadScorer if not n values in [0, 1] or NaN."""
    found = scores.double().cpu().numpy()
    if found.shape != (n,) or ((found < 0) | (found > 1)).any():  # NaN is neither
        what = f"values from {np.nanmin(found):g} to {np.nanmax(found):g}" if found.shape == (n,) else f"shape {found.shape}"
        raise BadScorer(f"the task's {name} returned {what} for {n} responses; expected shape ({n},) and values in [0, 1]")
    return found


def base_rollout(base: Base, n: int) -> Rollout:
    """The first n base responses to each prompt, as a rollout: [X * n, R]."""
    prompts = type(base.prompts.prompts)(*(x.repeat_interleave(n, 0) for x in base.prompts.prompts))
    return Rollout(prompts, base.responses[:, :n].flatten(0, 1), base.response_mask[:, :n].flatten(0, 1))
