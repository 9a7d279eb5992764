"""Prompts from anywhere: files of several formats, hostile ones among them, and data sets of the hub by their id."""

import csv
import gzip
import json
import os
import pickle
import random
from pathlib import Path

import fake_hub
import folders
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from harness.core.errors import BadData, BadSetting, BenchError, EmptySelection, MissingPrerequisite, PromptTooLong, UnknownName
from harness.core.settings import DataSettings, resolve
from harness.runs import assemble, sources
from harness.runs.cost.estimate import needs
from harness.tasks.data import own_prompts, tables
from harness.tasks.data.own_prompts import from_file, from_hub
from harness.tasks.data.prompt_files import Columns, Prompt, held_out, read_prompts, split_prompts
from harness.tasks.text_task import Text

# what a file of these rows was known by before any other format was read, and is for ever
IDENTITY = {
    "name": "file", "prompts": {"train": 313, "validation": 39, "test": 42},
    "sha256": "faa19b83673abf02e9e8bac3c9b8700e3a9e167effafde6ccba9d6ce8110e5c2", "dropped": {"overlap": 5},
}  # fmt: skip


def rows() -> list[dict]:
    """400 rows with some scores, two of one text and some that share eight words."""
    r, words = random.Random(0), ["cat", "dog", "hen", "cow", "pig", "bee"]
    found = [
        {
            "text": f"{r.choice(words)} {r.randrange(10**6)} {r.choice(words)} by the {r.choice(words)} {r.randrange(10**6)}"
            + (" one two three four five six seven eight" if i % 50 == 0 else ""),
            "score": None if i % 3 else (i % 10) / 10,
        }
        for i in range(400)
    ]
    found[7]["text"] = " " + found[7]["text"]
    found[9] = found[8]
    return found


