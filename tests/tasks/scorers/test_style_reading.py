"""Where the function that a style scorer reads begins and ends: no line of its body is left out for a free reward."""

import numpy as np
import pytest

from harness.core.settings import DataSettings
from harness.core.types import Responses
from harness.runs import scorers
from harness.tasks.data.datasets import ScoredCode
from harness.tasks.pep8 import CodeStyle
from harness.tasks.scorers.guard import GuardedScorer
from harness.tasks.scorers.style import READING, ParsoScorer, StyleScorer, body_end, code_lines, source_lines

PROMPT = "def f(a, b):\n"
FAULTY = {
    "a tab": "\tx=1 ;y=2\n\treturn  x+y ;\n",
    "a blank line": "    x = 1\n\n    y=2 ;z=3\n",
    "two blank lines": "    x = 1\n\n\n    y=2 ;z=3\n",
    "a form feed at the start": "    x = 1\n\x0c    y=2 ;z=3\n",
    "a form feed inside": "    x = 1\n    y=2\x0c;z=3 ;w=4\n",
    "a vertical tab": "    x = 1\n    y=2 ;z='\x0b' ;w=3\n",
    "a separator of Unicode": "    x = 1\n    y=2 ;z='\u2028' ;w=3\n",
    "a carriage return": "    x = 1\r\n    y=2 ;z=3\r\n",
    "a blank line of Windows": "    x = 1\r\n\r\n    y=2 ;z=3\r\n",
}


@pytest.fixture(scope="module", params=[StyleScorer, ParsoScorer])
def style(request):
    return GuardedScorer(request.param(), "style")


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_behind_it_is_seen(name, style):
    assert style.score([PROMPT], [FAULTY[name]])[0] < 1
    assert style.items(PROMPT, FAULTY[name]) > 0


@pytest.mark.parametrize(
    "rest", ["", "\n", "\n\n\n", "> Hello\nPoor you.\n", "\n\n# note\nx=1 ;y=2\n", "\nclass A :\n    pass ;\n"]
)
def test_what_stands_behind_the_function_is_not_read(rest, style):
    body = "    x = a + b\n    return x;\n"
    assert style.score([PROMPT], [body + rest]) == style.score([PROMPT], [body]) == 0.5


def test_a_blank_line_inside_is_a_line_and_one_behind_is_none():
    assert code_lines(PROMPT, "    x = 1\n\n    return x\n\n\n") == (1, [PROMPT, "    x = 1\n", "\n", "    return x\n"])
    assert code_lines(PROMPT, "    x = 1\n\n    ret") == (1, [PROMPT, "    x = 1\n", "\n"])
    assert code_lines("# a\x0cb\n" + PROMPT, "    x = 1\n") == (1, [PROMPT, "    x = 1\n"])
    assert source_lines("a\x0b\x0c\x1c\x85\u2028b\r\nc\rd\ne") == ["a\x0b\x0c\x1c\x85\u2028b\r\n", "c\r", "d\n", "e"]
    assert body_end(["def f():\n", "", "  x\n"], 0) == 1  # a segment of a data set without any text


@pytest.mark.parametrize("name", ["a tab", "a blank line", "a blank line of Windows", "a form feed at the start"])
def test_the_data_set_of_code_ends_a_function_by_the_same_rule(name):
    lines = source_lines(PROMPT + FAULTY[name] + "\nx = 1\n")
    found = list(ScoredCode("pep8", DataSettings(), None).items({"texts": lines, "scores": [0.0] * len(lines)}))
    body = "".join(code_lines(PROMPT, FAULTY[name])[1][1:])
    assert [item.response for item in found] == [body.rstrip() + "\n"]


@pytest.mark.parametrize("letter", ["l", "O", "I"])
def test_a_text_that_parso_fails_on_is_unscored(letter, caplog):
    scorer = scorers.built("parso", {})
    texts = [f"    {letter} = 1\n    return {letter}\n", "    return a;\n"]
    np.testing.assert_array_equal(scorer.score([PROMPT] * 2, texts), [np.nan, 0.0])
    assert "parso could not score 1 of 2 texts" in caplog.text and np.isnan(scorer.items(PROMPT, texts[0]))


def test_a_text_that_pycodestyle_fails_on_is_left_out_of_the_violations(monkeypatch):
    def fails(style, prompt, response):
        return {"    return a;\n": 1}[response]

    monkeypatch.setattr(StyleScorer, "items", fails)
    said = {"sampled": Responses([PROMPT], [["    return a;\n", "    return l\n"]], np.ones((1, 2)))}
    found = CodeStyle.paper_metrics(object.__new__(CodeStyle), said)["violations_per_kchar"]
    assert found.value == pytest.approx(1000 / 14) and found.n_unscored == 1


def test_scores_of_the_published_texts_did_not_change_and_neither_did_the_identity():
    """A raised reading would make every published run of the task stale; no text of theirs has such a line."""
    assert READING == 2
