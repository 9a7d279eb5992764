"""Models, prompts and sizes that the workloads share. BENCH_SMALL=1 makes each small, to see that all run."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from harness.core.types import Prompts, Rollout
from harness.policy.policy import Policy

T = TypeVar("T")
SMALL = bool(os.environ.get("BENCH_SMALL"))
EOS, VOCAB = 0, 1024
NEVER_ENDS, ENDS_AT_5_PERCENT = -100.0, -2.94  # log-odds of EOS against all other tokens together


def sized(full: T, small: T) -> T:
    return small if SMALL else full


def micro() -> GPT2Config:
    """About a million parameters, as the model of the preset micro."""
    shape = {"vocab_size": VOCAB, "n_positions": 128, "n_embd": 128, "n_layer": sized(4, 1), "n_head": 4}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # so that a trainer in training mode does the same work
    return GPT2Config(**shape, **off, initializer_range=0.05, bos_token_id=EOS, eos_token_id=EOS)


def smollm2() -> LlamaConfig:
    """The shapes of SmolLM2-135M: 134.5 million parameters."""
    shape = {"vocab_size": sized(49152, 2048), "hidden_size": 576, "intermediate_size": 1536}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    return LlamaConfig(
        **shape, **heads, num_hidden_layers=sized(30, 1), max_position_embeddings=2048, bos_token_id=EOS, eos_token_id=EOS
    )


def new_policy(shape: GPT2Config | LlamaConfig, log_odds: float = NEVER_ENDS) -> Policy:
    """A random policy that ends its responses at a known rate, by its weights, so that every sampler does the same work.

    The first number of each last hidden state is 1, only the EOS reads it, and so its logit is the same everywhere.
    """
    torch.manual_seed(0)
    model = (GPT2LMHeadModel if isinstance(shape, GPT2Config) else LlamaForCausalLM)(shape)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        if isinstance(shape, GPT2Config):
            norm = model.transformer.ln_f
            norm.weight[0], norm.bias[0] = 0.0, 1.0
        others = model(torch.tensor([[1, 2, 3]])).logits[0, :, 1:].logsumexp(-1).mean()
        head[:, 0] = 0.0
        head[EOS] = 0.0
        head[EOS, 0] = others + log_odds
    return Policy(model, bos=EOS, eos=EOS)


def stock(model):
    """A copy of the model as the library makes it: the suite puts another activation into GPT-2."""
    fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


def ragged_prompts(n: int) -> Prompts:
    """Of 4 to 16 tokens, padded on the left: -> [n, 16]."""
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCAB, (n, 16), generator=rng)
    length = torch.randint(4, 17, (n, 1), generator=rng)
    return Prompts(tokens, torch.arange(16) >= 16 - length)


def even_share(rollout: Rollout) -> torch.Tensor:
    """The reward of the benchmarks, the share of even tokens: [B, R] -> [B]."""
    counts = rollout.response_mask
    return ((rollout.response % 2 == 0) & counts).float().sum(1) / counts.sum(1)
