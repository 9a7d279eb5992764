"""Build a runnable cell (model, data, scorers, task, method) from the names on a command line.

Only this module and the command line refer to methods and tasks, and only by name.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.core import registry
from harness.core.errors import BadSetting, PromptTooLong
from harness.core.files import in_a_file_system
from harness.core.hashing import folder_identity
from harness.core.hub import hub_offline
from harness.core.process import local_rank
from harness.core.settings import RunSettings, TaskSettings, check_seed, checked, stem_of
from harness.core.types import settings_identity
from harness.measure import base_responses as base_policy
from harness.measure.evaluator import EVALUATION_VERSION, Evaluator
from harness.measure.kept import KeptEvaluation
from harness.policy.loading import LoadedModel, load_model
from harness.policy.models import adapters, processes, sharding
from harness.policy.models.setup import check_shard, setup_of
from harness.records.schema import SCHEMA_VERSION, Git, Provenance
from harness.training import schedule
from harness.training.precision import Precision, precision
from harness.training.trial import Budget, OptimizerSettings

from . import checkpoint_rule, named, scorers, sources
from .progress import Progress
from .session import Cell

PACKAGES = ("torch", "transformers", "numpy", "tokenizers")
EXTRAS = ("trl", "peft")  # optional, but some methods compute their loss with the one, and adapters are the other's
SAME_SCORER = (
    "the judge is the reward {name!r}; expected a scorer that no method trains on, or over-optimisation cannot show: choose "
    "another task.judge"
)


class Parts(NamedTuple):
    """The parts that all cells of one task share."""

    model: LoadedModel
    task: Any
    micro: bool  # True for the micro world's own model and prompts, whose base responses ship with the package
    file: Mapping[str, Any] = {}  # stem and sha256 of a task that is a file
    precision: Precision = Precision("float32")

    def identity(self) -> dict[str, Any]:
        """Return the identity of the task; a task that is a file has its stem and its hash in it."""
        found = self.task.identity()
        return found | {"task": found["task"] | self.file} if self.file else found


def check(settings: RunSettings, method: str) -> None:
    """Check a run's settings before anything is loaded; raises BadSetting, UnknownName, or MissingPrerequisite without peft."""
    of_method = checked(registry.load("method", method).Settings, settings.method, "method")
    check_shard(settings.model)
    if settings.model.lora.rank:
        adapters.required()
        if getattr(of_method, "start", "base") == "scratch":
            raise BadSetting(adapters.FROM_SCRATCH)
        if not getattr(registry.load("method", method), "lora", True):
            raise BadSetting(adapters.ALL_WEIGHTS.format(method=method))
    checked(Budget, settings.budget, "budget")
    checked(OptimizerSettings, settings.optimizer, "optimizer")
    used = {settings.task.reward, settings.task.judge}
    of_files = {stem_of(name) for name in used if scorers.is_path(name)}  # their options are named by the stem
    for name in used | set(settings.scorers) - of_files:
        registry.given("scorer", settings.scorer_kind(name))
        scorers.known_options(name, settings.scorer_options(name))  # also of a scorer that this task does not use
    if settings.task.reward == settings.task.judge:
        raise BadSetting(SAME_SCORER.format(name=settings.task.judge))
    for probe in settings.evaluation.probes:
        registry.load("probe", registry.given("probe", probe))
    scorers.check_apart(settings)
    sources.check(settings.task.prompts, settings.task.data)
    for name in used:
        scorers.check(name, settings.scorer_options(name))


def parts(settings: RunSettings, task_name: str, offline: bool = False, out: Path | None = None) -> Parts:
    """Load the model and the task of a run; raises MissingPrerequisite, BadData or BadSetting.

    If `out` is given, the scores of slow scorers are cached there.
    """
    import torch

    if out is not None:
        in_a_file_system(out)  # before minutes of loading
    scorers.check_given(settings)
    chosen = settings.model
    with hub_offline(offline):
        model = _known(load_model(_where(chosen.id), offline=offline, revision=chosen.revision))
        where = torch.device(device(chosen.device))
        model.policy.setup = setup_of(chosen, model.policy.model, model.identity["sha256"])
        if model.policy.setup.shard:  # layer by layer: a whole policy may not fit
            model.policy.model = sharding.shard(model.policy.model, where)
        model.policy.to(where)
        computed = precision(chosen.dtype, model.policy.device)
        model.policy.precision, model.policy.tokenizer = getattr(torch, computed.dtype), model.tokenizer
        task = _task(settings, task_name, model, offline, out)
    micro = model.identity.get("name") == "policy" and settings.task.prompts == "micro"
    return Parts(model, task, micro, named.file_identity("task", task_name), computed)