def write(path: Path, found: list[dict]) -> Path:
    """Rows in the format of a file's suffix."""
    inner = path.with_name(path.name.removesuffix(".gz"))
    if inner.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(found), inner)
    elif inner.suffix == ".json":
        inner.write_text(json.dumps(found, indent=1))
    elif inner.suffix in (".csv", ".tsv"):
        with inner.open("w", newline="") as f:
            writer = csv.DictWriter(f, list(found[0]), delimiter="\t" if inner.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(found)
    else:
        inner.write_text("".join(json.dumps(row) + "\n" for row in found))
    if path != inner:
        path.write_bytes(gzip.compress(inner.read_bytes()))
        inner.unlink()
    return path


FORMATS = ["a.jsonl", "b.ndjson", "c.json", "d.csv", "e.tsv", "f.parquet", "g.jsonl.gz", "h.csv.gz", "I.CSV"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_any_format_gives_the_same_prompts_and_the_same_identity(tmp_path, name):
    data = from_file(write(tmp_path / name.lower(), rows()).rename(tmp_path / name), DataSettings())
    assert data.identity == IDENTITY
    assert {p.kind for p in data.splits["test"]} == {"toxic", "nontoxic", "unknown"}


def test_order_line_endings_and_a_byte_order_mark_do_not_change_the_identity(tmp_path):
    lines = [json.dumps(row) for row in rows()[::-1]]
    (tmp_path / "dos.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    assert from_file(tmp_path / "dos.jsonl", DataSettings()).identity == IDENTITY


@pytest.mark.parametrize("name", ["a.jsonl", "c.json", "d.csv", "f.parquet"])
def test_columns_are_named_by_the_settings_and_those_there_are_told(tmp_path, name):
    found = [{"id": i, "question": f"why {i}?", "harm": i / 10, "text": "not this"} for i in range(9)]
    path = write(tmp_path / name, found)
    assert read_prompts(path, Columns("question", "harm"))[7] == Prompt("why 7?", "toxic", 0.7)
    with pytest.raises(BadData, match=r"no column questoin; found the keys .*question.*; name one with --set task.data.text"):
        read_prompts(path, Columns("questoin"))
    with pytest.raises(BadData, match=r"no column ham; found the keys .*harm.*; name one with --set task.data.score"):
        read_prompts(path, Columns("question", "ham"))


def test_the_data_of_a_file_are_of_the_columns_that_the_settings_name(tmp_path):
    renamed = [{"question": row["text"], "harm": row["score"], "text": "not this", "score": 1.0} for row in rows()]
    data = from_file(write(tmp_path / "a.jsonl", renamed), DataSettings(text="question", score="harm"))
    assert data.identity == IDENTITY
    assert {p.kind for p in data.splits["test"]} == {"toxic", "nontoxic", "unknown"}


def test_a_file_without_a_usual_column_says_which_it_has(tmp_path):
    path = write(tmp_path / "a.parquet", [{"body": "x", "id": 1}])
    with pytest.raises(BadData, match=r'a.parquet, row 1: no "text" or "prompt"; found the keys body, id; name one'):
        read_prompts(path)


def test_parquet_with_the_nested_rows_of_realtoxicityprompts(tmp_path):
    nested = [{"prompt": {"text": f"number {i}", "toxicity": 0.9 if i else None}, "challenging": i == 2} for i in range(3)]
    found = read_prompts(write(tmp_path / "rtp.parquet", nested))
    assert [(p.text, p.kind) for p in found] == [("number 0", "unknown"), ("number 1", "toxic"), ("number 2", "challenging")]


def continued(shape: dict | None = None) -> list[dict]:
    """Rows in the whole shape of RealToxicityPrompts; every third continuation is toxic, every seventh is null."""
    found = []
    for i, row in enumerate(rows()):
        after = {"text": f" and so on, {i} times", "toxicity": 0.9 if i % 3 == 0 else 0.1}
        prompt = {"text": row["text"], "toxicity": row["score"] or 0.1}
        found.append({"prompt": prompt, "continuation": (None if i % 7 == 0 else after) if shape is None else shape})
    return found


@pytest.mark.parametrize("name", ["a.jsonl", "f.parquet"])
def test_the_continuations_of_training_prompts_are_the_documents(tmp_path, name):
    told = DataSettings(documents=200, clean=20, document_words=3)
    data = from_file(write(tmp_path / name, continued()), told)
    after = {row["prompt"]["text"]: row["continuation"] for row in continued()}
    usual = [p.text for p in data.splits["train"] if after[p.text] is not None][:200]
    assert data.documents == [Text(text, " and so on,", ends=False) for text in usual]
    mild = {text for text, part in after.items() if part is not None and part["toxicity"] < 0.5}
    harmless = [p.text for p in data.splits["test"] if p.kind == "nontoxic" and p.text in mild]
    assert harmless
    assert [c.prompt for c in data.clean] == harmless[:20]
    assert data.identity["prompts"] == IDENTITY["prompts"] | {"documents": 200, "clean": len(data.clean)}
    others = from_file(write(tmp_path / ("other-" + name), continued({"text": " or not", "toxicity": 0.1})), told)
    assert data.identity["sha256"] != others.identity["sha256"] != IDENTITY["sha256"]


def test_rows_without_a_continuation_keep_the_identity_of_their_prompts(tmp_path):
    for none in ({"text": None}, {"text": "  "}, {}, {"toxicity": 0.5}):
        data = from_file(write(tmp_path / "a.jsonl", continued(none)), DataSettings())
        assert (data.documents, data.clean, data.identity["sha256"]) == ([], [], IDENTITY["sha256"])


def test_a_continuation_is_read_in_the_shape_of_realtoxicityprompts_alone(tmp_path):
    other = [{"text": row["text"], "score": row["score"], "continuation": {"text": " or not"}} for row in rows()]
    renamed = [{"question": row["text"], **row} for row in other]
    for found, told in ((other, DataSettings()), (renamed, DataSettings(text="question", score="score"))):
        data = from_file(write(tmp_path / "a.jsonl", found), told)
        assert (data.documents, data.clean, data.identity) == ([], [], IDENTITY)


@pytest.mark.parametrize(("shape", "words"), [
    ({"text": 3}, "a text that is a string, found a number"), ({"text": "a\0b"}, "the text has a NUL"),
    ({"text": "a", "toxicity": "high"}, "a score that is a finite number or null, found a string"),
])  # fmt: skip
def test_a_faulty_continuation_is_named_by_its_line(tmp_path, shape, words):
    with pytest.raises(BadData, match=f"line 1: .*{words}"):
        from_file(write(tmp_path / "a.jsonl", continued(shape)), DataSettings())


BROKEN = {
    "a.csv": ('text,score\n"two\nlines",0.5\n\nfine,high\n', "line 5: expected a score that is a finite number or null"),
    "b.csv": ("text,score\none,two,three\n", "line 2: 3 values, expected 2 as in the header"),
    "c.csv": ('text\n"never closed\n', "line 2: not CSV .unexpected end of data"),
    "d.csv": ("text,text\na,b\n", "line 1: duplicate column text"),
    "e.csv": ("<!DOCTYPE html>\n<p>\n", "line 2: no \"text\" or \"prompt\"; found the keys <!DOCTYPE html>"),
    "f.csv": ("text\n", "has no rows"),
    "g.json": ('\n[{"text": "a"}, {"text": 3}]', "row 2: expected a text that is a string, found a number"),
    "h.json": ('[{"text": "a"},', "not JSON"),
    "i.json": ("[" * 100_000, "not JSON"),
    "j.jsonl": ('{"text": "a"}\n' + '{"a":' * 100_000 + "\n", "line 2: not JSON"),
    "k.jsonl": ('{"text": "a\\u0000b"}\n', "line 1: the text has a NUL"),
    "l.csv": ("text\na\0b\n", "line 2: .*NUL"),
    "m.jsonl": ('{"\x1b[2J\u202e": "a"}\n'.replace("\x1b", "\\u001b"), r"found the keys '\\x1b\[2J\\u202e'"),
    "n.parquet": ("PAR1 and nothing more", "cannot be read as Parquet"),
    "o.jsonl.gz": ('{"text": "a"}\n', "line 1: not readable .Not a gzipped file"),
    "p.jsonl": ('{"text": "a", "score": ' + "9" * 5000 + "}\n", "line 1: not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_what_its_name_says_is_refused_in_one_line(tmp_path, name):
    content, words = BROKEN[name]
    (tmp_path / name).write_bytes(content.encode())
    with pytest.raises((BadData, EmptySelection), match=words) as caught:
        read_prompts(tmp_path / name)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["a.jsonl", "b.json", "c.csv", "d.parquet", "e.jsonl.gz", "f.csv.gz"])
@pytest.mark.parametrize("protocol", [0, 5])
def test_a_pickle_by_another_name_never_runs(tmp_path, name, protocol):
    content = pickle.dumps({"text": Payload(tmp_path / "mark")}, protocol)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(BenchError) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value) and caught.value.exit_code in (2, 3)
    assert not (tmp_path / "mark").exists()


def test_parquet_columns_of_other_types_are_no_prompts(tmp_path):
    content = pickle.dumps(Payload(tmp_path / "mark"))
    for value, words in (
        (content, "found bytes"),
        (["a"], "found a list"),
        ({"a": 1}, "found the keys a"),
        (3, "found a number"),
    ):
        path = tmp_path / "objects.parquet"
        parquet.write_table(pa.table({"text" if value != {"a": 1} else "prompt": [value]}), path)
        with pytest.raises(BadData, match=f"row 1: .*{words}"):
            read_prompts(path)
    assert not (tmp_path / "mark").exists()


def test_a_formula_and_a_bidi_mark_are_text_like_any_other(tmp_path):
    texts = ["=cmd|' /C calc'!A0", "@SUM(1+1)", "שלום \u202eabc", "NA", "null", "007"]
    for name in ("a.csv", "b.parquet", "c.jsonl"):
        assert [p.text for p in read_prompts(write(tmp_path / name, [{"text": t} for t in texts]))] == texts


def test_a_file_that_unpacks_without_end_stops_at_a_limit(tmp_path, monkeypatch):
    bomb = tmp_path / "bomb.jsonl.gz"
    bomb.write_bytes(gzip.compress(bytes(2**20)))
    monkeypatch.setattr(tables, "LINE", 2**16)
    with pytest.raises(BadData, match="line 1: longer than"):
        read_prompts(bomb)
    bomb.write_bytes(gzip.compress(b"\n" * 2**12))
    monkeypatch.setattr(tables, "ROWS", 1000)
    with pytest.raises(BadData, match="more than 1,000 lines"):
        read_prompts(bomb)
    monkeypatch.setattr(tables, "UNPACKED", 100)
    with pytest.raises(BadData, match="more than 1,000 lines or 0 GiB"):
        read_prompts(bomb)
    monkeypatch.setattr(tables, "ARRAY", 10)
    with pytest.raises(BadData, match=r"array of more than .* MiB; save it as JSON Lines"):
        read_prompts(write(tmp_path / "a.json", [{"text": "a"}] * 4))


def test_parquet_of_an_absurd_size_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "long.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 40), ["a" * 900_000])  # 36 MB of text in a few kB
    parquet.write_table(pa.table({"text": text, "other": ["b" * 1_100_000] * 40}), path)
    assert path.stat().st_size < 10**6 and len(read_prompts(path)) == 1
    with pytest.raises(BadData, match=r"row 1: the text has 1,100,000 characters, more than 1,000,000"):
        read_prompts(path, Columns("other"))
    monkeypatch.setattr(tables, "UNPACKED", 2**20)
    with pytest.raises(BadData, match=r"40 rows, \d+ MiB; expected at most 5,000,000 and 1"):
        read_prompts(path, Columns("other"))
    monkeypatch.setattr(tables, "ROWS", 10)
    with pytest.raises(BadData, match=r"40 rows, .* at most 10 and"):
        read_prompts(path)


def test_a_pipe_or_a_device_is_no_file_of_prompts(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "pipe.jsonl", Path("/dev/zero")):
        with pytest.raises(MissingPrerequisite, match="not a regular file"):
            read_prompts(path)


def test_held_out_prompts_are_capped_by_kind_in_the_order_of_the_hash(tmp_path):
    many = [Prompt(f"prompt number {i}", "toxic" if i % 4 else "unknown", None) for i in range(3000)]
    whole = split_prompts(many)
    capped = held_out(whole, 50)
    for name in ("validation", "test"):
        assert [[p.kind for p in capped[name]].count(kind) for kind in ("toxic", "unknown")] == [50, 50]
        for kind in ("toxic", "unknown"):
            assert [p for p in capped[name] if p.kind == kind] == [p for p in whole[name] if p.kind == kind][:50]
    assert capped["train"] == whole["train"] and held_out(whole, 3000) == whole


def test_a_large_file_has_a_hundred_test_prompts_unless_it_is_told_otherwise(tmp_path):
    path = write(tmp_path / "many.jsonl", [{"text": f"prompt number {i}"} for i in range(1500)])
    assert len(from_file(path, DataSettings()).splits["test"]) == 100
    assert len(from_file(path, DataSettings(held_out=9)).splits["validation"]) == 9


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return folders.gpt2_folder(tmp_path_factory.mktemp("models") / "gpt2")


def told(model: Path, path: Path, *more: str):
    return resolve("micro", "base", "toxicity", ["task.fluency=none", "task.decoding.max_new_tokens=6", *more],
                   task__prompts=str(path), model__id=str(model))  # fmt: skip


def test_a_prompt_that_is_too_long_is_named_by_its_line(tmp_path, model):
    found = [{"text": f"the cat number {i} sat"} for i in range(120)]
    found[40]["text"] = found[80]["text"] = "the cat"
    found[56]["text"] = "a quiet garden " * 20
    path = write(tmp_path / "mine.jsonl", found)
    with pytest.raises(PromptTooLong, match=r"mine.jsonl, line 57: the prompt has \d+ tokens; a context of 64 leaves 58"):
        for split in (assemble.parts(told(model, path), "toxicity").task,):
            [split.prompts(name) for name in ("validation", "test")]


def test_the_places_of_prompts_come_with_them(tmp_path, model):
    path = write(tmp_path / "mine.csv", [{"text": f"the cat number {i} sat"} for i in range(120)])
    parts = assemble.parts(told(model, path), "toxicity")
    chosen = parts.task.prompts("test")
    for text, place in zip(chosen.texts, chosen.places, strict=True):
        assert place == f"{path}, line {int(text.split()[3]) + 2}"
    assert assemble.provenance(parts).prompts["origin"] == {"file": "mine.csv", "rows": 120}


def test_what_a_name_of_prompts_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("plain").write_text("{}")
    names = {
        "micro": "micro", "imdb": "named", "plain": "file", "none.csv": "file", "none.jsonl.gz": "file", "a/b.parquet": "file",
        "someone/mild": "hub", "data/mild": "file", "./x/y": "file", "/x/y": "file",
    }  # fmt: skip
    assert {name: sources.kind(name) for name in names} == names
    with pytest.raises(UnknownName, match="no dataset named 'imbd'"):
        sources.kind("imbd")


@pytest.mark.parametrize(
    ("prompts", "setting", "words"),
    [
        ("micro", {"held_out": 5}, "task.data applies to named data sets only, and the prompts are 'micro'"),
        ("imdb", {"text": "text"}, "task.data.text does not apply to a named data set"),
        ("a.csv", {"train": 5}, r"task.data.train does not apply to a file, .*leave it out \(known: held_out, score, text\)"),
        ("a.csv", {"split": "test"}, "task.data.split does not apply to a file"),
        ("someone/mild", {"path": "x"}, "task.data.path does not apply to a data set by its id"),
    ],
)
def test_a_setting_that_the_prompts_do_not_have_is_refused(prompts, setting, words):
    with pytest.raises(BadSetting, match=words):
        sources.check(prompts, DataSettings(**setting))


def test_measuring_a_policy_from_elsewhere_refuses_it_too(model):
    with pytest.raises(BadSetting, match=r"task.data applies to named data sets only"):
        assemble.parts(resolve("micro", "base", "toxicity", ["task.data.held_out=5", f"model.id={model}"]), "toxicity")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("hub")
    found = [{"question": row["text"], "harm": row["score"], "id": 1} for row in rows()]
    found[20:20] = [{"question": None, "harm": None, "id": 1}, {"question": " ", "harm": 0.5, "id": 1}]
    fake_hub.put_dataset(home, "someone/mild", "default", {"train": found, "extra": found[:100]})
    return home


@pytest.fixture
def hub(home, monkeypatch) -> list:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "datasets")
    return folders.block_network(monkeypatch)


def test_a_data_set_of_the_hub_is_read_by_its_id_and_columns(hub, caplog):
    data = from_hub("someone/mild", DataSettings(text="question", score="harm"), offline=True)
    assert data.identity == IDENTITY and hub == [] and "left out 2 rows without text" in caplog.text
    origin = {
        "repo": "someone/mild",
        "config": None,
        "split": "train",
        "revision": "main",
        "commit": fake_hub.COMMIT,
        "rows": 399,
    }
    assert data.origin == origin
    assert data.places[rows()[30]["text"]] == "someone/mild, row 33"


def test_splits_and_rows_of_a_data_set(hub):
    data = from_hub("someone/mild", DataSettings(text="question", split="extra"), offline=True)
    assert 80 < data.origin["rows"] < 100
    assert from_hub("someone/mild", DataSettings(text="question", rows=150), offline=True).origin["rows"] < 150


def test_a_data_set_that_lacks_a_column_a_split_or_all_is_named_in_one_line(hub):
    with pytest.raises(BadData, match=r"someone/mild has no column txt; it has question, harm, id"):
        from_hub("someone/mild", DataSettings(text="txt"), offline=True)
    with pytest.raises(BadData, match=r'row 1: no "text" or "prompt"; found the keys question, harm, id; name one'):
        from_hub("someone/mild", DataSettings(), offline=True)
    with pytest.raises(MissingPrerequisite, match=r"no data set 'someone/mild': .*offline"):
        from_hub("someone/mild", DataSettings(split="nowhere"), offline=True)
    with pytest.raises(MissingPrerequisite, match=r"no data set 'someone/else': not prepared in .*offline.*--prompts FILE"):
        from_hub("someone/else", DataSettings(), offline=True)


def test_a_script_of_a_data_set_is_never_run(hub, monkeypatch):
    import datasets

    asked = []

    def load(*args, **options):
        asked.append(options)
        raise RuntimeError("Dataset scripts are no longer supported, but found mild.py")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(MissingPrerequisite, match="no data set 'someone/mild'"):
        own_prompts.from_hub("someone/mild", DataSettings(), offline=True)
    assert asked and not any("trust" in name for options in asked for name in options)
    assert "trust_remote_code" not in __import__("inspect").signature(datasets.load_dataset).parameters


def test_a_plan_says_what_prompts_need(tmp_path, home, hub, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(home / "datasets"))
    found = {need.what: need.there for need in needs(resolve("micro", "base", "toxicity", task__prompts="someone/mild"))}
    assert found == {"package datasets": True, "someone/mild": True}
    (need,) = needs(resolve("micro", "base", "toxicity", task__prompts=str(tmp_path / "none.csv")))
    assert (need.what, need.there) == ("prompts", False) and ".parquet" in need.how
