"""The command line. Standard output is the result, standard error is progress; errors are one line.

Nothing heavy is imported at the top: `harness --help` and `harness list` must answer at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from harness import __version__
from harness.core.errors import Interrupted
from harness.core.process import explain, flush_output, prepare, readable, started_by_torchrun, watched
from harness.core.settings import parse_seeds
from harness.core.text import escaped, escaped_lines

from .export import export
from .fetch import fetch
from .result import local
from .sweep import study, sweep
from .train_scorer import train_scorer


class Commands(TyperGroup):
    """The commands, with Ctrl-C as an error of ours: typer itself turns it into a silent exit code before `main` sees it."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; raises Interrupted on Ctrl-C."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; finished work is kept; run the same command to resume") from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Method = Annotated[str, typer.Option("--method", "-m", help="method: a name (harness list methods) or a file (./my_method.py)")]
TaskName = Annotated[str, typer.Option("--task", "-t", help="task: a name (harness list tasks) or a file (./my_task.py)")]
Preset = Annotated[str, typer.Option(help="preset: a name (harness list presets) or a file (./my.toml)")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="setting, repeatable: kl_coef=0.1, task.reward=./my_scorer.py"),
]
Model = Annotated[str | None, typer.Option(help="base policy: a Hugging Face folder, a .gguf file, a hub id, or smollm2")]
PromptFile = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="NAME|ID|FILE",
        help="prompts: a named data set (harness list datasets), a hub id, or a file (.jsonl, .csv, .tsv, .parquet, also .gz)",
    ),
]
Out = Annotated[Path, typer.Option(help="folder of records", callback=local)]
Json = Annotated[bool, typer.Option("--json", help="summary as one JSON object on the last line of stdout")]
Offline = Annotated[bool, typer.Option(help="use local files and caches only")]
Unmask = Annotated[bool, typer.Option(help="show generated text unmasked; it can be offensive")]
Track = Annotated[
    str | None, typer.Option(metavar="A,B", help="trackers that follow the run: tensorboard, wandb, mlflow, trackio")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="full tracebacks of errors")]


def _version(asked: bool) -> None:
    if asked:
        print(f"harness {__version__}")
        raise typer.Exit()


@app.callback()
def harness(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="version of the package")
    ] = False,
) -> None:
    """Run methods that unlearn habits of language models, and measure them against the optimum."""


@app.command()
def run(
    method: Method,
    task: TaskName,
    preset: Preset = "micro",
    seed: Annotated[int, typer.Option(min=0, help="random seed of the method")] = 0,
    seeds: Annotated[str | None, typer.Option(metavar="0-4", help="several seeds, run in sequence: 0-4 or 0,2,5")] = None,
    settings: Set = None,
    budget: Annotated[float | None, typer.Option(metavar="FLOPS", help="training budget in estimated FLOPs")] = None,
    model: Model = None,
    prompts: PromptFile = None,
    out: Out = Path("results"),
    fresh: Annotated[bool, typer.Option(help="discard the existing record and start again")] = False,
    dry_run: Annotated[bool, typer.Option(help="print what would be loaded, what it takes and what fits")] = False,
    offline: Offline = False,
    profile: Annotated[bool, typer.Option(help="record and print where the time goes, by activity")] = False,
    track: Track = None,
    track_samples: Annotated[bool, typer.Option(help="give trackers samples too, masked unless --unmask")] = False,
    as_json: Json = False,
    unmask: Unmask = False,
    verbose: Verbose = False,
) -> None:
    """Train a method on a task, measure it and plot it against the optimal frontier. The same command again resumes."""
    from .run import run_command, tracking

    chosen = parse_seeds(seeds) if seeds is not None else [seed]
    flags = {"budget__flops": budget, "model__id": model, "task__prompts": prompts}
    code = run_command(
        method,
        task,
        preset,
        chosen,
        settings or [],
        flags,
        out,
        fresh=fresh,
        dry_run=dry_run,
        offline=offline,
        profile=profile,
        as_json=as_json,
        unmask=unmask,
        tracking=tracking(track, track_samples, unmask),
    )
    raise typer.Exit(code)


app.command()(sweep)
app.command()(study)