def _known(model: LoadedModel) -> LoadedModel:
    """Add the recorded name to the identity of a model that ships, whatever its path; leave other models unnamed."""
    from harness.tasks.micro import world

    for name in ("policy", "judge"):
        folder = world.folder() / name
        if folder.is_dir() and folder_identity(folder) == model.identity:
            return model._replace(identity={"name": name, **model.identity})
    return model


def _where(model_id: str) -> str:
    from harness.tasks.micro import frozen

    return str(frozen.verified("policy", frozen.WORLDS[model_id])) if model_id in frozen.WORLDS else model_id


def device(name: str) -> str:
    """The device of a name: auto is CUDA if available, and each process has a GPU; raises BadSetting if it is not usable."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and processes.size() > 1:
        name = f"cuda:{local_rank()}"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as e:
        raise BadSetting(f"device {name!r} is not usable here: {str(e).splitlines()[0]}") from None
    return name


def _task(settings: RunSettings, name: str, model: LoadedModel, offline: bool, out: Path | None) -> Any:
    kind, t = registry.load("task", name), settings.task
    context = model.policy.context
    if t.chat and not getattr(kind, "chats", False):
        raise BadSetting(f"task {name!r} has no task.chat; leave it out, or derive the task from TextTask")
    if t.decoding.max_new_tokens >= context:
        raise PromptTooLong(f"max_new_tokens {t.decoding.max_new_tokens} leaves no prompt in a context of {context} tokens")
    scorers.check_apart(settings)
    reward, judge = _scorer(settings, t.reward, out), _scorer(settings, t.judge, out)
    if reward.identity == judge.identity:  # one scorer by two names
        raise BadSetting(SAME_SCORER.format(name=t.judge))
    return kind(
        _data(t, kind, model.tokenizer, offline),
        model.tokenizer,
        reward=scorers.divided(reward),
        judge=scorers.divided(judge),
        fluency=fluency_model(t.fluency, settings, offline, model),
        decoding=t.decoding,
        context=context,
        paper_tokens=t.paper_tokens,
        bos=model.policy.bos,
        eos=model.policy.eos,
        **({"chat": True} if t.chat else {}),
    )


def _data(settings: TaskSettings, task: Any, tokenizer: Any, offline: bool) -> Any:
    from harness.tasks.data import datasets, own_prompts
    from harness.tasks.micro import world
    from harness.tasks.micro.facts import world as facts

    sources.check(settings.prompts, settings.data)
    source = sources.kind(settings.prompts)
    if source == "micro":
        return world.data(_kinds(task))
    if source == "facts":
        return facts.data()
    if source == "named":
        name = getattr(task, "like", None) or task.name
        return datasets.load(registry.load("dataset", settings.prompts)(name, settings.data, tokenizer), offline)
    if source == "hub":
        return own_prompts.from_hub(settings.prompts, settings.data, offline)
    return own_prompts.from_file(Path(settings.prompts), settings.data)


def _kinds(task: Any) -> tuple[str, ...]:
    """The kinds of micro-world prompts of a task, or of the task in its `like`; raises BadSetting if one is unknown."""
    like = getattr(task, "like", None)
    kinds = getattr(task, "kinds", None) or (_kinds(registry.load("task", like)) if like else ())
    from harness.tasks.micro import world

    known = world.kinds()
    if not kinds or set(kinds) - set(known):
        unknown = ", ".join(map(repr, sorted(set(kinds) - set(known)))) or "none"
        raise BadSetting(
            f"task {task.name!r} names prompt kinds that the micro world does not have: {unknown}; give it kinds = (...) of "
            f"{', '.join(known)}, or prompts of its own: task.prompts"
        )
    return tuple(kinds)


def _scorer(settings: RunSettings, name: str, out: Path | None) -> Any:
    """The scorer of a name in the settings; a slow one has its scores cached in `out`."""
    built = scorers.built(name, settings.scorer_options(name))
    if out is None or not getattr(built, "slow", False):
        return built
    from harness.tasks.scorers.cache import CachedScorer

    return CachedScorer(built, out / ".cache")


def fluency_model(where: str | None, settings: RunSettings, offline: bool, base: LoadedModel | None = None) -> Any:
    """The language model that judges fluency; the weights of the base policy are not loaded twice if it is that."""
    import torch

    from harness.tasks.micro import world
    from harness.tasks.scorers.fluency import JudgeModel

    if where is None or where == "none":
        return None
    kept = None if base is None or base.policy.setup.shard else base  # a sharded policy is read by all processes in step
    if kept is not None and where == settings.model.id != "micro" and settings.model.revision is None:
        model = kept._replace(policy=kept.policy.around(kept.policy.model))
        model.policy.precision = torch.float32  # as if it were loaded on its own
    else:
        model = _known(load_model(str(world.verified("judge")) if where == "micro" else where, offline=offline))
    model.policy.to(device(settings.model.device))
    return JudgeModel(model.policy, model.tokenizer, model.identity, settings.evaluation.batch_size)


def cell(settings: RunSettings, shared: Parts, method: str, task: str, seed: int, out: Path) -> Cell:
    """One runnable (method, task, seed)."""
    kind = registry.load("method", method)
    name = named.known_as("method", method)
    method_settings = checked(kind.Settings, settings.method, "method")
    settings, of_the_base = schedule.of_control(kind, name, method_settings, settings, shared.task if shared.micro else None)
    own = settings_identity(method_settings)
    settings = settings.model_copy(update={"method": {k: v for k, v in settings.method.items() if k in own}})
    identity = {"name": name, "version": kind.version, "settings": own}
    identity |= of_the_base | named.file_identity("method", method)  # a file under development changes without a new version
    knob = getattr(getattr(kind, "knob", None), "setting", None)
    return assembled(settings, shared, name, task, seed, out, partial(kind, method_settings), identity, knob)


def named_cell(
    method: str, task: str, preset: str, seed: int, overrides: Iterable[str] | Mapping[str, Any], flags: Mapping[str, Any],
    out: Path, offline: bool,
) -> Cell:  # fmt: skip
    """Load a cell from its names and settings, ready to run; raises the errors of its parts."""
    task, method = registry.given("task", task), registry.given("method", method)
    settings = named.settings(preset, method, task, overrides, **flags)
    check(settings, method)
    return cell(settings, parts(settings, task, offline, out), method, task, check_seed(seed), out)


def _check_papers(settings: RunSettings, shared: Parts) -> None:
    """Raise PromptTooLong if the papers' responses are longer than the task's and exceed the base policy's context."""
    papers = [d.max_new_tokens for d in shared.task.paper_decodings.values()] if settings.evaluation.paper_samples else []
    longest, context = max(papers, default=0), shared.model.policy.context
    if longest > shared.task.decoding.max_new_tokens and (needed := longest_sequence(settings, shared.task)) > context:
        raise PromptTooLong(
            f"the papers' decoding draws {longest} tokens, so the longest prompt needs {needed} and the model reads {context}; "
            f"lower task.paper_tokens, or leave the papers' metrics out with evaluation.paper_samples=0"
        )


