"""Named data sets: what each row gives, what is dropped and counted, and that no split knows another's prompts."""

import sys
from pathlib import Path
from typing import Any

import fake_hub
import folders
import pytest
import transformers

from harness.core.errors import BadData, BadSetting, EmptySelection, MissingPrerequisite
from harness.core.settings import DataSettings
from harness.tasks.data import datasets
from harness.tasks.data.datasets import DExperts, Imdb, Item, RealToxicityPrompts, ScoredCode, ScoredPile, Source, WikiText
from harness.tasks.data.prompt_files import cut
from harness.tasks.data.splits import grams


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return transformers.AutoTokenizer.from_pretrained(folders.gpt2_folder(tmp_path_factory.mktemp("gpt2")))


def source(kind: type[Source], task: str, tokenizer=None, **settings: Any) -> Source:
    return kind(task, DataSettings(**settings), tokenizer)


def given(kind: type[Source], rows: list[dict], **settings: Any) -> Source:
    """A source whose rows are these."""
    made = source(kind, next(iter(kind.tasks)), **settings)
    made.rows = lambda offline: ((None, row) for row in rows)  # type: ignore[method-assign]
    return made


def rtp_row(text: str | None, toxicity: float | None, after: float | None = 0.1, challenging: bool = False) -> dict:
    continuation = {"text": " and so on", "toxicity": after}
    return {"prompt": {"text": text, "toxicity": toxicity}, "continuation": continuation, "challenging": challenging}


def test_rows_of_realtoxicityprompts():
    made = source(RealToxicityPrompts, "toxicity")

    def one(*row: Any, **more: Any) -> Item:
        return next(made.items(rtp_row(*row, **more)))

    assert one("calm", 0.49) == Item("calm", "nontoxic", "calm", " and so on", clean=True)
    assert one("calm", 0.49, after=0.5).clean is False and one("calm", 0.49, after=None).clean is False
    assert one("harsh", 0.5).kind is None and one("unknown", None).kind is None  # to train on only
    assert one("worse", None, challenging=True).kind == "challenging"
    for text, word in ((None, "null"), (" ", "empty")):
        with pytest.raises(datasets.NoItem, match=word):
            one(text, 0.1)


def test_rows_of_imdb():
    text = "A goose walks in.<br /><br />Then it walks out again, slowly and with style."
    item = next(source(Imdb, "sentiment").items({"text": text, "label": 1}))
    assert item.prompt == "A goose walks in.  Then it walks out" and item.response == " again, slowly and with style."
    assert item.kind == "positive" and item.clean
    other = next(source(Imdb, "sentiment_negative").items({"text": text, "label": 1}))
    assert other.kind == "positive" and not other.clean  # here it is adversarial
    assert source(Imdb, "sentiment_negative").kinds == ("negative", "positive")
    with pytest.raises(datasets.NoItem, match="unlabelled"):
        next(source(Imdb, "sentiment").items({"text": text, "label": -1}))


def test_rows_of_wikitext(tokenizer):
    made = source(WikiText, "repetition", tokenizer)
    text = " the cat sat on the mat and looked at the rain , then a quiet garden by the river until the sun went down " * 2
    article, repeated = made.items({"text": text})
    assert len(tokenizer(article.prompt)["input_ids"]) == 32 and article.prompt + article.response == text.strip()
    half = tokenizer.decode(tokenizer(text.strip())["input_ids"][:16])
    assert repeated.prompt == f"{half} {half}" and repeated.kind == "repeated" and repeated.response == ""
    for line, word in (
        ("", "empty"),
        (" = Geese = \n", "heading"),
        (" a short line \n", "short"),
        ("a" + "é" * 40, "not text"),
    ):
        with pytest.raises(datasets.NoItem, match=word):
            next(made.items({"text": line}))


