"""Learning rates by task, chosen from trials: `python -m harness.report.learning_rates DIR... [--write PRESET.toml]`.

It prints the table of all trials with the chosen ones marked (`harness.report.trials` has the rule) and the learning rates as
the tables of a preset; with --write they replace what stands between the two marks in that file. A record counts as a trial if
it is measured on validation prompts and differs from its preset in the learning rate and in `evaluation` alone; one of a method
that has no learning rate may differ in the method's settings, which you then write into the preset yourself.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any

from harness.analysis.study import Study
from harness.core import registry
from harness.core.errors import BadData, EmptySelection, MissingPrerequisite
from harness.core.files import replace, writing
from harness.core.process import script
from harness.core.settings import preset_names, read_preset, resolve
from harness.core.text import escaped, escaped_lines
from harness.records.read import find_runs
from harness.records.schema import Run

from .trials import by_method, chosen, page, split_of

BEGIN = "# Learning rates by task, chosen from trials; `python -m harness.report.learning_rates` writes what follows."
END = "# End of the learning rates by task."
Rates = dict[str, dict[str, float]]


def on_validation(run: Run) -> bool:
    """Whether a record is measured on validation prompts, on which settings are chosen."""
    return bool(run.manifest.identity.get("evaluation", {}).get("split") == "validation")


def counts(run: Run) -> bool:
    """Whether a record is a trial of its preset: the preset's settings but for the learning rate, the whole budget.

    A method without a learning rate has trials of its other settings.
    """
    m, own = run.manifest, _own(run)
    if not on_validation(run) or not own:
        return False
    if m.settings is None or m.preset not in preset_names() or m.task not in read_preset(m.preset)["tasks"]:
        return True  # a preset or a task of the user's own, which a record does not hold
    of_preset = resolve(m.preset, m.method, m.task).model_dump()
    same = all(m.settings.get(section) == of_preset[section] for section in ("budget", "optimizer"))
    return same and ("lr" not in own or _without_rate(m.settings.get("method")) == _without_rate(of_preset["method"]))


def _own(run: Run) -> dict[str, Any]:
    """The settings of a record's method; none of a record that does not say."""
    return dict(run.manifest.identity.get("method", {}).get("settings", {}))


def _without_rate(settings: object) -> dict[str, object]:
    return {key: value for key, value in settings.items() if key != "lr"} if isinstance(settings, dict) else {}


def learning_rates(study: Study) -> Rates:
    """The learning rate of each method by task; a control takes that of the method in its `tuned_as`.

    Raises BadData if the trials of a task cannot be compared, since they are of several presets or worlds.
    """
    found: Rates = {}
    for group in study.groups:
        if split_of(group) != "validation":
            continue
        if group.task in found:
            raise BadData(f"the trials of task {group.task} are of several presets or worlds; expected one: choose the records")
        best = {method: chosen(group, entries) for method, entries in by_method(group).items()}
        rates = {m: float(lr) for m, e in best.items() if e is not None and (lr := _own(e.runs[0]).get("lr")) is not None}
        as_others = {name: registry.attribute("method", name, "tuned_as") for name in registry.table("method")}
        found[group.task] = {name: rates[other] for name, other in as_others.items() if other in rates} | rates
    return found


def tables(rates: Rates) -> str:
    """The learning rates as tables of a preset, in order of their names."""
    parts = []
    for task, methods in sorted(rates.items()):
        lines = [f"{_key(method)}.lr = {_number(rate)}" for method, rate in sorted(methods.items())]
        parts.append("\n".join([f"[tasks.{_key(task)}.methods]", *lines, ""]))
    return "\n".join(parts)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else f'"{name}"'


def _number(rate: float) -> str:
    """A number as short as it can be written, such as 3e-4."""
    mantissa, _, exponent = f"{rate:e}".partition("e")
    short = f"{float(mantissa):g}e{int(exponent)}"
    return short if float(short) == rate else repr(rate)


def rewritten(text: str, rates: Rates, path: Path) -> str:
    """The text of a preset with the learning rates between the two marks; raises BadData if it has no marks, or no room."""
    above, begin, rest = text.partition(BEGIN + "\n")
    _, end, below = rest.partition(END + "\n")
    if not begin or not end:
        raise BadData(f"preset file {path}: expected the lines {BEGIN!r} and {END!r}; found no such block; add both")
    written = f"{above}{BEGIN}\n{tables(rates)}{END}\n{below}"
    try:
        tomllib.loads(written)
    except tomllib.TOMLDecodeError as e:
        raise BadData(f"preset file {path} gives a learning rate by task outside its marked block ({e}); remove it") from None
    return written


def main(words: list[str]) -> None:
    """Run the command; raises EmptySelection if there are no trials, BadData if the preset cannot take the learning rates."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.report.learning_rates", description=(__doc__ or "").partition(":")[0], allow_abbrev=False
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folders of records")
    parser.add_argument("--write", type=Path, metavar="PRESET.toml", help="preset that takes the learning rates")
    args = parser.parse_args(words)
    runs, problems = find_runs(args.folders)
    for problem in problems:
        print(escaped(f"warning: {problem.path}: {problem.what}"), file=sys.stderr)
    trials = [run for run in runs if counts(run)]
    if len(trials) < len(runs):
        others = f"{len(runs) - len(trials)} of {len(runs)} records are no trials of learning rates: left out"
        print(escaped(others), file=sys.stderr)
    if not trials:
        raise EmptySelection("no trials of learning rates; make some with harness sweep --set evaluation.split=validation")
    study = Study(trials, problems)
    rates = learning_rates(study)
    print(escaped_lines(f"{page(study)}\n{tables(rates)}"))
    if args.write is not None:
        _write(args.write, rates)


def _write(path: Path, rates: Rates) -> None:
    if not path.is_file():
        raise MissingPrerequisite(f"no preset file {path}")
    with writing(path):
        replace(path, rewritten(path.read_text(encoding="utf-8"), rates, path).encode())


if __name__ == "__main__":
    script(main)