def longest_sequence(settings: RunSettings, task: Any) -> int:
    """The longest sequence of an evaluation in tokens: a prompt and its response without the last token."""
    e = settings.evaluation
    splits = {e.split} if e.select == checkpoint_rule.LAST else {e.split, "validation"}
    papers = task.paper_decodings.values() if e.paper_samples else ()
    response = max(d.max_new_tokens for d in (task.decoding, *papers))
    lengths = [task.prompts(split).prompts.mask.sum(1) + response for split in splits]
    if (clean := task.clean_documents()) is not None:
        lengths.append(clean.prompts.mask.sum(1) + clean.response_mask.sum(1))
    return max(int(length.max()) for length in lengths) - 1


def assembled(
    settings: RunSettings, shared: Parts, name: str, task: str, seed: int, out: Path, make: Any, method: dict[str, Any],
    knob: str | None = None,
) -> Cell:  # fmt: skip
    """The cell of a maker of a method and its identity; raises PromptTooLong, BadSetting."""
    probes = tuple(settings.evaluation.probes)  # as given: a record has the stem of a file
    settings, task = _with_precision(named.recorded(settings), shared), named.known_as("task", task)
    _check_papers(settings, shared)
    budget, optimizer = checked(Budget, settings.budget, "budget"), checked(OptimizerSettings, settings.optimizer, "optimizer")
    # in older records bfloat16 was the dtype of the weights, so they must have another identity
    computed = settings.model.dtype if settings.model.dtype == "float32" else f"float32 under {settings.model.dtype} autocast"
    measured = {"model": shared.model.identity, "dtype": computed, **shared.identity()}
    evaluation = settings.evaluation.model_dump(exclude={"batch_size", "select", "probes"}) | {"version": EVALUATION_VERSION}
    identity = {
        "schema": SCHEMA_VERSION, **measured, "evaluation": evaluation, "method": method, "seed": seed,
        "budget": budget.model_dump(), "optimizer": optimizer.identity(), **shared.model.policy.setup.identity(),
    }  # fmt: skip

    if settings.evaluation.select != checkpoint_rule.LAST:  # it decides which policy is deployed, not how it is measured
        identity["select"] = settings.evaluation.select

    def make_evaluator(progress: Progress, split: Literal["test", "validation"] | None = None) -> Evaluator:
        cache = base_policy.Cache(out / ".cache", _measured() if shared.micro else None)
        reference = shared.model.policy
        chosen = settings.evaluation.model_copy(update={"split": split or settings.evaluation.split})
        shipped = _shipped(settings, shared, chosen.split)
        if split is None and shared.precision.reason is not None:
            progress.say(shared.precision.reason)
        known = base_policy.known(shared.task, reference, measured, chosen, cache, progress.say, shipped)
        kept = KeptEvaluation(cache, measured, chosen, progress.say)
        return Evaluator(shared.task, reference, known, chosen, progress.say, kept, seed)

    return Cell(
        name, task, seed, settings, identity, provenance(shared), make, shared.model.policy,
        make_evaluator, shared.task, budget, optimizer, out, knob, probes,
    )  # fmt: skip


