"""What a scorer can do to a run: fail on a text, hang, give no score, be interrupted; and what becomes of it."""

import signal
import threading
import time

import folders
import numpy as np
import pytest
import torch
import transformers

from harness.core import registry
from harness.core.errors import BadData, BadScorer, BadSetting, Interrupted
from harness.runs import scorers, session
from harness.tasks.scorers.cache import CachedScorer
from harness.tasks.scorers.classifier import ClassifierScorer
from harness.tasks.scorers.detoxify import DetoxifyScorer
from harness.tasks.scorers.guard import PATIENCE, GuardedScorer, limited


class Plain:
    """A scorer that says the share of letters that are no x, and does something else at some words."""

    slow = True

    def __init__(self, act=lambda text: None):
        self.act, self.identity, self.asked = act, {"name": "plain", "version": 1}, []

    def score(self, prompts, responses):
        self.asked.append(len(responses))
        return [self._one(text) for text in responses]

    def _one(self, text):
        self.act(text)
        return 1 - text.count("x") / max(len(text), 1)


class Gives:
    """A scorer that gives one and the same thing for any texts."""

    def __init__(self, value, identity={"name": "gives"}):
        self.value, self.identity = value, identity

    def score(self, prompts, responses):
        return self.value


def score(scorer, *responses: str) -> np.ndarray:
    return scorer.score([""] * len(responses), list(responses))


# an interruption


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    return str(folders.classifier_folder(tmp_path_factory.mktemp("models") / "bert", "Bert", ("no", "yes")))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return folders.detoxify_checkpoint(tmp_path_factory.mktemp("detoxify"))


@pytest.fixture(params=["classifier", "detoxify", "plug-in"])
def network(request, bert, checkpoint):
    """A scorer, and where it works."""
    if request.param == "classifier":
        return ClassifierScorer(bert, "yes", batch_size=2), "_forward"
    if request.param == "detoxify":
        return DetoxifyScorer(*checkpoint, batch_size=2), "_score"
    return Plain(), "_one"


def test_a_second_control_c_stops_a_scorer_at_its_work_and_keeps_no_score(network, tmp_path, monkeypatch):
    scorer, work = network
    texts, honest, calls = [f"the cat {i}" for i in range(6)], getattr(scorer, work), []
    expected = score(scorer, *texts)

    def pressed_twice(*words):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return honest(*words)

    monkeypatch.setattr(scorer, work, pressed_twice)
    cached = CachedScorer(GuardedScorer(scorer, "mine"), tmp_path)
    with pytest.raises(Interrupted, match="interrupted at once"), session.interruptible():
        score(cached, *texts)
    assert len(calls) == 2 and not cached.path.exists()
    np.testing.assert_array_equal(score(cached, *texts), expected)  # bit for bit what was never interrupted


def test_an_interruption_is_no_exception_and_keeps_its_line_and_its_exit_code(harness, monkeypatch):
    def stopped(*_, **__):
        raise Interrupted("interrupted at once; the same command goes on")

    monkeypatch.setattr("harness.cli.listing.environment", stopped)
    assert not issubclass(Interrupted, Exception)
    code, out, err = harness("env")
    assert (code, out, err) == (130, "", "error: interrupted at once; the same command goes on\n")


def test_an_interrupted_cell_of_a_sweep_says_so_by_its_exit_code(monkeypatch, capsys):
    from harness.runs.sweep import worker

    def stopped(*_, **__):
        raise Interrupted("interrupted; the same command goes on from here")

    monkeypatch.setattr(worker, "_watch_parent", lambda: None)
    monkeypatch.setattr("harness.runs.assemble.named_cell", stopped)
    cell = dict.fromkeys(("method", "task", "preset", "seed", "overrides", "out", "offline"), "x")
    assert worker.main(cell) == 130
    loading, said = capsys.readouterr().err.splitlines()
    assert "loading" in loading and said == "error: interrupted; the same command goes on from here"


# a text that fails


def fails_at(word: str, error: type[BaseException] = ValueError):
    def act(text):
        if word in text:
            raise error(text)

    return act


@pytest.mark.parametrize("error", [ValueError, AttributeError, RecursionError, MemoryError, UnicodeError, StopIteration])
def test_a_text_that_fails_is_unscored_and_costs_no_other(error, caplog):
    scorer = Plain(fails_at("bad", error))
    found = score(GuardedScorer(scorer, "mine"), "ax", "a bad one", "xx", "a bad two")
    np.testing.assert_array_equal(found, [0.5, np.nan, 0.0, np.nan])
    assert "mine could not score 2 of 4 texts, the first of 9 characters" in caplog.text
    assert error.__name__ in caplog.text and "bad" not in caplog.text  # the text is never logged
    assert np.isnan(score(GuardedScorer(scorer, "mine"), "a bad one")).all()


