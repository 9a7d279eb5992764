"""Edits of a finished record, as it lies or with the hashes of its files written anew: `verify` names what does not agree."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from harness.core.errors import CorruptRecord
from harness.core.hashing import content_hash
from harness.records import verify
from harness.records.read import find_runs, read_run, source_of
from harness.records.write import RunStore

KEPT = ROOT / "results" / "reference" / "micro" / "toxicity" / "quark"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A record as a run leaves it, with a policy beside it: of an archive, with all that it shares put back."""
    kept = min(find_runs([KEPT])[0], key=lambda run: run.dir.name)
    dir = tmp_path_factory.mktemp("out") / "micro" / "toxicity" / "quark" / kept.dir.name
    (dir / "policy").mkdir(parents=True)
    (dir / "policy" / "model.safetensors").write_bytes(bytes(1000))
    (dir / "policy" / "policy.json").write_text(json.dumps({"bos": 0, "eos": 0, "num_control": 5, "prefix": [321]}))
    (dir / "policy" / "config.json").write_text('{"limit": [0.0, Infinity]}')  # as transformers writes some
    (dir / "prompts.json").write_text(json.dumps(source_of(kept).prompts().plain()))
    (dir / "trajectory.jsonl").write_text("".join(json.dumps(row.plain()) + "\n" for row in kept.trajectory))
    (dir / "summary.json").write_text(json.dumps(kept.summary.plain()))
    manifest = {k: v for k, v in kept.manifest.plain().items() if k != "archive"}
    manifest["files"] = RunStore(dir).hashes({"summary.json": kept.summary.plain()})
    (dir / "manifest.json").write_text(json.dumps(manifest))
    for name in (".lock", "picture.png", "picture.svg"):
        (dir / name).touch()
    return dir


@pytest.fixture
def record(made, tmp_path) -> Path:
    place = tmp_path.joinpath(*made.parts[-4:])
    return Path(shutil.copytree(made, place))


def broken(dir: Path) -> set[str]:
    return {check.what for check in verify.verify(read_run(dir)) if check.held is False}


def edit(dir: Path, keys: str, to: Any, files: tuple[str, ...] = ("manifest.json", "summary.json")) -> None:
    """Set a dotted key in each of some files that has what lies above it."""
    for name in files:
        whole = at = json.loads((dir / name).read_text())
        *above, last = keys.split(".")
        for key in above:
            at = at.get(key, {})
        if at:
            at[last] = to
        (dir / name).write_text(json.dumps(whole))


