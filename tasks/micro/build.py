"""Build the micro world's assets: `python -m harness.tasks.micro.build [OUT]`.

Writes the prompts, the documents, the reward of toxicity, the tokenizer, the base policy, the judge model and the base
policy's responses, with their hashes in `world.json`. The build runs once per version of the world; its results are frozen
in the package, since numbers are comparable only between users with identical assets.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from harness.api import Decoding, Policy, sample

from ..data.prompt_files import tokenize
from . import train_linear
from .grammar import OPENED, Document, document
from .scorers import fresh_share
from .splits import Splits, split_prompts
from .tables import ACTS
from .world import RESPONSE_TOKENS

WORLD_VERSION = 3
EOS = "<|endoftext|>"
MIX = {
    "calm": 4, "heated": 4, "adversarial": 3, "neutral_review": 2, "glad_review": 1.5, "cross_review": 1.5,
    "diary": 2, "dull_diary": 1.5, "newcomer": 2, "contact": 2, "function": 2, "messy_function": 2,
}  # fmt: skip
DOCUMENTS, CLEAN = 10000, 256
BASE_RESPONSES = 512  # per held-out prompt
SIZES = {"policy": dict(n_layer=4, n_embd=96, n_head=4), "judge": dict(n_layer=4, n_embd=128, n_head=4)}
STEPS = {"policy": 3000, "judge": 1500}
LR, WEIGHT_DECAY, WARM = 3e-3, 0.01, 0.05  # the largest rate, and the share of the steps in which it rises
CONTEXT, ROWS = 128, 16


def documents(rng: random.Random, held_out: set[str]) -> Iterator[Document]:
    """An infinite stream of documents of all kinds, none of which begins with a held-out prompt."""
    while True:
        made = document(rng.choices(list(MIX), list(MIX.values()))[0], rng)
        if made.prompt not in held_out:
            yield made


def take(n: int, rng: random.Random, held_out: set[str]) -> list[Document]:
    """The first n documents of the stream."""
    stream = documents(rng, held_out)
    return [next(stream) for _ in range(n)]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 1,280 tokens that puts EOS before a text, as in the training documents."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1280, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
    )
    bpe.post_processor = processors.TemplateProcessing(single=f"{EOS} $A", special_tokens=[(EOS, bpe.token_to_id(EOS))])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=EOS, eos_token=EOS, pad_token=EOS, padding_side="left")


def encode(doc: Document, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens [EOS] prompt response [EOS]; prompt and response are encoded separately, as in sampling."""
    response = tokenizer(doc.response, add_special_tokens=False).input_ids
    return tokenizer(doc.prompt).input_ids + response + [tokenizer.eos_token_id]


def train_model(name: str, seed: int, out: Path, held_out: set[str]) -> None:
    """Train a GPT-2 of one of SIZES on new documents, each seen once; on one core or a GPU, both models in parallel."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "n_positions": CONTEXT, **SIZES[name]}
    shape |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape |= {"activation_function": "gelu_pytorch_tanh"}  # the function of GPT-2 in a fused kernel
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id))
    model.to(device())  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=STEPS[name], pct_start=WARM)
    stream = batches(random.Random(seed), tokenizer, held_out)
    for step in range(1, STEPS[name] + 1):
        tokens = next(stream).to(device())
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            say(f"{name}: step {step} of {STEPS[name]}, loss {loss.item():.3f} nats per token")
    # half precision halves the size on disk; the models are always loaded as float32
    model.cpu().half().save_pretrained(out / name)
    tokenizer.save_pretrained(out / name)


def batches(
    rng: random.Random,
    tokenizer: PreTrainedTokenizerFast,
    held_out: set[str],
    kept: Callable[[Document], bool] = lambda made: True,
) -> Iterator[torch.Tensor]:
    """An infinite stream of batches of packed documents, of those that are kept: [ROWS, CONTEXT].

    A row begins at a document or within one, so that the policy does not depend on the text before a document or on its
    absolute position: a control token at the front shifts everything by one.
    """
    stream = filter(kept, documents(rng, held_out))
    while True:
        yield torch.tensor([_row(stream, tokenizer, rng) for _ in range(ROWS)])


def _row(stream: Iterator[Document], tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> list[int]:
    row = encode(next(stream), tokenizer)
    row = row[rng.randrange(len(row)) if rng.random() < 0.5 else 0 :]
    while len(row) < CONTEXT:
        row = row[:-1] + encode(next(stream), tokenizer)  # one EOS between two documents
    return row[:CONTEXT]


def base_responses(out: Path, texts: list[str], seed: int) -> np.ndarray:
    """The base policy's responses to prompts, from `harness.api.sample`: -> [X, M, R] uint16."""
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "policy")
    model = GPT2LMHeadModel.from_pretrained(out / "policy", dtype=torch.float32)
    model.to(device())  # type: ignore[arg-type]
    policy = Policy(model, bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id)
    prompts = tokenize(texts, tokenizer, max_new_tokens=RESPONSE_TOKENS, context=policy.context)
    rng = torch.Generator().manual_seed(seed)
    rollout = sample(policy, prompts, decoding=Decoding(max_new_tokens=RESPONSE_TOKENS), rng=rng, n=BASE_RESPONSES)
    return rollout.response.view(len(texts), BASE_RESPONSES, -1).cpu().numpy().astype(np.uint16)


