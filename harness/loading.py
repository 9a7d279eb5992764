"""Load a causal language model from a local folder or from the hub, and say exactly which bytes it was.

A hub id is first made a local folder (the hub's own cache), so both ways share every check. Code that a model brings
along is never run. A model that loads but would give wrong numbers in silence is refused: weights that are missing and
would start at random, a tokenizer without a vocabulary or with ids that the model does not have, an encoder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import BadData, BadSetting, MissingPrerequisite, one_line

if TYPE_CHECKING:
    import torch

    from .policy import Policy

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # the first kind that a folder has is the one that is loaded
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model")
UNLIMITED = 2**31 - 1
"""The context of a model that has no table of positions."""


class LoadedModel(NamedTuple):
    policy: Policy
    tokenizer: Any
    identity: dict[str, str]  # sha256 of weights and config, tokenizer_sha256: of the bytes alone, wherever they lie


def load_model(
    where: str, *, dtype: torch.dtype | None = None, offline: bool = False, revision: str | None = None
) -> LoadedModel:
    """The model in a local folder or of a hub id, as a policy without dropout; in float32 unless told otherwise.

    Raises MissingPrerequisite where there is no such model, BadData where it is there but cannot be used.
    """
    from .policy import Policy

    folder = find_model(where, offline=offline, revision=revision)
    _check_files(folder)
    with _quietly():
        tokenizer = _read_tokenizer(folder)
        model = _read_weights(folder, dtype)
    model.config.max_position_embeddings = context_length(model)
    bos, eos = _ends(folder, tokenizer, model)
    _check_ids(folder, tokenizer, model)
    policy = Policy(model, bos=bos, eos=eos)
    _check_causal(folder, policy)
    return LoadedModel(policy, tokenizer, folder_identity(folder))


def folder_identity(folder: Path) -> dict[str, str]:
    """The hashes that a record knows a model's folder by, without loading it; raises what `load_model` raises of its files."""
    config, weights = _check_files(folder)
    return {"sha256": _digest([config, *weights]), "tokenizer_sha256": _digest(_matching(folder, *TOKENIZER))}


def context_length(model: Any) -> int:
    """The most tokens that the model can read at once, by whatever name its config has for it."""
    config = model.config
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "context_length", "n_ctx"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return UNLIMITED


def find_model(where: str, *, offline: bool = False, revision: str | None = None) -> Path:
    """The local folder of a model, downloaded first if it is a hub id; raises MissingPrerequisite where there is none.

    What looks like a path is never looked up on the hub. A local folder has no revisions: naming one is a BadSetting.
    """
    path = Path(os.path.expanduser(where))
    if _is_folder(where):
        if revision is not None:
            raise BadSetting(f"{where} is a folder, which has no revision {revision!r}; leave it out, or give a hub id")
        return path
    if where and os.path.exists(path):
        raise BadData(f"{where} is a file; expected the folder that holds config.json, the weights and the tokenizer")
    # `models/gpt` beside a folder `models` is a path with a slip in it; `someone/gpt` without such a folder is a hub id
    if not HUB_ID.fullmatch(where) or ("/" in where and _is_folder(path.parts[0])):
        raise MissingPrerequisite(
            f"no model folder at {where!r} (looked in {str(path.absolute())!r}); "
            f"give a folder with config.json, weights and tokenizer, or a hub id"
        )
    return _from_hub(where, offline, revision)


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
        if not offline and not _matching(folder, *WEIGHTS):
            snapshot_download(name, allow_patterns=[WEIGHTS[1]], **common)
    except (OSError, ValueError) as e:  # every error of the hub and of its transport is one of these
        why = f"not in {HF_HUB_CACHE}, and the run is offline" if offline else one_line(e)
        which = f"{name} --revision {revision}" if revision else name
        raise MissingPrerequisite(
            f"no model {name!r}: no such folder here, and not from the hub ({why}); "
            f"download it while online (hf download {which}) or give a local folder"
        ) from e
    return folder


