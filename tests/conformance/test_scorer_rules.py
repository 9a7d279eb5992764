"""`harness check scorer`: every scorer holds the rules, and each planted fault fails its own."""

import json
import socket

import folders
import numpy as np
import pytest

from harness.conformance import scorer_rules
from harness.conformance.scorer_rules import check_scorer
from harness.conformance.texts import ODD, OWN, Unreadable
from harness.core.errors import MissingPrerequisite
from harness.tasks import SCORERS

QUICK = {"lexicon", "diversity", "pycodestyle", "style-judge", "vader"}
NETWORKS = {"classifier", "detoxify"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in sorted(set(SCORERS) - NETWORKS)]
)
def test_every_scorer_holds_the_rules(name):
    checks = check_scorer(name)
    assert len(checks) == 10 and not [c for c in checks if c.held is False]


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
    "return np.full(len(responses), 0.5)": ("tells apart", "1 different scores"),
    "return np.array([one(r) for r in responses])": ("unscorable", "0 for a text that could not be read"),
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
    "{'version': 1, 'clock': __import__('time').time_ns()}": ("identity", "differ"),
    "{'sizes': (1, 2)}": ("identity", "when it is written"),
}


def examined(folder, body: str, identity: str = "") -> dict[str, scorer_rules.Check]:
    made = f"    def __init__(self):\n        calls.append(1)\n        self.identity = {identity}\n" if identity else ""
    (folder / "mine.py").write_text(HEAD + body + made + ONE + CONNECT)
    return {c.name: c for c in check_scorer(str(folder / "mine.py"))}


def test_a_scorer_without_fault(tmp_path):
    checks = examined(tmp_path, SOUND)
    assert len(checks) == 10 and not [c for c in checks.values() if not c.held]


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


def test_what_is_missing_here_is_no_fault_of_the_scorer(tmp_path):
    with pytest.raises(MissingPrerequisite, match="no model"):
        examined(tmp_path, "        from harness.api import MissingPrerequisite as M\n        raise M('no model')\n")


def test_the_command(harness, tmp_path):
    code, out, err = harness("check", "scorer", "lexicon", "--json")
    assert code == 0 and json.loads(out)["scorer"] == "lexicon"
    (tmp_path / "mine.py").write_text(HEAD + "        return np.zeros(len(responses))\n")
    code, out, err = harness("check", "scorer", tmp_path / "mine.py")
    assert code == 5 and "FAILS  tells apart" in out and "does not hold 1 of 10 rules: tells apart" in err
    assert harness("check", "task", "toxicity", "--set", "a=1")[0] == 2
    assert harness("check", "scorer", "lexicn")[0] == 2


def test_an_unreadable_text_fails_wherever_it_is_read():
    text = Unreadable("it was great")
    for read in (iter, str.lower, lambda t: t.split(), lambda t: t.encode(), lambda t: "a" in t, lambda t: t.count("a")):
        if read is not str.lower:
            with pytest.raises(ValueError, match="cannot be read"):
                read(text)
    assert len(set(ODD)) == len(ODD) and len(OWN) == 8 and np.isfinite(len(text)) and socket