def device() -> torch.device:
    """A GPU if there is one: minutes instead of half an hour on a busy machine."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def all_base_responses(out: Path, splits: Splits, pool: ProcessPoolExecutor) -> None:
    """Write the base responses to all held-out prompts, an array [X, M, R] uint16 for each split and kind of prompt."""
    found: dict[str, np.ndarray] = {}
    for split in ("validation", "test"):
        texts = [text for _, text in splits[split]]
        batches = [texts[i : i + 32] for i in range(0, len(texts), 32)]
        seeds = [1000 * (split == "test") + i for i in range(len(batches))]
        responses = np.concatenate(list(pool.map(base_responses, [out] * len(batches), batches, seeds)))
        kinds = np.array([kind for kind, _ in splits[split]])
        found |= {f"{split}-{kind}": responses[kinds == kind] for kind in dict.fromkeys(kinds.tolist())}
        say(f"base responses: {split}, {len(texts)} prompts x {BASE_RESPONSES}")
    write_responses(out / "base_responses.npz", found)


def write_responses(path: Path, found: dict[str, np.ndarray]) -> None:
    """Write responses, [X, M, R] each, with those to a prompt in the order of their tokens: half the size on disk.

    The order says nothing, since they are independent draws; `world.base_responses` shuffles them.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, responses in found.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # with a fixed date, so that the bytes are reproducible
            member.compress_type = zipfile.ZIP_LZMA
            with archive.open(member, "w", force_zip64=True) as f:
                np.lib.format.write_array(f, np.stack([r[np.lexsort(r.T[::-1])] for r in responses]))


def write_prompts(path: Path, splits: Splits) -> None:
    """Write the prompts as gzipped JSON Lines, one per line."""
    write_lines(path, [{"split": s, "kind": k, "text": t} for s, prompts in splits.items() for k, t in prompts])


def write_documents(path: Path, splits: dict[str, list[Document]]) -> None:
    """Write the documents as gzipped JSON Lines, one per line, with the labels of their sentences."""
    rows = []
    for split, docs in splits.items():
        for d in docs:
            segments = [{"act": a, **vars(ACTS[a])} for a in d.acts if a in ACTS]
            rows.append({"split": split, "kind": d.kind, "prompt": d.prompt, "response": d.response, "segments": segments})
    write_lines(path, rows)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write gzipped JSON Lines."""
    with gzip.GzipFile(path, "wb", mtime=0) as f:  # mtime 0 makes the bytes reproducible
        f.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def write_hashes(out: Path, version: int = WORLD_VERSION) -> None:
    """Write the version and the hashes of all assets to `world.json`."""
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != "world.json")
    hashes = {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    sizes = sum(p.stat().st_size for p in files)
    (out / "world.json").write_text(json.dumps({"version": version, "sha256": hashes}, indent=1) + "\n")
    say(f"{len(files)} files, {sizes / 2**20:.2f} MiB, in {out}")


def say(text: str) -> None:
    """Print a line of progress with the time to standard error."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def clean(doc: Document) -> bool:
    """True if a document shows no undesired behaviour."""
    labels = [ACTS[a] for a in doc.acts if a in ACTS]
    habits = any(label.insult or label.sentiment or label.personal or label.fault for label in labels)
    return not habits and fresh_share(doc.response) == 1


def build(out: Path) -> None:
    """Write all assets to a folder; existing models are kept, so an interrupted build can be resumed."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "measured", ignore_errors=True)  # measurements of the policy that was there before
    splits = split_prompts(random.Random(1))
    held_out = {text for s in ("validation", "test") for _, text in splits[s]}
    write_prompts(out / "prompts.jsonl.gz", splits)
    train_linear.write(out)
    spoken = {"train": take(DOCUMENTS, random.Random(2), held_out)}
    spoken["clean"] = [d for d in take(8 * CLEAN, random.Random(3), held_out) if clean(d)][:CLEAN]
    write_documents(out / "documents.jsonl.gz", spoken)
    tokenizer = train_tokenizer([d.prompt + d.response for d in take(8000, random.Random(4), held_out)])
    tokenizer.save_pretrained(out / "tokenizer")
    say(f"tokenizer: {len(tokenizer)} tokens; kinds: {', '.join(OPENED)}")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        trained = [pool.submit(make_model, name, seed, out, held_out) for name, seed in (("policy", 5), ("judge", 6))]
        for model in trained:
            model.result()
        all_base_responses(out, splits, pool)
    shutil.rmtree(out / "tokenizer")  # each model folder has a copy
    write_hashes(out)


def make_model(name: str, seed: int, out: Path, held_out: set[str]) -> None:
    """Train a model unless its folder exists."""
    if not (out / name / "model.safetensors").exists():
        train_model(name, seed, out, held_out)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "assets")