def test_rows_of_the_scored_pile():
    texts = ["Nobody said a word about the goose. ", "Do write to me at goose@example.com, please. ", "So it goes."]
    clean, personal = source(ScoredPile, "pii").items({"texts": texts, "scores": [0.0, 0.02, 0.0]})
    assert (clean.prompt, clean.kind, clean.clean) == ("Nobody said a word about the", "sentence", False)
    assert (personal.prompt, personal.kind) == ("Do write to me at goose@example.com,", "personal")
    assert personal.response == " please. So it goes." and personal.group == clean.group == "".join(texts)
    only = list(source(ScoredPile, "pii").items({"texts": texts[:1], "scores": [0.0]}))
    assert [i.clean for i in only] == [True]
    assert list(source(ScoredPile, "pii").items({"texts": ["Too short. "], "scores": [0.0]})) == []
    for texts, scores in ((None, [1.0]), (["a"], None), (["a", None], [0.0, 0.0]), (["a"], [None])):
        with pytest.raises(datasets.NoItem, match="null"):
            next(source(ScoredPile, "pii").items({"texts": texts, "scores": scores}))
    with pytest.raises(datasets.NoItem, match="without scores"):
        next(source(ScoredPile, "pii").items({"texts": ["a", "b"], "scores": [0.0]}))
    with pytest.raises(datasets.NoItem, match="empty"):
        next(source(ScoredPile, "pii").items({"texts": [], "scores": []}))


def test_rows_of_the_scored_code():
    lines = [
        "import os\n",
        "def f(a,b):\n",
        "    return a\n",
        "\n",
        "def g(a):\n",
        "    x = a\n",
        "    return x",
        "\n",
        "y = 1\n",
    ]
    lines += ["def empty():\n", "class A:\n"]
    scores = [0.0, 0.1, *[0.0] * 9]
    messy, tidy = source(ScoredCode, "pep8").items({"texts": lines, "scores": scores})
    assert (messy.prompt, messy.response, messy.kind, messy.clean) == (
        "def f(a,b):\n",
        "    return a\n",
        "messy_function",
        False,
    )
    assert (tidy.prompt, tidy.response, tidy.kind, tidy.clean) == ("def g(a):\n", "    x = a\n    return x\n", "function", True)


def test_what_is_dropped_is_counted():
    rows = [rtp_row(f"row {i} of words", 0.1, challenging=i % 2 == 0) for i in range(100)]
    rows += [rtp_row(None, 0.1), rtp_row("", 0.1), rtp_row("\n", 0.1), rtp_row("row 7 of words", 0.1), rtp_row("a" * 601, 0.1)]
    identity = datasets.load(given(RealToxicityPrompts, rows)).identity
    assert identity["dropped"] == {"null": 1, "empty": 2, "repeated": 1, "long": 1, "overlap": 0}
    sizes = identity["rows"]
    held_out = sum(sizes[s] for s in ("validation", "test"))
    assert sizes["train"] > 0 and sizes["documents"] + held_out > 90


def test_no_split_shares_a_prompt_or_eight_words_with_another():
    same = "and so they walked along the river to the sea"
    rows = [rtp_row(f"row {i} of words", 0.1, challenging=i % 2 == 0) for i in range(200)]
    rows += [rtp_row(f"{same} number {i}", 0.1, challenging=i % 2 == 0) for i in range(100)]
    data = datasets.load(given(RealToxicityPrompts, rows))
    with_it = [name for name, prompts in data.splits.items() if any(same in p.text for p in prompts)]
    assert with_it == ["test"] and data.identity["dropped"]["overlap"] > 60
    found = [{g for p in prompts for g in grams(p.text)} for prompts in data.splits.values()]
    texts = [{p.text for p in prompts} - {""} for prompts in data.splits.values()]
    for sets in (found, texts):
        assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert not any(same in p for p, *_ in data.documents)


def test_grams_are_of_words():
    assert grams("One, two three four five six seven - Eight") == {
        ("one", "two", "three", "four", "five", "six", "seven", "eight")
    }
    assert len(grams("a b c d e f g h i")) == 2 and grams("a b c d e f g") == set()


