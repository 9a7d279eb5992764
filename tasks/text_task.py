"""What all tasks on text share: prompts of three splits, documents, and scorers that see decoded responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.errors import EmptySelection
from harness.metrics import cluster_mean
from harness.types import Decoding, Metric, Prompts, PromptSet, Rollout, Said, Scorer

from .prompt_files import Prompt, tokenize


class Text(NamedTuple):
    """A document: a prompt and what answers it."""

    prompt: str
    response: str


class Data(NamedTuple):
    """The texts of a task."""

    splits: dict[str, list[Prompt]]  # train, validation, test
    documents: list[tuple[str, str]]  # prompt and response, with the habit in them
    clean: list[tuple[str, str]]  # held out, without the habit
    identity: dict[str, Any]
    measures: dict[str, Callable[[str], float]]  # further metrics of a response; NaN where one does not apply


class TextTask:
    """A task whose scorers read text. A file of `tasks/` adds the name and the papers' metrics."""

    name: str
    version: int
    kinds: tuple[str, ...]  # of the micro world's prompts: which are this task's
    papers: ClassVar[dict[str, Decoding]]  # the papers' decodings, by a name

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
    ) -> None:
        shorter = {} if paper_tokens is None else {"max_new_tokens": paper_tokens}
        self.paper_decodings = {name: d.model_copy(update=shorter) for name, d in self.papers.items()}
        self._data, self._tokenizer, self._reward, self._judge = data, tokenizer, reward, judge
        self.fluency, self.decoding, self._context = fluency, decoding, context
        self._train = self._tokenize([p.text for p in self._split("train")])

    def identity(self) -> dict[str, Any]:
        """What decides a result besides the model: data, scorers, decoding."""
        papers = {name: d.model_dump() for name, d in self.paper_decodings.items()}
        return {
            "task": {"name": self.name, "version": self.version},
            "data": self._data.identity,
            "scorers": {"reward": self._reward.identity, "judge": self._judge.identity},
            "fluency": None if self.fluency is None else self.fluency.identity,
            "decoding": {"kl": self.decoding.model_dump(), "papers": papers},
        }

    def train_prompts(self, n: int, rng: torch.Generator) -> Prompts:
        """n training prompts, drawn with replacement: -> [n, P]."""
        rows = torch.randint(len(self._train.tokens), (n,), generator=rng)
        return Prompts(*(x[rows] for x in self._train))

    def prompts(self, split: str) -> PromptSet:
        """The prompts of a split, in a fixed order."""
        chosen = self._split(split)
        texts = [p.text for p in chosen]
        return PromptSet(self._tokenize(texts), texts, [p.kind for p in chosen])

    def documents(self, n: int, rng: torch.Generator) -> Rollout:
        """n documents of the corpus: -> [n, R]; raises EmptySelection where the task has none."""
        if not self._data.documents:
            raise EmptySelection(f"task {self.name!r} has no labelled documents on these prompts; choose an online method")
        rows = torch.randint(len(self._data.documents), (n,), generator=rng)
        return self._rollout([self._data.documents[i] for i in rows.tolist()])

    def clean_documents(self) -> Rollout | None:
        """Held-out text without the habit, or None where the data has none."""
        return self._rollout(self._data.clean) if self._data.clean else None

    def texts(self, rollout: Rollout) -> list[str]:
        """The responses as text, without special tokens."""
        lengths = rollout.response_mask.sum(1).tolist()
        rows = [row[:n] for row, n in zip(rollout.response.tolist(), lengths)]
        return self._tokenizer.batch_decode(rows, skip_special_tokens=True)

    def reward(self, rollout: Rollout) -> Tensor:
        """The reward of each response, NaN where the scorer failed: -> [B] float32."""
        return self._score(self._reward, rollout)

    def judge(self, rollout: Rollout) -> Tensor:
        """The judge's score of each response, NaN where it failed: -> [B] float32."""
        return self._score(self._judge, rollout)

    def text_metrics(self, texts: list[list[str]]) -> dict[str, Metric]:
        """Metrics that the task's data brings, from responses [X][S]; one that does not apply is left out, not unscored."""
        found = {}
        for name, measure in self._data.measures.items():
            values = np.array([[measure(text) for text in responses] for responses in texts])
            found[name] = cluster_mean(values)._replace(n_unscored=0)
        return found

    def paper_metrics(self, said: dict[str, Said]) -> dict[str, Metric]:
        """The papers' metrics, from what was said under each of their decodings."""
        raise NotImplementedError

    def _score(self, scorer: Scorer, rollout: Rollout) -> Tensor:
        scores = scorer.score(self._decode_prompts(rollout), self.texts(rollout))
        return torch.as_tensor(scores, dtype=torch.float32)

    def _decode_prompts(self, rollout: Rollout) -> list[str]:
        """The prompts as text; one that comes again is decoded once."""
        lengths = rollout.prompts.mask.sum(1).tolist()
        rows = [tuple(row[len(row) - n :]) for row, n in zip(rollout.prompts.tokens.tolist(), lengths)]
        text = {row: self._tokenizer.decode(list(row), skip_special_tokens=True) for row in set(rows)}
        return [text[row] for row in rows]

    def _split(self, split: str) -> list[Prompt]:
        if not self._data.splits.get(split):
            raise EmptySelection(f"task {self.name!r} has no {split} prompts")
        return self._data.splits[split]

    def _tokenize(self, texts: list[str]) -> Prompts:
        return tokenize(texts, self._tokenizer, max_new_tokens=self.decoding.max_new_tokens, context=self._context)

    def _rollout(self, documents: list[tuple[str, str]]) -> Rollout:
        """Documents as responses to their prompts, ended by EOS and cut at the context."""
        prompts = self._tokenize([p for p, _ in documents])
        room = self._context - prompts.tokens.shape[1]
        eos = self._tokenizer.eos_token_id
        ids = [[*self._tokenizer(r, add_special_tokens=False).input_ids[: room - 1], eos] for _, r in documents]
        width = max(map(len, ids))
        response = torch.tensor([row + [eos] * (width - len(row)) for row in ids])
        mask = torch.arange(width) < torch.tensor([[len(row)] for row in ids])
        return Rollout(prompts, response, mask)
