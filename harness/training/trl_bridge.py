"""TRL's trainers, asked for their arithmetic and never for their loop.

A trainer is built around the trial's own weights. It turns a batch into a loss by `compute_loss`, the documented hook of
Trainer; the step is `trial.update`'s. So losses and advantages are TRL's as released, while responses, optimizer,
schedule, budget and checkpoints are the harness's. Its own `train()` cannot be driven from a generator: it owns the
sampler, the loop, the optimizer and the files.

What is put right or kept out, each held by a test:
- A trainer patches its model's `forward`, and a deep copy of a patched model still runs the first one's layers. It gets a
  shell instead that shares the weights; the policy's own model stays as it was.
- RLOO and GRPO score left-padded prompts without position ids. The shell adds them, and charges each pass to the trial.
- Dropout is off in every Policy. Trainers stay in evaluation mode, in which a batch is taken whole and in its order.
- Building one seeds the global generators, makes a folder and reports home: put back, removed, left out.

Pinned to TRL 1.16 for what has no public name: `_send_telemetry`, `_prepare_dataset` (DPO, KTO) and `_generate` (RLOO,
GRPO) are overridden, `_prepare_inputs` (RLOO, GRPO) is called, `trainer.utils.add_fused_lm_head` prepares the reference,
and `_n_gpu` of the arguments is set.
"""

from __future__ import annotations

import copy
import logging
import os
import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import MissingPrerequisite, RunFailed
from harness.core.types import Rollout
from harness.policy.models import processes, sharding
from harness.policy.models.setup import in_parts, joined
from harness.policy.policy import Policy, positions

from .trial import Trial

PINNED = "1.16"
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # by which accelerate knows of other processes
INSTALL = f"install it with: pip install 'trl>={PINNED},<1.17'"


def required() -> None:
    """Raises MissingPrerequisite unless TRL is installed in the pinned version."""
    try:
        found = version("trl")
    except PackageNotFoundError:
        raise MissingPrerequisite(f"this method needs TRL {PINNED}, which is not installed; {INSTALL}") from None
    if not found.startswith(f"{PINNED}."):
        raise MissingPrerequisite(f"this method needs TRL {PINNED}, found {found}; {INSTALL}")


def rows(tokens: Tensor, mask: Tensor) -> list[list[int]]:
    """The tokens that count, as TRL's collators take them: [B, T], [B, T] -> B lists."""
    return [row[counts].tolist() for row, counts in zip(tokens.cpu(), mask.cpu(), strict=True)]


def preference_trainer(kind: Literal["DPO", "KTO"], trial: Trial, **config: Any) -> Any:
    """TRL's trainer of that name around the trial's policy and reference; `config` holds fields of its config.

    Its `data_collator` makes a batch from rows of token ids: prompt_ids, chosen_ids and rejected_ids for DPO;
    prompt_ids, completion_ids, KL_completion_ids and label for KTO. Raises MissingPrerequisite.
    """
    required()
    import trl

    class Ours(getattr(trl, f"{kind}Trainer")):  # type: ignore[misc]
        def _send_telemetry(self) -> None: ...

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset  # nothing is tokenised twice, and no EOS is put on a response that has none

    config |= {"max_length": None, "per_device_train_batch_size": 2}  # of a loader that is never made; KTO refuses 1
    reference = _shell(trial.reference)
    trainer = _build(Ours, getattr(trl, f"{kind}Config"), trial, config, {"prompt_ids": [0]}, ref_model=reference)
    _watch(reference, trial.reference)
    return trainer


def group_trainer(
    kind: Literal["RLOO", "GRPO"], trial: Trial, *, group_size: int, batch_size: int, kl_coef: float, **config: Any
) -> Any:
    """TRL's trainer of that name around the trial's policy and reference; `config` holds fields of its config.

    `score` makes its batches. Raises MissingPrerequisite.
    """
    required()
    import trl
    from trl.trainer.utils import add_fused_lm_head

    class Ours(getattr(trl, f"{kind}Trainer")):  # type: ignore[misc]
        def _send_telemetry(self) -> None: ...

        def _generate(self, prompts: Any) -> tuple[Any, ...]:
            """The rollout that is being scored: prompts and responses as lists of ids, and no text."""
            asked, given = self.rollout
            texts = [""] * len(given)
            return (asked, given, texts) if kind == "RLOO" else (asked, given, None, texts, None, {}, None, [])

    config |= {"num_generations": group_size, "per_device_train_batch_size": batch_size}
    config |= {"per_device_eval_batch_size": batch_size, "disable_dropout": True, "beta": 0.0}
    trainer = _build(Ours, getattr(trl, f"{kind}Config"), trial, config, {"prompt": ""}, reward_funcs=_as_given)
    if kl_coef > 0:  # beta is 0 until here, or the constructor would load a reference from the hub
        trainer.beta, trainer.ref_model = kl_coef, _shell(trial.reference)
        add_fused_lm_head(trainer.ref_model)
        _watch(trainer.ref_model, trial.reference)
    return trainer


