"""`task.chat`: a prompt is one message of the user in the model's chat template, and scorers read the message alone."""

from __future__ import annotations

import json
from pathlib import Path

import folders
import numpy as np
import pytest
import torch
import transformers

from harness.core.errors import BadData, BadSetting
from harness.core.settings import resolve
from harness.core.types import Decoding, Rollout
from harness.policy.policy import naming, prepend
from harness.runs import assemble
from harness.tasks.data.chat import Chat
from harness.tasks.data.prompt_files import Prompt
from harness.tasks.text_task import Data, Text
from harness.tasks.toxicity import Toxicity

TEMPLATE = (
    "{% for message in messages %}{{ '<|endoftext|>' + message['role'] + '\n' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|endoftext|>assistant\n' }}{% endif %}"
)
TEXTS = [" the cat sat on", "a quiet garden, ", "you silly goose\n"]


class Kept:
    """A scorer that keeps what it is given."""

    def __init__(self):
        self.identity = {"name": "kept"}

    def score(self, prompts, responses):
        self.given = list(zip(prompts, responses, strict=True))
        return np.zeros(len(prompts))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return transformers.AutoTokenizer.from_pretrained(folders.gpt2_folder(tmp_path_factory.mktemp("chat") / "model"))


@pytest.fixture
def tokenizer(plain):
    plain.chat_template = TEMPLATE
    yield plain
    plain.chat_template = None


def task(tokenizer, chat: bool = True, **more) -> Toxicity:
    texts = {"train": ["we walked along"], "validation": ["she made tea"], "test": TEXTS}
    splits = {name: [Prompt(text, "unknown", None) for text in members] for name, members in texts.items()}
    documents = [Text(TEXTS[0], " the mat. It slept.")]
    data = Data(splits, documents, documents, {"name": "mine"}, {})
    options = {"fluency": None, "decoding": Decoding(max_new_tokens=4), "context": 64, "chat": chat} | more
    return Toxicity(data, tokenizer, reward=Kept(), judge=Kept(), **options)


def rows(prompts) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(*prompts, strict=True)]


def test_prompts_are_read_as_the_template_writes_them(tokenizer):
    found = rows(task(tokenizer).prompts("test").prompts)
    for row, text in zip(found, TEXTS, strict=True):
        message = [{"role": "user", "content": text}]
        assert row == tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
        assert tokenizer.decode(row) == f"<|endoftext|>user\n{text}<|endoftext|>assistant\n"
    assert task(tokenizer).prompts("test").texts == TEXTS


def test_a_template_opens_the_text_itself(tmp_path):
    """A tokenizer that puts <s> before a text puts none before what its template has opened."""
    llama = transformers.AutoTokenizer.from_pretrained(folders.llama_folder(tmp_path))
    llama.chat_template = "<s>{{ messages[0]['content'] }}</s>"
    found = rows(task(llama, bos=0, eos=1).prompts("test").prompts)
    assert [row.count(0) for row in found] == [1, 1, 1] == [row.count(1) for row in found]
    assert [row.count(0) for row in rows(task(llama, chat=False, bos=0, eos=1).prompts("test").prompts)] == [1, 1, 1]


def test_scorers_read_the_message_alone_with_a_control_token_before_it_too(tokenizer):
    mine = task(naming(tokenizer, len(tokenizer), 2))
    prompts = mine.prompts("test").prompts
    response = torch.tensor(tokenizer(" rain and").input_ids)[None].expand(3, -1)
    said = Rollout(prompts, response, torch.ones_like(response, dtype=torch.bool))
    mine.reward(said)
    mine.judge(said._replace(prompts=prepend(torch.tensor(len(tokenizer)), prompts, bos=0)))
    assert mine._reward.given == mine._judge.given == [(text, " rain and") for text in TEXTS]


def test_documents_answer_the_message(tokenizer):
    one = task(tokenizer).documents(1, torch.Generator().manual_seed(0)).rollout
    other = task(tokenizer, chat=False).documents(1, torch.Generator().manual_seed(0)).rollout
    assert torch.equal(one.response, other.response)
    assert rows(one.prompts) == [rows(task(tokenizer).prompts("test").prompts)[0]]
    assert torch.equal(task(tokenizer).clean_documents().prompts.tokens, one.prompts.tokens)


def test_the_identity_holds_what_the_template_writes_and_only_then(tokenizer):
    without, plain = task(tokenizer, chat=False).identity(), task(tokenizer).identity()
    assert plain == without | {"chat": Chat(tokenizer).identity}
    tokenizer.chat_template = "{{ '24 July' }}" + TEMPLATE
    assert task(tokenizer).identity()["chat"] != plain["chat"]


def test_a_tokenizer_without_a_template_is_refused(plain):
    with pytest.raises(BadSetting, match="needs a tokenizer with a chat template"):
        task(plain)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("no message", "repeats or drops"),
        ("{{ messages[0]['content'] * 2 }}", "repeats or drops"),
        ("{{ raise_exception('no user here') }}", "no user here"),
        ("{{ messages[0]", "the chat template fails"),
    ],
)
def test_a_template_that_frames_no_message_is_refused(plain, template, said, monkeypatch):
    monkeypatch.setattr(plain, "chat_template", template)
    with pytest.raises(BadData, match=said) as caught:
        Chat(plain)
    assert "\n" not in str(caught.value)


def test_a_task_of_another_kind_says_that_it_has_no_chat(monkeypatch):
    monkeypatch.setattr(Toxicity, "chats", False)
    with pytest.raises(BadSetting, match=r"task 'toxicity' has no task\.chat"):
        assemble.parts(resolve("micro", "base", "toxicity", ["task.chat=true"]), "toxicity")


def test_the_command_line_asks_an_instruct_model(harness, tmp_path, tokenizer):
    folder = folders.gpt2_folder(tmp_path / "model")
    prompts: Path = tmp_path / "mine.jsonl"
    prompts.write_text("".join(json.dumps({"text": f"the cat number {i} sat"}) + "\n" for i in range(120)))
    words = [
        "run",
        "-m",
        "base",
        "-t",
        "toxicity",
        "--model",
        folder,
        "--prompts",
        prompts,
        "--out",
        tmp_path / "out",
        "--json",
    ]
    small = {"task.chat": "true", "task.fluency": "none", "task.decoding.max_new_tokens": 4, "evaluation.base_samples": 50}
    words += [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    words += ["--set", "evaluation.samples=2", "--set", "evaluation.paper_samples=0"]
    code, _, err = harness(*words)
    assert code == 2 and "chat template" in err.splitlines()[-1]
    tokenizer.save_pretrained(folder)
    code, out, _ = harness(*words)
    assert code == 0 and json.loads(out.splitlines()[-1])["settings"]["task"]["chat"] is True
