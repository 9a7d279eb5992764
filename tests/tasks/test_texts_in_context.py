"""A response is read and written behind its prompt, by a policy's tokenizer and by the judge of fluency."""

import folders
import numpy as np
import pytest
import torch
import transformers
from tiny import tiny_gpt2
from tokenizers import Tokenizer, decoders, models, normalizers, processors

from harness.core.types import Decoding, Prompts, Rollout
from harness.tasks.data import in_context
from harness.tasks.data.prompt_files import Prompt, tokenize
from harness.tasks.scorers.fluency import JudgeModel
from harness.tasks.text_task import Data, Text, TextTask, document

WORDS = ["▁the", "▁cat", "▁sat", "▁on", "▁mat", "ting", "▁", ",", "<0xC3>", "<0xA9>"]


@pytest.fixture(scope="module")
def llama2():
    """A tokenizer as Llama 2 has one: a space is put before a text, and taken away when it is written."""
    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    letters = sorted(set("".join(WORDS[:8])))
    vocabulary = special | {w: i + 3 for i, w in enumerate(dict.fromkeys([*WORDS, *letters]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_merges(vocabulary), unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _merges(vocabulary):
    """Merges from the left that make each word."""
    found = {}
    for word in WORDS[:6]:
        for i in range(1, len(word)):
            vocabulary.setdefault(word[: i + 1], len(vocabulary))
            found[word[:i], word[i]] = None
    return list(found)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return transformers.AutoTokenizer.from_pretrained(folders.gpt2_folder(tmp_path_factory.mktemp("m") / "gpt2"))


class Nothing:
    def __init__(self):
        self.identity = {"name": "nothing"}

    def score(self, prompts, responses):
        return np.full(len(responses), 0.5)


class Any(TextTask):
    name, version, kinds, papers = "any", 1, (), {}


def task(tokenizer, *documents) -> Any:
    prompts = [Prompt("the cat sat", "calm", None)]
    data = Data({"train": prompts}, list(documents), [], {}, {})
    nothing = Nothing()
    decoding = Decoding(max_new_tokens=8)
    return Any(data, tokenizer, reward=nothing, judge=nothing, fluency=None, decoding=decoding, context=32)


def rollout(tokenizer, prompt: str, words: list[str]) -> Rollout:
    row = torch.tensor([tokenizer.convert_tokens_to_ids(words)])
    padded = torch.nn.functional.pad(row, (0, 2), value=2)
    prompts = tokenize([prompt, "the cat sat on the mat"], tokenizer, max_new_tokens=8, context=64)
    return Rollout(Prompts(*(x[:1] for x in prompts)), padded, torch.arange(padded.shape[1])[None] < row.shape[1])


@pytest.mark.parametrize(
    ("prompt", "words", "text"),
    [
        ("the cat sat", ["▁on", "▁the", "▁mat"], " on the mat"),
        ("the cat", ["ting", ",", "▁sat"], "ting, sat"),
        ("the cat", ["▁", "▁sat"], "  sat"),
        ("the cat", ["▁the", "<0xC3>", "<0xA9>"], " theé"),
        ("", ["▁on", "▁the"], "on the"),  # a text of its own
        ("the cat", ["</s>"], ""),
    ],
)
def test_a_response_is_the_text_as_it_is_written_behind_its_prompt(prompt, words, text, llama2):
    assert task(llama2).texts(rollout(llama2, prompt, words)) == [text]


def test_what_a_byte_level_tokenizer_says_is_decoded_alone_as_ever(gpt2):
    rng = torch.Generator().manual_seed(0)
    responses = torch.randint(0, len(gpt2), (400, 12), generator=rng).tolist()
    prompts = torch.randint(0, len(gpt2), (400, 5), generator=rng).tolist()
    assert in_context.stands_alone(gpt2)
    assert in_context.decoded(gpt2, prompts, responses) == gpt2.batch_decode(responses, skip_special_tokens=True)
    for text in ("", " on the mat", "\n    x = 1\n", "é"):
        assert in_context.encoded(gpt2, ["the cat"], [text])[0][0] == gpt2(text, add_special_tokens=False)["input_ids"]


def test_a_prompt_that_ends_in_half_a_character_gives_the_whole_one_to_its_response(llama2):
    half, rest = (llama2.convert_tokens_to_ids(w) for w in (["▁the", "<0xC3>"], ["<0xA9>", "▁cat"]))
    assert in_context.decoded(llama2, [half], [rest]) == ["é cat"]
    assert in_context.decoded(llama2, [half], [[]]) == [""]
    # a decoder may shorten what it reads in context: then all that is left of it is shared
    assert in_context._shared("ab\ufffd", "ab") == in_context._shared("ab", "a\ufffdbc") + 1 == 2


def test_a_document_is_read_behind_its_prompt(llama2):
    """No second space before it; what begins inside a word of the prompt is read alone."""
    made = task(llama2, Text("the cat", " sat on the mat"))
    ((ids, segment),) = made._response_ids([Text("the cat", " sat on. the mat")])
    whole = llama2("the cat sat on. the mat")["input_ids"]
    assert llama2("the cat")["input_ids"] + ids[:-1] == whole and ids[-1] == llama2.eos_token_id
    first = len(llama2("the cat sat on.")["input_ids"]) - len(llama2("the cat")["input_ids"])
    assert segment == [0] * first + [1] * (len(ids) - first)
    assert in_context.encoded(llama2, ["the ca"], ["t sat"])[0][0] == llama2("t sat", add_special_tokens=False)["input_ids"]


def test_a_document_ends_only_where_its_text_does(llama2):
    """An extract, and what the context cuts off, must not teach a policy to stop."""
    made, whole = task(llama2), llama2("the cat sat on. the mat")["input_ids"]
    behind = whole[len(llama2("the cat")["input_ids"]) :]
    text = Text("the cat", " sat on. the mat")
    ((ids, segment),) = made._response_ids([text._replace(ends=False)])
    assert ids == behind and len(segment) == len(ids)
    room = made._context - (len(whole) - len(behind)) - 2 - 3  # for control tokens: one for each sentence, and three
    for too_many in (0, 1, 2):
        made._context = made._context - room + len(behind) - too_many
        room = len(behind) - too_many
        ((ids, segment),) = made._response_ids([text])
        assert ids == ([*behind, llama2.eos_token_id] if not too_many else behind[:-too_many])
        assert len(segment) == len(ids)
    made._context = 4
    assert made._response_ids([text]) == [([], [])]


def test_a_cut_document_does_not_end():
    assert document("a", " b c", 2, ends=True) == Text("a", " b c", ends=True)
    assert document("a", " b c", 2, ends=False) == Text("a", " b c", ends=False)
    assert document("a", " b c d", 2, ends=True) == Text("a", " b c", ends=False)


def judge(tokenizer, **more) -> JudgeModel:
    policy = tiny_gpt2(vocab=len(tokenizer), **more)
    return JudgeModel(policy, tokenizer, {"name": "tiny"})


def nll_of(model: JudgeModel, prompt: list[int], response: list[int]) -> float:
    """By the plain model."""
    logits = model.policy.model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return -sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(response))


def test_fluency_reads_a_response_behind_its_prompt(llama2):
    model = judge(llama2)
    nll, tokens = model.nll(["the cat sat"], [[" on the mat", ""]])
    expected = nll_of(model, llama2("the cat sat")["input_ids"], llama2.convert_tokens_to_ids(["▁on", "▁the", "▁mat"]))
    np.testing.assert_allclose(nll, [[expected, 0.0]], rtol=1e-5)
    assert tokens.tolist() == [[3.0, 0.0]]


def test_fluency_reads_no_end_of_text_between_prompt_and_response(gpt2):
    plain = judge(gpt2)
    closing = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(gpt2.backend_tokenizer.to_str()), bos_token=folders.END, eos_token=folders.END
    )
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {folders.END}", special_tokens=[(folders.END, 0)]
    )
    assert closing("tea")["input_ids"][-1] == 0
    prompts, responses = ["the cat sat", ""], [[" on the mat", "."], ["tea", ""]]
    for found, expected in zip(judge(closing).nll(prompts, responses), plain.nll(prompts, responses), strict=True):
        np.testing.assert_array_equal(found, expected)
    for response in (" and", " and" * 99):  # the latter is cut at the context, which the end of a prompt would shorten
        assert task(closing)._response_ids([Text("tea", response)]) == task(gpt2)._response_ids([Text("tea", response)])