def edit_row(dir: Path, row: int, keys: str, to: Any) -> None:
    rows = [json.loads(line) for line in (dir / "trajectory.jsonl").read_text().splitlines()]
    *above, last = keys.split(".")
    at = rows[row]
    for key in above:
        at = at[key]
    at[last] = to
    (dir / "trajectory.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rehash(dir: Path) -> None:
    """As a forger would who knows of the hashes of files."""
    manifest = json.loads((dir / "manifest.json").read_text())
    manifest["files"] = {name: content_hash(dir / name) for name in manifest["files"]}
    (dir / "manifest.json").write_text(json.dumps(manifest))


def test_a_sound_record_holds_and_its_list_has_the_policy(made):
    assert broken(made) == set()
    files = json.loads((made / "manifest.json").read_text())["files"]
    assert {"policy/model.safetensors", "policy/policy.json", "policy/config.json", "summary.json", "trajectory.jsonl"} < set(
        files
    )


@pytest.mark.parametrize(
    "name", ["summary.json", "trajectory.jsonl", "prompts.json", "policy/model.safetensors", "policy/policy.json"]
)
def test_an_entry_taken_out_of_the_list_of_files_is_missed(name, record):
    files = json.loads((record / "manifest.json").read_text())["files"]
    edit(record, "files", {k: v for k, v in files.items() if k != name}, ("manifest.json",))
    assert broken(record) == {"files"}


def test_an_empty_list_of_files_is_no_list(record):
    edit(record, "files", {}, ("manifest.json",))
    assert broken(record) == {"files"}


@pytest.mark.parametrize("files", [[], "none"])
def test_a_list_of_files_of_another_kind_is_no_record(files, record):
    edit(record, "files", files, ("manifest.json",))
    with pytest.raises(CorruptRecord, match="files: Input should be a valid dictionary"):
        read_run(record)


def test_a_record_from_before_policies_were_hashed_says_so_and_holds(record):
    files = json.loads((record / "manifest.json").read_text())["files"]
    edit(record, "files", {k: v for k, v in files.items() if not k.startswith("policy/")}, ("manifest.json",))
    left = {c.what: c.found for c in verify.verify(read_run(record)) if c.held is None}
    assert broken(record) == set() and "older than their hashes" in left["policy"]
    shutil.rmtree(record / "policy")
    assert broken(record) == set()


def test_a_policy_that_was_taken_away_as_a_whole_is_not_checked_and_in_part_is_missed(record):
    (record / "policy" / "policy.json").unlink()
    assert broken(record) == {"policy/policy.json"}
    shutil.rmtree(record / "policy")
    left = {c.what: c.found for c in verify.verify(read_run(record)) if c.held is None}
    assert broken(record) == set() and left["policy/model.safetensors"] == "the policy has been removed from the record"


@pytest.mark.parametrize(
    ("name", "content"), [("model.safetensors", bytes(999) + b"\1"), ("policy.json", b'{"prefix": [320]}')]
)
def test_another_policy_is_seen(name, content, record):
    (record / "policy" / name).write_bytes(content)
    assert broken(record) == {f"policy/{name}"}


@pytest.mark.parametrize("name", ["notes.txt", "policy/more.bin", "samples/final.txt", "deep/er/file"])
@pytest.mark.parametrize("link", [False, True])
def test_a_file_that_does_not_belong_is_seen(name, link, record, tmp_path):
    (record / name).parent.mkdir(parents=True, exist_ok=True)
    (record / name).symlink_to(tmp_path) if link else (record / name).write_text("x")
    assert broken(record) == {"files"}


@pytest.mark.parametrize("part", ["preset", "task", "method", "id", "seed"])
def test_a_record_in_the_folder_of_another_is_seen(part, record, tmp_path):
    names = dict(zip(("preset", "task", "method", "run"), record.parts[-4:], strict=True))
    id8, _, seed = names["run"].partition("-s")
    other = {"preset": "gpt2", "task": "sentiment", "method": "ppo", "id": f"00000000-s{seed}", "seed": f"{id8}-s7"}
    names["run" if part in ("id", "seed") else part] = other[part]
    place = tmp_path.joinpath("moved", *names.values())
    shutil.copytree(record, place)
    assert broken(place) == {"folder"}


def test_a_record_with_a_folder_of_its_own_is_none_of_these(record, tmp_path):
    for place in (tmp_path / "mine", tmp_path / "elsewhere" / record.name):
        shutil.copytree(record, place)
        assert broken(place) == set()


Forgery = Callable[[Path], None]
FORGED: dict[str, tuple[Forgery, set[str]]] = {
    "FLOPs of the whole": (lambda d: edit(d, "cost.flops", 1.0), {"cost"}),
    "updates of the whole": (lambda d: edit(d, "cost.updates", 1), {"cost"}),
    "tokens of the whole": (lambda d: edit(d, "cost.sampled_tokens", 1), {"cost"}),
    "FLOPs everywhere": (lambda d: (edit(d, "cost.flops", 9e99), edit_row(d, -1, "cost.flops", 9e99)), {"FLOPs"}),
    "tokens of a row": (lambda d: edit_row(d, 2, "cost.trained_tokens", 10**9), {"FLOPs", "cost along the trajectory"}),
    "tokens scored": (lambda d: edit_row(d, 2, "cost.scorer_calls", 0), {"cost along the trajectory"}),
    "parameters": (lambda d: edit_row(d, 0, "cost.parameters", 1), {"cost along the trajectory"}),
    "an update": (lambda d: edit_row(d, 2, "update", 10**6), {"trajectory", "cost along the trajectory"}),
    "the method": (lambda d: edit(d, "method", "ppo"), {"method", "folder"}),
    "the method and its identity": (
        lambda d: (edit(d, "method", "ppo"), edit(d, "identity.method.name", "ppo")),
        {"run id", "folder"},
    ),
    "the task": (lambda d: edit(d, "task", "sentiment"), {"task", "folder"}),
    "the preset": (lambda d: edit(d, "preset", "gpt2"), {"preset in the settings", "folder"}),
    "the preset and its settings": (lambda d: (edit(d, "preset", "gpt2"), edit(d, "settings.preset", "gpt2")), {"folder"}),
    "the seed": (lambda d: edit(d, "seed", 9), {"seed", "folder"}),
    "a setting of the method": (lambda d: edit(d, "settings.method.lr", 9.0), {"method in the settings"}),
    "a setting and its identity": (
        lambda d: (edit(d, "settings.method.lr", 9.0), edit(d, "identity.method.settings.lr", 9.0)),
        {"run id"},
    ),
    "the version of the method": (lambda d: edit(d, "identity.method.version", 99), {"run id"}),
    "the budget": (lambda d: edit(d, "settings.budget.flops", 1.0), {"budget in the settings"}),
    "the optimizer": (lambda d: edit(d, "settings.optimizer.eps", 1.0), {"optimizer in the settings"}),
    "the evaluation": (lambda d: edit(d, "settings.evaluation.samples", 99), {"evaluation in the settings"}),
    "the split": (lambda d: edit(d, "settings.evaluation.split", "validation"), {"evaluation in the settings"}),
    "the rule": (lambda d: edit(d, "settings.evaluation.select", "best_validation"), {"select in the settings"}),
    "the decoding": (lambda d: edit(d, "settings.task.decoding.temperature", 0.1), {"decoding in the settings"}),
    "the precision": (lambda d: edit(d, "settings.model.dtype", "bfloat16"), {"model in the settings"}),
    "the cap": (lambda d: edit(d, "settings.task.kl_cap", 99.0), {"KL cap in the settings"}),
    "a lower status": (lambda d: edit(d, "status", "degraded"), {"status by missing scores"}),
    "a status in one file": (lambda d: edit(d, "status", "degraded", ("summary.json",)), {"status"}),
    "missing scores": (lambda d: edit(d, "cost.unscored", 10**9), {"status by missing scores"}),
    "a score above one": (lambda d: edit_row(d, 2, "metrics.reward.value", 7.46), {"trajectory"}),
    "a KL below zero": (lambda d: edit_row(d, 2, "metrics.kl.value", -0.5), {"trajectory"}),
    "the first row": (lambda d: edit_row(d, 0, "metrics.judge.value", 0.1), {"first row of the trajectory"}),
    "the last row": (lambda d: edit_row(d, -1, "metrics.judge.value", 0.1), {"last row of the trajectory"}),
    "a free start": (lambda d: edit_row(d, 0, "update", 3), {"first row of the trajectory", "trajectory"}),
    "the clock": (lambda d: edit_row(d, 2, "seconds", 1e9), {"cost along the trajectory"}),
}  # fmt: skip


@pytest.mark.parametrize("what", FORGED)
def test_a_forgery_with_the_hashes_of_files_written_anew_is_seen(what, record):
    forge, found = FORGED[what]
    forge(record)
    rehash(record)
    assert broken(record) == found


def test_rows_in_another_order_and_no_rows_are_seen(record):
    rows = (record / "trajectory.jsonl").read_text().splitlines(keepends=True)
    (record / "trajectory.jsonl").write_text("".join([rows[0], rows[2], rows[1], *rows[3:]]))
    rehash(record)
    assert broken(record) == {"cost along the trajectory"}
    (record / "trajectory.jsonl").write_text("")
    rehash(record)
    assert broken(record) == {"first row of the trajectory", "last row of the trajectory"}


def test_what_no_part_of_a_record_determines_is_not_seen(record):
    """As the documentation says: a value along the way that could be, with the hashes written anew."""
    edit_row(record, 2, "metrics.reward.value", 0.5)
    edit(record, "cost.peak_memory_mb", 1.0)
    rehash(record)
    assert broken(record) == set()


def test_a_point_that_was_chosen_by_validation_is_a_row_of_the_trajectory(record):
    rows = [json.loads(line) for line in (record / "trajectory.jsonl").read_text().splitlines()]
    at = {name: rows[2]["metrics"][name] for name in ("judge", "kl")}
    chosen = {"rule": "best_validation", "update": rows[2]["update"], "progress": 0.5, "validation": at}
    edit(record, "selection", chosen)
    edit_row(record, -1, "metrics.judge.value", 0.1)  # the last row is of validation prompts
    rehash(record)
    assert broken(record) == set()
    edit(record, "selection", chosen | {"validation": at | {"judge": at["judge"] | {"value": 0.999}}})
    rehash(record)
    assert broken(record) == {"chosen row of the trajectory"}


@pytest.mark.parametrize("tree", ["reference", "trials", "facts"])
def test_the_records_of_this_repository_hold(tree):
    runs, problems = find_runs([KEPT.parents[3] / tree])
    assert runs and not problems
    assert not [(run.dir, check) for run in runs[::40] for check in verify.verify(run) if check.held is False]
