"""Verification of a record (`harness verify`): its hashes, and every metric that can be recomputed from its samples.

Without rescoring only the record is read and torch is not imported: metrics are recomputed from the scores of each response.
Metrics that depend on other text are not (`NOT_FROM_SAMPLES`), but the hash of the summary covers them. With rescoring the
scorers, the fluency model and the papers' metrics run again over the texts (`harness.runs.finished.rescore`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from math import isclose
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core.errors import CorruptRecord, MissingPrerequisite
from harness.core.files import CLAIM_FILES
from harness.core.hashing import canonical, identity_hash
from harness.core.types import Metric
from harness.measure import metrics as m

from .checks import Check, agree
from .read import probes, prompt_scores, source_of
from .samples import read
from .schema import Frontier, MetricRecord, Run, Sample

EXACT = 1e-9
"""Tolerance, relative and absolute, of a recomputed sum."""
ALONG_CURVE = 5e-3
"""Tolerance (nats, reward or share) of values read off the recorded frontier; the run used the base responses themselves."""
POLICY = "policy/"
UNLISTED = ("manifest.json", "picture.png", "picture.svg")
"""Files of a record without a hash in the manifest: the manifest itself, and pictures drawn from the rest."""
SIX_DIGITS = 1e-5  # relative tolerance of the scores of each prompt
NOT_FROM_SAMPLES = {
    "forward_kl": "measured on the base policy's responses",
    "clean_nll": "measured on held-out text",
    "overoptimisation": "measured against base responses, which the record does not hold",
}
NOT_KEPT = "the samples are older than the columns that it needs"
ALONG = ("entropy", "kl_log_ratio", "kl_per_token", "eos_rate", "ppl")
OF_THE_TASK = "a metric of the task, which --rescore computes again"
AGAINST_FRONTIER = ("efficiency", "excess_kl", "regret")


def verify(run: Run) -> list[Check]:
    """Run all checks that need the record alone."""
    checks = [*_identity(run), *_files(run), *agree(run)]
    if run.summary is None:
        return [*checks, Check("summary", None, found=f"the run is {run.manifest.status}; there is no result to check")]
    if run.manifest.archive:
        return [*checks, Check("samples", None, found="an archive keeps at most a few of them")]
    for side, of in (("final", "final"), ("base", "base")):
        try:
            rows = read(run, of)
        except MissingPrerequisite as error:
            checks.append(Check(f"{side} metrics", None, found=str(error)))
            continue
        except CorruptRecord as error:
            checks.append(Check(f"{side} metrics", False, "samples that can be read", str(error).removeprefix(f"{run.dir}: ")))
            continue
        made = recompute(rows, run.summary.frontier)
        recorded = run.summary.metrics(side)
        known = _base_scores(run, recorded) if side == "base" else {}
        rest = {name: metric for name, metric in recorded.items() if name not in known}
        checks += [*known.values(), *compare(side, rest, {name: m for name, m in made.items() if name not in known})]
        checks += _prompts(run, rows) if side == "final" else []
    return checks


def _base_scores(run: Run, recorded: dict[str, MetricRecord]) -> dict[str, Check]:
    """Check the base policy's reward, judge and place on the frontier, which are of all base responses and not of the samples.

    The record keeps the means by prompt, to six digits; empty for an older record, where all is of the samples.
    """
    try:
        kept = prompt_scores(run)
    except CorruptRecord:  # the checks of prompts.json say so
        kept = None
    if kept is None or kept.base_reward is None or kept.base_judge is None:
        return {}
    checks = {}
    for name, columns in (("reward", kept.base_reward), ("judge", kept.base_judge)):
        for kind in ("", *dict.fromkeys(kept.kind)):
            of = f"{name}@{kind}" if kind else name
            if of in recorded:
                values = [v for v, k in zip(columns, kept.kind, strict=True) if kind in ("", k)]
                made = m.cluster_mean(np.array(values, dtype=float)[:, None])
                made = made._replace(n=recorded[of].n, n_unscored=recorded[of].n_unscored)
                checks[of] = _same(f"base {of}", recorded[of], made, of, SIX_DIGITS)
    for name in AGAINST_FRONTIER:
        if name in recorded and recorded[name].value is not None:
            at = recorded[name].value or 0.0
            checks[name] = Check(f"base {name}", abs(at) <= EXACT, "0, where the frontier begins", f"{at}")
    return checks


def compare(side: str, recorded: dict[str, MetricRecord], made: dict[str, Metric], tolerance: float = EXACT) -> list[Check]:
    """Compare each recorded metric with the recomputed one; a metric that cannot be recomputed gives the reason."""
    checks = []
    for name in sorted({*recorded, *made}):
        if name not in made:
            checks.append(Check(f"{side} {name}", None, found=_why_not(name, recorded[name])))
        elif name not in recorded:
            checks.append(Check(f"{side} {name}", False, "a value in the summary", "none"))
        else:
            checks.append(_same(f"{side} {name}", recorded[name], made[name], name, tolerance))
    return checks


def _why_not(name: str, recorded: MetricRecord) -> str:
    if recorded.value is None:
        return recorded.reason or "not measured"
    return NOT_FROM_SAMPLES.get(name) or (NOT_KEPT if name in (*ALONG, *AGAINST_FRONTIER) else OF_THE_TASK)


def recompute(rows: list[Sample], frontier: Frontier | None) -> dict[str, Metric]:
    """Recompute every metric that the samples determine, by the definitions of `harness.measure.metrics`.

    Metrics relative to the frontier are read off its recorded curve, without a standard error.
    """
    table = Table(rows)
    found = {name: m.cluster_mean(table.of(name)) for name in ("reward", "judge", "kl")}
    found |= {
        f"{n}@{kind}": m.cluster_mean(table.of(n)[x]) for kind, x in table.kinds.items() for n in ("reward", "judge", "kl")
    }
    found |= _along(table) | _said(table) | (_against(table, frontier) if frontier else {})
    return found


class Table:
    """Samples as arrays [X, S]: X prompts in their order, S responses to each, NaN for missing values."""

    def __init__(self, rows: list[Sample]) -> None:
        self._by_prompt: dict[int, list[Sample]] = {}
        for row in rows:
            self._by_prompt.setdefault(int(row["prompt_id"]), []).append(row)
        self.prompts = [found[0]["prompt"] for found in self._by_prompt.values()]
        self.all_kinds = [found[0]["kind"] for found in self._by_prompt.values()]
        self.texts = [[row["response"] for row in found] for found in self._by_prompt.values()]
        different = dict.fromkeys(self.all_kinds)
        places = {kind: [x for x, k in enumerate(self.all_kinds) if k == kind] for kind in different}
        self.kinds = places if len(different) > 1 else {}  # as in the evaluation: empty if all prompts are of one kind

    def has(self, column: str) -> bool:
        return all(column in row for found in self._by_prompt.values() for row in found)

    def of(self, column: str, read: Callable[[Any], float] | None = None) -> NDArray:
        """A column [X, S]."""
        lines = [[self._number(row.get(column), read) for row in found] for found in self._by_prompt.values()]
        width = max(map(len, lines), default=0)
        return np.array([line + [np.nan] * (width - len(line)) for line in lines], dtype=float)

    @staticmethod
    def _number(value: Any, read: Callable[[Any], float] | None) -> float:
        return np.nan if value is None else float(read(value) if read else value)


def _along(table: Table) -> dict[str, Metric]:
    """Metrics that are sums over each response; a policy without token probabilities has only the length."""
    length = table.of("tokens", len)
    found = {"length": m.cluster_mean(length)}
    if table.has("entropy"):
        found |= {"entropy": m.cluster_mean(table.of("entropy")), "kl_log_ratio": m.cluster_mean(table.of("log_ratio"))}
        found |= {"kl_per_token": m.ratio(table.of("kl").sum(1), length.sum(1))}
    if table.has("ended"):
        found |= {"eos_rate": m.cluster_mean(table.of("ended"))}
    if table.has("nll"):
        found |= {"ppl": m.perplexity(table.of("nll"), table.of("nll_tokens"))}
    return found


def _said(table: Table) -> dict[str, Metric]:
    found = {f"distinct_{n}": m.distinct(table.texts, n) for n in (1, 2, 3)}
    found |= {f"rep_{n}": m.repetition_rate(table.texts, n) for n in (2, 3, 4)}
    found |= {"unique": m.unique_share(table.texts), "modal_mass": m.modal_mass(table.texts)}
    return found | {"self_bleu": m.self_bleu(table.texts)}


def _against(table: Table, frontier: Frontier) -> dict[str, Metric]:
    """Metrics against the recorded curve: over its points K*(R) = max lambda R - log Z, R*(K) = min (K + log Z) / lambda."""
    reward, kl = m.prompt_means(table.of("reward")), table.of("kl").mean(1)
    points = [(p.lam, p.kl, p.reward) for p in frontier.curve if p.lam is not None and p.lam > 0]
    if np.isnan(reward).any() or not points:
        return {}
    lam, k, r = np.array(points, dtype=float).T
    log_z, n = lam * r - k, len(reward)
    needed = max(0.0, float((lam * reward.mean() - log_z).max()))
    best = min(float(((kl.mean() + log_z) / lam).min()), float(r.max()))  # the curve ends where the reward has saturated
    found = {"excess_kl": Metric(kl.mean() - needed, None, n), "regret": Metric(best - reward.mean(), None, n)}
    return found | ({"efficiency": Metric(min(1.0, needed / kl.mean()), None, n)} if kl.mean() > 1e-3 else {})


def _same(what: str, recorded: MetricRecord, made: Metric, name: str, tolerance: float) -> Check:
    """Compare a recorded metric with a recomputed one in value, standard error and counts."""
    if name in AGAINST_FRONTIER:
        value = recorded.value
        if value is None or "above every reward" in (recorded.reason or ""):
            return Check(what, None, found=recorded.reason or "not measured")
        near = bool(abs(value - (made.value or 0.0)) <= ALONG_CURVE)
        return Check(what, near, f"{made.value:.4f} along the curve", f"{value:.4f}")
    keys = ("value", "stderr", "n", "n_unscored")
    wrong = [key for key in keys if not _close(getattr(recorded, key), getattr(made, key), tolerance)]
    expected, found = (", ".join(f"{key} {getattr(d, key)}" for key in wrong or ["value"]) for d in (made, recorded))
    return Check(what, not wrong, expected, found)


def _close(a: float | None, b: float | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


def _identity(run: Run) -> Iterator[Check]:
    """Check that the id is the hash of the identity, and that seed and settings agree throughout the record."""
    manifest, identity = run.manifest, run.manifest.identity
    made = identity_hash(identity)[:8]
    yield Check("run id", manifest.run_id == made, f"{made}, the hash of the identity", manifest.run_id)
    yield Check("seed", identity.get("seed") == manifest.seed, f"{identity.get('seed')}, of the identity", str(manifest.seed))
    settings = run.summary.settings if run.summary is not None else None
    if settings is not None and manifest.settings is not None:
        same = canonical(settings) == canonical(manifest.settings)
        yield Check("settings", same, "those of the manifest", "the same" if same else "others in the summary")


def _files(run: Run) -> Iterator[Check]:
    """Check each file against its content hash in the manifest."""
    files = run.manifest.files
    if files is None:
        yield Check("files", None, found="the record is older than the hashes of files")
        return
    yield from _complete(run, files)
    for name, expected in files.items():
        yield _file(run, name, expected)


def _complete(run: Run, files: dict[str, str]) -> Iterator[Check]:
    """Check that the manifest lists exactly the files in the folder."""
    needed = {"trajectory.jsonl", *(["summary.json"] if run.summary is not None else [])}
    there = [name for name in source_of(run).names() if name not in UNLISTED and not CLAIM_FILES.fullmatch(name)]
    if not any(name.startswith(POLICY) for name in files) and _policy(run):
        yield Check("policy", None, found="the list has no files of the policy: the record is older than their hashes")
        there = [name for name in there if not name.startswith(POLICY)]
    absent = sorted({*needed, *there} - set(files))
    found = f"{len(absent)} not in the list, first {absent[0]}" if absent else "the same"
    yield Check("files", not absent, "all files in the folder of the record", found)


def _file(run: Run, name: str, expected: str) -> Check:
    kept = name.startswith(("samples/", "scalars.jsonl")) and run.manifest.archive
    try:
        found = _hash(run, name)
    except CorruptRecord as error:
        return Check(name, False, "a file of the record", str(error).removeprefix(f"{run.dir}: {name} "))
    except (OSError, ValueError) as error:
        gone = isinstance(error, FileNotFoundError)
        why = _not_there(run, name) if gone else None
        return Check(name, None if why else False, "a file that can be read", why or type(error).__name__)
    part = kept and found != expected
    return Check(
        name, None if part else found == expected, f"sha256 {expected[:8]}", "a part" if part else f"sha256 {found[:8]}"
    )


def _not_there(run: Run, name: str) -> str | None:
    """The reason why a listed file may be absent; None if it must exist."""
    if run.manifest.archive and name.startswith(("samples/", POLICY)):
        return "not kept in the archive"
    return "the policy has been removed from the record" if name.startswith(POLICY) and not _policy(run) else None


def _policy(run: Run) -> list[str]:
    """The relative paths of the policy's files in a record."""
    return [name for name in source_of(run).names() if name.startswith(POLICY)]