def test_a_response_longer_than_the_context_of_the_judge_is_unscored_and_counted(gpt2):
    from harness.measure.metrics import perplexity

    model = judge(gpt2)
    assert model.policy.context == 32
    texts = ["x" * n for n in (5, 31, 32, 33, 400)]
    nll, tokens = model.nll(["a quiet garden is a fine place " * 3], [texts])
    assert tokens.tolist() == [[5, 31, 32, 33, 400]] and np.isnan(nll).tolist() == [[False, False, True, True, True]]
    assert perplexity(nll, tokens).n_unscored == 3
    alone = [model.nll(["a quiet garden is a fine place " * 3], [[text]])[0][0, 0] for text in texts[:2]]
    np.testing.assert_allclose(nll[0, :2], alone, rtol=1e-6)  # a long response takes no room from another one's prompt
    assert perplexity(*model.nll(["tea"], [texts[2:]])).value is None


@pytest.mark.parametrize("name", ["llama2", "gpt2"])
def test_many_responses_are_encoded_as_each_alone_is(name, request):
    tokenizer = request.getfixturevalue(name)
    prompts, responses = ["the cat", "the cat", "", "the"], [" sat on the mat", "ting", " cat", ""]
    each = [in_context.encoded(tokenizer, [p], [r], offsets=True)[0] for p, r in zip(prompts, responses, strict=True)]
    assert in_context.encoded(tokenizer, prompts, responses, offsets=True) == each
    assert in_context.encoded(tokenizer, [], []) == []
