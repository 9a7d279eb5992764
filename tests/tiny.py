"""Tiny random policies and prompts: a second of CPU is enough to compare them with what can be counted."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from harness.core.types import Prompts
from harness.policy.policy import Policy

BOS, EOS = 0, 1


def tiny_gpt2(*, seed: int = 0, vocab: int = 12, eos: int = EOS, dropout: float = 0.0, tied: bool = True) -> Policy:
    """Absolute positions: a row that is shifted by its padding reads other position embeddings."""
    config = GPT2Config(
        vocab_size=vocab,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        initializer_range=0.4,  # ten times the usual: next-token distributions far from uniform
        bos_token_id=BOS,
        eos_token_id=eos,
        tie_word_embeddings=tied,
    )
    return _policy(GPT2LMHeadModel, config, seed, eos)


def tiny_llama(*, seed: int = 0, vocab: int = 12, eos: int = EOS, dropout: float = 0.0, tied: bool = False) -> Policy:
    """Rotary positions, and attention dropout that is not a module."""
    config = LlamaConfig(
        vocab_size=vocab,
        max_position_embeddings=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=dropout,
        initializer_range=0.4,
        bos_token_id=BOS,
        eos_token_id=eos,
        tie_word_embeddings=tied,
    )
    return _policy(LlamaForCausalLM, config, seed, eos)


def _policy(kind, config, seed: int, eos: int) -> Policy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(kind(config), bos=BOS, eos=eos)


TINY = {"gpt2": tiny_gpt2, "llama": tiny_llama}


def steered(policy: Policy, n: int = 3) -> Policy:
    """The policy with n control tokens, the last of them its prefix."""
    ids = policy.control_tokens(n, torch.Generator().manual_seed(7))
    policy.prefix = (int(ids[-1]),)
    return policy


def left_padded(rows: list[list[int]], pad: int = 0) -> Prompts:
    """Rows of any lengths as prompts."""
    width = max(map(len, rows))
    tokens = torch.tensor([[pad] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[False] * (width - len(r)) + [True] * len(r) for r in rows])
    return Prompts(tokens, mask)


def ragged_rows(lengths: tuple[int, ...] = (1, 4, 2, 6), vocab: int = 12, seed: int = 0) -> list[list[int]]:
    """Random rows of these lengths, of tokens other than BOS and EOS."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randint(2, vocab, (n,), generator=rng).tolist() for n in lengths]
