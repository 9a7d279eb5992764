"""`harness check scorer`: every scorer holds the rules, and each planted fault fails its own."""

import importlib
import json
import socket
import sys

import folders
import numpy as np
import pytest

from harness.conformance import scorer_rules
from harness.conformance.scaffold import new_plugin
from harness.conformance.scorer_rules import check_scorer
from harness.conformance.texts import ODD, OWN, Unreadable, texts
from harness.core.errors import MissingPrerequisite
from harness.tasks import SCORERS

QUICK = {"lexicon", "toxicity-linear", "diversity", "pycodestyle", "style-judge", "vader"}
NETWORKS = {"classifier", "detoxify"}
ELSEWHERE = {"evaluate", "trained", "yours"}  # of files, checked in tests/tasks; and the one that stands for a missing scorer


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in sorted(set(SCORERS) - NETWORKS - ELSEWHERE)]
)
def test_every_scorer_holds_the_rules(name):
    checks = check_scorer(name)
    assert len(checks) == 12 and not [c for c in checks if c.held is False]


@pytest.mark.slow
def test_networks_hold_the_rules(harness, tmp_path):
    classifier = folders.classifier_folder(tmp_path / "classifier", "Roberta", ("no", "yes"))
    words = ["--set", f"model={classifier}", "--set", "label=yes", "--set", "device=cpu"]
    code, out, err = harness("check", "scorer", "classifier", *words)
    assert code == 0, out + err
    checkpoint, config = folders.detoxify_checkpoint(tmp_path / "detoxify")
    checks = check_scorer("detoxify", {"checkpoint": str(checkpoint), "config": str(config), "device": "cpu"})
    assert not [c for c in checks if c.held is False]


HEAD = "import numpy as np\ncalls = []\nclass Mine:\n    def score(self, prompts, responses):\n"
SOUND = "        return np.array([1 / (1 + r.count('e')) for r in responses])\n"
FAULTS = {  # what `score` does: the rule that fails, words of what was found
    "return np.ones((len(responses), 1))": ("scores", "of shape"),
    "return np.array([2.0] * len(responses))": ("scores", "returned a score of 2; expected [0, 1]"),
    "return 'good'": ("scores", "expected an array of"),
    "return np.array([np.nan if i < 9 else 0.5 for i in range(len(responses))])": ("ordinary text", "9 of 24 have no score"),
    "return np.full(len(responses), 0.5)": ("tells apart", "each of 66 texts has the score 0.5"),
    "return np.array([one(r) for r in responses])": ("unscorable", "0 where text 0 "),
    "x = np.array([r.count('e') for r in responses]); return (x + 1) / (x.max() + 1)": ("batch", "differ alone"),
    "return (np.arange(len(responses)) == 0) * 0.5": ("batch", "differ"),
    "calls.append(1); return np.array([r.count('e') / (len(calls) + 1e5) for r in responses])": (
        "deterministic", "a second time"),
    "return np.array([1.0 - (r.count('e') > 2) if r.isascii() and 20 < len(r) < 200 else np.nan for r in responses])": (
        "odd texts", "have no score"),
    "assert responses; return np.array([1 / (1 + r.count('e')) for r in responses])": ("empty list", "AssertionError"),
    "return np.array([1 / (1 + r.count('e')) for r in responses]) if responses else np.zeros((0, 2))": (
        "empty list", "shape (0, 2)"),
    "connect(); return np.array([1 / (1 + r.count('e')) for r in responses])": ("network", "tried"),
}  # fmt: skip
ONE = "\ndef one(r):\n    try:\n        return 1 / (1 + r.count('e'))\n    except ValueError:\n        return 0.0\n"
CONNECT = (
    "\ndef connect():\n    import socket\n    try:\n"
    "        socket.create_connection(('127.0.0.1', 9), 1)\n    except OSError: ...\n"
)
IDENTITIES = {
    "{'name': 'mine', 'clock': __import__('time').time_ns()}": ("identity", "differ"),
    "{'name': 'mine', 'sizes': (1, 2)}": ("identity", "when it is written"),
    "{'version': 1}": ("identity", "a table without a name"),
    "'mine'; del self.identity": ("identity", "none"),
}


def examined(folder, body: str, identity: str = "") -> dict[str, scorer_rules.Check]:
    told = identity or "{'name': 'mine', 'version': 1}"
    made = f"    def __init__(self):\n        calls.append(1)\n        self.identity = {told}\n"
    (folder / "mine.py").write_text(HEAD + body + made + ONE + CONNECT)
    return {c.name: c for c in check_scorer(str(folder / "mine.py"))}


def test_a_scorer_without_fault(tmp_path):
    checks = examined(tmp_path, SOUND)
    assert len(checks) == 12 and {c.name for c in checks.values() if c.held is None} == {"options", "help"}
    assert not [c for c in checks.values() if c.held is False]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_fails_its_rule(tmp_path, fault):
    rule, said = FAULTS[fault]
    checks = examined(tmp_path, f"        {fault}\n")
    assert checks[rule].held is False and said in checks[rule].found, checks[rule]


