"""A causal language model seen as a policy over responses."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.core.errors import BadData, BadSetting, RunFailed, refusing
from harness.core.files import read_json
from harness.core.types import DeployedPolicy, Prompts, Rollout

from . import caches, configs
from .logprobs import gather
from .logprobs.blocks import STATES
from .logprobs.families import family_of
from .logprobs.head import logits_of
from .logprobs.packed import Packed, packed, real_positions, unpacked
from .logprobs.rows import after, aligned, by_length, insert, prepend
from .logprobs.terms import Shared, attach
from .models import adapters, composite, sharding
from .models.prepared import fused_activations, without_dropout
from .models.setup import Setup, in_parts, recomputed_layers
from .weights import read_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from typing_extensions import TypeIs


PLAIN_HEADS = ("GPT2LMHeadModel", "LlamaForCausalLM")


class Policy(nn.Module):
    """A Hugging Face causal language model as a policy pi(y | x) over responses.

    Control tokens (Quark, Lu et al. 2022, section 2) condition the policy and are never sampled: their ids follow the
    vocabulary, and every logit that this class returns is over the V tokens before them, so sampling and log-probabilities
    are renormalised alike. `prefix` holds the control tokens that the deployed policy reads before each prompt; it is saved
    with the weights. Any of `ends` ends a response; `eos`, the first of them, pads it.

    `precision` is the data type of a forward pass. If it is narrower than the weights, passes run under autocast and the
    weights stay in float32, because a step of 1e-5 is lost in a bfloat16 weight. `setup` says how it is trained: under LoRA
    the weights are frozen and shared by all copies, and `requires_grad_` gives a copy an adapter of its own to train.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        bos: int,
        eos: int,
        ends: tuple[int, ...] = (),
        num_control: int = 0,
        prefix: tuple[int, ...] = (),
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.model: Any = fused_activations(without_dropout(model))  # Any: nn.Module types every attribute as Tensor or Module
        self.bos, self.eos = bos, eos
        self.ends: tuple[int, ...] = (eos, *(end for end in ends if end != eos))
        self.precision, self.setup = torch.float32, Setup()
        self.tokenizer = tokenizer  # saved with the weights; passes read and give token ids
        self.vocab_size: int = configs.vocabulary(model) - num_control
        self.num_control, self.prefix = num_control, prefix
        self.on_forward: Callable[[int, bool], None] | None = None  # told of (tokens, trained) at each forward pass

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def context(self) -> int:
        """The largest length of prompt and response together, in tokens."""
        return configs.context_length(self.model)

    @property
    def width(self) -> int:
        """D, the size of the hidden states that the output head reads."""
        return int(self.model.get_output_embeddings().weight.shape[1])

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The context of a forward pass: autocast if the precision is narrower than the weights, layers recomputed if asked."""
        narrow = self.precision != torch.float32
        with (
            torch.autocast(self.device.type, self.precision) if narrow else nullcontext(),
            recomputed_layers(self.model) if self.setup.checkpointing and self.trains else nullcontext(),
        ):
            yield

    @property
    def trains(self) -> bool:
        """Whether a pass now is one that a gradient will follow."""
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.model.parameters())

    def requires_grad_(self, requires_grad: bool = True) -> Policy:
        """Train the weights or freeze them; under LoRA those of the adapter, which a policy without one gets here."""
        lora = self.setup.lora
        if lora is None or not requires_grad:
            change: Callable[[Any], Any] = partial(nn.Module.requires_grad_, requires_grad=requires_grad)
        else:
            change = partial(adapters.trainable, lora=lora)
        self.model = sharding.changed(self.model, change)
        return self

    @property
    def passes(self) -> int:
        """The number of forward passes per token: 1, or the number of models of an ensemble."""
        return getattr(self.model, "passes", 1)

    def logits(self, rollout: Rollout) -> Tensor:
        """Logits that predict each response token, float32: [B, R] -> [B, R, V]; position t is conditioned on x and y_<t.

        Where the response mask is False they are finite and arbitrary. No prefix is added: see `condition`.
        """
        return self._read(rollout, states=False)[0]

    def logits_and_states(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """The logits and the last hidden states of one forward pass, float32: [B, R] -> [B, R, V], [B, R, D]."""
        logits, states = self._read(rollout, states=True)
        return logits, states

    def states(self, rollout: Rollout) -> Tensor:
        """The last hidden states, float32, without the logits: [B, R] -> [B, R, D]."""
        self.count(tokens_of(rollout))
        return self.uncounted_states(rollout)

    def uncounted_states(self, rollout: Rollout) -> Tensor:
        """As `states`, charged to no trial, for what is computed once and charged where it is used: [B, R] -> [B, R, D]."""
        return gather.read_states(self._states, rollout, sharding.sharded(self.model))

    def head(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """The logits that the output head gives for last hidden states, float32: [B, R, D] -> [B, R, V].

        Where a response mask is given and False they are finite and arbitrary. Raises ValueError for a model that computes
        more than a matrix product from its states: see `plain_head`.
        """
        if not self.plain_head:
            raise ValueError(f"{type(self.model).__name__} scales its logits, so they do not follow from its states alone")
        real = None if mask is None else self._real(mask)
        found = states.flatten(0, 1)
        return self._logits(found if real is None else found.index_select(0, real), real, states.shape[:2])

    def _logits(self, states: Tensor, real: Tensor | None, shape: torch.Size) -> Tensor:
        """The logits of states at the positions of response tokens: [n, D], [n] or None for all -> [B, R, V]."""
        weight = self.model.get_output_embeddings().weight
        if weight.dtype == torch.float32:
            return logits_of(states, weight, self.vocab_size, real, shape, self.precision)
        with self.computing():
            found = F.linear(states.to(weight.dtype), weight[: self.vocab_size]).float()
        return attach(unpacked(found, real, shape), Shared(real))

    def _real(self, mask: Tensor) -> Tensor | None:
        """The places of response tokens, None for all or where finding them would make a device wait: [B, R] -> [n]."""
        return real_positions(mask) if mask.device.type == "cpu" else None

    @property
    def plain_head(self) -> bool:
        """Whether the logits are one matrix product of the last hidden states, as those of GPT-2 and Llama."""
        return type(self.model).__name__ in PLAIN_HEADS and type(self.model).__module__.startswith("transformers.")

    def _read(self, rollout: Rollout, states: bool) -> tuple[Tensor, ...]:
        self.count(tokens_of(rollout) * self.passes)
        level = sharding.sharded(self.model)
        return gather.read(partial(self._read_rows, states=states), rollout, self._real, level)

    def _read_rows(self, rollout: Rollout, states: bool) -> tuple[Tensor, ...]:
        if not self.plain_head:
            return self.by_rows(partial(self._own_logits, states=states), rollout)
        # only states are moved to their response token, not logits of the whole vocabulary
        shape, (found, real) = rollout.response.shape, self._read_states(rollout)
        logits = self._logits(found, real, shape)
        return (logits, unpacked(found, real, shape)) if states else (logits,)

    def by_rows(self, read: Callable[[Rollout], tuple[Tensor, ...]], rollout: Rollout) -> tuple[Tensor, ...]:
        """What is read of a batch, in micro-batches if the setup asks for them in training: [B, R] -> [B, ...] each."""
        size, rows = self.setup.micro_batch, torch.arange(len(rollout.response), device=rollout.response.device)
        if not 0 < size < len(rows) or not self.trains:
            return read(rollout)
        parts = in_parts(lambda first, last: read(rollout.rows(rows[first:last])), len(rows), size)
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    def _own_logits(self, rollout: Rollout, states: bool) -> tuple[Tensor, ...]:
        """The logits [B, R, V], and the last hidden states if asked, by the model's own forward."""
        tokens, start = aligned(rollout)
        skipped = int(start.min())  # positions that predict no response token in any row
        keep = tokens.shape[1] - skipped
        inputs: dict[str, Any] = {"output_hidden_states": True} if states else {}
        with self.computing():
            out = caches.call(self.model, input_ids=tokens, logits_to_keep=keep, use_cache=False, **inputs)
        logits = after(out.logits[:, -keep:, : self.vocab_size], start - skipped, rollout)
        return (logits, after(out.hidden_states[-1], start, rollout)) if states else (logits,)

    def _states(self, rollout: Rollout) -> Tensor:
        """The last hidden states, float32, of any model: [B, R] -> [B, R, D]."""
        if not self.plain_head:
            return self.by_rows(lambda part: (self._own_states(part),), rollout)[0]
        return unpacked(*self._read_states(rollout), rollout.response.shape)

    def _read_states(self, rollout: Rollout) -> tuple[Tensor, Tensor | None]:
        """The last hidden states at the positions of response tokens, and those: [B, R] -> [n, D], [n] or None for all."""
        (found,) = self.by_rows(lambda part: (self._states_read(part),), rollout)  # those of a row follow the row before
        return found, self._real(rollout.response_mask)

    def _states_read(self, rollout: Rollout) -> Tensor:
        if (direct := self._direct()) is not None:
            return direct(self.model, packed(rollout))
        real, states = self._real(rollout.response_mask), self._own_states(rollout).flatten(0, 1)
        return states if real is None else states.index_select(0, real)

    def _direct(self) -> Callable[[Any, Packed], Tensor] | None:
        """The arithmetic that reads packed tokens, None where the model's own forward is read."""
        wide = self.precision == next(self.model.parameters()).dtype == torch.float32
        own = not wide or self.device.type != "cpu" or (self.setup.checkpointing and self.trains)
        family = None if own else family_of(self.model)
        return None if family is None else STATES[family]

    def _own_states(self, rollout: Rollout) -> Tensor:
        """The last hidden states by the model's own forward: [B, R] -> [B, R, D]; rows of similar length are read together."""
        groups = by_length(rollout) if self.device.type == "cpu" else []
        if len(groups) < 2:
            return self._states_of(rollout)
        parts = torch.cat([self._states_of(rollout.rows(rows)) for rows in groups])
        return parts[torch.cat(groups).argsort()]

    def _states_of(self, rollout: Rollout) -> Tensor:
        tokens, start = aligned(rollout)
        return after(self.last_states(tokens), start, rollout)

    def last_states(self, tokens: Tensor) -> Any:
        """The last hidden states of rows without padding on the left, charged to no trial: [B, T] -> [B, T, D]."""
        with self.computing():
            if sharding.sharded(self.model):  # whose weights are gathered where its own forward is called
                inputs: dict[str, Any] = {"output_hidden_states": True, "logits_to_keep": 1}
                return caches.call(self.model, input_ids=tokens, use_cache=False, **inputs).hidden_states[-1]
            return self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state

    def condition(self, prompts: Prompts) -> Prompts:
        """The prompts with the prefix of the deployed policy: [B, P] -> [B, P + length of the prefix]."""
        for token in reversed(self.prefix):
            prompts = self.prepend(torch.tensor(token, device=prompts.tokens.device), prompts)
        return prompts

    def prepend(self, token: Tensor, prompts: Prompts) -> Prompts:
        """Prompts with one token put first, or after the BOS if there is one: [] or [B], [B, P] -> [B, P + 1].

        Before the BOS it would belong to another document, which a model trained on packed text has learned to ignore.
        """
        return prepend(token, prompts, self.bos)

    def steered_logits(self, rollout: Rollout, control: Tensor) -> Tensor:
        """Logits that predict each response token with control tokens inside the response: [B, R], [B, R] -> [B, R, V].

        `control` holds the token to insert before each response token, or -1; it is read and never predicted. Raises
        ValueError for a control token in the padding.
        """
        steered, at = insert(control, rollout)
        logits = self.logits(steered)
        return logits.gather(1, at[..., None].expand(-1, -1, logits.shape[-1]))

    def deployed_logits(self, rollout: Rollout) -> Tensor:
        """Logits of the deployed policy, prefix included: [B, R] -> [B, R, V]."""
        return self.logits(rollout._replace(prompts=self.condition(rollout.prompts)))

    def control_tokens(self, n: int, rng: torch.Generator, spread: float = 1.0) -> Tensor:
        """The ids of the policy's n control tokens, created at the first call: -> [n] int64.

        Their embeddings are drawn from a normal distribution with the mean of the existing rows and `spread` times their
        standard deviation, per dimension, so that they start distinct (Hugging Face's default sets all of them to the mean).
        Raises ValueError if the policy has another number of control tokens, RunFailed if the tokenizer cannot name them.
        """
        if self.num_control not in (0, n):
            raise ValueError(f"the policy has {self.num_control} control tokens, not {n}")
        ids = torch.arange(self.vocab_size, self.vocab_size + n)
        if self.num_control == 0:
            self.tokenizer = naming(self.tokenizer, self.vocab_size, n)
            old = sharding.full_tensor(self.model.get_input_embeddings().weight)
            rows = old.mean(0) + torch.randn(n, old.shape[1], generator=rng).to(old) * spread * old.std(0)
            add = partial(adapters.append, rows=rows, frozen=adapters.attached(self.model))
            self.model = sharding.changed(self.model, add)
            self.num_control = n
        return ids.to(self.device)

    def reset(self, rng: torch.Generator) -> None:
        """Draw new weights by the model's own initialisation; the generator decides them. Raises BadSetting under LoRA."""
        if self.setup.lora is not None:
            raise BadSetting(adapters.FROM_SCRATCH)
        seed = int(torch.randint(2**62, (), generator=rng))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            fresh = type(self.model)(copy.deepcopy(self.model.config))
        self.model = sharding.changed(self.model, lambda model: model.load_state_dict(fresh.state_dict()))

    def around(self, model: nn.Module) -> Policy:
        """A policy with another model of the same vocabulary, whose passes are charged to the same trial."""
        same: dict[str, Any] = {"num_control": self.num_control, "prefix": self.prefix, "tokenizer": self.tokenizer}
        twin = Policy(model, bos=self.bos, eos=self.eos, ends=self.ends, **same)  # type: ignore[arg-type]
        twin.on_forward, twin.precision, twin.setup = self.on_forward, self.precision, self.setup
        return twin

    def like(self, base: Policy) -> Policy:
        """This policy with the device, the precision, the setup and the tokenizer of its base, which `load` does not know."""
        self.precision, self.setup = base.precision, base.setup
        self.tokenizer = naming(base.tokenizer, self.vocab_size, self.num_control)
        self.model = sharding.shard(self.model, base.device) if sharding.sharded(base.model) else self.model
        return self.to(base.device)

    def whole(self, everywhere: bool = True) -> Policy:
        """This policy with all weights in the host's memory if it is sharded, else itself; all processes must call it.

        Unless `everywhere`, only the first process gets the numbers.
        """
        return self.around(sharding.whole(self.model, everywhere)) if sharding.sharded(self.model) else self

    def copy(self) -> Policy:
        """A copy with its own weights, under LoRA with its own adapter, whose passes are charged to no trial."""
        shared = self.on_forward, self.tokenizer
        self.on_forward = self.tokenizer = None
        twin = copy.deepcopy(self, self._not_copied()).eval()
        self.on_forward, self.tokenizer = shared
        twin.tokenizer = self.tokenizer
        return twin

    def _not_copied(self) -> dict[int, Any]:
        """The memo of a deep copy: weights that copies share, and a sharded model, which is divided anew."""
        if sharding.sharded(self.model):
            return {id(self.model): sharding.changed(self.model, lambda model: None)}
        return adapters.sharing(self.model) if self.setup.lora is not None else {}

    def frozen_copy(self) -> Policy:
        """A copy whose weights require no gradient."""
        return self.copy().requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Write a complete Hugging Face folder (one for each model of an ensemble) and `policy.json` with prefix and ends.

        Of a model with an adapter only that is written, and the name and sha256 of its base. The tokenizer, if there is one,
        has the control tokens as special tokens.
        """
        parts = composite.folders(self.model, folder)
        adapted = any(map(adapters.attached, parts.values()))
        if adapted:
            adapters.save_all(parts, self.setup.base.get("name", ""))
        else:
            for part, model in parts.items():
                model.generation_config = self._generation()
                model.save_pretrained(part)
        composite.write_state(self.model, folder)
        for part in {folder, *parts} if self.tokenizer is not None else ():
            self.tokenizer.save_pretrained(part)
        state = {"bos": self.bos, "eos": self.eos, "num_control": self.num_control, "prefix": list(self.prefix)}
        state |= {"ends": list(self.ends)} if len(self.ends) > 1 else {}
        state |= {"base": dict(self.setup.base)} if adapted else {}
        (folder / "policy.json").write_text(json.dumps(state))

    def published(self) -> Policy:
        """The policy as a run leaves it: itself, or with whole weights where the setup merges adapters."""
        if self.setup.lora is None or not self.setup.lora.merge:
            return self
        return self.around(composite.mapped(self.model, adapters.merged))

    def _generation(self) -> Any:
        """How others draw from the saved model: as it is measured, at temperature 1 over the vocabulary alone."""
        from transformers import GenerationConfig

        pad = getattr(self.tokenizer, "pad_token_id", None)
        return GenerationConfig(
            bos_token_id=self.bos,
            eos_token_id=list(self.ends) if len(self.ends) > 1 else self.eos,
            pad_token_id=self.eos if pad is None else pad,
            suppress_tokens=[*range(self.vocab_size, self.vocab_size + self.num_control)] or None,
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        )  # fmt: skip

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32, base: Policy | None = None) -> Policy:
        """Read what `save` wrote, but for the tokenizer and the setup (see `like`); an adapter is put beside its base.

        Raises BadData where it cannot be read, or is an adapter of another base than the one given.
        """
        with refusing(f"no readable policy in {folder}", "copy the policy again"):
            state = read_json(folder / "policy.json")
            state |= {"prefix": tuple(state["prefix"]), "ends": tuple(state.get("ends", ()))}
            known = state.pop("base", None)
            if known is None:
                return cls(composite.read(folder, partial(read_model, dtype=dtype)), **state)
            if base is None or known.get("sha256") != base.setup.base.get("sha256"):
                raise BadData(adapters.of_another_base(folder, known, None if base is None else base.setup.base))
            return cls(composite.read(folder, partial(adapters.read, base=base.model)), **state)

    def count(self, tokens: int) -> None:
        """Tell whoever watches of a forward pass over so many tokens."""
        if self.on_forward is not None:
            self.on_forward(tokens, self.trains)


def naming(tokenizer: Any, vocab_size: int, num_control: int) -> Any:
    """A tokenizer that knows the control tokens as special tokens, by the ids of their embeddings behind the vocabulary.

    An embedding table may be larger than the tokenizer, which numbers on without a gap: the ids between are named first.
    Raises RunFailed where the ids come out otherwise.
    """
    if tokenizer is None or num_control == 0:
        return tokenizer
    from tokenizers import AddedToken

    twin = copy.deepcopy(tokenizer)
    first, end = max(twin.get_vocab().values()) + 1, vocab_size + num_control
    names = [f"<|{'unused' if i < vocab_size else 'control'}_{i}|>" for i in range(first, end)]
    twin.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    if twin.convert_tokens_to_ids(names) != list(range(first, end)):
        raise RunFailed(
            f"the tokenizer cannot name the control tokens {vocab_size} to {end - 1}: it has gaps in its ids, or such names "
            f"already; give a base model whose tokenizer numbers its tokens without gaps"
        )
    return twin


def positions(mask: Tensor) -> Tensor:
    """Positions that start at the first real token, whatever the padding: [B, T] -> [B, T]."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def tokens_of(rollout: Rollout) -> int:
    """The number of unpadded tokens of prompts and responses, which a forward pass is charged for: [B, R] -> int."""
    return int(rollout.prompts.mask.sum() + rollout.response_mask.sum())


def samples_itself(policy: Policy | DeployedPolicy) -> TypeIs[DeployedPolicy]:
    """Whether a policy has its own `sample`, so that the shared sampler is not used."""
    return hasattr(policy, "sample")


def has_closed_kl(policy: Policy | DeployedPolicy) -> TypeIs[DeployedPolicy]:
    """Whether the KL of a policy has a closed form, so that it is not computed from token probabilities."""
    return hasattr(policy, "kl_to_base")