def _check_files(folder: Path) -> tuple[Path, list[Path]]:
    """config.json and the weight files: -> what decides the logits."""
    config = folder / "config.json"
    if not config.is_file():
        raise BadData(f"no config.json in {folder}; expected a Hugging Face model folder (config, weights, tokenizer)")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise BadData(f"{config} is not readable JSON ({one_line(e)}); copy the model again") from e
    if not isinstance(content, dict):
        raise BadData(f"{config} holds a {type(content).__name__}, expected a JSON object; copy the model again")
    weights = next((found for kind in WEIGHTS if (found := _matching(folder, kind))), [])
    if not weights:
        raise BadData(f"no weights in {folder}; expected {' or '.join(WEIGHTS)}; copy or download the model again")
    return config, weights


def _read_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    todo = "copy tokenizer.json and tokenizer_config.json beside the weights"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as e:  # transformers and tokenizers raise a dozen kinds, their own among them
        raise BadData(f"no readable tokenizer in {folder} ({one_line(e)}); {todo}") from e
    # without its files a tokenizer loads all the same, and knows its special tokens only
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise BadData(f"no tokenizer in {folder}, only its special tokens; {todo}")
    return tokenizer


def _read_weights(folder: Path, dtype: torch.dtype | None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    except Exception as e:  # transformers, safetensors and pickle raise a dozen kinds, their own among them
        raise BadData(
            f"cannot load a causal language model from {folder} ({one_line(e)}); check its kind, or copy it again"
        ) from e
    model, info = loaded
    if unusable := sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]):
        raise BadData(
            f"the weights in {folder} lack, or have in another shape, {len(unusable)} that a {type(model).__name__} with this "
            f"config needs, such as {unusable[0]}; expected a causal language model with its head"
        )
    return model


def _ends(folder: Path, tokenizer: Any, model: Any) -> tuple[int, int]:
    """The ids that begin and end a text: of the tokenizer, else of the config; a text begins with its end if need be."""
    bos, eos = _special_id("bos_token_id", tokenizer, model), _special_id("eos_token_id", tokenizer, model)
    if eos is None:
        raise BadData(f"neither the tokenizer nor the config in {folder} names an eos token; set eos_token_id in config.json")
    return (eos if bos is None else bos), eos


def _special_id(name: str, tokenizer: Any, model: Any) -> int | None:
    configured = getattr(model.config, name, None)
    if isinstance(configured, list):
        configured = configured[0]  # of several ends the first ends a text and the others a turn
    # a config that is silent gets the id of the first model of its kind, whatever its own vocabulary
    known = configured is not None and configured < model.config.vocab_size
    return getattr(tokenizer, name) if getattr(tokenizer, name) is not None else configured if known else None


def _check_ids(folder: Path, tokenizer: Any, model: Any) -> None:
    last, size = max(tokenizer.get_vocab().values()), model.config.vocab_size
    if last >= size:
        raise BadData(
            f"the tokenizer in {folder} has ids up to {last}, the model only {size} embeddings; they do not belong together"
        )


def _check_causal(folder: Path, policy: Policy) -> None:
    """Read two texts that differ in their second token only: what was predicted after the first must be the same."""
    import torch

    from .sampler import sample
    from .types import Decoding, Prompts, Rollout

    start, response = torch.full((2, 1), policy.bos), torch.tensor([[0, 0], [1, 0]])
    prompts = Prompts(start, start >= 0)
    try:
        with torch.no_grad():
            logits = policy.logits(Rollout(prompts, response, response >= 0))
        sample(policy, prompts, decoding=Decoding(max_new_tokens=2, temperature=0, top_k=0, top_p=1), rng=torch.Generator())
    except Exception as e:  # an architecture without the arguments or the cache of a decoder
        raise BadData(f"the model in {folder} does not run as a causal language model ({one_line(e)})") from e
    if not logits.isfinite().all():
        raise BadData(f"the model in {folder} gives logits that are not finite; its weights are broken or its dtype too narrow")
    before, after = (logits[0] - logits[1]).abs().amax(-1).tolist()
    if before > 1e-4 * after:
        raise BadData(f"the model in {folder} looks ahead, as an encoder does; expected a causal language model")


@contextmanager
def _quietly() -> Iterator[None]:
    """No progress bar and no report while a model loads: what matters of it is checked here, and said in one line."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _matching(folder: Path, *patterns: str) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _digest(files: list[Path]) -> str:
    """sha256 over the names and the sha256 of files, in order."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as f:
            total.update(f"{path.name} {hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
