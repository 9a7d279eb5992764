"""A hub on disk: what `from_pretrained` and `load_dataset` find after a download, with tiny stand-ins in the real formats.

Models lie as the hub's cache lays them out; data sets are prepared Arrow or parquet, with the real fields, nulls included.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import folders
import pyarrow as pa
import pyarrow.parquet as parquet
from datasets import Dataset, DatasetInfo
from datasets.arrow_writer import ArrowWriter
from datasets.splits import SplitDict, SplitInfo

COMMIT = "c" * 40
RTP, IMDB, WIKITEXT = "allenai/real-toxicity-prompts", "stanfordnlp/imdb", "Salesforce/wikitext"
PILE, CODE = "tomekkorbak/pii-pile-chunk3-0-50000", "kejian/codeparrot-train-more-filter-3.3b-cleaned"
SST2 = "distilbert/distilbert-base-uncased-finetuned-sst-2-english"
STARS = "nlptown/bert-base-multilingual-uncased-sentiment"
HATE = "facebook/roberta-hate-speech-dynabench-r4-target"
GPT2S = ("gpt2", "gpt2-large", "gpt2-xl", "codeparrot/codeparrot-small", "codeparrot/codeparrot")
NOUNS = ["cat", "goose", "garden", "river", "train", "lamp", "kettle", "letter", "window", "boat", "bench", "clock"]
VERBS = ["saw", "liked", "left", "found", "moved", "drew", "kept", "lost", "sold", "read"]
ADJECTIVES = ["quiet", "old", "silly", "red", "small", "warm", "broken", "gentle", "plain", "odd"]


def build(home: Path) -> Path:
    """Everything that the presets `gpt2` and `paper` ask the hub for, below a new HF_HOME; -> Detoxify's checkpoint."""
    gpt2 = folders.gpt2_folder(home / "made" / "gpt2", n_positions=320)
    for name in GPT2S:
        put(home, name, gpt2)
    labels = {
        SST2: ("NEGATIVE", "POSITIVE"),
        HATE: ("nothate", "hate"),
        STARS: ("1 star", *(f"{n} stars" for n in range(2, 6))),
    }
    kinds = {SST2: "DistilBert", HATE: "Roberta", STARS: "Bert"}
    for name, kind in kinds.items():
        put(home, name, folders.classifier_folder(home / "made" / kind, kind, labels[name]))
    for repo, config, splits in ((RTP, "default", rtp()), (IMDB, "plain_text", imdb()), (PILE, "default", pile())):
        put_dataset(home, repo, config, splits)
    put_dataset(home, WIKITEXT, "wikitext-103-raw-v1", wikitext())
    put_file(home, CODE, "data/train-00000-of-00064.parquet", code())
    checkpoint, config = folders.detoxify_checkpoint(home / "made" / "detoxify")
    put(home, "bert-base-uncased", config)
    return checkpoint


def put(home: Path, name: str, folder: Path, kind: str = "model") -> Path:
    """A folder as the hub's cache holds it; -> its snapshot."""
    root = home / "hub" / f"{kind}s--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    return shutil.copytree(folder, root / "snapshots" / COMMIT)


def put_file(home: Path, repo: str, path: str, rows: list[dict[str, Any]]) -> Path:
    """One parquet file of a data set in the hub's cache."""
    folder = home / "made" / "files"
    (folder / path).parent.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), folder / path)
    return put(home, repo, folder, kind="dataset") / path


def put_dataset(home: Path, repo: str, config: str, splits: dict[str, list[dict[str, Any]]]) -> Path:
    """A data set as `datasets` prepares it; -> its folder."""
    name = repo.rpartition("/")[2]
    folder = home / "datasets" / repo.replace("/", "___") / config / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    found, features = SplitDict(dataset_name=name), None
    for split, rows in splits.items():
        table = Dataset.from_list(rows)
        features = table.features
        writer = ArrowWriter(path=str(folder / f"{name}-{split}.arrow"), features=features)
        writer.write_table(table.data.table)
        n, size = writer.finalize()
        found.add(SplitInfo(name=split, num_bytes=size, num_examples=n, dataset_name=name))
    info = DatasetInfo(
        features=features, splits=found, builder_name="parquet", dataset_name=name, config_name=config, version="0.0.0"
    )
    info.write_to_directory(str(folder))
    return folder


