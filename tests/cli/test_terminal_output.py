"""What a terminal would obey (escape sequences, marks that turn the direction of writing) is written out."""

import json
import re
import sys
from pathlib import Path

import fake_records as fake
import pytest

import harness as package
from harness.core import text as masking
from harness.core.errors import BenchError
from harness.core.process import explain
from harness.core.types import Metric
from harness.records import archive
from harness.report import trials
from harness.runs.progress import Progress
from harness.runs.session import _measured
from harness.runs.sweep.board import Board

EVIL = "evil\x1b[31m\u202e\u2066\x07\x9b2J\r"
SEEN = r"evil\x1b[31m\u202e\u2066\x07\x9b2J\r"


def obeyed(text: str) -> list[str]:
    """The characters of a text that a terminal would obey, but for the ends of lines."""
    return [c for c in text if not c.isprintable() and c not in "\n\u00a0"]


@pytest.fixture
def out(tmp_path) -> Path:
    """A record whose names are hostile in the folder and in the files, one that is broken, and a sound one."""
    out = tmp_path / "out"
    for task in (EVIL, "toxicity"):
        for n, status in enumerate(("done", "failed", "degraded")):
            run = {"error": {"type": EVIL, "message": EVIL}} if status == "failed" else {}
            final = {EVIL: fake.point(0.5, 0.1), "reward": fake.point(None, reason=EVIL)}
            fake.write_run(out, f"m{EVIL}", n, status=status, task=task, preset=EVIL, final=final, manifest=run)
    (fake.write_run(out, "quark", 0, preset=EVIL) / "manifest.json").write_text("{")
    sound = fake.write_run(out, "ppo", 0)
    fake.write_samples(sound, "ppo")
    return out


@pytest.mark.parametrize(
    "words",
    [
        "list runs --out OUT", "status OUT", "show run EVIL --out OUT", "verify EVIL --out OUT", "samples EVIL --out OUT",
        "compare EVIL ppo --out OUT", "compare OUT OUT", "verify OUT/EVIL --out OUT", "show method EVIL",
        "run -m EVIL -t toxicity",
        "run -m base -t EVIL", "report PAGE --out PAGE", "--EVIL", "EVIL",
        "sweep --methods EVIL --tasks toxicity", "run -m base -t toxicity --preset EVIL",
        "run -m base -t toxicity --set EVIL=1",
    ],
)  # fmt: skip
def test_no_command_lets_a_name_reach_the_terminal(words, out, tmp_path, harness, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = [w.replace("OUT", str(out)).replace("PAGE", str(tmp_path / EVIL)).replace("EVIL", EVIL) for w in words.split()]
    _, said, err = harness(*told)
    assert not obeyed(said) and not obeyed(err) and (said or err)
    if "OUT" in words and "report" not in words and "EVIL" not in words:
        assert SEEN in said + err


def test_warnings_of_a_report_are_written_out(out, tmp_path, harness, monkeypatch):
    monkeypatch.setattr("harness.report.build.build", lambda study, out: Result(study.problems))
    _, said, err = harness("report", out, "--out", tmp_path / EVIL)
    assert not obeyed(said) and not obeyed(err) and SEEN in said and SEEN in err


class Result:
    """What `build` gives, as far as the command reads it."""

    exit_code = 4
    unfinished = (EVIL,)

    def __init__(self, problems) -> None:
        self.problems = problems


def test_a_message_of_an_error_is_one_line_without_anything_to_obey(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["harness"])
    assert explain(BenchError(f"a\n {EVIL} \udcff")) == 1
    assert capsys.readouterr().err == f"error: a {SEEN[:-2]} \\udcff\n"


def test_progress_and_board_write_it_out(capsys):
    Progress().say(EVIL)
    Board(1).say(EVIL)
    err = capsys.readouterr().err
    assert not obeyed(err) and err.count(SEEN) == 2


def test_what_is_shown_between_updates_is_gone_with_the_next(capsys, monkeypatch):
    monkeypatch.setattr("harness.runs.progress.PLAIN_EVERY", -1.0)
    progress = Progress()
    progress.at(0.1, {}, now={"neutral update": "3 of 5"})
    progress.at(0.2, {"update": "1"})
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("10%  neutral update 3 of 5") and second.endswith("20%  update 1")


def test_the_bar_says_which_update_its_measurement_is_of(capsys, monkeypatch):
    monkeypatch.setattr("harness.runs.progress.PLAIN_EVERY", -1.0)
    metrics = {key: Metric(0.5, 0.1, 9) for key in ("reward", "judge", "kl", "efficiency")} | {"ppl": Metric(3.0, 0.1, 9)}
    progress = Progress()
    progress.at(0.25, {"update": "8"}, _measured(8, metrics | {"kl": Metric(None, None, 0, reason="none")}))
    progress.at(0.5, {"update": "12"})
    first, second = (line.partition("%  ")[2] for line in capsys.readouterr().err.splitlines())
    assert first == "update 8  at update 8: reward 0.50, judge 0.50, 0.50 of the optimum"
    assert second == first.replace("update 8 ", "update 12 ")
    assert "KL 0.50, 0.50 of the optimum" in _measured(8, metrics) and _measured(8, {}) == ""


def test_archive_trials_and_frames_write_it_out(out, tmp_path, capsys):
    assert archive.main([str(out), str(tmp_path / EVIL)]) == 4
    trials.main([out])
    with pytest.warns(UserWarning) as warned:
        package.load(out)
    said = capsys.readouterr()
    text = said.out + said.err + str(warned[0].message)
    assert not obeyed(text) and text.count(SEEN) > 3


def test_no_json_on_standard_output_has_anything_to_obey(out, harness):
    for words in (("list", "runs"), ("status", out)):
        _, said, _ = harness(*words, "--out", out, "--json")
        assert not obeyed(said) and json.loads(said.splitlines()[-1])


def test_what_is_printable_stays_as_it_is():
    assert masking.escaped("naïve 図 a\u00a0b\u3000c 🙂 \\x1b") == "naïve 図 a\u00a0b\u3000c 🙂 \\x1b"
    assert masking.escaped("a\u200bb\ud800\n\t") == "a\\u200bb\\ud800\\n\\t"
    assert masking.escaped_lines("a\n\tb\x1b") == "a\n    b\\x1b"


def test_every_print_of_the_commands_goes_through_the_one_function():
    """A print with a value in it either writes it out, or shows JSON, or numbers of ours: whoever adds one looks here."""
    ours = {
        "main.py": {
            "print(new_plugin(", "print(json.dumps(facts)", "print(json.dumps(rows) if as_json else _columns(",
            'print(f"harness {__version__}")',
        },
        "run.py": {"print(json.dumps(", "print(said if as_json"},
        "check.py": {"print(json.dumps("},
        "export.py": {"print(text, end"},  # LaTeX, whose letters are those that it reads, or JSON
        "sweep.py": {"print(_cells(", 'print(f"{count(len(results), ', 'print("interrupted'},
        "records.py": {"print(json.dumps(", "print(text(", 'print("\\n".join(line for name, checks'},
        "archive.py": {'print(f"{len(done.added)} added'},
        "progress.py": {"print(elapsed + text"},
        "board.py": {"print(line"},
    }  # fmt: skip
    root = Path(package.__file__).parent
    for path in root.rglob("*.py"):
        lines = [line.strip() for line in path.read_text().splitlines() if re.search(r"(?<![\w.])print\(", line)]
        open_ones = [line for line in lines if "escaped" not in line]
        allowed = ours.get(path.name, set())
        assert all(any(start in line for start in allowed) for line in open_ones), (path.name, open_ones)
