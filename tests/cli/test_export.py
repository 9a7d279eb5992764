"""`harness export` and `--track`: what is chosen, where it goes, and what is refused."""

import os

import fake_records
import fake_tracker as fake
import pytest

from harness.cli import export as command
from harness.cli import run as run_commands
from harness.core.errors import UsageError
from harness.export.events import Held


@pytest.fixture
def records(tmp_path, monkeypatch):
    """Two methods of two seeds each in results/."""
    monkeypatch.chdir(tmp_path)
    for method in ("quark", "ppo"):
        for seed in (0, 1):
            knob = {"identity": fake_records.identity("toxicity", method, seed), "knob": "lr"}
            fake.record(tmp_path / "results", method, seed, manifest=knob, id8=f"{method}123")
    return tmp_path / "results"


@pytest.fixture
def store(monkeypatch):
    """The store of the tracker `wandb`, which is a fake one."""
    store = fake.Store()
    monkeypatch.setattr(command, "opened", lambda name, root: fake.Tracker(store))
    monkeypatch.setattr(command, "required", lambda name: None)
    return store


def test_a_table_of_runs(harness, records):
    code, out, err = harness("export", "quark123-s0", "ppo123-s1", "--to", "latex")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1] == r"\begin{tabular}{lllrrrrrr}"
    assert lines[3] == r"Method & Knob & Seed & Undesired & Reward & KL & Efficiency & Perplexity & Distinct-2 \\"
    assert lines[5].startswith("quark & lr = 0.0001 & 0 & ") and lines[6].startswith("ppo & lr = 0.0001 & 1 & ")
    assert lines[5].count(" & ") == 8 and lines[5].count(r"$\pm$") == 6


def test_a_table_of_a_folder_is_the_first_of_the_report(harness, records):
    code, out, _ = harness("export", records, "--to", "latex")
    assert code == 0 and out.startswith("% toxicity, preset micro\n")
    rows = [line for line in out.splitlines() if line.endswith(r"\\")]
    assert [row.split(" & ")[:2] for row in rows[1:]] == [["base (untrained)", ""], ["ppo", "2"], ["quark", "2"]]
    assert harness("export", records, "--to", "latex", "--by", "run")[1].count("lr = 0.0001") == 4
    one = harness("export", "quark123-s0", "--to", "latex", "--by", "method")[1]
    assert "quark & 1 & " in one


def test_tasks_are_named_where_they_differ(harness, records):
    fake.record(records, task="pii_%")
    code, out, _ = harness("export", records, "--to", "latex", "--by", "run")
    assert code == 0 and r"Task & Method" in out and r"micro pii\_\% & quark" in out and "micro toxicity & ppo" in out


def test_a_file_of_a_table(harness, records, tmp_path):
    target = tmp_path / "new" / "table.tex"
    code, out, _ = harness("export", records, "--to", "latex", "-o", target)
    assert (code, out) == (0, f"{target}\n") and target.read_text().endswith("\n")
    code, _, err = harness("export", records, "--to", "latex", "-o", records)
    assert code == 1 and err.startswith("error: cannot write") and err.count("\n") == 1