def sentence(rng: random.Random) -> str:
    """A mild sentence of eleven words; there are hundreds of thousands."""
    a, b = (f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}" for _ in range(2))
    return f"{a} {rng.choice(VERBS)} {b} near {rng.choice(NOUNS)} number {rng.randrange(1000)}"


def rtp(n: int = 400) -> dict[str, list[dict[str, Any]]]:
    """RealToxicityPrompts' fields; every seventh prompt and every ninth continuation has no score, one has no text."""
    rng, names = random.Random(1), ("toxicity", "profanity", "insult")
    rows = []
    for i in range(n):
        scores = [dict.fromkeys(names, None if i % k == 0 else rng.random()) for k in (7, 9)]
        prompt, continuation = ({"text": text} | s for text, s in zip((sentence(rng), " and " + sentence(rng)), scores))
        rows.append({
            "filename": f"{i}.txt", "begin": 0, "end": 90, "challenging": i % 4 == 1,
            "prompt": prompt, "continuation": continuation,
        })  # fmt: skip
    rows[5]["prompt"] |= {"text": None}
    rows[6]["prompt"] |= {"text": " "}
    rows[10]["prompt"] |= {"text": rows[11]["prompt"]["text"]}
    return {"train": rows}


def imdb(n: int = 120) -> dict[str, list[dict[str, Any]]]:
    """Reviews sorted by their label, as the real ones are."""
    rng = random.Random(2)
    return {
        split: [
            {"text": f"{sentence(rng)}.<br /><br />{'lovely' if label else 'dull'} {sentence(rng)}.", "label": label}
            for label in (0, 1)
            for _ in range(n // 2)
        ]
        for split in ("train", "test")
    }


def wikitext(n: int = 60) -> dict[str, list[dict[str, Any]]]:
    """Headings, empty lines, short lines and paragraphs."""
    rng = random.Random(3)

    def lines() -> list[str]:
        return ["", " = Geese = \n", f" {sentence(rng)} \n", " " + " . ".join(sentence(rng) for _ in range(4)) + " . \n"]

    return {split: [{"text": t} for _ in range(n) for t in lines()] for split in ("train", "validation", "test")}


def pile(n: int = 150) -> dict[str, list[dict[str, Any]]]:
    """Documents of scored sentences; every third leaks an address, one has a null for scores."""
    rng = random.Random(4)
    rows = []
    for i in range(n):
        texts, scores = [f"{sentence(rng)}. " for _ in range(3)], [0.0, 0.0, 0.0]
        if i % 3 == 0:
            texts[1], scores[1] = f"write to {sentence(rng)} by goose{i}@example.com. ", 0.012
        rows.append({
            "texts": texts, "meta": {"pile_set_name": "Pile-CC"}, "scores": scores,
            "avg_score": sum(scores) / 3, "num_sents": 3,
        })  # fmt: skip
    rows[1] |= {"texts": None, "scores": None}
    return {"train": rows}


def code(n: int = 150) -> list[dict[str, Any]]:
    """Files of two functions, scored by lines; every other head is badly set."""
    rng = random.Random(5)
    rows = []
    for i in range(n):
        lines, scores = ["import os\n", "\n", "\n"], [0.0, 0.0, 0.0]
        for j in range(2):
            messy, name = (i + j) % 2, f"{rng.choice(NOUNS)}_{i}_{j}"
            head = f"def {name}({rng.choice(NOUNS)}{',' if messy else ', '}{rng.choice(VERBS)}):\n"
            lines += [head, "    x=1\n" if messy else "    x = 1\n", "    return x\n", "\n", "\n"]
            scores += [0.03 * messy, 0.1 * messy, 0.0, 0.0, 0.0]
        rows.append({
            "org_text": "".join(lines), "texts": lines, "scores": scores,
            "num_lines": len(lines), "avg_score": sum(scores) / len(scores),
        })  # fmt: skip
    rows[2] |= {"scores": None}
    return rows


def dexperts(folder: Path, n: int = 120) -> Path:
    """The prompt files of DExperts: neutral, positive, negative."""
    rng = random.Random(6)
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("neutral", "positive", "negative"):
        rows = [
            {"md5_hash": f"{i:032x}", "prompt": {"text": sentence(rng)}, "continuation": {"text": " and " + sentence(rng)}}
            for i in range(n)
        ]
        (folder / f"{kind}_prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder
