"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) by `peft`, beside weights that are frozen and held once.

The reference is the model with its adapter off: a plain model that shares the frozen weights of the one that is trained, so it
keeps its fast ways of reading. Every copy that is made to train gets an adapter of its own. An adapter starts at zero (B is),
from the same A whatever the run, as all weights do without it. Rows of control tokens are trained too, behind the frozen table.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.core.errors import BadData, BadSetting, MissingPrerequisite, refusing
from harness.core.files import read_json


class Lora(NamedTuple):
    """An adapter: W + alpha / rank * B A."""

    rank: int
    alpha: float
    merge: bool = False  # whether the final policy is saved as whole weights


FROM_SCRATCH = (
    "start = scratch draws all weights anew and model.lora.rank trains none of them; set start=base, or model.lora.rank=0"
)
ALL_WEIGHTS = "{method} changes all weights and model.lora.rank trains none of them; set model.lora.rank=0"
NAME, SEED = "default", 0
CONFIG, WEIGHTS, CONTROL = "adapter_config.json", "adapter_model.safetensors", "control_tokens.safetensors"
SAVED_BELOW = "base_model.model."  # by peft, of the model in its own wrapper
QUERY_KEY_VALUE = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
GATED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGETS: dict[str, tuple[str, ...]] = {  # the linear layers of each block, by `model_type` of the config
    "bloom": QUERY_KEY_VALUE,
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "gpt_neo": ("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"),
    "gpt_neox": QUERY_KEY_VALUE,
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
} | dict.fromkeys(("gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"), GATED)


def targets(model: Any) -> tuple[str, ...]:
    """The layers that get an adapter, by the model's architecture; raises BadSetting for an unknown one."""
    kind = model.config.get_text_config().model_type
    if kind not in TARGETS:
        raise BadSetting(
            f"model.lora.rank knows no layers for the architecture {kind!r}; it knows {', '.join(sorted(TARGETS))}; "
            f"set model.lora.rank=0 to train all weights"
        )
    return TARGETS[kind]


def required() -> None:
    """Raise MissingPrerequisite unless peft is installed; it is not imported, which takes seconds."""
    if find_spec("peft") is None:
        raise MissingPrerequisite(
            "model.lora.rank needs the package peft, which is not installed; pip install 'unlearning-harness[lora]'"
        )


def attached(model: Any) -> bool:
    """Whether a model has an adapter."""
    return any(".lora_" in name for name, _ in model.named_parameters())


def attach(model: Any, lora: Lora) -> None:
    """Give a model an adapter that changes nothing yet, and freeze all but it; raises BadSetting, MissingPrerequisite."""
    required()
    import peft

    layers = targets(model)
    scale: Any = lora.alpha  # peft calls it a whole number, and divides by the rank
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=scale, target_modules=list(layers), fan_in_fan_out="c_attn" in layers, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(SEED)
        peft.inject_adapter_in_model(config, model.requires_grad_(False), NAME)
    model.eval()


def trainable(model: Any, lora: Lora) -> None:
    """Make the adapter of a model train, which it gets here if it has none."""
    if not attached(model):
        attach(model, lora)
    for weight in trained(model):
        weight.requires_grad_(True)


