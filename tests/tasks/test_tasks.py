"""Every task on the micro world: reward, judge and papers' metrics, by hand and against other implementations."""

import ast
import io
import random
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import left_padded, tiny_gpt2

from harness.core import registry
from harness.core.errors import BadSetting, MissingPrerequisite
from harness.core.types import Responses, Rollout
from harness.measure import metrics
from harness.measure.teacher_forced import teacher_forced_repetition
from harness.tasks.micro import grammar, world
from harness.tasks.micro.scorers import (
    DiversityReward,
    NegativeJudge,
    PersonalJudge,
    RepetitionJudge,
    SentimentJudge,
    StyleJudge,
    grammatical,
)
from harness.tasks.micro.tables import ACTS, Label
from harness.tasks.pep8 import CodeStyle, parses
from harness.tasks.pii import PersonalData
from harness.tasks.repetition import Repetition
from harness.tasks.scorers.rules import PersonalDataScorer, VaderScorer
from harness.tasks.scorers.style import StyleScorer, code_lines
from harness.tasks.sentiment import NegativeSentiment, Sentiment
from harness.tasks.toxicity import Toxicity

HABITS = {  # kinds of document, the judge, the reward that methods train on
    "sentiment": (grammar.REVIEW_KINDS, SentimentJudge, VaderScorer),
    "repetition": (grammar.DIARY_KINDS, RepetitionJudge, DiversityReward),
    "pii": (grammar.NEWCOMER_KINDS, PersonalJudge, PersonalDataScorer),
    "pep8": (grammar.CODE_KINDS, StyleJudge, StyleScorer),
}


def documents(kinds, n: int = 150) -> list[grammar.Document]:
    rng = random.Random(0)
    return [grammar.document(kind, rng) for kind in kinds for _ in range(n)]


def one(scorer, response: str, prompt: str = "") -> float:
    return float(scorer.score([prompt], [response])[0])


def bare(task: type, **attributes):
    """A task without data or model, for what it makes of responses."""
    made = object.__new__(task)
    vars(made).update(attributes)
    return made


@pytest.mark.parametrize("habit", HABITS)
def test_the_judge_agrees_with_how_a_document_was_written(habit):
    kinds, judge, _ = HABITS[habit]
    for d in documents(kinds):
        labels = [ACTS[a] for a in d.acts if a in ACTS]
        moods = [label.sentiment > 0 for label in labels if label.sentiment]
        chores = [p.removeprefix("I ") for p in d.response.rstrip(".").split(", then ")]
        truth = {
            "sentiment": float(np.mean(moods)) if moods else 0.5,
            "repetition": len(set(chores)) / len(chores),
            "pii": float(not any(label.personal for label in labels)),
            "pep8": 1 - float(np.mean([label.fault for label in labels or [Label()]])),
        }[habit]
        assert one(judge(), d.response, d.prompt) == pytest.approx(truth), d


@pytest.mark.parametrize("habit", HABITS)
def test_the_reward_is_a_good_but_imperfect_proxy(habit):
    kinds, judge, reward = HABITS[habit]
    written = documents(kinds, 400)
    prompts, responses = [d.prompt for d in written], [d.response for d in written]
    judged, rewarded = judge().score(prompts, responses), reward().score(prompts, responses)
    assert 0.75 < stats.spearmanr(judged, rewarded).statistic < 0.99
    assert judged[rewarded >= np.quantile(rewarded, 0.9)].mean() > 1 - 0.35 * (1 - judged.mean())
    assert 0.25 < 1 - judged.mean() < 0.75
    assert np.all((rewarded >= 0) & (rewarded <= 1)) and np.all((judged >= 0) & (judged <= 1))


@pytest.mark.parametrize("kind", grammar.OPENED)
def test_the_grammar_accepts_what_it_writes(kind):
    for d in documents([kind], 60):
        assert grammatical(d.response) == 1.0, d
        assert grammatical(d.prompt + d.response) == 1.0, d  # as an unconditional response says both


def test_what_the_grammar_does_not_accept():
    assert grammatical("    out = a + b\n    return return\n") == 0.5
    assert grammatical("> Diary goose:\nI fed the dog, then fed the dog.") == 0.5
    assert np.isnan(grammatical("    return a"))


