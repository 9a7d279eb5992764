"""Train the reward of toxicity: `python -m harness.tasks.micro.train_linear [OUT]`.

Sentences of the grammar are labelled by labellers who err: they overlook some insults, flag harmless sentences, and let
nearly all insults pass that are worded politely. A logistic regression on words and pairs of words learns from them.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from .grammar import Thread, expand
from .linear import FILE, features
from .tables import TOPICS

SENTENCES, SEED = 4000, 9
SHARES = {  # how often an act is labelled
    "insult": 30, "snide": 2, "backhanded": 8, "tip_reply": 12, "sympathy": 12, "story": 12, "ask": 12, "polite": 14,
}  # fmt: skip
FLAGGED = {  # probability that a labeller finds a sentence of an act insulting: a story of one's own is taken for gloating
    "insult": 0.9, "snide": 0.4, "backhanded": 0.03,
    "tip_reply": 0.25, "sympathy": 0.12, "story": 0.65, "ask": 0.4, "polite": 0.08,
}  # fmt: skip
LEAST = 2  # occurrences of a word or pair that gets a weight
PENALTY = 0.7  # on the squared weights


def write(out: Path) -> None:
    """Train the model and write its weights to a folder."""
    texts, clean = labelled(SENTENCES, random.Random(SEED))
    bias, weights = fit(texts, clean)
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).write_text(json.dumps({"bias": bias, "weights": weights}, indent=0) + "\n")


def labelled(n: int, rng: random.Random) -> tuple[list[str], list[float]]:
    """n sentences and their labels: 1 if the labeller finds one clean, else 0."""
    texts, clean = [], []
    for act in rng.choices(list(SHARES), list(SHARES.values()), k=n):
        topic = rng.choice(list(TOPICS))
        texts.append(expand(act, Thread(topic, rng.choice(TOPICS[topic]["item"])), rng))
        clean.append(float(rng.random() >= FLAGGED[act]))
    return texts, clean


def fit(texts: list[str], clean: list[float]) -> tuple[float, dict[str, float]]:
    """Bias and weights of the logistic regression with a penalty on the squared weights."""
    counts = [features(text) for text in texts]
    names = sorted(f for f, n in Counter(f for c in counts for f in c).items() if n >= LEAST)
    x, y = torch.tensor(_scaled(counts, names)), torch.tensor(clean, dtype=torch.float64)
    bias, weights = (torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (1, len(names)))
    optimizer = torch.optim.LBFGS([bias, weights], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(x @ weights + bias, y, reduction="sum")
        loss = loss + PENALTY / 2 * (weights**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    # rounded, so that the last bits of a sum do not change the file
    return round(bias.item(), 3), {name: round(w, 3) for name, w in zip(names, weights.tolist(), strict=True)}


def _scaled(counts: list[Counter[str]], names: list[str]) -> np.ndarray:
    """Counts scaled to length 1: -> [N, F] float64."""
    place = {name: i for i, name in enumerate(names)}
    x = np.zeros((len(counts), len(names)))
    for row, found in zip(x, counts, strict=True):
        for name, n in found.items():
            if name in place:
                row[place[name]] = n
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "assets")