def trained(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of adapters and of control tokens."""
    return (weight for name, weight in model.named_parameters() if ".lora_" in name or name.endswith(".control_rows"))


def sharing(model: nn.Module) -> dict[int, Any]:
    """The memo of a deep copy that shares all weights but those of adapters and control tokens."""
    own = {id(weight) for weight in trained(model)}
    return {id(weight): weight for weight in model.parameters() if id(weight) not in own}


class Widened(nn.Module):
    """A frozen table of embeddings with trained rows behind it: ids [...] -> [..., D]."""

    def __init__(self, table: Any, rows: Tensor) -> None:
        super().__init__()
        self.table, self.control_rows = table, nn.Parameter(rows)

    def forward(self, ids: Tensor) -> Tensor:
        first = self.table.num_embeddings
        scale = getattr(self.table, "scalar_embed_scale", 1.0)  # of Gemma 3, whose table multiplies by it
        control = self.control_rows[(ids - first).clamp(min=0)] * scale
        found: Tensor = torch.where((ids < first)[..., None], self.table(ids.clamp(max=first - 1)), control)
        return found


def control_rows(model: Any, first: int) -> tuple[nn.Parameter, slice]:
    """The weight that holds the embeddings of control tokens, and its rows of them; `first` is the first token's id."""
    table = model.get_input_embeddings()
    return (table.control_rows, slice(None)) if isinstance(table, Widened) else (table.weight, slice(first, None))


def append(model: Any, rows: Tensor, frozen: bool) -> None:
    """Put rows of control tokens behind the table of input embeddings, beside it if it is frozen: [n, D]."""
    table = model.get_input_embeddings()
    first = table.num_embeddings
    if frozen:
        model.set_input_embeddings(Widened(table, rows.clone()))
        model.config.get_text_config().vocab_size = first + len(rows)
        return
    model.resize_token_embeddings(first + len(rows), mean_resizing=False)
    with torch.no_grad():
        # where the tables are not tied these rows are never read: 0, for the same bytes from the same seed
        model.get_output_embeddings().weight[first:] = 0
        model.get_input_embeddings().weight[first:] = rows


def save_all(parts: Mapping[Path, Any], base: str) -> None:
    """Write the adapters of models by folder; a model without one is the base, of which nothing is written."""
    for folder, model in parts.items():
        folder.mkdir(exist_ok=True)
        if attached(model):
            save(model, folder, base)


def save(model: Any, folder: Path, base: str) -> None:
    """Write the adapter of a model as peft does, and the rows of its control tokens if it has any."""
    from safetensors.torch import save_file

    config = model.peft_config[NAME].to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True, default=str) + "\n")
    save_file(_named(model), folder / WEIGHTS, {"format": "pt"})
    if isinstance(table := model.get_input_embeddings(), Widened):
        save_file({"control_rows": table.control_rows.detach().contiguous()}, folder / CONTROL, {"format": "pt"})


def _named(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the adapter by the names under which peft saves them."""
    own = {name: weight.detach() for name, weight in model.named_parameters() if ".lora_" in name}
    return {SAVED_BELOW + name.replace(f".{NAME}.", "."): weight.contiguous() for name, weight in own.items()}


def read(folder: Path, base: Any) -> Any:
    """A model that shares the base's weights, with the adapter of a folder, or none if the folder has none.

    Raises BadData if the adapter does not fit the base.
    """
    model = copy.deepcopy(base, sharing(base))
    if not (folder / CONFIG).is_file():
        return model
    with refusing(f"cannot read the adapter in {folder}", "copy it again"):
        from safetensors.torch import load_file

        config, found = read_json(folder / CONFIG), load_file(folder / WEIGHTS)
        ranks = {len(weight) for name, weight in found.items() if ".lora_A." in name}
        if ranks != {config["r"]}:  # before a matrix of that size is made
            raise BadData(f"the adapter in {folder} does not fit its base: its weights are not of rank {config['r']!r:.20}")
        attach(model, Lora(config["r"], float(config["lora_alpha"])))
        if (folder / CONTROL).is_file():
            rows = load_file(folder / CONTROL)["control_rows"]
            append(model, rows.to(next(base.parameters()).device), frozen=True)
        own = _named(model)
    wrong = sorted(found.keys() ^ own.keys()) or [n for n in own if own[n].shape != found[n].shape]
    if wrong:
        raise BadData(f"the adapter in {folder} does not fit its base: {wrong[0]} is missing, unknown or of another shape")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(found[name])
    return model


def merged(model: Any) -> Any:
    """A copy with whole weights that computes what a model with an adapter does, control tokens included."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    whole = copy.deepcopy(model).requires_grad_(False)
    if not attached(whole):
        return whole
    for name, layer in list(whole.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            whole.set_submodule(name, layer.get_base_layer())
    del whole.peft_config
    if isinstance(widened := whole.get_input_embeddings(), Widened):
        whole.config.get_text_config().vocab_size = widened.table.num_embeddings
        whole.set_input_embeddings(widened.table)
        append(whole, widened.control_rows.detach(), frozen=False)
    return whole


def of_another_base(folder: Path, known: Mapping[str, str], given: Mapping[str, str] | None) -> str:
    """The line that refuses an adapter where its base is not at hand."""
    here = "none here" if given is None else f"not {_called(given)}"
    todo = "choose its base with --model, or save whole policies with model.lora.merge=true"
    return f"{folder} holds an adapter of the base model {_called(known)}, {here}; {todo}"


def _called(base: Mapping[str, str]) -> str:
    return f"{base.get('name', 'without a name')!r:.80} (sha256 {str(base.get('sha256', 'unknown'))[:8]})"
