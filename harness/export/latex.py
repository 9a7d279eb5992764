"""Tables of LaTeX with the rules of booktabs. All text is escaped: a name in a record may be anybody's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from math import floor, log10

from harness.core.text import plain

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\char34{}", "`": r"\textasciigrave{}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # which could be arguments of the end of a row
    "±": r"$\pm$", "−": "$-$", "≤": r"$\leq$", "≥": r"$\geq$", "×": r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "–": "--", "—": "---", "…": r"\ldots{}", "\u00a0": "~",
}  # fmt: skip
SUPERSCRIPTS = {digit: str(i) for i, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
LETTERS = re.compile("[ -~¡-ſ]")  # what LaTeX reads without a further package


def table(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = (), texts: int = 1) -> str:
    """A tabular with its notes below; the first `texts` columns are left-aligned, those of numbers right-aligned."""
    columns = "l" * texts + "r" * (len(header) - texts)
    lines = [_row(header), r"\midrule", *map(_row, rows), r"\bottomrule", r"\end{tabular}"]
    below = [rf"\par\smallskip{{\footnotesize {escape(note)}}}" for note in notes]
    head = ["% needs \\usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    return "\n".join([*head, *lines, *below]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"


def escape(text: object) -> str:
    """Any text as LaTeX prints it; a character that needs a further package is given by its number."""
    found = plain(text)
    return "".join(_character(c) + ("{}" if c in "-'" and c == after else "") for c, after in pairwise(found + " "))


def _character(c: str) -> str:
    if c in SPECIAL:
        return SPECIAL[c]
    if c in SUPERSCRIPTS:
        return rf"\textsuperscript{{{SUPERSCRIPTS[c]}}}"
    return c if LETTERS.fullmatch(c) else f"{{[}}U+{ord(c):04X}{{]}}"


def rounded(value: float | None, half: float | None) -> str:
    """A value with half of its interval, both to two significant digits of the latter; three digits without one."""
    if value is None:
        return "–"
    if half is None or half <= 0:
        return f"{value:.3g}".replace("-", "−")
    digits = max(0, 1 - floor(log10(float(f"{half:.1e}"))))
    return f"{value:.{digits}f} ± {half:.{digits}f}".replace("-", "−")
