"""Prompts of the user's own: the shapes that are read, the rows that are refused, the split, the tokens."""

import json
import random
from pathlib import Path

import folders
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from harness.core.errors import BadData, EmptySelection, MissingPrerequisite, PromptTooLong
from harness.tasks.data.prompt_files import Prompt, read_prompts, split_prompts, tokenize


def written(folder: Path, *rows: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_rows_of_realtoxicityprompts(tmp_path):
    def row(text, toxicity, challenging):
        prompt = {"text": text, "toxicity": toxicity, "insult": 0.9}
        other = {"text": "of it", "toxicity": 0.7}
        return {"filename": "0.txt", "begin": 0, "end": 9, "challenging": challenging, "prompt": prompt, "continuation": other}

    path = written(tmp_path, row("one", 0.2, True), row("two", 0.5, False), row("three", 0.49, False), row("four", None, False))
    assert read_prompts(path) == [
        Prompt("one", "challenging", 0.2),
        Prompt("two", "toxic", 0.5),
        Prompt("three", "nontoxic", 0.49),
        Prompt("four", "unknown", None),
    ]


def test_flat_rows(tmp_path):
    rows = [
        {"text": "a", "score": 1},
        {"text": "b", "score": None},
        {"text": "c"},
        {"prompt": "d"},
        {"prompt": "e", "score": 0.1},
    ]
    assert read_prompts(str(written(tmp_path, *rows))) == [
        Prompt("a", "toxic", 1.0),
        Prompt("b", "unknown", None),
        Prompt("c", "unknown", None),
        Prompt("d", "unknown", None),
        Prompt("e", "nontoxic", 0.1),
    ]


def test_text_is_kept_as_it_is(tmp_path):
    texts = [" spaced ", "two\nlines", "line\u2028separator", "日本語 🙂"]
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\n  \r\n".join(lines).encode())  # a byte order mark, blank lines, no end of line
    assert [p.text for p in read_prompts(path)] == texts


def test_repeated_texts_are_dropped_and_counted(tmp_path, caplog):
    path = written(tmp_path, {"text": "a", "score": 0.1}, {"text": "b"}, {"text": "a", "score": 0.9}, {"prompt": "b"})
    assert read_prompts(path) == [Prompt("a", "nontoxic", 0.1), Prompt("b", "unknown", None)]
    assert "dropped 2 rows" in caplog.text and "2 prompts are left" in caplog.text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{broken", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "expected an object, found a number"),
        ([], "expected an object, found a list"),
        ({}, "found the keys none"),
        ({"body": "x", "id": 3}, "found the keys body, id"),
        ({"prompt": {"toxicity": 0.3}}, "found the keys toxicity"),
        ({"text": 3}, "found a number"),
        ({"prompt": None}, "found null"),
        ({"prompt": ["x"]}, "found a list"),
        ({"text": ""}, "the text is empty"),
        ({"text": " \n"}, "the text is empty"),
        ({"text": "half \ud83d"}, "surrogate"),
        ({"text": "x", "score": "high"}, "found a string"),
        ({"text": "x", "score": True}, "found a truth value"),
        ({"text": "x", "score": float("nan")}, "found nan"),
        ({"text": "x", "score": float("inf")}, "found inf"),
        ({"text": "x", "score": 10**400}, "too large"),
    ],
)
def test_rows_that_are_refused(tmp_path, row, words):
    path = written(tmp_path, {"text": "fine"}, "", row, {"text": "fine too"})
    with pytest.raises(BadData) as caught:
        read_prompts(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 3: ") and words in message and "\n" not in message


def test_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(BadData, match=r"latin.jsonl, line 2: not UTF-8 \(byte 14 of the line\)"):
        read_prompts(path)


def test_files_that_are_not_there(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(MissingPrerequisite, match="give a JSON Lines file"):
            read_prompts(path)
    for content in ("", "\n \n"):
        with pytest.raises(EmptySelection, match="has no rows"):
            read_prompts(written(tmp_path, content))


def many(n: int) -> list[Prompt]:
    return [Prompt(f"prompt number {i}", "unknown", None) for i in range(n)]


def test_split_shares_and_disjointness():
    prompts = many(2000)
    split = split_prompts(prompts)
    assert list(split) == ["train", "validation", "test"]
    assert sorted(p for members in split.values() for p in members) == sorted(prompts)
    # four standard deviations of a binomial count
    assert abs(len(split["train"]) - 1600) < 72 and abs(len(split["validation"]) - 200) < 54


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(60, 300))
def test_split_is_stable_when_rows_are_added_and_reordered(seed, n):
    few, more = many(60), many(n)
    random.Random(seed).shuffle(more)
    old, new = split_prompts(few), split_prompts(more)
    for name in old:
        assert [p for p in new[name] if p in few] == old[name]


def test_split_is_the_same_for_ever():
    # these hashes must not change: a result names its split by nothing but the texts
    assert [len(members) for members in split_prompts(many(100)).values()] == [80, 7, 13]
    assert split_prompts(many(100))["validation"][0].text == "prompt number 28"


@pytest.mark.parametrize("n", [0, 1, 3])
def test_split_of_a_tiny_file(n):
    with pytest.raises(EmptySelection, match=rf"^{n} prompts are too few .*test 0.*; give about 100 or more$"):
        split_prompts(many(n))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return transformers.AutoTokenizer.from_pretrained(folders.gpt2_folder(tmp_path_factory.mktemp("gpt2")))


@pytest.fixture
def llama(tmp_path):
    return transformers.AutoTokenizer.from_pretrained(folders.llama_folder(tmp_path / "llama"))


def spelled(tokenizer, row: torch.Tensor, mask: torch.Tensor) -> str:
    return tokenizer.decode(row[mask])


def test_tokens_are_padded_on_the_left(gpt2):
    texts = ["the cat", "a quiet garden is a fine place", " "]
    tokens, mask = tokenize(texts, gpt2, max_new_tokens=4, context=64)
    assert tokens.dtype is torch.int64 and mask.dtype is torch.bool and tokens.shape == mask.shape
    assert mask[:, -1].all() and mask[1].all() and (mask.int().diff(dim=1) >= 0).all()
    assert [spelled(gpt2, *row) for row in zip(tokens, mask, strict=True)] == texts


def test_tokens_begin_as_the_tokenizer_has_it(llama):
    tokens, mask = tokenize(["the cat", "a quiet garden"], llama, max_new_tokens=4, context=64)
    assert [spelled(llama, *row) for row in zip(tokens, mask, strict=True)] == ["<s>the cat", "<s>a quiet garden"]


def test_nothing_comes_after_a_prompt(llama):
    specials = [("<s>", 0), ("</s>", 1)]
    llama.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=specials)
    assert llama("the cat")["input_ids"][-1] == llama.eos_token_id
    tokens, _ = tokenize(["the cat"], llama, max_new_tokens=4, context=64)
    assert llama.decode(tokens[0]) == "<s>the cat"


