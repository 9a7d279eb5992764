"""A module of the `evaluate` library as a scorer: toxicity, regard, perplexity, or one of the user's own.

A module is Python code that runs with all rights of the user, so it is read from a local path; one of the hub is loaded only
where `trust_hub` and a `revision` say so.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.api import BadData, BadScorer, BadSetting, BenchError, MissingPrerequisite, hub, one_line

COMMIT = re.compile(r"[0-9a-f]{40}")
SIDES = ("response", "prompt")
WEIGHTS = (".safetensors", ".bin", ".json", ".txt", ".model")  # files of a model folder that decide its scores


class EvaluateScorer:
    """A number of a module's result, put on [0, 1].

    module     a local module of evaluate: its folder or its .py file; or an id of the hub, with trust_hub
    key        key of the result: a list with a number for each text, or one number; `a.b` is b in the table a
    invert     return 1 - score, for a result of which more is worse
    low        value of the result that has the score 0; values beyond low and high are cut off
    high       value of the result that has the score 1
    inputs     table from the module's inputs to response or prompt; by default the first takes responses, others prompts
    arguments  table of further arguments of the module's compute
    config     configuration of the module; of toxicity the model, a folder or a hub id
    trust_hub  run a module's code from the hub
    revision   commit of a module from the hub, 40 hexadecimal digits
    """

    slow = True  # scores are cached

    def __init__(
        self,
        module: str,
        key: str,
        *,
        invert: bool = False,
        low: float = 0.0,
        high: float = 1.0,
        inputs: dict[str, str] | None = None,
        arguments: dict[str, Any] | None = None,
        config: str | None = None,
        trust_hub: bool = False,
        revision: str | None = None,
    ) -> None:
        if not low < high:
            raise BadSetting(f"low is {low} and high is {high}; expected low below high (invert turns the score around)")
        self.invert, self._key, self._low, self._high = invert, key, low, high
        self._arguments: dict[str, Any] = dict(arguments or {})
        where = _where(module, trust_hub, revision)
        self._module, version = _loaded(where, config, revision)
        features = self._module.features  # a module may take its inputs in several types
        self._inputs = _inputs(list(features[0] if isinstance(features, list) else features), inputs)
        self._alone = False  # whether the result is one number for all texts
        self.reads_prompt = "prompt" in self._inputs.values()
        self.identity: dict[str, Any] = {
            "name": "evaluate", "version": 1, "module": self._module.name, "sha256": _code_sha256(self._module),
            "evaluate": version, "key": key, "invert": invert, "low": low, "high": high, "inputs": self._inputs,
            "arguments": {name: _content(value) for name, value in self._arguments.items()}, "config": _content(config),
        }  # fmt: skip

    @staticmethod
    def needs(options: dict[str, Any]) -> list[hub.Need]:
        """The prerequisites of the scorer with the given options."""
        found, module = [hub.package("evaluate", "evaluate")], str(options.get("module"))
        if options.get("trust_hub"):
            return found
        return [*found, hub.file(f"evaluate module {module}", Path(module).expanduser(), "give its folder", local=True)]

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        """The score of each response, NaN where the module gives no number: -> [N] float64; raises BadScorer."""
        if not responses:
            return np.empty(0)
        values = self._values(prompts, responses)
        scores = ((values - self._low) / (self._high - self._low)).clip(0.0, 1.0)
        return 1.0 - scores if self.invert else scores

    def _values(self, prompts: list[str], responses: list[str]) -> NDArray:
        """The number of each text, from one call if the result has a list, else from a call for each."""
        if self._alone and len(responses) > 1:
            return np.concatenate([self._values([p], [r]) for p, r in zip(prompts, responses, strict=True)])
        found = self._result(prompts, responses)
        if isinstance(found, (list, tuple, np.ndarray)):
            if len(found) != len(responses):
                raise BadScorer(
                    f"{self._key!r} of module {self._module.name} has {len(found)} numbers for {len(responses)} texts; "
                    f"choose a key with one for each, or with one for all"
                )
            return np.array([math.nan if value is None else float(value) for value in found])
        if not (found is None or isinstance(found, Real)):
            raise BadScorer(f"{self._key!r} of module {self._module.name} is {type(found).__name__}; expected numbers")
        if len(responses) == 1:
            return np.array([math.nan if found is None else float(found)])
        self._alone = True
        return self._values(prompts, responses)

    def _result(self, prompts: list[str], responses: list[str]) -> Any:
        texts = {"prompt": list(prompts), "response": list(responses)}
        found = self._module.compute(**{name: texts[side] for name, side in self._inputs.items()}, **self._arguments)
        for part in [self._key] if isinstance(found, Mapping) and self._key in found else self._key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                known = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
                raise BadScorer(f"the result of module {self._module.name} has no {self._key!r}; it has {known}")
            found = found[part]
        return found


def _where(module: str, trust_hub: bool, revision: str | None) -> str:
    """The path of a local module, or an id of the hub that is trusted; raises BadSetting, MissingPrerequisite."""
    path = Path(module).expanduser()
    if path.is_dir() and (path / f"{path.resolve().name}.py").is_file():
        return str(path.resolve())
    if path.is_file() and path.suffix == ".py":
        return str(path.resolve())
    if not trust_hub:
        raise MissingPrerequisite(
            f"no evaluate module {module}; expected a .py file, or a folder with a file of its name; to run the code of a "
            f"module of the hub, set trust_hub=true and revision=COMMIT"
        )
    if not COMMIT.fullmatch(str(revision)):
        raise BadSetting(f"revision is {revision!r}; expected the commit of the module {module}, 40 hexadecimal digits")
    return module


def _loaded(where: str, config: str | None, revision: str | None) -> tuple[Any, str]:
    """The module and the version of the library; raises MissingPrerequisite without it, BadData if it cannot be loaded."""
    try:
        import evaluate
    except ImportError as e:
        raise MissingPrerequisite(
            "a scorer of kind evaluate needs the library: pip install 'unlearning-harness[evaluate]'"
        ) from e
    try:
        return evaluate.load(where, config, keep_in_memory=True, revision=revision), evaluate.__version__
    except BenchError:
        raise
    except Exception as e:  # the module may raise anything
        raise BadData(f"evaluate module {where} cannot be loaded ({type(e).__name__}: {one_line(e)}); check it") from e


def _inputs(names: list[str], told: dict[str, str] | None) -> dict[str, str]:
    """What each input of a module takes; raises BadSetting if an input is missing or unknown."""
    if told is None:
        return {name: SIDES[min(i, 1)] for i, name in enumerate(names)}
    if set(told) != set(names) or not set(told.values()) <= set(SIDES):
        raise BadSetting(f"inputs is {told}; expected {' and '.join(names)}, each response or prompt")
    return dict(told)


def _code_sha256(module: Any) -> str:
    """SHA-256 over the code of a module and of the files beside it that it imports, in the library's own copy."""
    folder, total = Path(inspect.getfile(type(module))).parent, hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _content(value: Any) -> Any:
    """An option for the identity: of a model folder the hash of its files, so that a path does not matter."""
    if not (isinstance(value, str) and Path(value).expanduser().is_dir()):
        return value
    total = hashlib.sha256()
    for path in sorted(p for p in Path(value).expanduser().iterdir() if p.suffix in WEIGHTS):
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return {"sha256": total.hexdigest()}