def score(trainer: Any, rollout: Rollout, reward: Tensor) -> dict[str, Tensor]:
    """The batch of a group trainer: [B, R], [B] -> tokens, masks, old log-probabilities, advantages (0 for an unscored row)."""
    trainer.rollout = rows(*rollout.prompts), rows(rollout.response, rollout.response_mask)
    with _quiet():
        batch: dict[str, Tensor] = trainer._prepare_inputs([{"prompt": "", "reward": r} for r in reward.tolist()])
        return batch


def loss(trainer: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """TRL's loss of a batch and the scalars that TRL logged, by its names: batch -> [], {name: value}."""
    with _quiet():
        value = trainer.compute_loss(trainer.model, {k: v.to(trainer.args.device) for k, v in batch.items()})
    measured: dict[str, float] = {}
    trainer.log(measured)
    trainer.state.log_history.clear()
    return value, {k.removeprefix("eval_"): v for k, v in measured.items()}


def _as_given(reward: list[float], **_: Any) -> list[float]:
    return reward


def _build(kind: Any, config: Any, trial: Trial, options: dict[str, Any], row: dict[str, Any], **parts: Any) -> Any:
    """A trainer that owns nothing: the policy's weights, no tokenizer to speak of, a data set of one row never read.

    Raises ValueError where the policy has control tokens.
    """
    from datasets import Dataset
    from transformers import PrinterCallback

    if trial.policy.num_control:
        raise ValueError(f"TRL would score the {trial.policy.num_control} control tokens; expected a policy without any")
    model, cpu = _shell(trial.policy), trial.policy.device.type == "cpu"
    off = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "bf16": False, "use_cpu": cpu}
    with _nothing_left_behind(trial.policy.device) as folder, _one_process():
        args = config(output_dir=folder, **off, **options)
        args._n_gpu = min(args.n_gpu, 1)  # TRL refuses a machine with several GPUs, though a run uses one
        data = Dataset.from_list([row])
        trainer = kind(model=model, args=args, train_dataset=data, processing_class=_tokenizer(), **parts)
    trainer.remove_callback(PrinterCallback)
    _watch(model, trial.policy)
    return trainer


def _shell(policy: Policy) -> Any:
    """The policy's model with the same weights, but with attributes of its own for a trainer to write to."""
    model = sharding.shell(policy.model)
    model.config, model.generation_config = copy.deepcopy((model.config, model.generation_config))
    return model


def _watch(shell: Any, policy: Policy) -> None:
    """Give each pass through a shell its positions, count it as the policy's, and compute it as the policy's setup says."""
    forward = shell.forward

    def computed(attention_mask: Tensor, **inputs: Any) -> Any:
        with policy.computing():
            return forward(attention_mask=attention_mask, position_ids=positions(attention_mask), **inputs)

    def counted(*, attention_mask: Tensor, **inputs: Any) -> Any:
        policy.count(int(attention_mask.sum()))
        rows = len(attention_mask)
        given = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.dim() and len(x) == rows}
        own = own_rows(rows)
        part = {name: x[own] for name, x in (given | {"attention_mask": attention_mask}).items()}
        out = read_in_parts(part, {name: x for name, x in inputs.items() if name not in given})
        return out if processes.size() == 1 else processes.output_of_all(out, rows)

    def own_rows(n: int) -> Any:
        if processes.size() == 1:
            return slice(0, n)
        return processes.level_rows(n) if sharding.sharded(policy.model) else processes.shares(n)[processes.rank()].read

    def read_in_parts(given: dict[str, Tensor], others: dict[str, Any]) -> Any:
        def read(first: int, last: int) -> Any:
            return computed(**{name: x[first:last] for name, x in given.items()}, **others)

        rows, size = len(given["attention_mask"]), policy.setup.micro_batch
        if not 0 < size < rows or not policy.trains:
            return read(0, rows)
        return joined(in_parts(read, rows, size))

    shell.forward = counted


def _tokenizer() -> Any:
    """What a trainer insists on; it pads with id 0, which the masks hide."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"-": 0}, "-")), pad_token="-", eos_token="-")


@contextmanager
def _nothing_left_behind(device: torch.device) -> Iterator[str]:
    """A folder that goes with the block, and the global generators as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(cuda), tempfile.TemporaryDirectory() as folder, _quiet():
            yield folder
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _one_process() -> Iterator[None]:
    """For a trainer, there is one process: each has the whole batch, and the harness divides the passes of the model."""
    from accelerate.state import AcceleratorState, PartialState

    if processes.size() == 1:
        yield
        return
    AcceleratorState._reset_state(reset_partial_state=True)  # something else may have asked accelerate before
    kept = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    try:
        yield
        if PartialState().num_processes != 1:
            raise RunFailed("TRL's trainer sees the other processes of this run; run this method in one process")
    finally:
        os.environ.update(kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """No word of what a user can do nothing about or is told by the harness.

    TRL 1.16 calls Transformers by names that the newer ones warn of, and warns of each batch with an unscored response.
    """
    logger = logging.getLogger("trl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        logger.setLevel(level)