def _hash(run: Run, name: str) -> str:
    """The content hash of a file of the record, with the shared values of an archive put back."""
    if name == "summary.json":
        return identity_hash(run.summary.plain() if run.summary is not None else None)
    if name == "trajectory.jsonl":
        return identity_hash([row.plain() for row in run.trajectory])
    if name == "scalars.jsonl":
        return identity_hash([row.plain() for row in source_of(run).scalars()] or None)
    if name == "probes.jsonl":
        return identity_hash([row.plain() for row in probes(run)] or None)
    if name == "prompts.json":
        prompts = source_of(run).prompts()
        return identity_hash(prompts.plain() if prompts is not None else None)
    return source_of(run).hash(name)


def _prompts(run: Run, rows: list[Sample]) -> Iterator[Check]:
    """Check the scores of each prompt, to six digits, against the samples."""
    kept = prompt_scores(run)
    if kept is None:
        yield Check("prompts.json", None, found="the record is older than the scores of each prompt")
        return
    table = Table(rows)
    ids = [sha256(text.encode("utf-8", "replace")).hexdigest()[:8] for text in table.prompts]
    yield Check("prompts.json id, kind", ids == kept.id and table.all_kinds == kept.kind, "those of the samples", "others")
    made = {name: m.prompt_means(table.of(name)) for name in ("reward", "judge", "kl")}
    if table.has("nll"):
        made["nll_per_token"] = m.prompt_nll(table.of("nll"), table.of("nll_tokens"))
    if len(table.prompts) != len(kept.id):
        yield Check("prompts.json rows", False, f"{len(table.prompts)} prompts, as in the samples", str(len(kept.id)))
        return
    for name, values in made.items():
        pairs = zip(values.tolist(), kept.values[name], strict=True)
        wrong = [x for x, (a, b) in enumerate(pairs) if not _close(None if np.isnan(a) else a, b, SIX_DIGITS)]
        yield Check(
            f"prompts.json {name}",
            not wrong,
            "that of the samples",
            f"another for prompts {wrong[:5]}" if wrong else "the same",
        )
