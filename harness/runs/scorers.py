"""Scorers from their names and options: their options are checked before anything is loaded, and each is guarded."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.core import registry
from harness.core.errors import BadScorer, BadSetting, BenchError, one_line
from harness.core.settings import RunSettings, stem_of
from harness.policy.models import processes
from harness.tasks.scorers import guard

from . import named

log = logging.getLogger(__name__)
SAME_ROWS = 0.01  # largest share of the smaller set of texts that two trained scorers may have in common


def is_path(name: str) -> bool:
    """True if a name is that of a file with a scorer or of a folder with a trained one."""
    return registry.is_file("scorer", name) or registry.is_folder("scorer", name)


def check_apart(settings: RunSettings) -> None:
    """Check that a trained judge is of another kind than a trained reward, on other texts; raises BadSetting, BadData."""
    from harness.tasks.labels import card

    folders = [_trained_folder(settings, name) for name in (settings.task.reward, settings.task.judge)]
    if folders[0] is None or folders[1] is None:
        return
    reward, judge = (card.read(folder) for folder in folders if folder is not None)
    if reward.card.kind == judge.card.kind:
        raise BadSetting(
            f"reward and judge are both {judge.card.kind} scorers of harness train-scorer; expected a judge of another family "
            f"than the reward; train one of them with another --kind"
        )
    shared, least = card.shared_rows(reward, judge), min(len(reward.rows()), len(judge.rows()))
    if shared > SAME_ROWS * least:
        raise BadSetting(
            f"the judge {judge.folder.name} was trained on {shared:,} texts of the reward {reward.folder.name}, so it cannot "
            f"show over-optimisation; train it on other texts"
        )
    if shared:
        log.warning("reward and judge were trained on %d texts in common, of %d", shared, least)


def _trained_folder(settings: RunSettings, name: str) -> Path | None:
    """The folder of a trained scorer, by whatever option a scorer names it; None if it is none."""
    where, options = settings.scorer_kind(name), settings.scorer_options(name)
    named = where if registry.is_folder("scorer", where) else options.get("folder", options.get("model"))
    folder = Path(str(named)).expanduser()
    return folder if named is not None and (folder / registry.TRAINED).is_file() else None


def check(name: str, options: dict[str, Any]) -> None:
    """Check the options of a scorer, by building it if it is one of ours that loads nothing; raises BadSetting."""
    kind, _ = _with_options(name, options)
    loads = getattr(kind, "slow", False) or hasattr(kind, "needs")
    if loads or is_path(options.get("kind", name)):
        guard.seconds(stem_of(name), options.get("timeout"))
    else:
        built(name, options)


def known_options(name: str, options: dict[str, Any]) -> None:
    """Check the names of a scorer's options without building it; raises BadSetting if one is unknown or missing."""
    _with_options(name, options)


def check_given(settings: RunSettings) -> None:
    """Raise MissingPrerequisite if the preset leaves the reward or the judge to the user, who gave none."""
    for name in (settings.task.reward, settings.task.judge):
        if getattr(registry.load("scorer", settings.scorer_kind(name)), "missing", False):
            built(name, settings.scorer_options(name))


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


def divided(scorer: Any) -> Any:
    """A scorer whose texts are divided among the processes of a run; with one process the scorer itself."""
    return scorer if processes.size() == 1 else Divided(scorer)


class Divided:
    """A scorer that scores a share of the texts in each process, for all of them."""

    def __init__(self, scorer: Any) -> None:
        self._scorer = scorer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def score(self, prompts: list[str], responses: list[str]) -> NDArray[np.float64]:
        """The score of each response, NaN if the scorer failed: -> [N]; raises in every process what it raises in one."""

        def own(rows: slice) -> tuple[torch.Tensor]:
            found = self._scorer.score(prompts[rows], responses[rows])
            return (torch.from_numpy(np.array(found, dtype=np.float64)),)

        scores: NDArray[np.float64] = processes.divided(len(responses), own)[0].numpy()
        return scores


def _with_options(name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The class of a scorer and the arguments of its constructor; raises BadSetting if an option is unknown or missing."""
    where, name = options.get("kind", name), stem_of(name)
    kind = registry.load("scorer", where)
    if registry.is_folder("scorer", where):
        options = {**options, "folder": where}
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
