"""LaTeX tables: numbers rounded by their error, and text that is anybody's."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.export.latex import escape, rounded, table

COMMANDS = {
    "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "char", "textasciigrave",
    "textsuperscript", "pm", "leq", "geq", "times", "uparrow", "downarrow", "ldots",
}  # fmt: skip


def check(text: str) -> None:
    """That LaTeX reads a text as one cell of a row: balanced, nothing special outside of an escape, known commands alone."""
    rest = re.sub(r"\\[{}$&#_%]", "", text)
    assert set(re.findall(r"\\([A-Za-z]+)", rest)) <= COMMANDS
    rest = re.sub(r"\\[A-Za-z]+", "", rest)
    rest = re.sub(r"\$-?\$", "", rest)  # math mode, by now empty
    assert not set(rest) & set('\\$&#_%^|<>"`\n') and rest.isprintable()
    depth = 0
    for c in rest:
        depth += (c == "{") - (c == "}")
        assert depth >= 0
    assert depth == 0 and all(ord(c) < 0x180 for c in rest)


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (0.98123, 0.01249, "0.981 ± 0.012"), (0.5, 0.0996, "0.50 ± 0.10"), (0.5, 0.00995, "0.500 ± 0.010"),
        (123.4, 15.2, "123 ± 15"), (1234.0, 150.0, "1234 ± 150"), (-0.0312, 0.3, "−0.03 ± 0.30"),
        (0.5, None, "0.5"), (0.123456, 0.0, "0.123"), (0.0, 0.0, "0"), (None, 0.1, "–"), (3.1e13, None, "3.1e+13"),
        (1e-9, 2e-12, "0.0000000010000 ± 0.0000000000020"),
    ],
)  # fmt: skip
def test_a_number_has_the_digits_that_its_error_allows(value, half, text):
    assert rounded(value, half) == text


def test_a_table_in_full():
    found = table(["Method", "KL ↓"], [["a_b", "0.1 ± 0.2"], ["[x]*", "≤ −1²"]], ["± half, 50 %"])
    assert found == (
        "% needs \\usepackage{booktabs}\n\\begin{tabular}{lr}\n\\toprule\nMethod & KL $\\downarrow$ \\\\\n\\midrule\n"
        "a\\_b & 0.1 $\\pm$ 0.2 \\\\\n{[}x{]}{*} & $\\leq$ $-$1\\textsuperscript{2} \\\\\n\\bottomrule\n\\end{tabular}\n"
        "\\par\\smallskip{\\footnotesize $\\pm$ half, 50 \\%}\n"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\input{/etc/passwd}", "\\textbackslash{}input\\{/etc/passwd\\}"),
        ("100%&#$_^~", "100\\%\\&\\#\\$\\_\\textasciicircum{}\\textasciitilde{}"),
        ("a--b''c-d", "a-{}-b'{}'c-d"),  # no ligatures
        ("line\nbreak\x1b[31m", "line\\textbackslash{}nbreak\\textbackslash{}x1b{[}31m"),
        ("Zoë Čapek", "Zoë Čapek"),
        ("漢\u202e😀", "{[}U+6F22{]}\\textbackslash{}u202e{[}U+1F600{]}"),
    ],
)
def test_hostile_names(text, expected):
    assert escape(text) == expected
    check(expected)


@given(st.text())
def test_any_text_is_one_cell(text):
    check(escape(text))