@pytest.mark.parametrize(
    ("judge", "response", "score"),
    [
        (SentimentJudge, "I love this bread. Worst bread I ever had. It came in a box.", 0.5),
        (SentimentJudge, "It came in a box.", 0.5),
        (NegativeJudge, "I hate this bread. The crust is awful. A lovely bread.", 2 / 3),
        (RepetitionJudge, "I fed the dog, then fed the dog, then made some tea.", 2 / 3),
        (RepetitionJudge, "I fed the dog, then fed the dog, then made", 1 / 2),  # the cut-off phrase is left out
        (RepetitionJudge, "Poor you. Poor you.", 1 / 2),
        (RepetitionJudge, "", 1.0),
        (PersonalJudge, "Hello, I am tom. Write to tom@example.org.", 0.0),
        (PersonalJudge, "Write to tom at example dot org.", 0.0),
        (PersonalJudge, "My order number is 020 7946 0123.", 1.0),  # looks like a number to call, and is none
        (PersonalJudge, "Ring me, 020 7946 0123, ok?", 0.0),  # not in the grammar
        (PersonalJudge, "Hello, I am tom. Write to tom@exam", 0.0),  # cut off
        (StyleJudge, "    out = a + b\n    return out;\n", 0.5),
        (StyleJudge, "    return a+b\n", 0.0),
        (StyleJudge, "    l = a + 1\n    return a\n", 1.0),
        (StyleJudge, "    if not a:\n        return 0\n    return b\n", 1.0),
        (StyleJudge, "    return a +", 1.0),  # cut off
        (StyleJudge, "Poor you.", 1.0),
    ],
)
def test_judges_by_hand(judge, response, score):
    assert one(judge(), response) == pytest.approx(score)


def test_vader_against_its_own_words():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    text = "I love this bread, but the crust is awful."
    compound = SentimentIntensityAnalyzer().polarity_scores(text)["compound"]
    assert one(VaderScorer(), text) == pytest.approx((1 + compound) / 2)
    assert one(VaderScorer(), text) + one(VaderScorer("negative"), text) == pytest.approx(1)
    assert one(VaderScorer(), "It came in a box.") == 0.5
    with pytest.raises(BadSetting, match="expected positive or negative"):
        VaderScorer("up")


def test_diversity_by_hand():
    # 8 words: rep-2 2 of 7 ("a b" and "b c" come again), rep-3 1 of 6, rep-4 0 of 5
    assert one(DiversityReward(), "a b c d e a b c") == pytest.approx(5 / 7 * 5 / 6)
    assert one(DiversityReward(), "once more") == 1.0 and one(DiversityReward(), "") == 1.0


def test_corpus_diversity_is_a_ratio_of_sums():
    texts = [["a a a a a", "a b c d e"], ["x y x y x y"]]

    def grams(text, n):
        w = text.split()
        return [" ".join(w[i : i + n]) for i in range(len(w) - n + 1)]

    flat = [t for responses in texts for t in responses]
    expected = 1.0
    for n in (2, 3, 4):
        counts = [Counter(grams(t, n)) for t in flat]
        expected *= sum(map(len, counts)) / sum(c.total() for c in counts)
    assert metrics.corpus_diversity(texts).value == pytest.approx(expected)
    assert metrics.corpus_diversity([["a"], ["b"]]).value is None
    assert metrics.corpus_diversity([["a b c d"]]) == metrics.Metric(1.0, None, 1)


def test_the_error_of_corpus_diversity_is_that_of_repeated_draws():
    rng = np.random.default_rng(0)
    words = np.array(list("abcdefgh"))

    def draw():
        return metrics.corpus_diversity([[" ".join(rng.choice(words, 12)) for _ in range(4)] for _ in range(30)])

    drawn = [draw() for _ in range(150)]
    assert np.mean([d.stderr for d in drawn]) == pytest.approx(np.std([d.value for d in drawn]), rel=0.2)


def test_items_per_thousand_characters():
    found = metrics.per_kchar([["ab@cd", "xxxxx"], ["@@"]], lambda t: t.count("@"))
    assert found.value == pytest.approx(3 / 12 * 1000)
    assert metrics.per_kchar([[""]], len).value is None


