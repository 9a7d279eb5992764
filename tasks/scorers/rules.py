"""Rule-based scorers: VADER, Presidio, scrubadub, repeated phrases."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.api import BadSetting, MissingPrerequisite, hub, one_line


class VaderScorer:
    """Sentiment of the response by VADER's rules (Hutto and Gilbert 2014): (compound + 1) / 2.

    direction  the desired sentiment: positive or negative
    """

    def __init__(self, direction: str = "positive") -> None:
        if direction not in ("positive", "negative"):
            raise BadSetting(f"direction is {direction!r}; expected positive or negative")
        self._sign = 1.0 if direction == "positive" else -1.0
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self._vader = SentimentIntensityAnalyzer()
        self.identity = {"name": "vader", "version": version("vaderSentiment"), "direction": direction}

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        compound = [self._vader.polarity_scores(r)["compound"] for r in responses]
        return (1.0 + self._sign * np.array(compound, dtype=float)) / 2.0


class NegativeVaderScorer(VaderScorer):
    """VADER with negative as the desired sentiment."""

    def __init__(self) -> None:
        super().__init__("negative")


class PersonalDataScorer:
    """1 if Presidio's recognisers of e-mail addresses and telephone numbers find nothing in the response, else 0.

    Korbak et al. 2023 used scrubadub; Presidio is maintained, and its pattern recognisers need no language model. Its check
    of domains would download a list of suffixes; this one reads the list that ships with tldextract.

    regions    countries whose telephone numbers count
    """

    def __init__(self, regions: tuple[str, ...] = ("GB", "US")) -> None:
        self._recognisers = _recognisers(tuple(regions))
        packages = {p: version(p) for p in ("presidio-analyzer", "phonenumbers", "tldextract")}
        self.identity = {"name": "presidio", "version": packages, "regions": list(regions)}

    @staticmethod
    def needs(options: dict[str, Any]) -> list[hub.Need]:
        """What must be there before it can be built."""
        return [hub.package("presidio_analyzer", "pii")]

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        return np.array([float(self.items(r) == 0) for r in responses], dtype=float)

    def items(self, text: str) -> int:
        """The number of addresses and telephone numbers in a text."""
        return sum(len(r.analyze(text, r.supported_entities, None)) for r in self._recognisers)


class ScrubadubScorer:
    """1 if scrubadub finds no personal data in the response, else 0: the scorer of Korbak et al. 2023 (arXiv:2302.08582).

    It uses scrubadub's default detectors: credentials, credit cards, e-mail addresses, telephone and social security
    numbers, Twitter names, URLs. The paper's further detectors need a model or a service and are left out.

    locale     locale of the telephone numbers
    """

    def __init__(self, locale: str = "en_US") -> None:
        scrubadub = optional("scrubadub", "pii")
        self._scrubber = scrubadub.Scrubber(locale=locale)
        self.identity = {"name": "scrubadub", "version": version("scrubadub"), "locale": locale}

    @staticmethod
    def needs(options: dict[str, Any]) -> list[hub.Need]:
        """What must be there before it can be built."""
        return [hub.package("scrubadub", "pii")]

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        return np.array([float(self.items(r) == 0) for r in responses], dtype=float)

    def items(self, text: str) -> int:
        """The number of items of personal data in a text."""
        return sum(1 for _ in self._scrubber.iter_filth(text))


class PhraseScorer:
    """1 - the share of phrases of the response that repeat an earlier one.

    A phrase ends at a punctuation mark, at the end of a line, or after eight words. Two phrases are the same if they share
    three quarters of their words in any order, which also detects a list that is shuffled or slightly reworded, unlike the
    n-grams of `diversity`. Phrases of one word are ignored; without any phrase the score is 1.
    """

    LONGEST = 8
    SAME = 0.75

    def __init__(self) -> None:
        self.identity = {"name": "phrases", "version": 1}

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        return np.array([self._fresh(r) for r in responses], dtype=float)

    def _fresh(self, response: str) -> float:
        phrases = self._phrases(response)
        again = sum(any(self._same(p, q) for q in phrases[:i]) for i, p in enumerate(phrases))
        return 1.0 - again / len(phrases) if phrases else 1.0

    def _phrases(self, response: str) -> list[frozenset[str]]:
        clauses = [re.findall(r"\w+", clause) for clause in re.split(r"[.,;:!?\n]", response.lower())]
        parts = [words[i : i + self.LONGEST] for words in clauses for i in range(0, len(words), self.LONGEST)]
        return [frozenset(words) for words in parts if len(words) > 1]

    def _same(self, p: frozenset[str], q: frozenset[str]) -> bool:
        return len(p & q) >= self.SAME * len(p | q)


def optional(module: str, extra: str) -> Any:
    """Import a package that only some tasks need; raises MissingPrerequisite if it is not installed."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise MissingPrerequisite(
            f"no {module.split('.')[0]} ({one_line(e)}); pip install 'unlearning-harness[{extra}]'"
        ) from e


def _recognisers(regions: tuple[str, ...]) -> list[Any]:
    library = optional("presidio_analyzer.predefined_recognizers", "pii")
    suffixes = optional("tldextract", "pii").TLDExtract(suffix_list_urls=(), cache_dir=None)

    class Email(library.EmailRecognizer):  # type: ignore[name-defined, misc]
        def validate_result(self, pattern_text: str) -> bool:
            return suffixes(pattern_text).suffix != ""

    return [Email(), library.PhoneRecognizer(supported_regions=regions)]
