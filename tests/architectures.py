"""Tiny random models of the architectures that people bring, each with what is checked of it.

    python tests/architectures.py        writes the table of docs/reference/architectures.md

The table says of each whether it loads, samples, trains, and comes back from its folder; or the line that it is refused
with. `test_architectures.py` holds the same in the suite.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from harness.core.errors import BenchError
from harness.core.types import Decoding, Prompts, Rollout
from harness.methods.ppo import PPO, PPOSettings
from harness.policy.loading import load_model
from harness.policy.policy import Policy, naming
from harness.policy.sampler import sample
from harness.training.trial import Budget, Trial

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "architectures.md"
START, END = "<!-- table: python tests/architectures.py -->", "<!-- end of the table -->"
WORDS, VOCAB, WINDOW = 64, 72, 8
COMMON = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.4}
SIZE = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64,
} | COMMON  # fmt: skip
HEADS = SIZE | {"num_key_value_heads": 1, "head_dim": 8}
EXPERTS = HEADS | {"num_experts_per_tok": 2}
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
GEMMA3 = HEADS | {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {
    "num_experts": 0, "decoder_sparse_step": 100, "linear_num_value_heads": 2, "linear_num_key_heads": 1,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip

CONFIGS: dict[str, Callable[[], Any]] = {
    "GPT-2": lambda: transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **COMMON),
    "GPT-Neo": lambda: transformers.GPTNeoConfig(
        hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], window_size=WINDOW,
        max_position_embeddings=64, **COMMON,
    ),
    "GPT-NeoX": lambda: transformers.GPTNeoXConfig(**SIZE),
    "OPT": lambda: transformers.OPTConfig(ffn_dim=32, init_std=0.4, **SIZE),
    "OPT, embeddings narrower than its layers": lambda: transformers.OPTConfig(
        ffn_dim=32, init_std=0.4, word_embed_proj_dim=8, **SIZE
    ),
    "BLOOM": lambda: transformers.BloomConfig(hidden_size=16, n_layer=2, n_head=2, **COMMON),
    "Llama": lambda: transformers.LlamaConfig(**HEADS),
    "Llama with a stray sliding_window": lambda: transformers.LlamaConfig(sliding_window=WINDOW, **HEADS),
    "Mistral with a sliding window": lambda: transformers.MistralConfig(sliding_window=WINDOW, **HEADS),
    "Mixtral": lambda: transformers.MixtralConfig(num_local_experts=4, **EXPERTS),
    "Qwen2": lambda: transformers.Qwen2Config(num_key_value_heads=1, **SIZE),
    "Qwen3": lambda: transformers.Qwen3Config(**HEADS),
    "Qwen3-MoE": lambda: transformers.Qwen3MoeConfig(num_experts=4, moe_intermediate_size=16, **EXPERTS),
    "Qwen3-Next": lambda: transformers.Qwen3NextConfig(**LINEAR, **HEADS),
    "Gemma 2": lambda: transformers.Gemma2Config(sliding_window=WINDOW, **HEADS),
    "Gemma 3, text": lambda: transformers.Gemma3TextConfig(**GEMMA3),
    "Gemma 3, text and images": lambda: transformers.Gemma3Config(
        text_config=GEMMA3, vision_config=VISION, mm_tokens_per_image=4, image_token_index=60, boi_token_index=61,
        eoi_token_index=62,
    ),
    "Mamba": lambda: transformers.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, **COMMON),
    "LFM2": lambda: transformers.Lfm2Config(num_key_value_heads=1, layer_types=["conv", "full_attention"], **SIZE),
    "BERT, an encoder": lambda: transformers.BertConfig(**SIZE),
    "T5, an encoder and a decoder": lambda: transformers.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=VOCAB,
    ),
}  # fmt: skip
REFUSED = {
    "Llama with a stray sliding_window": "set it to null",
    "BERT, an encoder": "looks ahead",
    "T5, an encoder and a decoder": "cannot load a causal language model",
}


def write(name: str, folder: Path) -> Path:
    """A Hugging Face folder of that architecture with random weights and a tokenizer of words."""
    config = CONFIGS[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind = transformers.T5ForConditionalGeneration if name.startswith("T5") else transformers.AutoModelForCausalLM
        model = kind(config) if name.startswith("T5") else kind.from_config(config)
    model.save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


class Words:
    """A task whose reward is the share of a response that is a word of an even number."""

    name, version = "words", 1
    decoding = Decoding(max_new_tokens=6)

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version}

    def train_prompts(self, n: int, rng: torch.Generator) -> Prompts:
        mask = torch.arange(4) >= torch.randint(0, 4, (n, 1), generator=rng)
        return Prompts(torch.randint(2, 50, (n, 4), generator=rng), mask)

    def reward(self, rollout: Rollout) -> torch.Tensor:
        even = (rollout.response % 2 == 0) & rollout.response_mask
        return even.sum(1) / rollout.response_mask.sum(1)


def train(policy: Policy, reference: Policy, updates: int = 2) -> Trial:
    """A few updates by PPO, which reads logits and hidden states, beside a control token as Quark has them."""
    policy.prefix = (int(policy.control_tokens(1, torch.Generator().manual_seed(0))[0]),)
    trial = Trial(policy, reference, Words(), seed=0, budget=Budget(updates=updates), lr=1e-2)
    settings = PPOSettings(explore_prompts=4, epochs=1, minibatches=2, lr=1e-2)
    steps = PPO(settings).train(trial)
    for _ in range(updates):
        next(steps)
    return trial


def draw(policy: Policy, n: int = 3) -> Rollout:
    prompts = Words().train_prompts(4, torch.Generator().manual_seed(1))
    return sample(policy, prompts, decoding=Decoding(max_new_tokens=12), rng=torch.Generator().manual_seed(2), n=n)


def again(policy: Policy, folder: Path) -> str:
    """Save a policy, read it by our own door and by transformers', and say what is not as it was."""
    policy.save(folder)
    rollout = draw(policy)
    ours = Policy.load(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    same = torch.equal(draw(ours).logprobs, rollout.logprobs)
    weights, found = policy.model.state_dict(), theirs.state_dict()
    same &= found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    same &= words.get_vocab() == naming(policy.tokenizer, policy.vocab_size, policy.num_control).get_vocab()
    return "" if same else "another model comes back"


def outcome(name: str, folder: Path) -> str:
    """What becomes of an architecture: "" where all of it works, else the line that says what does not."""
    try:
        loaded = load_model(str(write(name, folder / "model")))
        policy, reference = loaded.policy, loaded.policy.frozen_copy()
        policy.tokenizer = loaded.tokenizer
        draw(policy)
        train(policy, reference)
        return again(policy, folder / "policy")
    except BenchError as e:
        return str(e).replace(str(folder / "model"), "FOLDER")


def table(folder: Path) -> str:
    """One row an architecture, in Markdown."""
    rows = ["| architecture | class of transformers | loads, samples, trains, saves, loads again |", "|---|---|---|"]
    for i, name in enumerate(CONFIGS):
        found = outcome(name, folder / str(i))
        (kind,) = transformers.AutoConfig.from_pretrained(folder / str(i) / "model").architectures
        rows.append(f"| {name} | `{kind}` | {'yes' if not found else 'refused: ' + found} |")
    return "\n".join(rows)


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    before, rest = PAGE.read_text().split(START)
    with tempfile.TemporaryDirectory() as folder:
        found = table(Path(folder))
    versions = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    PAGE.write_text(f"{before}{START}\n{found}\n\nMade with {versions}.\n{END}{rest.split(END)[1]}")
    print(f"wrote {PAGE}", file=sys.stderr)


if __name__ == "__main__":
    main()