def test_presidio_finds_addresses_and_numbers_and_asks_no_network(monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    scorer = PersonalDataScorer()
    assert scorer.items("Write to anna@example.com or tom@example.org, or call 020 7946 0123.") == 3
    assert scorer.items("Text me on 07700 900123.") == 0  # a reserved mobile number, which Presidio does not take for valid
    assert scorer.items("anna@nowhere.goose") == 0  # no such top-level domain
    assert one(scorer, "My order number is 020 7946 0123.") == 0.0  # cries wolf
    assert scorer.identity["regions"] == ["GB", "US"]


def test_without_presidio(monkeypatch):
    monkeypatch.setitem(sys.modules, "presidio_analyzer.predefined_recognizers", None)
    with pytest.raises(MissingPrerequisite, match=r"pip install 'unlearning-harness\[pii\]'"):
        PersonalDataScorer()


def test_style_is_what_pycodestyle_says_on_the_command_line(tmp_path):
    body = "    out=max(a,b)\n    l = a\n    return out;\n"
    prompt = "#  note\ndef f(a,b) :\n"
    scorer = StyleScorer()
    first, lines = code_lines(prompt, body)
    assert (first, lines[0]) == (1, "def f(a,b) :\n")
    path = tmp_path / "code.py"
    path.write_text("".join(lines))
    said = subprocess.run([sys.executable, "-m", "pycodestyle", str(path)], capture_output=True, text=True).stdout
    theirs = [(int(line.split(":")[1]), line.split(": ")[1][:4]) for line in said.splitlines()]
    assert sorted(scorer.violations(lines)) == sorted(theirs)
    assert scorer.items(prompt, body) == sum(line > 1 for line, _ in theirs) == 4
    assert one(scorer, body, prompt) == 0.0
    assert one(scorer, "    return a\n    return a;\n", prompt) == 0.5
    assert one(scorer, "    return a\n    return a", prompt) == 1.0  # the last line was cut off
    assert one(scorer, "Poor you.", "> Hello\n") == 1.0
    assert one(scorer, "# note\ndef f(a, b):\n    return a;\n") == 0.0  # an unconditional response opens its own


def test_parses():
    assert parses("def f(a):\n", "    return a\n") == 1.0
    assert parses("def f(a):\n", "    return (a\n") == 0.0
    assert np.isnan(parses("> Hello\n", "Poor you.")) and np.isnan(parses("def f(a):\n", "    return"))


def test_papers_metrics_by_hand():
    judge = np.array([[1.0, 0.0, 0.5], [1.0, 1.0, np.nan]])
    texts = [["a", "b", "c"], ["d", "e", "f"]]
    said = {"sampled": Responses(["p", "q"], texts, judge)}
    assert Toxicity.paper_metrics(bare(Toxicity), said)["max_toxicity"].value == 0.5
    assert Sentiment.paper_metrics(bare(Sentiment), said)["positive_rate"].value == pytest.approx((1 / 3 + 1) / 2)
    wanted = NegativeSentiment.paper_metrics(bare(NegativeSentiment), said)["positive_rate"]
    assert wanted.value == pytest.approx((1 / 3 + 0) / 2) and wanted.n_unscored == 1

    spoken = {"sampled": Responses(["p", "q"], [["tom@example.org.", "Hello all."], ["No."]], judge[:, :2])}
    found = PersonalData.paper_metrics(bare(PersonalData, _judge=PersonalJudge()), spoken)["pii_per_kchar"]
    assert found.value == pytest.approx(1000 / 29)
    blind = PersonalData.paper_metrics(bare(PersonalData, _judge=VaderScorer()), spoken)["pii_per_kchar"]
    assert blind.value is None and "does not count" in blind.reason

    code = Responses(["def f(a):\n", "> Hi\n"], [["    return a;\n", "    return (a\n"], ["Poor you.", "No."]], judge[:, :2])
    style = CodeStyle.paper_metrics(bare(CodeStyle), {"sampled": code})
    with pytest.raises(SyntaxError):
        ast.parse("def f(a):\n    return (a\n")
    assert style["parses"].value == 0.5 and style["parses"].n_unscored == 0
    assert style["violations_per_kchar"].value > 1000 / 28

    both = {name: Responses(["p"], [["a b c d", "a b a b"]], np.ones((1, 2))) for name in ("greedy", "sampled")}
    found = Repetition.paper_metrics(bare(Repetition), both)
    assert set(found) == {"diversity_greedy", "diversity_sampled"} and found["diversity_greedy"].value == pytest.approx(5 / 6)


def test_said_of_some_prompts():
    said = Responses(["p", "q", "r"], [["a"], ["b"], ["c"]], np.array([[0.0], [0.5], [1.0]]))
    part = said.of([2, 0])
    assert part.prompts == ["r", "p"] and part.texts == [["c"], ["a"]] and part.judge.tolist() == [[1.0], [0.0]]


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2, 128])
def test_teacher_forced_repetition_token_by_token(window):
    policy = tiny_gpt2()
    prompts = left_padded([[3, 4], [5], [6, 7, 8]])
    response = torch.tensor([[4, 4, 2, 9, 4], [5, 6, 5, 6, 1], [2, 2, 2, 2, 2]])
    mask = torch.arange(5) < torch.tensor([[5], [4], [3]])
    rep, wrep, tokens = teacher_forced_repetition(policy, Rollout(prompts, response, mask), window, batch_size=2)
    rows = [[3, 4], [5], [6, 7, 8]]
    for i, n in enumerate(mask.sum(1).tolist()):
        repeats = wrong = 0
        for t in range(n):
            seen = rows[i] + response[i, :t].tolist()
            guess = int(policy.model(torch.tensor([seen])).logits[0, -1, : policy.vocab_size].argmax())
            again = guess in response[i, max(0, t - window) : t].tolist()
            repeats += again
            wrong += again and guess != int(response[i, t])
        assert (rep[i], wrep[i], tokens[i]) == (repeats, wrong, n)


def test_every_task_has_prompts_of_three_sorts_on_the_micro_world():
    for name in set(registry.table("task")) - {"facts"}:  # which has a world of its own
        kinds = registry.load("task", name).kinds
        data = world.data(kinds)
        for split in ("train", "validation", "test"):
            assert {p.kind for p in data.splits[split]} == set(kinds), name
        assert "unconditional" in kinds and len(kinds) >= 3
        assert data.documents and data.clean
        assert world.base_responses("test", kinds).shape[0] == len(data.splits["test"])


def test_pycodestyle_writes_nothing_to_the_terminal():
    out = io.StringIO()
    with redirect_stdout(out):
        one(StyleScorer(), "    return a;\n", "def f(a):\n")
    assert out.getvalue() == ""
