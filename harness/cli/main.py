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
from harness.core.process import explain, flush_output, prepare, readable, watched
from harness.core.settings import parse_seeds
from harness.core.text import escaped, escaped_lines


class Commands(TyperGroup):
    """The commands, with Ctrl-C as an error of ours: typer itself turns it into a silent exit code before `main` sees it."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; raises Interrupted on Ctrl-C."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; what was finished is kept, and the same command does the rest") from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Method = Annotated[str, typer.Option("--method", "-m", help="a name (harness list methods) or a file: ./my_method.py")]
TaskName = Annotated[str, typer.Option("--task", "-t", help="a name (harness list tasks) or a file: ./my_task.py")]
Preset = Annotated[str, typer.Option(help="model, data, scorers, budget: a name (harness list presets) or a file: ./my.toml")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="a setting: kl_coef=0.1, evaluation.points=4, task.reward=./my_scorer.py"),
]
Model = Annotated[str | None, typer.Option(help="base policy: a Hugging Face folder or a hub id")]
PromptFile = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="NAME|ID|FILE",
        help="a named data set (harness list datasets), a hub id, or a file: .jsonl, .csv, .tsv, .parquet, also .gz",
    ),
]
Out = Annotated[Path, typer.Option(help="where records go")]
Json = Annotated[bool, typer.Option("--json", help="the summary as one JSON object on the last line")]
Offline = Annotated[bool, typer.Option(help="never look beyond this machine")]
Unmask = Annotated[bool, typer.Option(help="show generated text as it is; it can be offensive")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="tracebacks of errors")]


def _version(asked: bool) -> None:
    if asked:
        print(f"harness {__version__}")
        raise typer.Exit()


@app.callback()
def harness(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="the version, and nothing else")
    ] = False,
) -> None:
    """Run methods that unlearn habits of language models, and measure them against the optimum."""


@app.command()
def run(
    method: Method,
    task: TaskName,
    preset: Preset = "micro",
    seed: Annotated[int, typer.Option(min=0, help="of the method's randomness")] = 0,
    seeds: Annotated[str | None, typer.Option(metavar="0-4", help="several seeds, one after the other: 0-4 or 0,2,5")] = None,
    settings: Set = None,
    budget: Annotated[float | None, typer.Option(metavar="FLOPS", help="estimated FLOPs of training")] = None,
    model: Model = None,
    prompts: PromptFile = None,
    out: Out = Path("results"),
    fresh: Annotated[bool, typer.Option(help="forget what this run has done before")] = False,
    dry_run: Annotated[bool, typer.Option(help="print what would be loaded and run")] = False,
    offline: Offline = False,
    as_json: Json = False,
    unmask: Unmask = False,
    verbose: Verbose = False,
) -> None:
    """Train a method on a task, measure it, draw it beside the optimum. The same command again resumes, or says it is done."""
    from .run import run_command

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
        as_json=as_json,
        unmask=unmask,
    )
    raise typer.Exit(code)


@app.command()
def sweep(
    methods: Annotated[str | None, typer.Option(metavar="A,B", help="names (harness list methods) or files")] = None,
    tasks: Annotated[str | None, typer.Option(metavar="A,B", help="names (harness list tasks) or files")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="0-4", help="0-4 or 0,2,5 [default: 0]")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="for every method that has it; quark.kl_coef=0.1 for one only"),
    ] = None,
    grid: Annotated[
        list[str] | None, typer.Option(metavar="KEY=V1,V2", help="values of a setting; several grids are combined")
    ] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="the same as TOML; flags go before it")] = None,
    preset: Annotated[str | None, typer.Option(help="model, data, scorers, budget: a name or a file [default: micro]")] = None,
    workers: Annotated[int, typer.Option(min=1, help="cells at once; the cores are divided among them")] = 1,
    out: Out = Path("results"),
    dry_run: Annotated[bool, typer.Option(help="list the cells: done, to resume, missing")] = False,
    offline: Offline = False,
    as_json: Annotated[bool, typer.Option("--json", help="the cells as one JSON object on the last line")] = False,
    verbose: Verbose = False,
) -> None:
    """Methods x tasks x settings x seeds, each cell as `harness run` would run it.

    The same command again finishes what is missing. A cell that fails does not stop the others. A file has the same words:

    \b
    methods = ["base", "quark"]
    tasks = ["toxicity"]
    seeds = "0-2"
    [set]
    evaluation.split = "validation"
    [grid]
    quark.kl_coef = [0.1, 0.3]
    """
    from harness.runs.sweep.plan import told

    from .sweep import sweep_command

    spec = told(file, methods, tasks, seeds, preset, settings or [], grid or [])
    raise typer.Exit(sweep_command(spec, workers, out, dry_run=dry_run, offline=offline, as_json=as_json))


@app.command("eval")
def evaluate(
    policy: Annotated[str, typer.Option(help="a policy trained elsewhere: a folder or a hub id")],
    task: TaskName,
    preset: Preset = "micro",
    settings: Set = None,
    model: Model = None,
    prompts: PromptFile = None,
    out: Out = Path("results"),
    fresh: Annotated[bool, typer.Option(help="measure again")] = False,
    offline: Offline = False,
    as_json: Json = False,
    unmask: Unmask = False,
    verbose: Verbose = False,
) -> None:
    """Measure a policy that was trained elsewhere, and place it on the same plot."""
    from .run import eval_command

    flags = {"model__id": model, "task__prompts": prompts}
    raise typer.Exit(
        eval_command(
            policy, task, preset, settings or [], flags, out, fresh=fresh, offline=offline, as_json=as_json, unmask=unmask
        )
    )


@app.command()
def report(
    records: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR]...", help="folders with records [default: results]")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="where the page goes")] = Path("reports/latest"),
    verbose: Verbose = False,
) -> None:
    """One page from many records: who wins, at what cost, how far from the optimum."""
    from .records import report_command

    raise typer.Exit(report_command(records or [Path("results")], out))


@app.command()
def status(
    records: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR]...", help="folders with records [default: --out]")
    ] = None,
    out: Out = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="the cells as one JSON object on the last line")] = False,
    verbose: Verbose = False,
) -> None:
    """Methods x tasks: seeds done, running, failed, stale or missing, and what finishes them; exit code 4 where any is left."""
    from .status import status_command

    raise typer.Exit(status_command(records or [out], out, as_json))


@app.command()
def samples(
    run: Annotated[str, typer.Argument(help="the folder of a run, its id, or the beginning of its id")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="how many, at most")] = 10,
    kind: Annotated[str | None, typer.Option(help="of the prompts: heated, calm, ...")] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="that the prompt holds")] = None,
    search: Annotated[str | None, typer.Option(metavar="TEXT", help="that the response holds")] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="SCORE", help="judge, reward, kl or nll (nats a token); the worst first")
    ] = None,
    worst: Annotated[bool, typer.Option("--worst", help="the worst first, by the judge unless --sort says otherwise")] = False,
    best: Annotated[bool, typer.Option("--best", help="the best first")] = False,
    seed: Annotated[int, typer.Option(min=0, help="of the draw, where nothing is sorted")] = 0,
    of: Annotated[str, typer.Option(help="final, or base: the policy before training")] = "final",
    out: Out = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="the samples as one JSON object on the last line")] = False,
    unmask: Unmask = False,
    verbose: Verbose = False,
) -> None:
    """What a policy said to the held-out prompts, with its scores; the texts are hidden unless --unmask."""
    from harness.records.samples import Wanted

    from .records import samples_command

    wanted = Wanted(n, kind, prompt, search, sort, best, worst, seed)
    raise typer.Exit(samples_command(run, out, of, wanted, unmask, as_json))


@app.command()
def verify(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="folders of runs, their ids, or the beginnings of ids")],
    rescore: Annotated[bool, typer.Option("--rescore", help="run the scorers again over the texts")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="what --rescore may load beyond the presets"),
    ] = None,
    task: Annotated[str | None, typer.Option("--task", "-t", help="task file of the records, for --rescore")] = None,
    preset: Annotated[str | None, typer.Option(help="preset file of the records, for --rescore")] = None,
    out: Out = Path("results"),
    offline: Offline = False,
    as_json: Annotated[bool, typer.Option("--json", help="the checks as one JSON object on the last line")] = False,
    verbose: Verbose = False,
) -> None:
    """Whether records are what they say: their hashes, and every number that their samples determine; exit code 5 if not."""
    from .records import verify_command

    raise typer.Exit(verify_command(runs, out, rescore, offline, as_json, settings or [], task, preset))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="a run, a folder of runs, or METHOD[:key=value,...] within --out")],
    b: Annotated[str, typer.Argument(metavar="B", help="the same; differences are B - A")],
    metric: Annotated[list[str] | None, typer.Option(help="what to compare, may be repeated [default: the main ones]")] = None,
    regress_if: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC<-MARGIN", help="exit 5 where B is worse by more than the margin: judge<-0.02, kl>0.1"),
    ] = None,
    out: Annotated[Path, typer.Option(help="the records that methods are looked up in")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="the comparison as one JSON object on the last line")] = False,
    verbose: Verbose = False,
) -> None:
    """Two methods, run sets or settings of one world: a paired test of each metric, and what it can and cannot show.

    An argument that is a folder is read as that: a run, or runs of one method with one choice of settings. Any other is a
    method with records in --out, narrowed by its settings, its task or its preset: quark:kl_coef=0.1,task=toxicity.
    A regression holds where the whole 95 % interval of B - A lies beyond the margin. Exit code 4 where runs had to be left
    out or a regression could not be judged.
    """
    from .records import compare_command

    raise typer.Exit(compare_command(a, b, metric or [], regress_if or [], out, as_json))


@app.command("list")
def list_things(
    what: Annotated[str, typer.Argument(help="methods, tasks, scorers, datasets, presets or runs")],
    out: Out = Path("results"),
    as_json: Json = False,
) -> None:
    """What there is: methods, tasks, scorers, data sets, presets, runs."""
    from .listing import listing

    rows = listing(what, out)
    print(json.dumps(rows) if as_json else _columns(rows))


@app.command()
def show(
    what: Annotated[str, typer.Argument(help="method, task, preset or run")],
    name: Annotated[str, typer.Argument(help="its name; for a run its id or its folder")],
    out: Out = Path("results"),
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """One thing in full: a method's settings, a task, a resolved preset, a run's summary."""
    from .listing import card

    text, data = card(what, name, out)
    print(json.dumps(data) if as_json else escaped_lines(text))


@app.command()
def check(
    what: Annotated[str, typer.Argument(help="method, task or scorer")],
    name: Annotated[str, typer.Argument(help="its name (harness list methods) or its file: ./my_method.py")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="an option of a scorer: model=./my_model")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the checks as one JSON object on the last line")] = False,
    verbose: Verbose = False,
) -> None:
    """The rules that every method, task or scorer must hold, checked in under a minute; exit code 5 where one fails."""
    from .check import check_command

    raise typer.Exit(check_command(what, name, as_json, settings or []))


@app.command()
def new(
    what: Annotated[str, typer.Argument(help="method, task or scorer")],
    name: Annotated[str, typer.Argument(help="name of the file, without .py")],
    out: Annotated[Path, typer.Option(help="the folder that the file and its test go to")] = Path("."),
    verbose: Verbose = False,
) -> None:
    """Start a method, a task or a scorer of your own: a small working file, and its test."""
    from harness.conformance.scaffold import new_plugin

    print(new_plugin(what, name, out))


@app.command()
def env(as_json: Json = False) -> None:
    """The environment, ready to paste into an issue."""
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
            code = app(standalone_mode=False) or 0
            flush_output()
        except BaseException as e:  # Ctrl-C, sys.exit in what was loaded, and the panics of a library in Rust among them
            code = explain(ctrl_c.meaning(e))
    sys.exit(code)


if __name__ == "__main__":
    main()
