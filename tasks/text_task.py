"""The base class of all text tasks: prompts in three splits, documents, and scorers of decoded responses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.api import (
    BadData,
    BaseTraining,
    Decoding,
    Documents,
    EmptySelection,
    Metric,
    Prompts,
    PromptSet,
    Responses,
    Rollout,
    Scorer,
    metrics,
)

from .data import in_context
from .data import splits as hygiene
from .data.chat import Chat
from .data.prompt_files import NO_PLACES, Prompt, cut, opening, tokenize

SEGMENT = re.compile(r".+?(?:[.?!]+[\"')\]]*(?=\s|$)(?:[^\S\n]*\n+)?(?:\s+$)?|\n+(?:\s+$)?|$)", re.DOTALL)


class Text(NamedTuple):
    """A document: a prompt and its response, and the kind of the prompt where the corpus names it."""

    prompt: str
    response: str
    kind: str | None = None
    ends: bool = True  # whether the document ends with the response; an extract goes on, and EOS after it is never learned


def document(prompt: str, response: str, words: int, ends: bool) -> Text:
    """A document of at most `words` words after its prompt; one that is cut does not end there."""
    kept = cut(response, words)
    return Text(prompt, kept, ends=ends and kept == response)


class Data(NamedTuple):
    """The texts of a task: prompts, documents, and their identity."""

    splits: dict[str, list[Prompt]]  # train, validation, test
    documents: list[Text]  # training text with the undesired behaviour
    clean: list[Text]  # held-out text without the undesired behaviour
    identity: dict[str, Any]
    measures: dict[str, Callable[[str], float]]  # further metrics of a response, by name; NaN if one does not apply
    places: Mapping[str, str] = NO_PLACES  # {prompt: its location}, a file and line or a row of a data set
    origin: Mapping[str, Any] = NO_PLACES  # provenance of the texts; the identity depends on their content only
    base_training: Callable[[Any, Callable[[str, str], bool]], BaseTraining] | None = None
    """How the base policy was trained, where that is known: tokenizer, which documents (prompt, response) to keep -> recipe."""


class Labelled(NamedTuple):
    """A tokenized document with the reward of each segment."""

    prompt: str
    response: list[int]
    segment: list[int]  # index of the segment of each response token
    reward: list[float]  # one per segment


class TextTask:
    """A task whose scorers read text; subclasses in `tasks/` add the name and the papers' metrics.

    A task without a table in the presets sets `like`, the name of the task whose preset tables and kinds of prompts it
    uses, and `settings`, the values that differ, as in a preset under [tasks.NAME].
    """

    name: str
    version: int
    kinds: tuple[str, ...]  # kinds of micro-world prompts that the task uses
    papers: ClassVar[Mapping[str, Decoding]] = {}  # decodings of the papers, by name
    like: ClassVar[str | None] = None
    settings: ClassVar[Mapping[str, Any] | None] = None
    chats: ClassVar[bool] = True  # whether `task.chat` applies

    def __init__(
        self,
        data: Data,
        tokenizer: Any,
        *,
        reward: Scorer,
        judge: Scorer,
        fluency: Any,
        decoding: Decoding,
        context: int,
        paper_tokens: int | None = None,
        bos: int | None = None,
        eos: int | None = None,
        chat: bool = False,
    ) -> None:
        """Tokenize the prompts; `bos` and `eos` are token ids of the policy, by default those of the tokenizer.

        With `chat` each prompt is a message of the user in the tokenizer's chat template; scorers read the message alone.
        Raises BadSetting if there is no template.
        """
        shorter = {} if paper_tokens is None else {"max_new_tokens": paper_tokens}
        self.paper_decodings = {name: d.model_copy(update=shorter) for name, d in self.papers.items()}
        self._data, self._tokenizer, self._reward, self._judge = data, tokenizer, reward, judge
        self.fluency, self.decoding, self._context = fluency, decoding, context
        self._bos, self._eos = bos, tokenizer.eos_token_id if eos is None else eos
        self._chat = Chat(tokenizer) if chat else None
        self.hygiene = hygiene.check(data.splits) | ({"origin": dict(data.origin)} if data.origin else {})
        self._train = self._tokenize([p.text for p in self._split("train")])

    def identity(self) -> dict[str, Any]:
        """Everything besides the model that decides a result: data, scorers, decoding."""
        papers = {name: d.model_dump() for name, d in self.paper_decodings.items()}
        return {
            "task": {"name": self.name, "version": self.version},
            "data": self._data.identity,
            "scorers": {"reward": self._reward.identity, "judge": self._judge.identity},
            "fluency": None if self.fluency is None else self.fluency.identity,
            "decoding": {"kl": self.decoding.model_dump(), "papers": papers},
            **({"chat": self._chat.identity} if self._chat is not None else {}),
        }

    def train_prompts(self, n: int, rng: torch.Generator) -> Prompts:
        """n training prompts, drawn with replacement: -> [n, P]."""
        rows = torch.randint(len(self._train.tokens), (n,), generator=rng)
        return Prompts(*(x[rows] for x in self._train))

    def prompts(self, split: str) -> PromptSet:
        """The prompts of a split, in a fixed order."""
        chosen = self._split(split)
        texts = [p.text for p in chosen]
        places = (
            [self._data.places.get(text, f"{split} prompt {i}") for i, text in enumerate(texts)] if self._data.places else []
        )
        return PromptSet(self._tokenize(texts), texts, [p.kind for p in chosen], places)

    def documents(self, n: int, rng: torch.Generator) -> Documents:
        """n documents of the corpus, drawn with replacement, with the rewards of their segments: -> [n, R].

        Raises EmptySelection if the task has no documents.
        """
        rows = torch.randint(len(self._corpus.segment), (n,), generator=rng)
        return _drawn(self._corpus, rows)

    def clean_documents(self) -> Rollout | None:
        """Held-out text without the undesired behaviour, D documents: -> [D, R]; None if the data has none."""
        return self._clean

    @cached_property
    def _clean(self) -> Rollout | None:
        """The clean documents tokenized; computed once, since every evaluation reads them."""
        if not self._data.clean:
            return None
        ids = [ids for ids, _ in self._response_ids(self._data.clean)]
        return self._padded([text.prompt for text in self._data.clean], ids)

    def base_training(self) -> BaseTraining | None:
        """The training of the base policy, on those of its documents that have nothing of the habit; None if it is unknown.

        The judge decides: a document is left out, whole, if its response or any segment of it scores below an empty text.
        """
        make = self._data.base_training
        return None if make is None else make(self._tokenizer, self._harmless)

    def _harmless(self, prompt: str, response: str) -> bool:
        parts = ["", response, *segments(response)]
        nothing, *scores = self._judge.score([prompt] * len(parts), parts)
        return all(score >= nothing for score in scores)  # not where one is NaN

    def texts(self, rollout: Rollout) -> list[str]:
        """The responses as text, decoded after their prompts, without special tokens: [B, R] -> [B]."""
        lengths = rollout.response_mask.sum(1).tolist()
        rows = [row[:n] for row, n in zip(rollout.response.tolist(), lengths, strict=True)]
        return in_context.decoded(self._tokenizer, self._prompt_rows(rollout), rows)

    def reward(self, rollout: Rollout) -> Tensor:
        """The reward of each response, NaN if the scorer failed: -> [B] float32."""
        return self._score(self._reward, rollout)

    def judge(self, rollout: Rollout) -> Tensor:
        """The judge's score of each response, NaN if it failed: -> [B] float32."""
        return self._score(self._judge, rollout)

    def text_metrics(self, texts: list[list[str]]) -> dict[str, Metric]:
        """Metrics that the data defines: X lists of S texts -> {name: Metric}; texts without a value are left out."""
        found = {}
        for name, measure in self._data.measures.items():
            values = np.array([[measure(text) for text in responses] for responses in texts])
            found[name] = metrics.cluster_mean(values)._replace(n_unscored=0)
        return found

    def paper_metrics(self, said: dict[str, Responses]) -> dict[str, Metric]:
        """The papers' metrics, from the responses under each of their decodings; empty unless a subclass defines some."""
        return {}

    def _score(self, scorer: Scorer, rollout: Rollout) -> Tensor:
        scores = scorer.score(self._decode_prompts(rollout), self.texts(rollout))
        return torch.as_tensor(scores, dtype=torch.float32)

    def _decode_prompts(self, rollout: Rollout) -> list[str]:
        """The prompts as text; each distinct prompt is decoded once."""
        rows = list(map(tuple, self._prompt_rows(rollout)))
        text = {row: self._tokenizer.decode(list(row), skip_special_tokens=True) for row in set(rows)}
        if self._chat is not None:
            text = {row: self._chat.within(found) for row, found in text.items()}
        return [text[row] for row in rows]

    @staticmethod
    def _prompt_rows(rollout: Rollout) -> list[list[int]]:
        """The tokens of each prompt, without padding."""
        lengths = rollout.prompts.mask.sum(1).tolist()
        return [row[len(row) - n :] for row, n in zip(rollout.prompts.tokens.tolist(), lengths, strict=True)]

    def _split(self, split: str) -> list[Prompt]:
        if not self._data.splits.get(split):
            raise EmptySelection(f"task {self.name!r} has no {split} prompts")
        return self._data.splits[split]

    def _tokenize(self, texts: list[str]) -> Prompts:
        limits: dict[str, Any] = {"max_new_tokens": self.decoding.max_new_tokens, "context": self._context, "bos": self._bos}
        places = self._data.places
        if self._chat is None:
            return tokenize(texts, self._tokenizer, places=places, **limits)
        asked = {text: self._chat.around(text) for text in texts}
        places = {asked[text]: place for text, place in places.items() if text in asked}
        return tokenize([asked[text] for text in texts], self._tokenizer, places=places, opened=False, **limits)

    def _asked(self, prompt: str) -> str:
        """The text that the policy reads for a prompt, but for its opening special tokens."""
        return prompt if self._chat is None else self._chat.around(prompt)

    @cached_property
    def _corpus(self) -> Documents:
        """All D documents tokenized, with the rewards of their segments: [D, R]; computed once, for draws by index."""
        found = self._labelled()
        rollout = self._padded([d.prompt for d in found], [d.response for d in found])
        segment = torch.full(rollout.response.shape, -1)
        segment[rollout.response_mask] = torch.tensor([i for d in found for i in d.segment])
        reward = torch.full(rollout.response.shape, torch.nan)
        each = [d.reward[i] if i >= 0 else torch.nan for d in found for i in d.segment]
        reward[rollout.response_mask] = torch.tensor(each)
        kinds = [text.kind for text in self._data.documents]
        own = None if None in kinds else torch.tensor([kind in getattr(self, "kinds", ()) for kind in kinds])
        return Documents(rollout, segment, reward, own)

    def _labelled(self) -> list[Labelled]:
        """All documents tokenized, with the rewards of their segments."""
        if not self._data.documents:
            raise EmptySelection(f"task {self.name!r} has no labelled documents on these prompts; choose an online method")
        parts = [segments(text.response) for text in self._data.documents]
        prompts = [text.prompt for text, found in zip(self._data.documents, parts, strict=True) for _ in found]
        rewards = iter(self._reward.score(prompts, [segment for found in parts for segment in found]).tolist())
        tokens = self._response_ids(self._data.documents)
        return [
            Labelled(text.prompt, *found, [next(rewards) for _ in part])
            for text, found, part in zip(self._data.documents, tokens, parts, strict=True)
        ]

    def _response_ids(self, texts: list[Text]) -> list[tuple[list[int], list[int]]]:
        """The tokens of each response, cut at the context, and the index of the segment in which each token begins.

        The last is EOS where the document ends with the response and is not cut. Prompt and response are tokenized together, as
        the base policy was trained; a token that crosses the end of a segment is not split. Room is left for a control token
        before each segment and before the document.
        """
        if not self._tokenizer.is_fast:
            raise BadData("the tokenizer gives no character offsets; use a fast one, with a tokenizer.json")
        asked = [self._asked(text.prompt) for text in texts]
        found = in_context.encoded(self._tokenizer, asked, [text.response for text in texts], offsets=True)
        lengths, parts = self._prompt_lengths(asked), [segments(text.response) for text in texts]
        each = zip(found, parts, asked, texts, strict=True)
        return [self._cut(*x, part, lengths[prompt], text.ends) for x, part, prompt, text in each]

    def _cut(
        self, ids: list[int], starts: list[int], parts: list[str], prompt: int, document_ends: bool
    ) -> tuple[list[int], list[int]]:
        """A response cut at the context after a prompt of this many tokens."""
        ends = np.cumsum([len(part) for part in parts])
        segment = np.searchsorted(ends, starts, side="right").tolist()
        room = max(0, self._context - prompt - len(ends) - 3)
        if len(ids) > room or not document_ends:
            return ids[:room], segment[:room]
        return [*ids, self._eos], [*segment, segment[-1] if segment else -1]

    def _prompt_lengths(self, prompts: list[str]) -> dict[str, int]:
        """The number of tokens of each distinct prompt with the tokenizer's opening."""
        distinct = list(dict.fromkeys(prompts))
        found = self._tokenizer(distinct, add_special_tokens=False)["input_ids"] if distinct else []
        return {text: len(self._opening) + len(ids) for text, ids in zip(distinct, found, strict=True)}

    @cached_property
    def _opening(self) -> list[int]:
        """The special tokens that the tokenizer puts before a text."""
        return opening(self._tokenizer)

    def _padded(self, prompts: list[str], ids: list[list[int]]) -> Rollout:
        width, eos = max(map(len, ids)), self._eos
        response = torch.tensor([row + [eos] * (width - len(row)) for row in ids])
        mask = torch.arange(width) < torch.tensor([[len(row)] for row in ids])
        return Rollout(self._tokenize(prompts), response, mask)


def _drawn(corpus: Documents, rows: Tensor) -> Documents:
    """Some documents of a corpus, padded to the longest prompt and the longest response among them: [D, R] -> [n, R]."""
    found = corpus.rollout.rows(rows)
    width, length = (int(mask.sum(1).max()) for mask in (found.prompts.mask, found.response_mask))
    prompts = Prompts(*(x[:, -width:] for x in found.prompts))
    rollout = Rollout(prompts, found.response[:, :length], found.response_mask[:, :length])
    own = None if corpus.own is None else corpus.own[rows]
    return Documents(rollout, corpus.segment[rows, :length], corpus.reward[rows, :length], own)


def segments(text: str) -> list[str]:
    """Split a text into sentences, or into lines (code); their concatenation is the text.

    A space between two sentences belongs to the second, as in BPE tokens; newlines belong to the first.
    """
    return SEGMENT.findall(text)
