"""The page on the return of a habit: who falls below the oracle beyond error, the tables and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import fake_records as fake
import pytest
from return_page import asked, main

from harness.analysis.curves.probes import behind
from harness.analysis.study import read_study
from harness.core.errors import EmptySelection, Unwritable
from harness.report.sections import learning_words


def result(judge: list[float]) -> dict[str, object]:
    """An invented line of probes.jsonl: the judge after 0, 5 and 10 updates on text with the habit."""
    readings = [
        {"at": at, "label": "", "metrics": {"judge": {"value": value, "stderr": None, "n": 5}}}
        for at, value in zip((0, 5, 10), judge, strict=True)
    ]
    told = {"probe": "relearn_habit", "version": 1, "settings": {"texts": 64}, "seed": 0, "unit": "updates", "number": "mean"}
    return told | {"value": (judge[0] + 2 * judge[1] + judge[2]) / 4, "readings": readings, "seconds": 1.0}


@pytest.fixture
def records(tmp_path) -> Path:
    """The oracle holds, quark falls in each seed, ppo in one of them; dpo has one seed, filtering was not probed."""
    falls = {
        "base": [0.2, 0.2, 0.2],
        "oracle": [1.0, 0.99, 0.98],
        "quark": [0.4, 0.41, 0.42],
        "ppo": [0.1, 0.95, 0.9],
        "dpo": [0.3],
    }
    for method, last in falls.items():
        for seed, judge in enumerate(last):
            dir = fake.write_run(tmp_path, method, seed)
            (dir / "probes.jsonl").write_text(json.dumps(result([judge] * 3)) + "\n")
    fake.write_run(tmp_path, "filtering", 0)
    return tmp_path


def probing(records: Path):
    found = asked(read_study([records]).groups[0])
    assert found is not None
    return found


def test_a_method_is_below_the_oracle_only_beyond_error(records):
    shown, tied = behind(probing(records))
    assert [name for name, _ in shown] == ["quark"] and tied == ["ppo"]
    assert shown[0][1].mean == pytest.approx(-0.58)
    words = learning_words(probing(records))
    assert "the base policy's 0.20. 3 of 3 methods fall below the oracle; the best is ppo with 0.65." in words
    assert "Holm-corrected, these do: quark by 0.58. Not told apart from it: ppo." in words


def test_nothing_is_said_of_an_oracle_that_is_not_there_or_has_one_seed(tmp_path):
    for method in ("quark", "ppo"):
        for seed in range(2):
            dir = fake.write_run(tmp_path, method, seed)
            (dir / "probes.jsonl").write_text(json.dumps(result([0.5, 0.4, 0.3])) + "\n")
    assert learning_words(probing(tmp_path)) == "" and behind(probing(tmp_path)) == ([], [])
    dir = fake.write_run(tmp_path, "oracle", 0)
    (dir / "probes.jsonl").write_text(json.dumps(result([1.0, 0.9, 0.8])) + "\n")
    assert "2 of 2 methods fall below the oracle" in learning_words(probing(tmp_path)) and behind(probing(tmp_path)) == ([], [])


def test_the_page_has_tables_and_a_picture_and_the_same_bytes_each_time(records, tmp_path):
    page, picture = tmp_path / "return.md", tmp_path / "return.png"
    asked_for = [str(page), "--reference", str(records), "--picture", str(picture)]
    main(asked_for)
    text, drawn = page.read_text(), picture.read_bytes()
    assert "python docs/tools/return_page.py" in text and "![The judge while policies learn" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:7]] == ["| base", "| oracle", "| ppo", "| quark", "| dpo"]
    assert rows[3] == "| oracle | 3 | 0.99 | 0.99 | 0.99 |" and "filtering" not in text
    main(asked_for)
    assert page.read_text() == text and picture.read_bytes() == drawn


def test_a_study_without_probes_and_a_place_that_cannot_be_written(records, tmp_path):
    fake.write_run(tmp_path / "bare", "quark", 0)
    with pytest.raises(EmptySelection, match="no probed policy below"):
        main([str(tmp_path / "x.md"), "--reference", str(tmp_path / "bare")])
    with pytest.raises(Unwritable, match="cannot be written"):
        main([str(tmp_path / "x.md"), "--reference", str(records), "--picture", str(tmp_path / "no" / "x.png")])
