"""Named data sets: prompts, documents and clean text from the hub or from local files.

    RealToxicityPrompts  Gehman et al. 2020 (arXiv:2009.11462)    nontoxic, challenging
    IMDB                 Maas et al. 2011                         openings of positive and of negative reviews
    DExperts             Liu et al. 2021 (arXiv:2105.03023)       beginnings of sentences: neutral, positive, negative
    WikiText-103         Merity et al. 2016 (arXiv:1609.07843)    prefixes of 32 tokens; prefixes repeated twice
    scored Pile, code    Korbak et al. 2023 (arXiv:2302.08582)    beginnings of sentences; function headers

Every row yields items: a prompt, its kind, and the continuation. All data sets are then processed alike: rows without text and
repeated prompts are dropped and counted; each prompt is assigned to a fixed split by the hash of its text or of its document;
prompts that share an 8-gram of words with a held-out prompt are dropped. A kind named `unconditional` with an empty prompt is
added. The identity holds the hash of all texts, so that a data set changed under the same name is a different one; revision
and commit are recorded separately as provenance.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from harness.api import BadData, BadSetting, EmptySelection, Item, MissingPrerequisite, NoItem, hub, one_line

from ..scorers.style import body_end
from ..text_task import Data, Text, document
from .prompt_files import Prompt, cut, place, split_of
from .splits import grams
from .tables import read_rows, shown

log = logging.getLogger(__name__)
UNCONDITIONAL = "unconditional"
UNCONDITIONAL_SHARE = 10  # one in this many training prompts is empty
LONGEST = 600  # maximum length of a prompt in bytes; longer ones are rarely text and leave no room for a response
COMMIT = re.compile("[0-9a-f]{40}")


class Source:
    """A named data set: its location, and how its rows become items."""

    repo: ClassVar[str | None] = None  # id on the hub
    config: ClassVar[str | None] = None
    splits: ClassVar[dict[str, str | None]] = {"train": None}  # {split of the data set: our split, or None to hash}
    tasks: ClassVar[dict[str, tuple[str, str]]]  # {task: (kind of ordinary prompts, kind of adversarial prompts)}
    ends: ClassVar[bool] = False  # whether a continuation runs to the end of a document; else it is an extract

    def __init__(self, task: str, settings: Any, tokenizer: Any) -> None:
        name = type(self).__name__
        if task not in self.tasks:
            raise BadSetting(f"the data set {name} has no prompts for task {task!r}; it has some for {', '.join(self.tasks)}")
        if (settings.path is None) == (self.repo is None):
            what = (
                "is not on the hub: set task.data.path to its folder" if self.repo is None else "comes from the hub: leave out"
            )
            raise BadSetting(f"the data set {name} {what}" + ("" if self.repo is None else " task.data.path"))
        self.task, self.settings, self.tokenizer = task, settings, tokenizer
        self.kinds = self.tasks[task]
        self.found: dict[str, Any] = {}  # provenance of the rows that were read, such as the commit

    @classmethod
    def needs(cls, settings: Any) -> list[hub.Need]:
        """The prerequisites for reading the data set."""
        assert cls.repo is not None
        return [hub.package("datasets", "data"), hub.dataset(cls.repo, cls.config)]

    def items(self, row: dict[str, Any]) -> Iterator[Item]:
        """Yield the items of a row; raises NoItem if it has none."""
        raise NotImplementedError

    def rows(self, offline: bool) -> Iterator[tuple[str | None, dict[str, Any]]]:
        """Yield (our split or None, row); raises MissingPrerequisite, BadData."""
        assert self.repo is not None
        tables, self.found["commit"] = prepared(self.repo, self.config, list(self.splits), self.settings.revision, offline)
        for table, ours in zip(tables, self.splits.values(), strict=True):
            step = max(1, -(-len(table) // self.settings.rows))
            for batch in table.select(range(0, len(table), step)).iter(1000):
                yield from ((ours, dict(zip(batch, values, strict=True))) for values in zip(*batch.values(), strict=True))


class RealToxicityPrompts(Source):
    """RealToxicityPrompts: prompts with toxicity scores, which may be null; challenging prompts are the adversarial ones."""

    repo = "allenai/real-toxicity-prompts"
    tasks: ClassVar = {"toxicity": ("nontoxic", "challenging")}

    def items(self, row: dict[str, Any]) -> Iterator[Item]:
        prompt, response = row["prompt"] or {}, row["continuation"] or {}
        text, toxicity = _said(prompt.get("text")), prompt.get("toxicity")
        nontoxic = toxicity is not None and toxicity < 0.5
        kind = "challenging" if row["challenging"] else "nontoxic" if nontoxic else None
        after = response.get("toxicity")
        clean = nontoxic and after is not None and after < 0.5
        yield Item(text, kind, text, response.get("text") or "", clean)


class Imdb(Source):
    """IMDB: the first words of film reviews; reviews with the undesired sentiment are adversarial."""

    repo = "stanfordnlp/imdb"
    splits: ClassVar = {"train": "train", "test": "held_out"}
    tasks: ClassVar = {"sentiment": ("positive", "negative"), "sentiment_negative": ("negative", "positive")}
    ends = True
    words = 8

    def items(self, row: dict[str, Any]) -> Iterator[Item]:
        if row["label"] not in (0, 1):
            raise NoItem("unlabelled")
        text = _said(row["text"]).replace("<br />", " ")
        opening, kind = cut(text, self.words), ("negative", "positive")[row["label"]]
        yield Item(opening, kind, text, text[len(opening) :], clean=kind == self.kinds[0])


class DExperts(Source):
    """The sentiment prompts of DExperts: files neutral_, positive_ and negative_prompts.jsonl in a folder."""

    tasks: ClassVar = {"sentiment": ("neutral", "negative"), "sentiment_negative": ("neutral", "positive")}

    @classmethod
    def needs(cls, settings: Any) -> list[hub.Need]:
        return [hub.file("prompts of DExperts", Path(settings.path or "task.data.path"), "github.com/alisawuffles/DExperts")]

    def rows(self, offline: bool) -> Iterator[tuple[str | None, dict[str, Any]]]:
        for kind in self.kinds:
            for line, row in read_rows(Path(self.settings.path) / f"{kind}_prompts.jsonl"):
                if not isinstance(row, dict) or not isinstance(row.get("prompt"), dict):
                    raise BadData(f'{kind}_prompts.jsonl, line {line}: expected {{"prompt": {{"text": ...}}, ...}}')
                yield None, row | {"kind": kind, "place": f"{kind}_prompts.jsonl, line {line}"}

    def items(self, row: dict[str, Any]) -> Iterator[Item]:
        text, after = _said(row["prompt"].get("text")), (row.get("continuation") or {}).get("text")
        yield Item(text, row["kind"], text, after or "", clean=row["kind"] == "neutral", place=row["place"])


class WikiText(Source):
    """WikiText-103: a paragraph split into a prefix of 32 tokens (Su et al. 2022, arXiv:2202.06417) and a continuation.

    The adversarial prompt is half a prefix repeated twice, which invites further repetition.
    """

    repo = "Salesforce/wikitext"
    config = "wikitext-103-raw-v1"
    splits: ClassVar = {"train": "train", "validation": "validation", "test": "test"}
    tasks: ClassVar = {"repetition": ("article", "repeated")}
    prefix = 32

    def items(self, row: dict[str, Any]) -> Iterator[Item]:
        text = _said(row["text"]).strip()
        if text.startswith("="):
            raise NoItem("heading")
        ids = self.tokenizer(cut(text, 4 * self.prefix), add_special_tokens=False)["input_ids"]
        prompt, half = (self.tokenizer.decode(ids[:n]) for n in (self.prefix, self.prefix // 2))
        if len(ids) <= self.prefix:
            raise NoItem("short")
        if not (text.startswith(prompt) and text.startswith(half)):  # the cut went through a character
            raise NoItem("not text")
        yield Item(prompt, "article", text, text[len(prompt) :], clean=True)
        yield Item(f"{half} {half.lstrip()}", "repeated", text)


class ScoredPile(Source):
    """Sentences of the Pile, scored by personal data per character; the first words of a sentence with some are adversarial.

    This is one shard of 39; the full data set is tomekkorbak/pile-pii-scrubadub.
    """

    repo = "tomekkorbak/pii-pile-chunk3-0-50000"
    tasks: ClassVar = {"pii": ("sentence", "personal")}
    ends = True
    words = 6

    def items(self, row: dict[str, Any]) -> Iterator[Item]:
        texts, scores = _segments(row)
        document = "".join(texts)
        kinds = ["personal" if score > 0 else "sentence" for score in scores]
        for i in sorted({kinds.index(kind) for kind in kinds}):  # the first sentence of each kind
            opening = cut(texts[i].lstrip(), self.words)
            if len(opening) == len(texts[i].lstrip()):
                continue  # no continuation is left
            after = texts[i].lstrip()[len(opening) :] + "".join(texts[i + 1 :])
            yield Item(opening, kinds[i], document, after, clean="personal" not in kinds)


class ScoredCode(Source):
    """Python functions, scored line by line by PEP 8 violations per character; headers with violations are adversarial."""

    repo = "kejian/codeparrot-train-more-filter-3.3b-cleaned"
    tasks: ClassVar = {"pep8": ("function", "messy_function")}
    file = "data/train-00000-of-00064.parquet"  # one of 64 parts suffices; all have 11 GB

    @classmethod
    def needs(cls, settings: Any) -> list[hub.Need]:
        return [hub.dataset_file(cls.repo, cls.file, settings.revision)]

    def rows(self, offline: bool) -> Iterator[tuple[str | None, dict[str, Any]]]:
        import pyarrow.parquet as parquet

        path, self.found["commit"] = downloaded(self.repo, self.file, self.settings.revision, offline)
        try:
            table = parquet.ParquetFile(path)
            left = self.settings.rows
            for batch in table.iter_batches(min(1000, left), columns=["texts", "scores"]):
                yield from ((None, row) for row in batch.to_pylist()[:left])
                left -= len(batch)
                if left <= 0:
                    return
        except (OSError, ValueError) as e:  # the base classes of pyarrow's errors
            raise BadData(f"{path} of {self.repo} cannot be read ({one_line(e)}); delete it and download it again") from e

    def items(self, row: dict[str, Any]) -> Iterator[Item]:
        lines, scores = _segments(row)
        document = "".join(lines)
        for start, line in enumerate(lines):
            if not (line.startswith("def ") and line.endswith(":\n")):
                continue
            end = body_end(lines, start)
            body = "".join(lines[start + 1 : end]).rstrip() + "\n"
            if body.strip():
                kind = "messy_function" if scores[start] > 0 else "function"
                yield Item(line, kind, document, body, clean=not any(scores[start:end]))


def load(source: Source, offline: bool = False) -> Data:
    """Load the data of a task; raises MissingPrerequisite, BadData, or EmptySelection if a split lacks a kind of prompt."""
    dropped: Counter[str] = Counter()
    splits = _without_overlap(_split(_items(source, offline, dropped), dropped), dropped)
    limits = source.settings
    corpus = [i for i in splits["train"] if i.response.strip()][: limits.documents]
    clean = [i for i in splits["test"] if i.clean and i.response.strip()][: limits.clean]
    prompts = {"train": _train(splits["train"], limits.train)}
    for name in ("validation", "test"):
        prompts[name] = _held_out(source, name, splits[name], limits.held_out)
    documents, held_out = (_documents(part, limits.document_words, source.ends) for part in (corpus, clean))
    log.info("%s: %s; dropped %s", source.repo or limits.path, {k: len(v) for k, v in prompts.items()}, dict(dropped))
    identity = _identity(source, prompts, documents, held_out, dropped)
    places = {i.prompt: i.place for members in splits.values() for i in members}
    return Data(prompts, documents, held_out, identity, {}, places, _origin(source))


def _items(source: Source, offline: bool, dropped: Counter[str]) -> Iterator[Item]:
    """Yield the items of all rows, each distinct prompt once."""
    seen = set()
    for number, (split, row) in enumerate(source.rows(offline), 1):
        place = f"{_name(source)}, row {number} of those read"
        try:
            for item in source.items(row):
                if item.prompt in seen or len(item.prompt.encode()) > LONGEST:
                    dropped["repeated" if item.prompt in seen else "long"] += 1
                    continue
                seen.add(item.prompt)
                yield item._replace(split=split, place=item.place or place)
        except NoItem as e:
            dropped[str(e)] += 1
        except (KeyError, TypeError, AttributeError) as e:
            has = ", ".join(map(shown, sorted(row)))
            raise BadData(f"{place}, has unexpected fields {has}: {e}; give another data set or revision") from e


def _split(items: Iterable[Item], dropped: Counter[str]) -> dict[str, list[Item]]:
    """Assign items to train, validation and test, by the data set's own splits or by hash; each sorted by hash of the text."""
    splits: dict[str, list[Item]] = {"train": [], "validation": [], "test": []}
    for item in items:
        where = place(item.group)
        held_out = "validation" if where < 0.5 else "test"
        name = {None: split_of(where), "held_out": held_out}.get(item.split, item.split)
        assert name is not None
        splits[name].append(item)
    for members in splits.values():
        members.sort(key=lambda i: place(i.prompt))
    return splits


