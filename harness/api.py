"""The one door: everything that a method, a task, a scorer, a data set or a probe may import.

    from harness.api import Rollout, Settings, Trial, kl, token_logprobs

Names are loaded when they are asked for, so that a list of plug-ins imports no torch. What is not here may change without
notice. The contracts are `Method`, `Task`, `Scorer`, `DataSet`, `Probe` and `DeployedPolicy`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.core import hub as hub
    from harness.core.errors import BadData as BadData
    from harness.core.errors import BadScorer as BadScorer
    from harness.core.errors import BadSetting as BadSetting
    from harness.core.errors import BenchError as BenchError
    from harness.core.errors import EmptySelection as EmptySelection
    from harness.core.errors import MissingPrerequisite as MissingPrerequisite
    from harness.core.errors import NoItem as NoItem
    from harness.core.errors import PromptTooLong as PromptTooLong
    from harness.core.errors import RunFailed as RunFailed
    from harness.core.errors import UnknownName as UnknownName
    from harness.core.errors import Unwritable as Unwritable
    from harness.core.errors import one_line as one_line
    from harness.core.errors import refusing as refusing
    from harness.core.types import BaseTraining as BaseTraining
    from harness.core.types import DataSet as DataSet
    from harness.core.types import Decoding as Decoding
    from harness.core.types import DeployedPolicy as DeployedPolicy
    from harness.core.types import Documents as Documents
    from harness.core.types import Item as Item
    from harness.core.types import Knob as Knob
    from harness.core.types import Metric as Metric
    from harness.core.types import OwnMetric as OwnMetric
    from harness.core.types import Prompts as Prompts
    from harness.core.types import PromptSet as PromptSet
    from harness.core.types import Responses as Responses
    from harness.core.types import Rollout as Rollout
    from harness.core.types import Scorer as Scorer
    from harness.core.types import Settings as Settings
    from harness.core.types import Task as Task
    from harness.measure import metrics as metrics
    from harness.measure.frontier import best_of_n_kl as best_of_n_kl
    from harness.measure.probed import Probe as Probe
    from harness.measure.probed import Probed as Probed
    from harness.measure.probed import Reading as Reading
    from harness.measure.probed import with_matrices as with_matrices
    from harness.policy.logprobs import entropy as entropy
    from harness.policy.logprobs import kl as kl
    from harness.policy.logprobs import log_not as log_not
    from harness.policy.logprobs import log_nots as log_nots
    from harness.policy.logprobs import masked_mean as masked_mean
    from harness.policy.logprobs import masked_sum as masked_sum
    from harness.policy.logprobs import said_before as said_before
    from harness.policy.logprobs import token_logprobs as token_logprobs
    from harness.policy.models.debiased import SelfDebiased as SelfDebiased
    from harness.policy.models.ensemble import Ensemble as Ensemble
    from harness.policy.models.steered import Steered as Steered
    from harness.policy.models.steered import layer_at as layer_at
    from harness.policy.models.vectors import subtract_task as subtract_task
    from harness.policy.policy import Policy as Policy
    from harness.policy.policy import tokens_of as tokens_of
    from harness.policy.sampler import sample as sample
    from harness.training import corpus as corpus
    from harness.training import forgetting as forgetting
    from harness.training import trl_bridge as trl_bridge
    from harness.training.activations import activations as activations
    from harness.training.corpus import CorpusSettings as CorpusSettings
    from harness.training.pool import Pool as Pool
    from harness.training.trial import Method as Method
    from harness.training.trial import Trial as Trial
    from tasks.data.datasets import Source as Source
    from tasks.text_task import Data as Data
    from tasks.text_task import Text as Text
    from tasks.text_task import TextTask as TextTask

MODULES = ("core.hub", "measure.metrics", "training.corpus", "training.forgetting", "training.trl_bridge")
NAMES = {
    "core.errors": (
        "BadData", "BadScorer", "BadSetting", "BenchError", "EmptySelection", "MissingPrerequisite", "NoItem", "PromptTooLong",
        "RunFailed", "UnknownName", "Unwritable", "one_line", "refusing",
    ),
    "core.types": (
        "BaseTraining", "DataSet", "Decoding", "DeployedPolicy", "Documents", "Item", "Knob", "Metric", "OwnMetric", "Prompts",
        "PromptSet",
        "Responses", "Rollout", "Scorer", "Settings", "Task",
    ),
    "measure.frontier": ("best_of_n_kl",),
    "measure.probed": ("Probe", "Probed", "Reading", "with_matrices"),
    "policy.models.ensemble": ("Ensemble",),
    "policy.models.debiased": ("SelfDebiased",),
    "policy.models.steered": ("Steered", "layer_at"),
    "policy.models.vectors": ("subtract_task",),
    "policy.logprobs": ("entropy", "kl", "log_not", "log_nots", "masked_mean", "masked_sum", "said_before", "token_logprobs"),
    "policy.policy": ("Policy", "tokens_of"),
    "policy.sampler": ("sample",),
    "training.activations": ("activations",),
    "training.corpus": ("CorpusSettings",),
    "training.pool": ("Pool",),
    "training.trial": ("Method", "Trial"),
    "tasks.data.datasets": ("Source",),
    "tasks.text_task": ("Data", "Text", "TextTask"),
}  # fmt: skip
OF_A_MODULE = {name: module for module, names in NAMES.items() for name in names}
HOME = OF_A_MODULE | {module.rpartition(".")[2]: module for module in MODULES}

__all__ = sorted(HOME)


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"harness.api has no {name!r}; it has {', '.join(__all__)}")
    module = import_module(f"harness.{HOME[name]}")
    return getattr(module, name) if name in OF_A_MODULE else module


def __dir__() -> list[str]:
    return __all__
