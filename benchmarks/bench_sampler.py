"""The sampler against Hugging Face's `generate`: the same model, prompts, decoding and number of new tokens.

    pytest -n 0 benchmarks --benchmark-only

Nothing is asserted about time: the ratios are printed, and are in the JSON that --benchmark-json writes.
"""

from __future__ import annotations

import pytest
import torch
from paired import compare
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from harness.core.types import Decoding, Prompts
from harness.policy.policy import Policy
from harness.policy.sampler import sample

VOCAB, NEW_TOKENS, NUM_PROMPTS, EOS = 1024, 24, 64, 0
ENDING = {"never ends": -100.0, "ends at 5% a token": -2.94}  # the logit of EOS against all other tokens together


def config() -> GPT2Config:
    """About a million parameters."""
    shape = {"vocab_size": VOCAB, "n_positions": 128, "n_embd": 128, "n_layer": 4, "n_head": 4}
    return GPT2Config(**shape, initializer_range=0.05, bos_token_id=EOS, eos_token_id=EOS)


def smollm2() -> LlamaConfig:
    """The shapes of SmolLM2-135M: 134.5 million parameters."""
    shape = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    return LlamaConfig(**shape, **heads, max_position_embeddings=2048, bos_token_id=EOS, eos_token_id=EOS)


def new_policy(log_odds: float = -100.0, shape: GPT2Config | LlamaConfig | None = None) -> Policy:
    """A random policy that ends its responses at a known rate, by its weights, so that every sampler does the same work.

    The first number of each last hidden state is 1, only the EOS reads it, and so its logit is the same everywhere.
    """
    torch.manual_seed(0)
    shape = shape or config()
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


def ragged_prompts(n: int = NUM_PROMPTS) -> Prompts:
    """Of 4 to 16 tokens, padded on the left."""
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCAB, (n, 16), generator=rng)
    length = torch.randint(4, 17, (n, 1), generator=rng)
    return Prompts(tokens, torch.arange(16) >= 16 - length)


WORKLOADS = {
    "64 x 1, T = 1": {"n": 1, "log_odds": ENDING["never ends"]},
    "64 x 8, T = 1": {"n": 8, "log_odds": ENDING["never ends"]},
    "64 x 25, top-p 0.9, ends at 5% a token": {"n": 25, "log_odds": ENDING["ends at 5% a token"], "top_p": 0.9},
    "SmolLM2-135M, 16 x 25, 20 tokens, top-p 0.9": {
        "n": 25, "log_odds": ENDING["never ends"], "top_p": 0.9, "prompts": 16, "steps": 20, "config": smollm2, "rounds": 3,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WORKLOADS)
def test_sampler_against_generate(name, benchmark, capsys):
    w = {"top_p": 1.0, "prompts": NUM_PROMPTS, "steps": NEW_TOKENS, "config": config, "rounds": 9} | WORKLOADS[name]
    policy, prompts = new_policy(w["log_odds"], w["config"]()), ragged_prompts(w["prompts"])
    decoding = Decoding(max_new_tokens=w["steps"], top_p=w["top_p"])
    options = {"do_sample": True, "top_k": 0, "top_p": w["top_p"], "temperature": 1.0, "pad_token_id": EOS}
    options |= {"eos_token_id": EOS, "num_return_sequences": w["n"], "max_new_tokens": w["steps"]}

    def ours():
        return sample(
            policy, prompts, decoding=decoding, rng=torch.Generator().manual_seed(0), n=w["n"], batch_size=512
        ).response

    stock = type(policy.model)(policy.model.config).eval()  # the suite puts another activation into GPT-2
    stock.load_state_dict(policy.model.state_dict())

    def theirs():
        torch.manual_seed(0)
        with torch.no_grad():
            tokens = stock.generate(prompts.tokens, attention_mask=prompts.mask.long(), **options)
        return tokens[:, prompts.tokens.shape[1] :]

    assert ours().shape == theirs().shape  # neither stops before the other
    line = compare(benchmark, ours, theirs, ("sample", "generate"), rounds=w["rounds"])
    with capsys.disabled():
        print(f"\n{name}: {line}")


def test_base_responses_of_several_prompts_at_once(benchmark, capsys):
    """The frontier's draws for SmolLM2-135M: 64 responses to each prompt, against one prompt at a time."""
    policy, prompts, decoding = new_policy(shape=smollm2()), ragged_prompts(16), Decoding(max_new_tokens=20)

    def draw(together: int) -> None:
        rng = torch.Generator().manual_seed(0)
        for x in range(0, len(prompts.tokens), together):
            some = Prompts(*(p[x : x + together] for p in prompts))
            sample(policy, some, decoding=decoding, rng=rng, n=64, batch_size=512)

    line = compare(benchmark, lambda: draw(8), lambda: draw(1), ("8 prompts at once", "one at a time"), rounds=3)
    with capsys.disabled():
        print(f"\nSmolLM2-135M, 16 prompts x 64 x 20 tokens: {line}")