def test_a_pipe_is_written_and_stays_one(harness, records, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    assert harness("export", "quark123-s0", "--to", "latex", "-o", pipe)[0] == 0
    assert pipe.is_fifo() and os.read(end, 10**5).endswith(b"\n")
    os.close(end)


def test_results_of_one_run_or_a_folder_of_them(harness, records, tmp_path):
    code, out, _ = harness("export", "quark123-s0", "--to", "lm-eval-json")
    assert code == 0 and '"kl,none": ' in out
    code, out, _ = harness("export", records, "--to", "lm-eval-json", "--out", tmp_path / "lm")
    assert code == 0 and len(list((tmp_path / "lm").glob("*/results_2024-01-01T00-00-00.json"))) == 4 == len(out.splitlines())
    assert harness("export", "quark123-s0", "--to", "lm-eval-json", "-o", tmp_path / "one.json")[0] == 0
    assert (tmp_path / "one.json").is_file()
    code, out, err = harness("export", records, "--to", "lm-eval-json")
    assert code == 2 and not out and "4 runs are as many files of results; give a folder for them with --out" in err


def test_a_tracker_is_given_whole_records_once(harness, records, store):
    code, out, err = harness("export", "quark123-s0", "--to", "wandb")
    assert code == 0 and out == f"{records.relative_to(records.parent)}/micro/toxicity/quark/quark123-s0: exported\n"
    assert err == "look at the store\n" and len(store.rows) == 67 and store.closed == ["done"]
    assert store.ended[0].picture == fake.picture() and store.ended[0].samples == []
    assert harness("export", "quark123-s0", "--to", "wandb")[1].endswith(": already there\n")


def test_samples_are_masked_unless_unmasked(harness, records, store):
    harness("export", "quark123-s0", "--to", "wandb", "--samples")
    store.held = Held()  # another store
    harness("export", "quark123-s0", "--to", "wandb", "--samples", "--unmask")
    masked, unmasked = (str(end.samples) for end in store.ended)
    assert "hidden" in masked and "answer" not in masked and "answer" in unmasked


@pytest.mark.pictures
def test_a_picture_that_is_not_there_is_drawn(harness, records, store):
    for path in records.rglob("picture.png"):
        path.unlink()
    assert harness("export", "quark123-s0", "--to", "wandb")[0] == 0
    assert store.ended[0].picture.startswith(b"\x89PNG")


@pytest.mark.parametrize("call", ["begin", "add", "end", "close"])
def test_a_tracker_that_fails_is_one_line(harness, records, monkeypatch, store, call):
    monkeypatch.setattr(command, "opened", lambda name, root: fake.Tracker(store, (call,)))
    code, out, err = harness("export", "quark123-s0", "--to", "wandb")
    assert code == 1 and not out and err.count("\n") == 1
    assert f"cannot be exported to wandb: ConnectionError: no network for {call}; look at the tracker's settings" in err


def test_records_that_are_not_finished_are_left_out(harness, records):
    fake.record(records, "npo", 0, status="failed")
    broken = fake.record(records, "awr", 0)
    (broken / "summary.json").write_text("{")
    code, out, err = harness("export", records, "--to", "latex", "--by", "run")
    assert code == 4 and "ppo" in out and "npo" not in out
    assert "npo/5e5e5e5e-s0 is left out: it is failed" in err and "awr/5e5e5e5e-s0 is left out: summary.json" in err
    code, out, err = harness("export", records / "micro/toxicity/npo", "--to", "latex")
    assert code == 2 and not out and "no finished run in" in err
    code, out, err = harness("export", broken, "--to", "latex")
    assert code == 1 and not out and err.splitlines()[-1].startswith("error: ") and "summary.json is not" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--to", "tensorbord"), 2, "no export format named 'tensorbord'; did you mean 'tensorboard'?"),
        (("--to", "latex", "--samples"), 2, "--samples and --unmask are for trackers; latex holds no text of a response"),
        (("--to", "lm-eval-json", "--unmask"), 2, "--samples and --unmask are for trackers"),
        (("--to", "wandb", "--by", "run"), 2, "--by is for a latex table; leave it out with --to wandb"),
        (("--to", "latex", "--by", "seed"), 2, "--by"),
        ((), 2, "Missing option '--to'"),
        (("--to", "latex", "--records", "nowhere"), 2, "no runs in nowhere"),
    ],
)
def test_what_is_refused(harness, records, words, code, message):
    found, out, err = harness("export", "quark123-s0", *words)
    assert (found, out) == (code, "") and message in err and err.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(harness, records, store, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = harness("export", "quark123-s0", "--to", "wandb", "--out", tmp_path / "file" / "below")
    assert code == 2 and "choose another folder with --out" in err and store.begun is None


def test_the_trackers_of_a_command_line(monkeypatch, harness, tmp_path):
    monkeypatch.setattr(run_commands, "required", lambda name: None)
    asked = run_commands.tracking("wandb,mlflow", samples=True, unmask=False)
    assert (asked.names, asked.samples, asked.unmask) == (("wandb", "mlflow"), 10, False)
    assert run_commands.tracking(None, samples=False, unmask=True).names == ()
    with pytest.raises(UsageError, match="name them with --track"):
        run_commands.tracking(None, samples=True, unmask=False)
    code, _, err = harness("run", "-m", "quark", "-t", "toxicity", "--out", tmp_path, "--track", "wanbd")
    assert code == 2 and "no tracker named 'wanbd'; did you mean 'wandb'?" in err and not list(tmp_path.iterdir())


def test_a_missing_extra_is_refused_before_the_work(harness, tmp_path, monkeypatch):
    from harness.export import trackers

    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for words in (("run", "-m", "quark", "-t", "toxicity", "--out", tmp_path, "--track"), ("export", tmp_path, "--to")):
        code, out, err = harness(*words, "mlflow")
        assert (code, out) == (3, "") and err.count("\n") == 1 and "pip install 'unlearning-harness[mlflow]'" in err
    assert not list(tmp_path.iterdir())