@pytest.mark.parametrize("fault", IDENTITIES)
def test_an_identity_that_is_none(tmp_path, fault):
    rule, said = IDENTITIES[fault]
    checks = examined(tmp_path, SOUND, fault)
    assert checks[rule].held is False and said in checks[rule].found, checks[rule]


NAMED = {  # a fault: the words that name the first text that shows it
    "return np.array([2.0 if i == 7 else 0.5 for i in range(len(responses))]) if len(responses) > 1 else np.array("
    "[2.0 if 'l=[a' in responses[0] else 0.5])": ("scores", "the first alone: text 7 (hidden: 5 words, 30 characters)"),
    "return np.array([{}[r] for r in responses])": (
        "ordinary text", "as text 0 (hidden: 9 words, 40 characters): KeyError in mine.py, line "),
    "return np.array([np.nan if len(r) < 30 or len(r) > 90 else .5 - r.count('e') / 99 for r in responses])": (
        "odd texts", "as text 24 (hidden: 0 words, 0 characters): NaN"),
    "return np.array([one(r) for r in responses])": ("unscorable", "0 where text 0 (hidden: 9 words, 40 characters) cannot"),
    "return (np.arange(len(responses)) == 9) * 0.5": ("batch", "differ alone, first text 9 (hidden: "),
    "calls.append(1); return np.array([.5 + (i == 3) * len(calls) / 999 for i in range(len(responses))])": (
        "deterministic", "other scores a second time, first of text 3 (hidden: "),
}  # fmt: skip


@pytest.mark.parametrize("fault", NAMED)
def test_a_failure_names_the_text_by_its_number_and_masks_it(tmp_path, fault):
    rule, said = NAMED[fault]
    found = examined(tmp_path, f"        {fault}\n")[rule]
    assert found.held is False and said in found.found, found
    assert not any(text.strip() and len(text) > 12 and text in found.found for text in texts()[1])


OPTIONS = """
import numpy as np

class Mine:
    "Few letters e. {doc}"

    def __init__(self, most: int = 3, sharp: bool = False, share: float = 0.5, word: str = "e"):
        self.most = most
        self.identity = {{"name": "mine", "version": 1, "sharp": sharp{told}}}

    def score(self, prompts, responses):
        return np.array([1 / (1 + r.count("e") / self.most) for r in responses])
"""


def test_an_option_that_moves_a_score_is_in_the_identity_and_every_one_is_described(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OPTIONS.format(doc="most  of them; sharp; word", told=""))
    found = {c.name: c for c in check_scorer(str(path))}
    assert found["options"].held is False and found["options"].found == "most=7 gives other scores and the same identity"
    assert found["help"].held is False and found["help"].found == "not described: share"
    path.write_text(OPTIONS.format(doc="most  of them; sharp; share, word", told=', "most": most'))
    assert {c.held for c in check_scorer(str(path))} == {True}


def test_a_new_scorer_passes_its_check_and_its_test(tmp_path, monkeypatch):
    new_plugin("scorer", "capitals", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    tests = {k: v for k, v in vars(importlib.import_module("test_capitals")).items() if k.startswith("test_")}
    assert len(tests) == 2
    for test in tests.values():
        test()
    del sys.modules["test_capitals"], sys.modules["capitals"]  # a monkeypatch would put them back


def test_what_is_missing_here_is_no_fault_of_the_scorer(tmp_path):
    with pytest.raises(MissingPrerequisite, match="no model"):
        examined(tmp_path, "        from harness.api import MissingPrerequisite as M\n        raise M('no model')\n")


def test_the_command(harness, tmp_path):
    code, out, err = harness("check", "scorer", "lexicon", "--json")
    assert code == 0 and json.loads(out)["scorer"] == "lexicon"
    (tmp_path / "mine.py").write_text(HEAD + "        return np.zeros(len(responses))\n")
    code, out, err = harness("check", "scorer", tmp_path / "mine.py")
    assert code == 5 and "FAILS  tells apart" in out and "does not hold 2 of 12 rules: tells apart, identity" in err
    assert "text N" not in out
    (tmp_path / "mine.py").write_text(HEAD + "        return np.array([len(responses) / 99] * len(responses))\n")
    assert "text N, with its prompt: `from harness" in harness("check", "scorer", tmp_path / "mine.py")[1]
    assert harness("check", "task", "toxicity", "--set", "a=1")[0] == 2
    assert harness("check", "scorer", "lexicn")[0] == 2


def test_an_unreadable_text_fails_wherever_it_is_read():
    text = Unreadable("it was great")
    for read in (iter, str.lower, lambda t: t.split(), lambda t: t.encode(), lambda t: "a" in t, lambda t: t.count("a")):
        if read is not str.lower:
            with pytest.raises(ValueError, match="cannot be read"):
                read(text)
    assert len(set(ODD)) == len(ODD) and len(OWN) == 8 and np.isfinite(len(text)) and socket
