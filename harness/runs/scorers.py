"""Scorers from their names and options: their options are checked before anything is loaded, and each is guarded."""

from __future__ import annotations

import inspect
from typing import Any

from harness.core import registry
from harness.core.errors import BadScorer, BadSetting, BenchError, one_line
from harness.core.settings import RunSettings, stem_of
from harness.tasks.scorers import guard

from . import named


def check(name: str, options: dict[str, Any]) -> None:
    """Check the options of a scorer, by building it if it is one of ours that loads nothing; raises BadSetting."""
    kind, _ = _with_options(name, options)
    loads = getattr(kind, "slow", False) or hasattr(kind, "needs")
    if loads or registry.is_file("scorer", options.get("kind", name)):
        guard.seconds(stem_of(name), options.get("timeout"))
    else:
        built(name, options)


def check_given(settings: RunSettings) -> None:
    """Raise MissingPrerequisite if the preset leaves the reward or the judge to the user, who gave none."""
    for name in (settings.task.reward, settings.task.judge):
        if getattr(registry.load("scorer", settings.scorer_kind(name)), "missing", False):
            built(name, settings.scorer_options(name))


def known_options(name: str, options: dict[str, Any]) -> None:
    """Check the names of a scorer's options without building it; raises BadSetting if one is unknown or missing."""
    _with_options(name, options)


def built(name: str, options: dict[str, Any]) -> Any:
    """Build a guarded scorer from its options, where `kind` names its class and `timeout` limits a call (seconds).

    Raises BadSetting if an option is unknown or missing, BadScorer if the scorer cannot be built.
    """
    kind, own = _with_options(name, options)
    where, name = options.get("kind", name), stem_of(name)
    made = _made(name, kind, own)
    file = named.file_identity("scorer", where)  # a file under development changes without a new version
    if file and not hasattr(made, "identity"):
        file["options"] = own
    return guard.GuardedScorer(made, name, options.get("timeout"), file)


def _with_options(name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The class of a scorer and the arguments of its constructor; raises BadSetting if an option is unknown or missing."""
    where, name = options.get("kind", name), stem_of(name)
    kind = registry.load("scorer", where)
    signature = inspect.signature(kind)
    own = {key: value for key, value in options.items() if key not in ("kind", "timeout") or key in signature.parameters}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    unknown = sorted(set(own) - set(signature.parameters))
    if unknown and not open_ended:
        known = ", ".join(dict.fromkeys([*signature.parameters, "timeout"]))
        raise BadSetting(f"scorer {name!r} has no option {unknown[0]!r}; known: {known}")
    try:
        signature.bind(**own)
    except TypeError as e:
        raise BadSetting(f"scorer {name!r}: {e}; set it with --set scorers.{name}.OPTION=VALUE") from None
    return kind, own


def _made(name: str, kind: Any, options: dict[str, Any]) -> Any:
    try:
        return kind(**options)
    except BenchError:
        raise
    except Exception as e:  # a scorer may raise anything
        raise BadScorer(f"scorer {name!r} cannot be built ({type(e).__name__}: {one_line(e)}); check its options") from e
