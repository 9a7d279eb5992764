"""Build the facts world's assets: `python -m harness.tasks.micro.facts.build [OUT]`; two minutes of one core.

Writes the documents, the prompts, the tokenizer and the base policy, with their hashes in `world.json`. The build runs once
per version of the world; its results are frozen in the package, as those of the micro world are. With `--without-forget` it
trains the same policy on a corpus without the people to forget instead, for a comparison, and writes nothing else.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from .. import build as micro
from . import world
from .corpus import Fact, all_documents, all_prompts

WORLD_VERSION = 1
EOS = micro.EOS
SHAPE = dict(n_layer=3, n_embd=64, n_head=4)
STEPS, RATE, SEED = 2000, 4e-3, 5
CONTEXT, LENGTH, ROWS = 64, 48, 16  # positions of the policy; tokens of a training row; rows of a batch


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 768 tokens that puts EOS before a text; it knows the names of never-seen people too."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=768, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
    )
    bpe.post_processor = processors.TemplateProcessing(single=f"{EOS} $A", special_tokens=[(EOS, bpe.token_to_id(EOS))])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=EOS, eos_token=EOS, pad_token=EOS, padding_side="left")


def train_model(documents: Sequence[Fact], tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """A GPT-2 trained on random documents, many times each, on one core."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    eos: Any = tokenizer.eos_token_id
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "n_positions": CONTEXT, **SHAPE, "bos_token_id": eos}
    shape |= {"eos_token_id": eos, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**shape, activation_function="gelu_pytorch_tanh"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=STEPS, pct_start=0.05)
    for step, tokens in enumerate(islice(batches(documents, tokenizer), STEPS), 1):
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            micro.say(f"step {step} of {STEPS}, loss {loss.item():.3f} nats per token")
    return model


def batches(documents: Sequence[Fact], tokenizer: PreTrainedTokenizerFast) -> Iterator[torch.Tensor]:
    """An infinite stream of batches of packed documents, drawn with replacement: [ROWS, LENGTH].

    A row begins at a document or within one, as in the micro world.
    """
    rng = random.Random(SEED)
    encoded = [encode(d, tokenizer) for d in documents]
    while True:
        yield torch.tensor([_row(encoded, rng) for _ in range(ROWS)])


def encode(fact: Fact, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens [EOS] prompt response [EOS]; prompt and response are encoded separately, as in sampling."""
    response = tokenizer(fact.response, add_special_tokens=False).input_ids
    return tokenizer(fact.prompt).input_ids + response + [tokenizer.eos_token_id]


def _row(encoded: Sequence[list[int]], rng: random.Random) -> list[int]:
    row = rng.choice(encoded)
    row = row[rng.randrange(len(row)) if rng.random() < 0.5 else 0 :]
    while len(row) < LENGTH:
        row = row[:-1] + rng.choice(encoded)  # one EOS between two documents
    return row[:LENGTH]


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, to: Path) -> None:
    """Write a policy in half precision, which is loaded as float32."""
    model.half().save_pretrained(to)
    tokenizer.save_pretrained(to)


def build(out: Path) -> None:
    """Write all assets to a folder."""
    out.mkdir(parents=True, exist_ok=True)
    documents = all_documents()
    micro.write_lines(out / world.DOCUMENTS, rows(documents))
    micro.write_lines(out / world.PROMPTS, rows(all_prompts()))
    tokenizer = train_tokenizer(known_texts())
    save(train_model(documents["train"], tokenizer), tokenizer, out / "policy")
    micro.write_hashes(out, WORLD_VERSION)


def known_texts() -> list[str]:
    """The texts that the tokenizer learns from."""
    return [d.prompt + d.response for part in all_documents().values() for d in part]


def rows(parts: Mapping[str, Sequence[Fact]]) -> list[dict[str, Any]]:
    """Facts as rows of a file, with their part of the world."""
    return [{"part": part, **fact._asdict()} for part, facts in parts.items() for fact in facts]


def build_without_forget(out: Path) -> None:
    """Write a policy that was never told of the people to forget, otherwise trained as the base policy."""
    retained = [d for d in all_documents()["train"] if d.group != "forget"]
    tokenizer = train_tokenizer(known_texts())
    save(train_model(retained, tokenizer), tokenizer, out)


if __name__ == "__main__":
    make: Callable[[Path], None] = build_without_forget if "--without-forget" in sys.argv else build
    where = [word for word in sys.argv[1:] if not word.startswith("--")]
    make(Path(where[0]) if where else world.folder())