def _without_overlap(splits: dict[str, list[Item]], dropped: Counter[str]) -> dict[str, list[Item]]:
    """Drop items that share an 8-gram of words with a test prompt, or a training item with a validation prompt."""
    taken: set[tuple[str, ...]] = set()
    kept: dict[str, list[Item]] = {}
    for name in ("test", "validation", "train"):
        kept[name] = [i for i in splits[name] if taken.isdisjoint(grams(i.prompt))]
        dropped["overlap"] += len(splits[name]) - len(kept[name])
        taken.update(g for i in kept[name] for g in grams(i.prompt))
    return kept


def _train(items: list[Item], limit: int) -> list[Prompt]:
    """Training prompts of every kind, those without a kind included; one in ten is the empty prompt."""
    empty = limit // UNCONDITIONAL_SHARE
    chosen = [Prompt(i.prompt, i.kind or "other", None) for i in items[: limit - empty]]
    empty = min(empty, len(chosen) // (UNCONDITIONAL_SHARE - 1))
    return chosen + [Prompt("", UNCONDITIONAL, None)] * empty


def _held_out(source: Source, name: str, items: list[Item], limit: int) -> list[Prompt]:
    chosen = []
    for kind in source.kinds:
        found = [Prompt(i.prompt, kind, None) for i in items if i.kind == kind][:limit]
        if not found:
            raise EmptySelection(
                f"{source.repo or source.settings.path} gives no {name} prompt of kind {kind!r}; read more rows of it: "
                f"task.data.rows is {source.settings.rows}"
            )
        chosen += found
    return chosen + [Prompt("", UNCONDITIONAL, None)] * min(limit, len(chosen))


def _documents(items: list[Item], words: int, ends: bool) -> list[Text]:
    return [document(i.prompt, i.response, words, ends) for i in items]


def _identity(
    source: Source,
    prompts: dict[str, list[Prompt]],
    documents: list[Text],
    clean: list[Text],
    dropped: Counter[str],
) -> dict[str, Any]:
    """The identity of the texts, by content and not by location."""
    texts = [{name: [[p.kind, p.text] for p in members] for name, members in prompts.items()}, documents, clean]
    counts = {name: len(members) for name, members in prompts.items()} | {"documents": len(documents), "clean": len(clean)}
    return {
        "name": _name(source),
        "rows": counts,
        "dropped": dict(sorted(dropped.items())),
        "disjoint": {"by": "sha256 of the text and 8-grams of words"},
        "sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
    }


def _origin(source: Source) -> dict[str, Any]:
    """The provenance of the texts: repository, revision and commit, or a folder."""
    if source.repo is None:
        return {"folder": Path(source.settings.path).name}
    return {"repo": source.repo, "revision": source.settings.revision, **source.found}


def _name(source: Source) -> str:
    """The name of the data set: its hub id or its class name, never a folder."""
    return source.repo or type(source).__name__


def _said(text: Any) -> str:
    """Return a non-empty text unchanged; raises NoItem if it is null or empty, TypeError if it is not a string."""
    if text is None:
        raise NoItem("null")
    if not isinstance(text, str):
        raise TypeError(f"expected a text, found {type(text).__name__}")
    if not text.strip():
        raise NoItem("empty")
    return text


def _segments(row: dict[str, Any]) -> tuple[list[str], list[float]]:
    """The texts and scores of a document's segments; raises NoItem if a text or a score is missing."""
    texts, scores = row["texts"], row["scores"]
    if texts is None or scores is None or None in texts or None in scores:
        raise NoItem("null")
    if not "".join(texts).strip():
        raise NoItem("empty")
    if len(texts) != len(scores):
        raise NoItem("segments without scores")
    return texts, scores


def prepared(repo: str, config: str | None, splits: list[str], revision: str, offline: bool) -> tuple[list[Any], str | None]:
    """The splits of a data set as prepared by `datasets`, and their commit if known; raises MissingPrerequisite.

    The commit is requested from the hub once, without retries; if the hub does not answer, the cache is used.
    """
    try:
        import datasets
    except ImportError as e:
        raise MissingPrerequisite(f"no datasets ({one_line(e)}); pip install 'unlearning-harness[data]'") from e
    wanted, why = _commit(repo, revision, offline)
    try:
        with _quietly(datasets, offline=wanted is None):
            tables = [datasets.load_dataset(repo, config, split=split, revision=wanted or revision) for split in splits]
    except Exception as e:  # the hub, its transport, datasets and pyarrow raise many types
        looked = datasets.config.HF_DATASETS_CACHE
        raise _missing(repo, f"not prepared in {looked}, and {why or one_line(e)}", "run once with network") from e
    folder = Path(tables[0].cache_files[0]["filename"]).parent.name
    found = folder if COMMIT.fullmatch(folder) else None
    if COMMIT.fullmatch(revision) and found != revision:
        raise _missing(repo, f"prepared at {found}, expected {revision}, and {why}", "run once with network")
    return tables, found


def downloaded(repo: str, file: str, revision: str, offline: bool) -> tuple[Path, str]:
    """The path of one file of a data set, from the hub or its cache, and its commit; raises MissingPrerequisite."""
    from huggingface_hub import constants, hf_hub_download

    wanted, why = _commit(repo, revision, offline)
    try:
        found = hf_hub_download(repo, file, repo_type="dataset", revision=wanted or revision, local_files_only=wanted is None)
    except Exception as e:  # the hub and its transport raise many types
        why = f"{file} is not in {constants.HF_HUB_CACHE}, and {why or one_line(e)}"
        raise _missing(repo, why, f"hf download {repo} {file} --repo-type dataset") from e
    path = Path(found)
    return path, path.parents[file.count("/")].name


def _missing(repo: str, why: str, how: str) -> MissingPrerequisite:
    return MissingPrerequisite(f"no data set {repo!r}: {why}; get it while online ({how}), or give --prompts FILE")


def _commit(repo: str, revision: str, offline: bool) -> tuple[str | None, str]:
    """The commit of a revision on the hub, or None and the reason it is unknown; raises MissingPrerequisite if none exists."""
    from huggingface_hub import HfApi, is_offline_mode
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if offline or is_offline_mode():
        return None, "the run is offline"
    try:
        return HfApi().dataset_info(repo, revision=revision, timeout=10).sha, ""
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError) as e:
        raise MissingPrerequisite(f"no data set {repo!r} at revision {revision!r} on the hub ({one_line(e)})") from e
    except Exception as e:  # the hub and its transport raise many types
        return None, f"the hub does not answer ({one_line(e)})"


@contextmanager
def _quietly(datasets: Any, offline: bool) -> Iterator[None]:
    """Context manager without progress bars and warnings of `datasets`; if offline, also without retried look-ups."""
    import huggingface_hub.constants as hub

    before = (datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE, datasets.logging.get_verbosity())
    bars = datasets.are_progress_bars_disabled()
    if offline:
        datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE, verbosity = before
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
