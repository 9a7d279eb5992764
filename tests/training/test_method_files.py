"""A method file that breaks a rule: one line that names the method, its file's line and the rule; never a traceback."""

from functools import partial

import pytest
import quick

from harness.conformance.rules import check_class
from harness.conformance.toy import ToyTask, toy_policy
from harness.core import registry
from harness.core.errors import BadData, Interrupted, MethodFailed, MissingPrerequisite
from harness.training import contract
from harness.training.trial import Budget, Trial

HEAD = "import torch\nfrom harness.core.types import Settings\n"
WHOLE = """
class MineSettings(Settings):
    lr: float = 1e-2

class Mine:
    version = 1
    Settings = MineSettings

    def __init__(self, settings):
        self.settings = settings

    def train(self, trial):
        while True:
            trial.update(trial.policy.logits(trial.sample(trial.prompts(4))).logsumexp(-1).mean())
            yield {"loss": 1.0}
"""
MALFORMED = {  # what is changed in the file: what it is changed to, the line that is named, and the words of the message
    "no Settings": ("    Settings = MineSettings\n", "", 7, "has no Settings; expected a class Settings derived from harness"),
    "pydantic": ("class MineSettings(Settings):", "import pydantic as p\nclass MineSettings(p.BaseModel):", 8, "Settings"),
    "a dict as Settings": ("Settings = MineSettings", "Settings = {'lr': 1e-2}", 7, "has as Settings an object of type 'dict'"),
    "no version": ("    version = 1\n", "", 7, "has no version; expected a version that is an integer"),
    "a version of text": ("version = 1", "version = '1.0'", 7, "has the version '1.0'"),
    "a version below 1": ("version = 1", "version = 0", 7, "has the version 0"),
    "a constructor of two": ("self, settings)", "self, settings, more)", 7, "cannot be made from its settings"),
    "a train without a trial": ("train(self, trial)", "train(self)", 7, "has no train that takes a trial"),
}  # fmt: skip
UNREADABLE = {
    "raises": ("1 / 0\n", "mine.py:3 cannot be imported: ZeroDivisionError", 3),
    "a BaseException": ("class Odd(BaseException): ...\nraise Odd('x')\n", "mine.py:4 cannot be imported: Odd: x", 3),
    "no Python": ("def (:\n", "mine.py:3 cannot be imported: SyntaxError", 3),
    "sys.exit": ("import sys\nsys.exit(77)\n", "mine.py:4 cannot be imported: SystemExit: 77", 1),
    "needs what is not there": ("import no_such_thing\n", "mine.py:3 cannot be imported: ModuleNotFoundError", 3),
}
UPDATE = "            trial.update("
FIRST = "before each update"
YIELD = 'yield {"loss": 1.0}'
BROKEN = {
    "returns None": (None, "        return None\n", 14, "train returned None; expected a generator train(self, trial)"),
    "returns a list": (None, "        return [{}]\n", 14, "train returned an object of type 'list'"),
    "yields None": (YIELD, "yield None", 17, "yields None; expected a dict from names to numbers at each yield"),
    "yields text": (YIELD, "yield 'done'", 17, "yields an object of type 'str'"),
    "yields a tensor": (YIELD, "yield torch.ones(2)", 17, "yields an object of type 'Tensor'"),
    "yields a tensor by name": (YIELD, "yield {'loss': torch.ones(())}", 17, "yields an object of type 'Tensor' as 'loss'"),
    "yields a number for a name": (YIELD, "yield {1: 1.0}", 17, "yields a dict with the name 1"),
    "raises": (FIRST, "[][1]", 16, "raised IndexError: list index out of range (-v shows the trace)"),
    "raises far away": (FIRST, "torch.ones(2) @ torch.ones(3)", 16, "raised RuntimeError"),
    "ends the program": (FIRST, "raise SystemExit(77)", 16, "raised SystemExit: 77"),
    "a BaseException": (FIRST, "raise type('Odd', (BaseException,), {})('x')", 16, "raised Odd: x"),
    "another policy": (FIRST, "trial.policy = trial.policy.copy()", 18, "replaced trial.policy"),
    "another reference": (FIRST, "trial.reference = None", 18, "replaced trial.reference by None"),
    "deploys a number": (FIRST, "trial.deploy(3)", 18, "deployed an object of type 'int'; expected a policy"),
    "deploys and ends": (None, "        trial.deploy('x')\n        yield from ()\n", 14, "deployed an object of type 'str'"),
    "keeps a function": (FIRST, "trial.keep(f=lambda: 1)", 16, "of type 'function' in 'f'; expected numbers"),
    "keeps an array": (FIRST, "trial.keep(a=[torch.ones(1).numpy()])", 16, "of type 'ndarray' in 'a'"),
    "keeps a number of NumPy": (FIRST, "trial.keep(a={'b': torch.ones(1).numpy()[0]})", 16, "of type 'float32' in 'a'"),
    "a cost that is no number": (FIRST, "trial.cost.sampled_tokens = float('nan')", 18, "it holds nan; expected"),
    "a cost that is gone": (FIRST, "trial.cost = None", 17, "raised AttributeError"),
    "no settings kept": ("self.settings = settings", "pass", 14, "has no settings; expected a constructor that takes"),
    "a constructor that raises": ("self.settings = settings", "settings.nothing", 12, "raised AttributeError"),
}  # fmt: skip


