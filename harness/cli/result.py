"""The result of one run as text, and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.errors import one_line
from harness.core.files import in_a_file_system
from harness.core.text import escaped_lines, mask, printable

if TYPE_CHECKING:
    from harness.records.schema import Frontier, MetricRecord, Summary
    from harness.records.write import RunStore

UNITS = {
    "kl": "KL to base, nats", "efficiency": "share of the optimum", "ppl": "perplexity", "distinct_2": "distinct-2",
    "grammatical": "grammatical share", "length": "length, tokens", "max_toxicity": "max of 25, top-p 0.9",
    "toxicity_prob": "any of 25 above 0.5", "clean_nll": "clean text, nats a token",
}  # fmt: skip


def local(folder: Path | None) -> Path | None:
    """The folder of an option, which a command writes to; raises Unwritable at once for one in an object store."""
    if folder is not None:
        in_a_file_system(folder)
    return folder


def archived(path: Path) -> bool:
    """Whether a record is one of an archive, which keeps no pictures."""
    from harness.records.read import read_manifest

    return bool(read_manifest(path).archive)


def shown(path: Path, summary: Summary, unmask: bool) -> str:
    """The result of a run as text; raises CorruptRecord if its record lacks a field."""
    from harness.core.errors import CorruptRecord
    from harness.records.write import RunStore

    RunStore(path).record()
    try:
        return f"{escaped_lines(result_table(summary))}\n{examples(path, unmask)}"
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        what = f"{type(e).__name__}: {one_line(e)}"
        raise CorruptRecord(f"{path}: the record cannot be shown ({what}); start again with --fresh") from e


def draw(path: Path) -> Path:
    """Draw the picture of a finished run beside its record, if it is not there yet; raises CannotWrite."""
    target = path / "picture.png"
    if target.exists() and (path / "picture.svg").exists():
        return target
    from harness.core.errors import Busy
    from harness.records.write import RunStore

    store = RunStore(path)
    try:
        store.open()
    except Busy:  # whoever is at work on it draws it
        return target
    try:
        _draw(store, target)
    finally:
        store.close()
    return target


def _draw(store: RunStore, target: Path) -> None:
    from harness.core.files import replace, writing
    from harness.report.figures.pareto import run_picture
    from harness.report.figures.style import save

    figure = run_picture(store.record())
    for path in (target, target.with_suffix(".svg")):
        with writing(path):
            replace(path, save(figure, path.suffix[1:]))
        figure.set_layout_engine("none")  # the places of the parts are found, and hold in every format


def result_table(summary: Summary) -> str:
    """Base, method and optimum side by side, as text."""
    base, final = summary.base, summary.final
    kl, reward, excess, regret = (final[k].value for k in ("kl", "reward", "excess_kl", "regret"))
    optimum = {
        "undesired": _undesired_at(summary.frontier, kl),
        "reward": None if regret is None or reward is None else reward + regret,
        "kl": None if excess is None or kl is None else kl - excess,
        "efficiency": None if excess is None else 1.0,
    }
    rows = [("", "base", summary.method or "", "", "optimum")]
    rows.append(_row("undesired (1 - judge)", _complement(base["judge"]), _complement(final["judge"]), optimum["undesired"]))
    rows.append(_row("reward", base["reward"], final["reward"], optimum["reward"]))
    for name, title in (UNITS | {name: own.title.lower() for name, own in summary.own_metrics.items()}).items():
        if name in final and (base.get(name, final[name]).value, final[name].value) != (None, None):
            rows.append(_row(title, base.get(name), final[name], optimum.get(name), name))
    widths = [max(len(r[i]) for r in rows) for i in range(5)]
    lines = [
        "  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True))]).rstrip() for r in rows
    ]
    return "\n".join(["", *lines, "", _notes(summary)])


def _notes(summary: Summary) -> str:
    cost = summary.cost
    text = "optimum: highest reward at this KL, and what the judge gives that policy; least KL for this reward\n"
    share = summary.final.get("efficiency")
    if share is not None and share.value is not None and share.reason:
        text += f"share of the optimum: {share.reason}\n"
    text += f"cost: {cost['updates']} updates, {cost['flops']:.2g} FLOPs, {cost['sampled_tokens']} tokens sampled, "
    text += f"{cost['scorer_calls']} rewards; {cost['seconds']:.0f} s, {cost['peak_memory_mb']:.0f} MB"
    if (gpu := cost.get("peak_gpu_memory_mb")) is not None:
        text += f", {gpu:.0f} MB on the GPU"
    if summary.profile is not None:
        text += f"\ntime: {', '.join(f'{s:.1f} s {name}' for name, s in summary.profile.items())}"
    if summary.frontier is not None and summary.frontier.above:
        text += "\nwarning: a measurement lies above the frontier beyond its error: a fault in this suite, please report it"
    if summary.status == "degraded":
        missing = sum(summary.final[k].n_unscored for k in ("reward", "judge"))
        text += f"\ndegraded: {missing} scores are missing at the end, {cost['unscored']} in training; left out of rankings"
    return text


def _row(
    title: str, base: MetricRecord | None, final: MetricRecord, optimum: float | None, key: str = ""
) -> tuple[str, str, str, str, str]:
    from harness.analysis.columns import bound_sign

    spread = f"± {1.96 * final.stderr:.3f}" if final.stderr is not None and final.value is not None else ""
    value = f"{bound_sign(key, [final.reason or ''])} {_number(final.value)}".strip()
    return (title, _number(base.value if base else None), value, spread, _number(optimum))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _complement(metric: MetricRecord) -> MetricRecord:
    return metric.model_copy(update={"value": None if metric.value is None else 1 - metric.value})


def _undesired_at(frontier: Frontier | None, kl: float | None) -> float | None:
    """1 - judge of the policy that is optimal for the reward at this KL."""
    import numpy as np

    if kl is None or frontier is None or frontier.judge_at is None:
        return None
    return 1 - float(np.interp(kl, frontier.judge_at.kl, np.array(frontier.judge_at.judge, dtype=float)))


def examples(path: Path, unmask: bool, n: int = 3) -> str:
    """A few responses to the same prompts before and after training; masked unless `unmask`."""
    from harness.core import files

    if archived(path) and not (path / "samples" / "base.parquet").exists():
        return "\nno samples beside this record: an archive does not keep them\n"
    before, after = (files.table(path, f"samples/{name}.parquet").to_pandas() for name in ("base", "final"))
    worst = before.sort_values("judge", kind="stable").drop_duplicates("prompt_id").head(n)
    lines = [
        "",
        "the base policy's worst, and the answer to the same prompt now" + ("" if unmask else " (masked; --unmask shows)"),
    ]
    for row in worst.itertuples():
        answer = after[after.prompt_id == row.prompt_id].iloc[0]
        for who, said in (("prompt", row.prompt), ("base", row.response), ("now", answer.response)):
            lines.append(f"  {who:7} {printable(said) if unmask else mask(said)}")
    return "\n".join(lines) + "\n"
