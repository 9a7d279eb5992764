r"""Measure what the claims need beyond the records: on saved policies and recorded responses of finished runs.

    python docs/tools/claims_measure.py results/claims.jsonl --reference runs/reference --claims runs/claims

Writes a JSON object a line: the run, the name of the quantity, its value and its terms. What is measured already is kept, so
the command resumes. The folders must hold the runs themselves; of an archive nothing is measured, which has no policies.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from claims import posterior, question, search
from claims.plot import BINS, SHOWN, TASKS
from claims.records import Measured, Records, Side, read_measured, settings_of
from readme_tables import runs_below

from harness.api import Policy, Prompts, sample
from harness.core.errors import EmptySelection, MissingPrerequisite
from harness.core.files import replace
from harness.core.process import script
from harness.core.settings import RunSettings
from harness.measure.evaluator import stream_seed
from harness.records.samples import read
from harness.records.schema import Run
from harness.runs import assemble
from harness.runs.finished import external, rescore

UNCONDITIONAL, RESPONSES = "unconditional", 512
ASKED = ("mle", "conditional_pretraining")  # the methods whose policies are asked questions and searched
DIGITS = 6
Key = tuple[str, str]


def wanted(records: Records) -> Iterator[tuple[Run, str]]:
    """The runs with the names of what is measured on them."""
    for task in TASKS:
        for method in SHOWN:
            runs = Side(method).runs(records, task)
            yield from ((run, name) for run in ([] if isinstance(runs, str) else runs) for name in ("slope", BINS))
    for run in records.varied:
        had = settings_of(run)
        if run.manifest.status == "done" and had.get("start") == "scratch" and not had.get("mle_share"):
            yield from ((run, name) for name in ON_POLICY if name == UNCONDITIONAL or run.manifest.method in ASKED)
        if run.manifest.status == "done" and run.manifest.method in SHOWN and had.get("kl_coef"):
            yield run, "slope"


def measured(run: Run, name: str) -> Measured | None:
    """A quantity of one run; None if it is not defined. Raises MissingPrerequisite if its policy is not kept."""
    if name == "slope":
        return posterior.slope(read(run), float(settings_of(run)["kl_coef"]))
    if name == BINS:
        return posterior.bins(read(run))
    return ON_POLICY[name](run)


@cache
def _parts(settings: str, task: str) -> assemble.Parts:
    return assemble.parts(RunSettings.model_validate_json(settings), task, offline=True)


def _loaded(run: Run) -> tuple[Policy, assemble.Parts]:
    """The deployed policy of a run, and its model and task."""
    folder = run.dir / "policy"
    if not (folder / "policy.json").is_file():
        raise MissingPrerequisite(f"{run.dir} has no policy to measure; give the folder of the runs, not an archive")
    settings = rescore.trusted(run, rescore.Named())
    shared = _parts(settings.model_copy(update={"method": {}}).model_dump_json(), run.manifest.task)
    return external.external_model(str(folder), shared, offline=True)[0], shared


def without_prompt(run: Run) -> Measured | None:
    """The mean undesired score of responses to the empty prompt."""
    policy, shared = _loaded(run)
    found = shared.task.prompts("test")
    rows = [x for x, kind in enumerate(found.kinds) if kind == UNCONDITIONAL][:1]
    if not rows:
        return None
    prompts = Prompts(*(x[rows] for x in found.prompts))
    rng = torch.Generator().manual_seed(stream_seed(run.manifest.seed, UNCONDITIONAL))
    rollout = sample(policy, prompts, decoding=shared.task.decoding, rng=rng, n=RESPONSES)
    return Measured(float(1 - np.nanmean(shared.task.judge(rollout).double().numpy())))


def _question(run: Run) -> Measured:
    policy, shared = _loaded(run)
    return question.answered(policy, shared.model.tokenizer)


def _tuned(run: Run) -> Measured:
    policy, shared = _loaded(run)
    question.finetune(policy, shared.model.tokenizer, run.manifest.seed)
    return question.answered(policy, shared.model.tokenizer)


def _searched(run: Run) -> Measured:
    policy, shared = _loaded(run)
    return search.searched(policy, shared.model.tokenizer, shared.task, run.manifest.seed)


ON_POLICY: dict[str, Callable[[Run], Measured | None]] = {
    UNCONDITIONAL: without_prompt,
    "question": _question,
    "question_tuned": _tuned,
    "searched": _searched,
}


def lines(found: dict[Key, Measured]) -> str:
    """The quantities as JSON Lines, in the order of their keys."""
    rows = [
        {"run_id": run, "name": name, "value": round(m.value, DIGITS), "terms": [round(t, DIGITS) for t in m.terms]}
        for (run, name), m in sorted(found.items())
    ]
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def main(arguments: list[str]) -> None:
    """Measure what is missing and write it after each run; raises MissingPrerequisite if a policy is not there."""
    parser = argparse.ArgumentParser(prog="python docs/tools/claims_measure.py", allow_abbrev=False)
    parser.add_argument("file", type=Path)
    parser.add_argument("--reference", type=Path, nargs="+", default=[], help="folders of runs of the reference study")
    parser.add_argument("--claims", type=Path, nargs="+", default=[], help="folders of runs of the claims study")
    args = parser.parse_args(arguments)
    records = Records(runs_below(args.reference), runs_below(args.claims))
    if not records.reference and not records.varied:
        raise EmptySelection("no records to measure; run make reference or make claims first")
    found: dict[Key, Measured] = dict(read_measured(args.file))
    cut = set()  # runs of which an archive keeps a few responses and no policy
    for run, name in wanted(records):
        key = (run.manifest.run_id, name)
        if key not in found and run.manifest.archive:
            cut.add(run.dir)
        elif key not in found and (new := measured(run, name)) is not None:
            found[key] = new
            replace(args.file, lines(found).encode())
    if cut:
        print(f"warning: {len(cut)} runs were not measured: they come from an archive, which keeps no policy", file=sys.stderr)
    print(f"{len(found)} quantities in {args.file}")


if __name__ == "__main__":
    script(main)