def written(folder, old: str | None, new: str):
    """A method file with one change; None changes all of `train`, FIRST puts a line before its update."""
    text = HEAD + WHOLE
    old, new = (UPDATE, f"            {new}\n{UPDATE}") if old == FIRST else (old, new)
    old = text[text.index("        while True") :] if old is None else old
    assert old in text
    path = folder / "mine.py"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.fixture(scope="module")
def world():
    return toy_policy()


def trained(path, world) -> list[dict[str, float]]:
    """Two updates of the method in a file, on the toy world."""
    kind = registry.load("method", str(path))
    trial = Trial(world.copy(), world.frozen_copy(), ToyTask(), seed=0, budget=Budget(updates=2), lr=1e-2)
    rows = []
    for row in contract.driven(partial(kind, kind.Settings()), trial, "mine"):
        rows.append(row)
        if trial.progress >= 1:
            break
    return rows


def test_a_whole_method_is_as_it_was(tmp_path, world):
    assert trained(written(tmp_path, YIELD, YIELD), world) == [{"loss": 1.0}] * 2


@pytest.mark.parametrize("case", MALFORMED)
def test_a_class_that_is_no_method_is_refused_when_it_is_loaded(harness, tmp_path, case):
    old, new, line, said = MALFORMED[case]
    path = written(tmp_path, old, new)
    code, out, err = harness("run", "--method", path, "--task", "toxicity", "--dry-run")
    assert (code, out) == (3, "") and err.startswith("error: method ") and len(err.splitlines()) == 1
    assert f"mine.py:{line}) " in err and said in err


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_cannot_be_imported_says_where(harness, tmp_path, case):
    text, said, expected = UNREADABLE[case]
    (tmp_path / "mine.py").write_text(HEAD + text)
    code, out, err = harness("show", "method", tmp_path / "mine.py")
    assert (code, out) == (expected, "") and len(err.splitlines()) == 1 and said in err


def test_an_error_of_ours_and_ctrl_c_pass_through_an_import(tmp_path):
    for name, text in (
        ("ours", "import harness.training.trl_bridge\nraise harness.training.trl_bridge.MissingPrerequisite('no TRL')"),
        ("key", "raise KeyboardInterrupt"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(MissingPrerequisite, match=r"^no TRL$"):
        registry.load("method", str(tmp_path / "ours.py"))
    with pytest.raises(KeyboardInterrupt):
        registry.load("method", str(tmp_path / "key.py"))


@pytest.mark.parametrize("case", BROKEN)
def test_a_rule_broken_in_training_is_a_line(tmp_path, world, case):
    old, new, line, said = BROKEN[case]
    path = written(tmp_path, old, new)
    with pytest.raises(MethodFailed) as found:
        trained(path, world)
    message = str(found.value)
    assert message.startswith("method mine (") and f"mine.py:{line})" in message and said in message and "\n" not in message


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted])
def test_an_interruption_passes_through_a_method(tmp_path, world, error):
    raised = f"            import {error.__module__} as m\n            raise m.{error.__name__}('stop')\n"
    with pytest.raises(error, match=r"^stop$"):
        trained(written(tmp_path, UPDATE, raised + UPDATE), world)


def test_what_was_put_into_kept_state_later_is_looked_at_when_it_is_saved(world):
    trial = Trial(world.copy(), world.frozen_copy(), ToyTask(), seed=0, budget=Budget(updates=2), lr=1e-2)
    kept = trial.keep(pool=[], best=None, shape=(1, 2), names={"a": {1.5, True}}, layer=world.model)
    assert trial.state_dict()["kept"]["pool"] == []
    kept.pool.append(open)
    with pytest.raises(MethodFailed, match=r"'builtin_function_or_method' in 'pool'"):
        trial.state_dict()


def test_the_check_says_the_same_sentence_and_nothing_else(tmp_path):
    kind = registry.load("method", str(written(tmp_path, YIELD, "yield None")))
    first, network = check_class(kind, "mine")
    assert first.held is False and network.name == "network"
    assert "yields None; expected a dict from names to numbers" in first.found


@pytest.mark.usefixtures("few_prompts")
def test_a_run_of_a_method_that_ends_the_program(harness, tmp_path):
    path = written(tmp_path, UPDATE, "            raise SystemExit(77)\n" + UPDATE)
    words = ["run", "--method", path, "--task", "toxicity", "--out", tmp_path / "out", *quick.flags("base")]
    code, _, err = harness(*words)
    assert code == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: method mine (") and "mine.py:16) raised SystemExit: 77" in err


def test_a_package_of_somebody_else_that_breaks_on_import(monkeypatch, tmp_path):
    (tmp_path / "broken_package.py").write_text("raise ValueError('too old')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("harness.methods.METHODS", {"gone": ("broken_package:Gone", "")})
    with pytest.raises(MissingPrerequisite, match="cannot be imported: ValueError: too old"):
        registry.load("method", "gone")
    (tmp_path / "other_package.py").write_text("class Gone:\n    Settings = None\n")
    monkeypatch.setattr("harness.methods.METHODS", {"gone": ("other_package:Gone", "")})
    with pytest.raises(BadData, match="has no Settings"):
        registry.load("method", "gone")