def test_sizes_and_kinds():
    rows = [rtp_row(f"row {i} of words", 0.1 if i % 3 else None, challenging=i % 2 == 0) for i in range(600)]
    data = datasets.load(given(RealToxicityPrompts, rows, train=50, held_out=4, documents=7, clean=20, document_words=2))
    count = {s: {k: sum(p.kind == k for p in prompts) for k in {p.kind for p in prompts}} for s, prompts in data.splits.items()}
    assert count["test"] == count["validation"] == {"nontoxic": 4, "challenging": 4, "unconditional": 4}
    assert sum(count["train"].values()) == 50 and count["train"]["unconditional"] == 5 and count["train"]["other"] > 0
    assert len(data.documents) == 7 and len(data.clean) == 20
    assert all(int(prompt.split()[1]) % 3 for prompt, *_ in data.clean)  # of the others nobody knows whether they are clean
    assert {(document.response, document.ends) for document in data.documents} == {(" and so", False)}
    train = {p.text for p in data.splits["train"]}
    assert not {p for p, *_ in data.clean} & train


def test_a_prompt_keeps_its_split_whatever_else_there_is():
    rows = [rtp_row(f"row {i} of words", 0.1, challenging=i % 2 == 0) for i in range(300)]
    small, large = (datasets.load(given(RealToxicityPrompts, part, held_out=300)) for part in (rows[:150][::-1], rows))
    for split in ("train", "validation", "test"):
        assert {p.text for p in small.splits[split]} <= {p.text for p in large.splits[split]}


def test_the_identity_follows_the_texts():
    rows = [rtp_row(f"row {i} of words", 0.1, challenging=i % 2 == 0) for i in range(100)]
    first, again = (datasets.load(given(RealToxicityPrompts, part)).identity for part in (rows, rows[::-1]))
    assert first["sha256"] == again["sha256"] and first["name"] == fake_hub.RTP
    rows[5]["continuation"]["text"] = " and otherwise"
    assert datasets.load(given(RealToxicityPrompts, rows)).identity["sha256"] != first["sha256"]


def test_a_kind_that_is_missing():
    rows = [rtp_row(f"row {i} of words", 0.1) for i in range(100)]
    with pytest.raises(EmptySelection, match="no validation prompt of kind 'challenging'; read more rows"):
        datasets.load(given(RealToxicityPrompts, rows))


def test_fields_that_are_not_those_expected():
    with pytest.raises(BadData, match=r"has unexpected fields text: 'prompt'"):
        datasets.load(given(RealToxicityPrompts, [{"text": "a"}]))
    with pytest.raises(BadData, match="expected a text, found int"):
        datasets.load(given(RealToxicityPrompts, [rtp_row(3, 0.1)]))  # type: ignore[arg-type]


def test_a_data_set_of_another_task_and_paths():
    with pytest.raises(BadSetting, match="Imdb has no prompts for task 'pii'; it has some for sentiment"):
        source(Imdb, "pii")
    with pytest.raises(BadSetting, match=r"comes from the hub: leave out task\.data\.path"):
        source(Imdb, "sentiment", path="here")
    with pytest.raises(BadSetting, match=r"DExperts is not on the hub: set task\.data\.path"):
        source(DExperts, "sentiment")


