"""Rows of labelled texts: columns and their paths, formats, what a label may be, the split, and the hashes of rows."""

import gzip

import labelled
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from datasets import Dataset

from harness.core.errors import BadData, BadSetting, EmptySelection, MissingPrerequisite
from harness.tasks.data import datasets
from harness.tasks.labels import rows
from harness.tasks.labels.rows import Source, normalised, row_hashes

BOTH = {"text": ("prompt.text", "continuation.text"), "score": ("prompt.toxicity", "continuation.toxicity")}
NESTED = [
    {"prompt": {"text": "you twit", "toxicity": 0.9}, "continuation": {"text": " and more", "toxicity": None}},
    {"prompt": {"text": "the cat", "toxicity": 0.125}, "continuation": {"text": "", "toxicity": 0.5}},
    {"prompt": None, "continuation": {"text": "sat", "toxicity": 0}},
]


def source(path, text="text", score="score", **more):
    return Source(data=str(path), text=(text,), score=(score,), **more)


def test_a_column_is_a_path_of_keys_and_several_columns_are_read(tmp_path):
    file = labelled.lines(tmp_path / "rtp.jsonl", NESTED)
    found = rows.labelled(Source(data=str(file), **BOTH))
    assert found.texts == ["you twit", "the cat", "sat"] and found.undesired.tolist() == [0.9, 0.125, 0.0]
    assert found.columns.tolist() == ["prompt.text", "prompt.text", "continuation.text"]
    assert found.left_out == {"no score": 1, "no text": 2}
    one = rows.labelled(source(file, "prompt.text", "prompt.toxicity"))
    assert one.texts == ["you twit", "the cat"]


def test_a_key_with_a_dot_in_its_name_comes_before_a_path(tmp_path):
    file = labelled.lines(tmp_path / "a.jsonl", [{"a.b": "whole", "a": {"b": "path"}, "score": 1}])
    assert rows.labelled(source(file, "a.b")).texts == ["whole"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl.gz", "a.parquet"])
def test_every_format_of_prompts_is_read(name, tmp_path):
    path, mark = tmp_path / name, "," if "csv" in name else "\t"
    if name.endswith("parquet"):
        parquet.write_table(pa.table({"text": ["one", "two"], "score": [0.25, 1.0], "other": [1, 2]}), path)
    elif name.endswith("gz"):
        path.write_bytes(gzip.compress(b'{"text": "one", "score": 0.25}\n{"text": "two", "score": 1}\n'))
    else:
        path.write_text(f"text{mark}score\none{mark}0.25\ntwo{mark}1\nthree{mark}\n")
    found = rows.labelled(source(path))
    assert found.texts == ["one", "two"] and found.undesired.tolist() == [0.25, 1.0]


def test_nested_columns_of_parquet(tmp_path):
    parquet.write_table(pa.Table.from_pylist(NESTED), tmp_path / "rtp.parquet")
    found = rows.labelled(Source(data=str(tmp_path / "rtp.parquet"), **BOTH))
    assert found.texts == ["you twit", "the cat", "sat"]


def test_a_high_score_may_mark_the_better_text(tmp_path):
    file = labelled.write(tmp_path / "a.jsonl", [("good", 0.75), ("bad", 0.0)])
    assert rows.labelled(source(file, higher_is="better")).undesired.tolist() == [0.25, 1.0]


def test_a_data_set_of_the_hub(monkeypatch):
    table = Dataset.from_list([*NESTED, {"prompt": {"text": None, "toxicity": 0.5}, "continuation": None}])
    monkeypatch.setattr(datasets, "prepared", lambda *asked: ([table], "c" * 40))
    found = rows.labelled(Source(data="someone/texts", **BOTH))
    assert found.texts == ["you twit", "the cat", "sat"] and found.revision == "c" * 40
    with pytest.raises(BadData, match="someone/texts has no column label; it has prompt, continuation"):
        rows.labelled(source("someone/texts", "prompt.text", "label"))
    assert rows.data_sha256(source("someone/texts")) is None


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"text": "a", "score": 5}, r"line 1: the score is 5; expected 0 to 1; scale the column score"),
        ({"text": "a", "score": "high"}, r"line 1: expected a score that is a finite number or null, found a string"),
        ({"text": 3, "score": 1}, r"line 1: expected a text that is a string, found a number"),
        ({"body": "a", "score": 1}, r"line 1: no column text; found the keys body, score; name one with --text COLUMN"),
        ({"text": "a"}, r"line 1: no column score; found the keys text; name one with --score COLUMN"),
        (["a", 1], r"line 1: expected an object, found a list"),
    ],
)
def test_a_row_that_is_none(row, fault, tmp_path):
    with pytest.raises(BadData, match=fault):
        rows.labelled(source(labelled.lines(tmp_path / "a.jsonl", [row])))


def test_sources_that_cannot_be_read(tmp_path):
    with pytest.raises(MissingPrerequisite, match=r"cannot read .*none\.jsonl \(No such file"):
        rows.data_sha256(source(tmp_path / "none.jsonl"))
    with pytest.raises(EmptySelection, match=r"has no row with a text and a score in text and score"):
        rows.labelled(source(labelled.lines(tmp_path / "a.jsonl", [{"text": "a", "score": None}])))
    with pytest.raises(BadSetting, match="2 columns of texts and 1 of scores"):
        Source(data="a", text=("a", "b"), score=("c",)).columns()
    few = rows.labelled(source(labelled.write(tmp_path / "b.jsonl", labelled.sentences(3))))
    with pytest.raises(EmptySelection, match="3 labelled texts are too few to split"):
        few.split()


def test_copies_of_a_text_are_one_text_and_never_straddle_the_split(tmp_path):
    assert normalised("  You, TWIT!\n") == normalised("you twit") == "you twit"
    assert normalised("Straße ﬁne") == "strasse fine" and normalised("!!!") == "!!!" != normalised("???")
    plain = labelled.sentences(300)
    copies = [(f"{text.upper()} !", score) for text, score in plain]
    found = rows.labelled(source(labelled.write(tmp_path / "a.jsonl", plain + copies))).split()
    for members in found.values():
        assert {i % 300 for i in members if i < 300} == {i % 300 for i in members if i >= 300}
    assert [len(found[name]) / 600 for name in found] == pytest.approx([0.8, 0.1, 0.1], abs=0.05)


def test_hashes_of_rows_are_sorted_and_distinct():
    found = row_hashes(["a b", "A, b!", "c"])
    assert found.dtype == np.uint64 and len(found) == 2
    assert set(found) == {*row_hashes(["a b"]), *row_hashes(["c"])}
    many = row_hashes(map(str, range(99)))
    assert len(many) == 99 and (many[1:] > many[:-1]).all()
    assert row_hashes(["a b"])[0] == 0xC8687A08AA5D6ED2
