"""Policies that were trained elsewhere, as cells: `harness eval` and probes measure them as a run measures its own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from harness.core.errors import BadData, BadSetting
from harness.core.settings import RunSettings
from harness.core.types import Settings
from harness.policy.loading import LoadedModel, load_model, with_prefix
from harness.policy.models import composite
from harness.policy.policy import Policy, naming
from harness.policy.tokenizers import read_tokenizer
from harness.records.write import file_name
from harness.runs import assemble
from harness.runs.session import Cell
from harness.training.trial import Trial


def external_cell(
    settings: RunSettings, shared: assemble.Parts, policy: str, task: str, out: Path, offline: bool, prefix: str | None = None
) -> Cell:
    """A cell that evaluates a policy trained elsewhere; raises BadData if its vocabulary is not the base policy's."""
    external, identity = external_model(policy, shared, offline, prefix)
    _check_context(policy, external, settings, shared.task)
    name = f"eval-{Path(policy).resolve().name if os.path.exists(policy) else policy.replace('/', '--')}"
    name = file_name(name)
    make = partial(External, ExternalSettings(policy=policy), external)
    return assemble.assembled(settings, shared, name, task, 0, out, make, {"name": "eval", "version": 1, "policy": identity})


def external_model(
    where: str, shared: assemble.Parts, offline: bool, prefix: str | None = None
) -> tuple[Policy, dict[str, Any]]:
    """Load the policy of a run (with its prefix) or any model (with the one given), with its identity.

    Raises BadData on another vocabulary, BadSetting if a run's policy, which has a prefix of its own, is given one.
    """
    from harness.policy.load_check import check_model

    folder, base = Path(where), shared.model
    if (folder / "policy.json").is_file():
        if prefix is not None:
            raise BadSetting(f"{where} is the policy of a run, which has its own prefix; leave out --prefix")
        policy = Policy.load(folder, base=base.policy.whole())
        check_model(policy, folder)
        parts = [folder / "policy.json", *composite.files(folder), *sorted(folder.rglob("*.safetensors"))]
        files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in parts]
        identity: dict[str, Any] = {"sha256": files}
        # a policy of an older run has no tokenizer, so only the size of its vocabulary can be compared
        tokenizer = read_tokenizer(folder) if (folder / "tokenizer_config.json").is_file() else None
    else:
        loaded = load_model(where, offline=offline)
        policy, tokenizer, found = loaded
        identity = dict(found)
        if prefix is not None:
            policy = with_prefix(loaded, prefix, base.policy.vocab_size)
            identity |= {"prefix": list(policy.prefix)} if policy.prefix else {}
    _check_vocabulary(where, policy, tokenizer, base, any_names=prefix is not None)
    return policy.like(base.policy), identity


def _check_vocabulary(where: str, policy: Policy, tokenizer: Any, base: LoadedModel, *, any_names: bool = False) -> None:
    """Raise BadData if the token ids of a policy differ from the base policy's: KL is a sum over token ids.

    With `any_names` control tokens may have any names, or none.
    """
    control = {t: i for t, i in tokenizer.get_vocab().items() if i >= policy.vocab_size} if tokenizer and any_names else {}
    expected = naming(base.tokenizer, policy.vocab_size, policy.num_control).get_vocab()
    if tokenizer is not None and tokenizer.get_vocab() not in (expected, base.tokenizer.get_vocab() | control):
        raise BadData(f"policy {where} has another vocabulary than the base policy; KL needs one: choose its base with --model")
    ours, theirs = policy.vocab_size, base.policy.vocab_size
    if ours != theirs:
        control_tokens = "name its prefix (--prefix) if the ids beyond are control tokens, " if ours > theirs else ""
        raise BadData(
            f"policy {where} predicts {ours} ids and the base policy {theirs}; KL needs the same: {control_tokens}choose its "
            f"base with --model, or cut the larger embedding table (model.resize_token_embeddings({min(ours, theirs)})) and "
            f"save it again"
        )


def _check_context(where: str, policy: Policy, settings: RunSettings, task: Any) -> None:
    """Raise BadData if the longest prompt and response exceed the context of a policy."""
    needed = assemble.longest_sequence(settings, task) + len(policy.prefix)
    if needed > policy.context:
        raise BadData(
            f"policy {where} reads {policy.context} tokens at once, and this task needs {needed} for its longest prompt and "
            f"response; choose shorter prompts, lower task.decoding.max_new_tokens, or choose another policy"
        )


class ExternalSettings(Settings):
    policy: str


class External:
    """A method without training that deploys a given policy."""

    def __init__(self, settings: ExternalSettings, policy: Policy) -> None:
        self.settings, self.policy = settings, policy

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        trial.deploy(self.policy)
        yield from ()