def test_a_prompt_without_tokens_becomes_bos(gpt2, llama, tmp_path):
    for tokenizer in (gpt2, llama):
        tokens, mask = tokenize(["", "the cat"], tokenizer, max_new_tokens=4, context=64)
        assert tokens[0][mask[0]].tolist() == [0]
    nameless = folders.llama_folder(tmp_path / "nameless")
    folders.edit_json(nameless / "tokenizer_config.json", bos_token=None, eos_token=None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(nameless)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    with pytest.raises(BadData, match="neither BOS nor EOS"):
        tokenize([""], tokenizer, max_new_tokens=4, context=64)


def test_prompts_that_leave_no_room(llama):
    length = tokenize(["the cat sat"], llama, max_new_tokens=4, context=64).tokens.shape[1]
    assert tokenize(["the cat sat"], llama, max_new_tokens=4, context=length + 4).tokens.shape[1] == length
    too_long = (
        rf"1 of 2 prompts are too long, one has {length} tokens; a context of {length + 3} leaves {length - 1} for the prompt"
    )
    with pytest.raises(PromptTooLong, match=too_long):
        tokenize(["a", "the cat sat"], llama, max_new_tokens=4, context=length + 3)
    with pytest.raises(EmptySelection, match="no prompts"):
        tokenize([], llama, max_new_tokens=4, context=64)