@app.command("eval")
def evaluate(
    policy: Annotated[str, typer.Option(help="policy trained elsewhere: a folder, a .gguf file, or a hub id")],
    task: TaskName,
    prefix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="text that the policy reads before each prompt: its control tokens")
    ] = None,
    preset: Preset = "micro",
    settings: Set = None,
    model: Model = None,
    prompts: PromptFile = None,
    out: Out = Path("results"),
    fresh: Annotated[bool, typer.Option(help="discard the existing record and measure again")] = False,
    offline: Offline = False,
    as_json: Json = False,
    unmask: Unmask = False,
    verbose: Verbose = False,
) -> None:
    """Measure a policy that was trained elsewhere and plot it against the optimal frontier."""
    from .run import eval_command

    flags, same = {"model__id": model, "task__prompts": prompts}, {"fresh": fresh, "offline": offline, "as_json": as_json}
    raise typer.Exit(eval_command(policy, task, preset, settings or [], flags, out, prefix=prefix, unmask=unmask, **same))


@app.command()
def report(
    records: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR]...", help="folders of records [default: results]")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the report", callback=local)] = Path("reports/latest"),
    verbose: Verbose = False,
) -> None:
    """Build one page from many records: the ranking of methods, their cost, their distance from the optimum."""
    from .records import report_command

    raise typer.Exit(report_command(records or [Path("results")], out))


@app.command()
def status(
    records: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR]...", help="folders of records [default: --out]")
    ] = None,
    out: Out = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="cells as one JSON object on the last line of stdout")] = False,
    verbose: Verbose = False,
) -> None:
    """Show which seeds of each method and task are done, running, failed, stale or missing; exit code 4 if any is not done."""
    from .status import status_command

    raise typer.Exit(status_command(records or [out], out, as_json))


@app.command()
def samples(
    run: Annotated[str, typer.Argument(help="run: its folder, its id, or a unique prefix of its id")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="maximum number of samples")] = 10,
    kind: Annotated[str | None, typer.Option(help="only prompts of this kind (heated, calm, ...)")] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="only prompts that contain TEXT")] = None,
    search: Annotated[str | None, typer.Option(metavar="TEXT", help="only responses that contain TEXT")] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="SCORE", help="sort by judge, reward, kl or nll (nats per token), worst first")
    ] = None,
    worst: Annotated[bool, typer.Option("--worst", help="worst first, by the judge unless --sort names another score")] = False,
    best: Annotated[bool, typer.Option("--best", help="best first")] = False,
    seed: Annotated[int, typer.Option(min=0, help="seed of the random selection (without --worst, --best or --sort)")] = 0,
    of: Annotated[str, typer.Option(help="policy: final, or base (before training)")] = "final",
    out: Out = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="samples as one JSON object on the last line of stdout")] = False,
    unmask: Unmask = False,
    verbose: Verbose = False,
) -> None:
    """Show responses of a policy to held-out prompts, with their scores; texts are masked unless --unmask is given."""
    from harness.records.samples import Wanted

    from .records import samples_command

    wanted = Wanted(n, kind, prompt, search, sort, best, worst, seed)
    raise typer.Exit(samples_command(run, out, of, wanted, unmask, as_json))


@app.command()
def probe(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="runs: folders (also of many), ids, prefixes of ids")],
    probes: Annotated[list[str], typer.Option("--probe", help="probe, repeatable: a name (harness list probes) or a file")],
    settings: Set = None,
    seed: Annotated[int, typer.Option(min=0, help="random seed of the probe")] = 0,
    task: Annotated[str | None, typer.Option("--task", "-t", help="task file of the records")] = None,
    preset: Annotated[str | None, typer.Option(help="preset file of the records")] = None,
    out: Out = Path("results"),
    offline: Offline = False,
    as_json: Annotated[bool, typer.Option("--json", help="results as one JSON object on the last line of stdout")] = False,
    verbose: Verbose = False,
) -> None:
    """Test whether the habit comes back in a finished policy; results are added to its record, and never run twice."""
    from .run import probe_command

    raise typer.Exit(probe_command(runs, probes, settings or [], seed, out, (task, preset), offline=offline, as_json=as_json))


@app.command()
def verify(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="runs: folders, ids, or unique prefixes of ids")],
    rescore: Annotated[bool, typer.Option("--rescore", help="score the texts again")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="model, file or option that --rescore may load beyond the presets"),
    ] = None,
    task: Annotated[str | None, typer.Option("--task", "-t", help="task file of the records, for --rescore")] = None,
    preset: Annotated[str | None, typer.Option(help="preset file of the records, for --rescore")] = None,
    out: Out = Path("results"),
    offline: Offline = False,
    as_json: Annotated[bool, typer.Option("--json", help="checks as one JSON object on the last line of stdout")] = False,
    verbose: Verbose = False,
) -> None:
    """Check records: their hashes, and every number that their samples determine; exit code 5 on a mismatch."""
    from .records import verify_command

    raise typer.Exit(verify_command(runs, out, rescore, offline, as_json, settings or [], task, preset))