def test_no_text_is_no_question():
    scorer = Plain(fails_at(""))
    assert score(GuardedScorer(scorer, "mine")).shape == (0,) and scorer.asked == []


def test_an_error_of_ours_and_an_exit_pass_through_the_guard():
    for error in (BadData, SystemExit, KeyboardInterrupt, Interrupted):
        with pytest.raises(error):
            score(GuardedScorer(Plain(fails_at("bad", error)), "mine"), "good", "bad")
        with pytest.raises(error):
            GuardedScorer(Counts(error), "mine").items("bad")


class Counts(Plain):
    def __init__(self, error=ValueError):
        super().__init__()
        self.error = error

    def items(self, text):
        if "bad" in text:
            raise self.error(text)
        return text.count("@")


def test_a_count_that_fails_is_left_out_with_its_characters(caplog):
    from harness.measure.metrics import per_kchar

    guarded = GuardedScorer(Counts(), "mine")
    found = per_kchar([["a@bc", "bad" * 99], ["abcd", "abcd"]], guarded.items)
    assert found.value == pytest.approx(1000 / 12) and found.n_unscored == 1
    assert GuardedScorer(Plain(), "mine").items is None
    assert CachedScorer(guarded, folders.Path()).items("@@") == 2


# a scorer that gives no score


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([7.46, 0.5], "returned a score of 7.46; expected [0, 1]"),
        ([0.5, -4.54], "returned a score of -4.54; expected [0, 1]"),
        ([0.5, float("inf")], "returned a score of inf"),
        ([0.5], "returned scores of shape (1,) for 2 texts; expected (2,)"),
        ([[0.5], [0.5]], "of shape (2, 1) for 2 texts"),
        (0.5, "of shape () for 2 texts"),
        (["good", "bad"], "returned list; expected an array of 2 numbers"),
        ({"a": 1}, "returned dict; expected an array of 2 numbers"),
    ],
)
def test_what_is_no_score_is_an_error_that_names_the_scorer(value, said):
    with pytest.raises(BadScorer) as caught:
        score(GuardedScorer(Gives(value), "mine"), "a", "b")
    assert said in str(caught.value) and "'mine'" in str(caught.value) and "\n" not in str(caught.value)


def test_rounding_and_tensors_are_scores():
    found = score(
        GuardedScorer(Gives(torch.tensor([1 + 1e-7, -1e-8, float("nan")], requires_grad=True)), "mine"), "a", "b", "c"
    )
    np.testing.assert_array_equal(found, [1.0, 0.0, np.nan])
    assert np.isnan(score(GuardedScorer(Gives([None]), "mine"), "a")).all()


class Bare:
    pass


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Bare, "has no method score"),
        (lambda: Gives(0, None), "has no identity"),
        (lambda: Gives(0, {"version": 1}), "has no identity"),
        (lambda: Gives(0, {"name": "x", "words": {1, 2}}), "cannot be written as JSON (Object of type set"),
        (lambda: Gives(0, {"name": "x", "weight": float("nan")}), "cannot be written as JSON"),
        (lambda: 1 / 0, "cannot be built (ZeroDivisionError: division by zero)"),
        (lambda: [].split(), "cannot be built (AttributeError"),
    ],
)
def test_a_scorer_that_is_none_is_refused_in_one_line(kind, said, monkeypatch):
    monkeypatch.setattr(registry, "load", lambda *_: kind)
    with pytest.raises(BadScorer) as caught:
        scorers.built("mine", {})
    assert said in str(caught.value) and "'mine'" in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_every_scorer_of_a_task_is_under_the_guard(monkeypatch):
    monkeypatch.setattr(registry, "load", lambda *_: lambda **more: Gives([len(more)] * 2, {"name": "x"}))
    with pytest.raises(BadScorer, match="returned a score of 2"):
        score(scorers.built("mine", {"kind": "other", "a": 1, "b": 2}), "a", "b")


# a scorer that hangs


def hangs_at(word: str):
    def act(text):
        if word in text:
            time.sleep(60)

    return act


def test_a_text_that_hangs_is_unscored_and_costs_no_other(caplog):
    found = score(GuardedScorer(Plain(hangs_at("slow")), "mine", 0.05), "ax", "slow", "xx")
    np.testing.assert_array_equal(found, [0.5, np.nan, 0.0])
    assert "could not score 1 of 3 texts" in caplog.text and "no answer in time" in caplog.text