def _measured() -> Path:
    """The folder of the scores and evaluations of the base policy that ship, by identity."""
    from harness.tasks.micro import world

    return world.verified("measured")


def _with_precision(settings: RunSettings, shared: Parts) -> RunSettings:
    """The settings with the precision that auto took: a record and its identity hold what is computed."""
    if settings.model.dtype != "auto":
        return settings
    return settings.model_copy(update={"model": settings.model.model_copy(update={"dtype": shared.precision.dtype})})


def _shipped(settings: RunSettings, shared: Parts, split: str) -> Any:
    from harness.tasks.micro import world

    ships = shared.micro and settings.task.decoding.max_new_tokens == world.RESPONSE_TOKENS
    plain = settings.task.decoding.model_dump(exclude={"max_new_tokens"}) == {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return world.base_responses(split, _kinds(shared.task)) if ships and plain else None


def provenance(shared: Parts) -> Provenance:
    """Provenance of a run, which does not enter its identity: versions, commit, threads, device."""
    import torch

    packages = {p: package_version(p) for p in (*PACKAGES, *filter(_installed, EXTRAS))}
    return Provenance(
        packages=packages, python=platform.python_version(), platform=platform.platform(terse=True),
        device=str(shared.model.policy.device), threads=torch.get_num_threads(), processes=processes.size(),
        argv=sys.argv[1:], git=git(), prompts=shared.task.hygiene, precision=shared.precision.reason,
    )  # fmt: skip


def _installed(package: str) -> bool:
    try:
        return bool(package_version(package))
    except PackageNotFoundError:
        return False


def git() -> Git | None:
    """The commit of the running code and whether the working tree is dirty; None outside a checkout."""
    root = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(["git", "-C", root, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return Git(commit=commit, dirty=bool(dirty.strip()))