@app.command()
def compare(
    a: Annotated[
        str, typer.Argument(metavar="A", help="first side: a folder, or within --out METHOD[:key=value,...] or a run's id")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="second side; differences are B - A")],
    metric: Annotated[list[str] | None, typer.Option(help="metric to compare, repeatable [default: the main ones]")] = None,
    regress_if: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC<-MARGIN", help="regression condition (exit code 5): judge<-0.02, kl>0.1"),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of records in which methods and ids are looked up")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="comparison as one JSON object on the last line of stdout")] = False,
    verbose: Verbose = False,
) -> None:
    """Compare two methods, sets of runs or settings: a paired test of each metric, and the smallest difference it can detect.

    An argument that is a folder is read as that: a run, or runs of one method with one choice of settings. Any other is a
    method with records in --out, narrowed by its settings, its task or its preset, as quark:kl_coef=0.1,task=toxicity; or
    the id of a run in --out, or a unique prefix of it.
    A regression holds where the whole 95 % interval of B - A lies beyond the margin. Exit code 4 where runs had to be left
    out or a regression could not be judged.
    """
    from .records import compare_command

    raise typer.Exit(compare_command(a, b, metric or [], regress_if or [], out, as_json))


app.command()(export)
app.command()(fetch)


@app.command("list")
def list_things(
    what: Annotated[str, typer.Argument(help="kind: methods, tasks, scorers, datasets, probes, presets or runs")],
    out: Out = Path("results"),
    as_json: Json = False,
) -> None:
    """List methods, tasks, scorers, data sets, presets or runs."""
    from .listing import listing

    rows = listing(what, out)
    print(json.dumps(rows) if as_json else _columns(rows))


@app.command()
def show(
    what: Annotated[str, typer.Argument(help="kind: method, task, probe, preset or run")],
    name: Annotated[str, typer.Argument(help="name; of a run its id or its folder")],
    out: Out = Path("results"),
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show one item in full: a method's settings, a task, a resolved preset, a run's summary."""
    from .listing import card

    text, data = card(what, name, out)
    print(json.dumps(data) if as_json else escaped_lines(text))


@app.command()
def check(
    what: Annotated[str, typer.Argument(help="kind: method, task or scorer")],
    name: Annotated[str, typer.Argument(help="name (harness list methods) or file (./my_method.py)")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="option of a scorer: model=./my_model")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="checks as one JSON object on the last line of stdout")] = False,
    verbose: Verbose = False,
) -> None:
    """Check a plug-in against the rules that every one of its kind must meet; exit code 5 if one fails."""
    from .check import check_command

    raise typer.Exit(check_command(what, name, as_json, settings or []))


app.command("train-scorer")(train_scorer)


@app.command()
def new(
    what: Annotated[str, typer.Argument(help="kind: method, task or scorer")],
    name: Annotated[str, typer.Argument(help="name of the file, without .py")],
    out: Annotated[Path, typer.Option(help="folder of the new file and its test", callback=local)] = Path("."),
    verbose: Verbose = False,
) -> None:
    """Create a new plug-in: a file that works as it is, and its test."""
    from harness.conformance.scaffold import new_plugin

    print(new_plugin(what, name, out))


@app.command()
def env(as_json: Json = False) -> None:
    """Show package versions and the platform, for a bug report."""
    from .listing import environment

    facts = environment()
    print(json.dumps(facts) if as_json else "\n".join(f"{k:14} {v}" for k, v in facts.items()))


def _columns(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    rows = [{k: escaped(v) for k, v in row.items()} for row in rows]
    widths = {k: max(len(r[k]) for r in rows) for k in rows[0]}
    return "\n".join("  ".join(r[k].ljust(widths[k]) for k in widths).rstrip() for r in rows)


def main() -> NoReturn:
    """The entry point: errors become one line and an exit code."""
    prepare()
    if "--offline" in sys.argv:
        os.environ["HF_HUB_OFFLINE"] = "1"
    with watched() as ctrl_c:
        try:
            readable(sys.argv[1:])
            if not sys.argv[1:]:  # the parser would make one error line of the whole help
                sys.argv.append("--help")
            code = app(standalone_mode=False) or 0
            flush_output()
        except BaseException as e:  # Ctrl-C, sys.exit in what was loaded, and the panics of a library in Rust among them
            code = _told(ctrl_c.meaning(e))
    sys.exit(code)


def _told(error: BaseException) -> int:
    """The exit code of an error, of which one process tells."""
    if not started_by_torchrun():
        return explain(error)
    from harness.policy.models.processes import last_words

    with last_words() as speaks:
        return explain(error) if speaks else int(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    main()