def test_a_scorer_that_swallows_every_exception_is_stopped_too():
    def act(text):
        try:
            time.sleep(60)
        except Exception:
            time.sleep(60)

    assert np.isnan(score(GuardedScorer(Plain(act), "mine", 0.05), "a")).all()


def test_a_scorer_that_hangs_at_every_text_is_an_error():
    texts = [f"slow {i}" for i in range(PATIENCE + 5)]
    with pytest.raises(BadScorer, match=r"'mine' did not answer within 0.01 s for 8 texts in a row; .*scorers.mine.timeout"):
        score(GuardedScorer(Plain(hangs_at("slow")), "mine", 0.01), *texts)
    guarded = GuardedScorer(Plain(hangs_at("slow")), "mine", 0.01)
    score(guarded, *[t for text in texts[: PATIENCE - 1] for t in (text, "quick")])  # never so many in a row
    with pytest.raises(BadScorer, match="in a row"):
        for text in texts:
            score(guarded, text)


def test_the_time_limit_is_a_setting_and_no_part_of_the_identity():
    plain, limited_ = (scorers.built("vader", options) for options in ({}, {"timeout": 5}))
    assert plain.identity == limited_.identity and limited_._timeout == 5
    for wrong in (0, -1, "soon", True, float("nan"), float("inf")):
        with pytest.raises(BadSetting, match=r"scorers.vader.timeout is .*; expected seconds above 0"):
            scorers.built("vader", {"timeout": wrong})
    with pytest.raises(BadSetting, match=r"has no option 'tiemout'; known: direction, timeout"):
        scorers.built("vader", {"tiemout": 5})


def test_an_alarm_that_was_set_before_goes_on():
    rung = []
    outer = signal.setitimer(signal.ITIMER_REAL, 0)
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 50)
        with limited(10):
            pass
        assert 10 < signal.getitimer(signal.ITIMER_REAL)[0] <= 50
        signal.raise_signal(signal.SIGALRM)
        assert rung == [1]
        signal.setitimer(signal.ITIMER_REAL, 0)
        with limited(10):
            pass
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *outer)


def test_outside_the_main_thread_a_limit_is_refused_and_scoring_works():
    said = {}

    def body(name, scorer):
        try:
            said[name] = score(scorer, "ax").tolist()
        except BadSetting as e:
            said[name] = str(e)

    for name, timeout in (("free", None), ("limited", 5)):
        thread = threading.Thread(target=body, args=(name, GuardedScorer(Plain(), name, timeout)))
        thread.start()
        thread.join()
    assert said["free"] == [0.5] and "main thread only" in said["limited"]


# a classifier that reads the padding of its batch


def gpt2_classifier(folder, *, pad: bool, side: str = "right"):
    folders.gpt2_folder(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    folders.edit_json(folder / "tokenizer_config.json", pad_token=folders.END if pad else None, padding_side=side)
    torch.manual_seed(0)
    size = {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.4}
    config = transformers.GPT2Config(vocab_size=len(tokenizer), pad_token_id=0 if pad else None, num_labels=2, **size)
    transformers.GPT2ForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("pad", "side", "together"), [(False, "right", 1), (True, "left", 1), (True, "right", 64)])
def test_a_score_of_a_decoder_does_not_depend_on_the_batch(pad, side, together, tmp_path, caplog):
    folder = gpt2_classifier(tmp_path / "m", pad=pad, side=side)
    alone = ClassifierScorer(folder, "LABEL_0", batch_size=1)
    caplog.clear()
    scorer = ClassifierScorer(folder, "LABEL_0", batch_size=64)
    assert scorer.batch_size == together and scorer.identity == alone.identity
    assert ("one by one" in caplog.text) == (together == 1) and caplog.text.count("\n") <= 1
    texts = [*folders.SENTENCES, "", "tea", "the cat " * 90]
    found = score(scorer, *texts)
    np.testing.assert_allclose(found, score(alone, *texts), atol=1e-6)
    assert np.isnan(found).tolist() == [not text for text in texts]  # a text without a token has nothing to read


def test_an_encoder_is_asked_in_whole_batches(bert):
    assert ClassifierScorer(bert, "yes").batch_size == 64


def test_a_classifier_that_can_score_nothing_is_refused_at_load(bert, monkeypatch):
    monkeypatch.setattr(ClassifierScorer, "_forward", lambda self, texts: 1 / 0)
    with pytest.raises(BadData, match="cannot score a plain text"):
        ClassifierScorer(bert, "yes")
