"""The notebook of the first run: its cells run as they stand, and it holds no output of the machine that made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

pytestmark = pytest.mark.usefixtures("few_prompts")
NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_run.ipynb"


def cells() -> list[dict[str, Any]]:
    """The cells with code."""
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_holds_no_outputs():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells())


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    names: dict[str, Any] = {}
    for cell in cells():
        exec("".join(cell["source"]), names)
    printed = capsys.readouterr().out
    assert "reward   base 0." in printed and "judge    base 0." in printed
    assert len(names["runs"]) == 1 and names["trajectory"]["update"].tolist() == [0, 2, 4, 6]
    assert [line.get_label() for line in names["ax"].lines] == ["optimal frontier", "quark"]