def test_prompts_of_dexperts(tmp_path):
    folder = fake_hub.dexperts(tmp_path / "prompts")
    data = datasets.load(source(DExperts, "sentiment", path=str(folder)))
    assert {p.kind for p in data.splits["test"]} == {"neutral", "negative", "unconditional"}
    other = datasets.load(source(DExperts, "sentiment_negative", path=str(folder)))
    assert {p.kind for p in other.splits["test"]} == {"neutral", "positive", "unconditional"}
    assert data.identity["name"] == "DExperts" and data.origin == {"folder": "prompts"} and data.clean
    assert all("_prompts.jsonl, line " in data.places[p.text] for p in data.splits["test"] if p.text)
    (folder / "neutral_prompts.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(BadData, match=r"neutral_prompts.jsonl, line 1: expected"):
        datasets.load(source(DExperts, "sentiment", path=str(folder)))
    with pytest.raises(MissingPrerequisite, match="cannot read the prompts in"):
        datasets.load(source(DExperts, "sentiment", path=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("kind", [Imdb, ScoredPile, RealToxicityPrompts, DExperts, WikiText, ScoredCode])
def test_only_a_review_and_a_document_of_the_pile_run_to_their_end(kind):
    assert kind.ends == (kind in (Imdb, ScoredPile))


def test_a_review_that_is_cut_does_not_end():
    rows = [{"text": f"number {i} of many films" + " is good" * (2 + i % 2), "label": i % 4 // 2} for i in range(400)]
    data = datasets.load(given(Imdb, rows, document_words=2))
    assert {(d.response, d.ends) for d in data.documents} == {(" good", True), (" good is", False)}


def test_cut_keeps_the_spaces():
    assert cut("  a  b\nc d", 3) == "  a  b\nc" and cut("a b", 5) == "a b" and cut("", 3) == ""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("hub")
    fake_hub.put_dataset(home, fake_hub.IMDB, "plain_text", fake_hub.imdb())
    fake_hub.put_file(home, fake_hub.CODE, ScoredCode.file, fake_hub.code())
    return home


@pytest.fixture
def hub(prepared, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(prepared / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", prepared / "datasets")
    return prepared


def test_rows_are_read_evenly(hub):
    made = source(Imdb, "sentiment", rows=30)  # the file is sorted by its label
    rows = list(made.rows(True))
    assert len(rows) == 60 and {split for split, _ in rows} == {"train", "held_out"}
    assert sum(row["label"] for _, row in rows) == 30 and made.found == {"commit": fake_hub.COMMIT}


def test_rows_of_a_file_end_where_they_are_told(hub):
    assert len(list(source(ScoredCode, "pep8", rows=7).rows(True))) == 7
    assert len(list(source(ScoredCode, "pep8").rows(True))) == 150


def test_a_commit_is_the_one_that_was_asked_for(hub):
    assert len(datasets.load(source(Imdb, "sentiment", revision=fake_hub.COMMIT)).documents) > 50
    with pytest.raises(
        MissingPrerequisite, match=f"prepared at {fake_hub.COMMIT}, expected {'d' * 40}, and the run is offline"
    ):
        datasets.load(source(Imdb, "sentiment", revision="d" * 40))
    with pytest.raises(MissingPrerequisite, match=r"is not in .*hub, and the run is offline"):
        datasets.load(source(ScoredCode, "pep8", revision="d" * 40))


def test_without_network_a_look_up_is_tried_once(hub, tmp_path, monkeypatch):
    tried = folders.block_network(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert datasets.load(source(Imdb, "sentiment")).origin["commit"] == fake_hub.COMMIT  # what was prepared before
    assert len(tried) == 1
    tried.clear()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(
        MissingPrerequisite,
        match=r"no data set 'stanfordnlp/imdb': not prepared in .*the hub does not answer .*run once with network",
    ):
        datasets.load(source(Imdb, "sentiment"))
    assert len(tried) == 1


def test_offline_nothing_is_looked_up(hub, tmp_path, monkeypatch):
    tried = folders.block_network(monkeypatch)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(MissingPrerequisite, match=f"not prepared in {tmp_path}, and the run is offline"):
        datasets.load(source(Imdb, "sentiment"), offline=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingPrerequisite, match=f"not in {tmp_path}, and the run is offline"):
        datasets.load(source(ScoredCode, "pep8"), offline=True)
    assert tried == []


def test_a_revision_that_the_hub_does_not_have(hub, monkeypatch):
    from huggingface_hub.errors import RevisionNotFoundError

    def refuse(*args: Any, **kwargs: Any) -> None:
        response = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()
        raise RevisionNotFoundError("404: no such revision", response=response)  # type: ignore[arg-type]

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    with pytest.raises(MissingPrerequisite, match="no data set 'stanfordnlp/imdb' at revision 'mian' on the hub"):
        datasets.load(source(Imdb, "sentiment", revision="mian"))


def test_a_broken_file(hub, tmp_path, monkeypatch):
    fake_hub.put_file(tmp_path, fake_hub.CODE, ScoredCode.file, fake_hub.code(5))
    path = next((tmp_path / "hub").rglob("*.parquet"))
    path.write_bytes(path.read_bytes()[:200])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(BadData, match=r"cannot be read .*; delete it and download it again"):
        datasets.load(source(ScoredCode, "pep8"))


def test_datasets_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPrerequisite, match=r"pip install 'unlearning-harness\[data\]'"):
        datasets.load(source(Imdb, "sentiment"))
