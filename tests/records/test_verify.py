"""A record against itself: a sound one holds, and whatever is changed in one is found."""

import json
import shutil
from collections import Counter
from math import exp, log, sqrt
from pathlib import Path
from statistics import fmean, stdev

import fake_records as fake
import pandas as pd
import pytest
import quick

import harness
from harness.cli import main, records
from harness.core import hashing
from harness.core.errors import Mismatch, MissingPrerequisite
from harness.core.hashing import content_hash
from harness.core.types import Metric
from harness.records import verify
from harness.records.read import read_run
from harness.records.schema import Frontier, Run
from harness.runs.finished import rescore

pytestmark = pytest.mark.usefixtures("few_prompts")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """Two real records, made once: of a policy, and of one whose KL is a closed form."""
    out = tmp_path_factory.mktemp("made")
    settings = {method: quick.settings(method) for method in ("quark", "best_of_n")}
    return {m: out / harness.run(m, "toxicity", settings=s, out=out)["run_dir"] for m, s in settings.items()}


@pytest.fixture
def record(made, tmp_path) -> Path:
    return Path(shutil.copytree(made["quark"], tmp_path / made["quark"].name))


def broken(dir: Path) -> list[str]:
    return [check.what for check in verify.verify(read_run(dir)) if check.held is False]


def edit(path: Path, *keys: str, to: object) -> None:
    whole = json.loads(path.read_text())
    at = whole
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = to
    path.write_text(json.dumps(whole))


def rehash(dir: Path) -> None:
    """As a forger would who knows of the hashes."""
    manifest = json.loads((dir / "manifest.json").read_text())
    edit(dir / "manifest.json", "files", to={name: content_hash(dir / name) for name in manifest["files"]})


@pytest.mark.parametrize("method", ["quark", "best_of_n"])
def test_a_sound_record_holds(made, method):
    checks = verify.verify(read_run(made[method]))
    assert [c for c in checks if c.held is False] == []
    held = {c.what for c in checks if c.held}
    for name in ("reward", "judge", "kl", "ppl", "length", "distinct_2", "self_bleu", "eos_rate", "judge@heated", "excess_kl"):
        assert f"final {name}" in held and f"base {name}" in held, name
    assert {"run id", "seed", "settings", "summary.json", "trajectory.jsonl", "prompts.json", "samples/final.parquet"} <= held
    left = {c.what.removeprefix("final "): c.found for c in checks if c.held is None and c.what.startswith("final ")}
    along = set() if method == "quark" else {"entropy", "kl_log_ratio", "kl_per_token"}
    papers = {n for n in left if n.startswith(("max_tox", "toxicity_prob"))}
    assert set(left) == {"clean_nll", "forward_kl", "grammatical", "overoptimisation"} | along | papers and len(papers) == 15
    assert all("closed form" in left[name] for name in along) and "--rescore" in left["max_toxicity"]


def test_rescoring_holds_and_leaves_only_what_no_text_decides(made):
    checks = rescore.rescored(read_run(made["quark"]))
    assert [c for c in checks if c.held is not True] == []
    what = {c.what for c in checks}
    assert {"final grammatical", "base ppl", "final max_toxicity@heated", "final judge under sampled"} <= what
    again = records._all(str(made["quark"]), Path(), True, False)
    assert {c.what.split()[1] for c in again if c.held is None} == {
        "clean_nll", "forward_kl", "overoptimisation", "efficiency",  # of the base
    }  # fmt: skip


def test_an_edit_of_the_base_policys_scores_is_found(made, tmp_path):
    """They are of all base responses, whose means by prompt are in the record."""
    copy = tmp_path / "micro" / "toxicity" / "quark" / made["quark"].name
    shutil.copytree(made["quark"], copy)
    run = read_run(copy)
    for name, by in (("judge", 0.01), ("reward@heated", 0.01), ("regret", 0.002)):
        value = run.summary.base[name].value + by
        base = run.summary.base | {name: run.summary.base[name].model_copy(update={"value": value})}
        edited = run._replace(summary=run.summary.model_copy(update={"base": base}))
        wrong = {c.what for c in verify.verify(edited) if c.held is False}
        assert f"base {name}" in wrong, name


def test_metrics_by_hand():
    """Two prompts with two responses each, every number worked out on paper."""
    said = [["a b a b", "c"], ["d e", "d e"]]
    scores = [[(1.0, 0.5), (0.0, None)], [(0.5, 0.5), (0.5, 1.0)]]
    kl, entropy, nll = [[0.2, 0.4], [0.0, 1.0]], [[1.0, 1.0], [3.0, 5.0]], [[2.0, 1.0], [4.0, 3.0]]
    rows = [
        {"prompt_id": x, "kind": "calm" if x else "heated", "prompt": "?", "response": said[x][s], "reward": scores[x][s][0],
         "judge": scores[x][s][1], "kl": kl[x][s], "log_ratio": kl[x][s], "entropy": entropy[x][s], "ended": s == 0,
         "nll": nll[x][s], "nll_tokens": 2.0, "tokens": [0] * (1 + x + s)}
        for x in range(2) for s in range(2)
    ]  # fmt: skip
    found = verify.recompute(rows, None)
    assert found["reward"] == Metric(0.5, 0.0, 4)
    assert found["judge"] == Metric(0.625, pytest.approx(stdev([0.5, 0.75]) / sqrt(2)), 3, 1)  # not the mean of three
    assert found["kl"].value == pytest.approx(0.4) and found["kl"].stderr == pytest.approx(0.1)
    assert found["entropy"].value == 2.5 and found["eos_rate"].value == 0.5
    assert found["length"].value == 2.0  # (1 + 2 + 2 + 3) / 4
    assert found["kl_per_token"].value == pytest.approx(1.6 / 8)
    assert found["ppl"].value == pytest.approx(exp(10 / 8))
    assert found["distinct_1"].value == pytest.approx(fmean([3 / 5, 2 / 4])) and found["unique"].value == 0.75
    assert found["modal_mass"].value == 0.75 and found["rep_2"].value == pytest.approx(fmean([1 / 3, 0.0]))
    assert found["self_bleu"].value == pytest.approx(fmean([0.0, 1.0])) or found["self_bleu"].value is not None
    assert found["reward@calm"].value == 0.5 and found["kl@heated"].value == pytest.approx(0.3)
    assert not {"excess_kl", "efficiency", "regret"} & set(found)


def test_the_place_on_a_frontier_with_a_closed_form():
    """Rewards 0 and 1, of probability 1/2 each: K*(R) = log 2 - H(R), for a reward of 0.65 and 0.3 nats."""
    lams = [10 ** (i / 40 - 2) for i in range(141)]
    best = [exp(lam) / (1 + exp(lam)) for lam in lams]
    need = [log(2) + r * log(r) + (1 - r) * log(1 - r) for r in best]
    curve = [{"lambda": a, "kl": k, "reward": r, "solid": True} for a, k, r in zip(lams, need, best, strict=True)]
    rows = [
        {"prompt_id": x, "kind": "", "prompt": "", "response": "", "tokens": [0], "reward": r, "judge": 1.0, "kl": 0.3}
        for x, r in enumerate((0.6, 0.7))
    ]
    frontier = Frontier.model_validate({"base_reward": 0.5, "curve": curve})
    found = verify.recompute(rows, frontier)
    needed = log(2) + 0.65 * log(0.65) + 0.35 * log(0.35)  # at a lambda of 0.62
    assert found["excess_kl"].value == pytest.approx(0.3 - needed, abs=2e-3)
    assert found["efficiency"].value == pytest.approx(needed / 0.3, abs=2e-3)
    reach = min(r for r in (i / 1e4 for i in range(5001, 10_000)) if log(2) + r * log(r) + (1 - r) * log(1 - r) >= 0.3)
    assert found["regret"].value == pytest.approx(reach - 0.65, abs=2e-3)
    assert verify.recompute([rows[0] | {"reward": float("nan")}], frontier).get("regret") is None


def test_one_reward_in_the_samples(record):
    path = record / "samples" / "final.parquet"
    table = pd.read_parquet(path)
    table.loc[17, "reward"] = 0.123
    table.to_parquet(path)
    found = broken(record)
    assert {"samples/final.parquet", "final reward", "prompts.json reward"} <= set(found)
    assert not {"final judge", "base reward", "final kl"} & set(found)
    rehash(record)
    assert "final reward" in broken(record) and "samples/final.parquet" not in broken(record)
    assert [c.what for c in rescore.rescored(read_run(record)) if c.held is False] == ["final reward of each response"]


@pytest.mark.parametrize(
    ("column", "value", "metrics"),
    [
        ("response", "x y x y", {"distinct_1", "rep_2", "self_bleu"}),
        ("kl", 9.0, {"kl", "kl_per_token", "excess_kl"}),
        ("entropy", 9.0, {"entropy"}),
        ("nll", 99.0, {"ppl"}),
        ("judge", None, {"judge"}),
        ("kind", "calmer", {"judge@calmer", "reward@calm"}),
    ],
)
def test_any_other_change_of_the_samples(record, column, value, metrics):
    path = record / "samples" / "final.parquet"
    table = pd.read_parquet(path)
    table.loc[table.prompt_id == 0, column] = value
    table.to_parquet(path)
    rehash(record)
    assert {f"final {name}" for name in metrics} <= set(broken(record))


@pytest.mark.parametrize("key", ["value", "stderr", "n", "n_unscored"])
@pytest.mark.parametrize("name", ["judge", "ppl", "distinct_2", "kl@heated"])
def test_one_number_in_the_summary(record, name, key):
    path = record / "summary.json"
    metric = json.loads(path.read_text())["final"][name]
    edit(path, "final", name, key, to=metric[key] + (1 if key.startswith("n") else 1e-6))
    more = (
        {"status by missing scores"} if (name, key) == ("judge", "n_unscored") else set()
    )  # one of 18 is beyond the tolerance
    assert set(broken(record)) == {"summary.json", f"final {name}", "last row of the trajectory"} | more
    rehash(record)
    assert f"final {name}" in broken(record)


def test_a_number_that_the_samples_do_not_determine(record):
    edit(record / "summary.json", "final", "forward_kl", "value", to=0.5)
    edit(record / "summary.json", "base", "max_toxicity", "value", to=0.5)
    assert set(broken(record)) == {"summary.json", "first row of the trajectory", "last row of the trajectory"}
    assert "base max_toxicity" in {c.what for c in rescore.rescored(read_run(record)) if c.held is False}
    edit(record / "summary.json", "cost", "flops", to=1.0)
    assert "summary.json" in broken(record)


def test_a_metric_that_is_gone(record):
    path = record / "summary.json"
    summary = json.loads(path.read_text())
    del summary["final"]["judge"]
    path.write_text(json.dumps(summary))
    assert "final judge" in broken(record)


@pytest.mark.parametrize(
    ("keys", "to", "found"),
    [
        (("identity", "method", "settings", "kl_coef"), 9.0, {"run id", "method in the settings"}),
        (("settings", "method", "kl_coef"), 9.0, {"settings", "method in the settings"}),
        (("run_id",), "00000000", None),
        (("identity", "seed"), 4, {"run id", "seed"}),
        (("files", "prompts.json"), "00", {"prompts.json"}),
    ],
)
def test_one_setting_in_the_manifest(record, keys, to, found):
    edit(record / "manifest.json", *keys, to=to)
    if found is None:  # the two files are not of one run any more: the reader refuses
        edit(record / "summary.json", *keys, to=to)
        found = {"run id", "summary.json", "folder"}
    assert set(broken(record)) == found


def test_prompts_rows_and_states(record):
    kept = json.loads((record / "prompts.json").read_text())
    edit(record / "prompts.json", "judge", to=[0.5] * len(kept["judge"]))
    assert {"prompts.json", "prompts.json judge"} <= set(broken(record))
    edit(record / "prompts.json", "id", to=["00000000", *kept["id"][1:]])
    assert "prompts.json id, kind" in broken(record)
    for column in [name for name, values in kept.items() if isinstance(values, list)]:
        edit(record / "prompts.json", column, to=json.loads((record / "prompts.json").read_text())[column][:-1])
    assert "prompts.json rows" in broken(record)
    (record / "prompts.json").unlink()
    assert "prompts.json" in broken(record)  # it was there when the hashes were taken
    rows = (record / "trajectory.jsonl").read_text().splitlines()
    (record / "trajectory.jsonl").write_text("\n".join(rows[:-1]) + "\n")
    assert {"trajectory.jsonl", "last row of the trajectory"} <= set(broken(record))
    edit(record / "summary.json", "status", to="degraded")
    assert "status" in broken(record)


def test_records_that_have_less(tmp_path, record):
    old = read_run(fake.write_run(tmp_path, "quark", 0))
    left = {c.what: c.found for c in verify.verify(old) if c.held is None}
    assert "older than the hashes" in left["files"] and "no samples" in left["final metrics"]
    unfinished = read_run(fake.write_run(tmp_path, "ppo", 0, status="failed"))
    assert verify.verify(unfinished)[-1].found == "the run is failed; there is no result to check"
    with pytest.raises(MissingPrerequisite, match="is failed"):
        rescore.rescored(unfinished)
    with pytest.raises(MissingPrerequisite, match="records no settings"):
        rescore.rescored(Run(old.dir, old.manifest, old.summary.model_copy(update={"settings": {}}), []))
    table = pd.read_parquet(record / "samples" / "final.parquet").drop(columns=["entropy", "ended", "nll", "log_ratio"])
    table.to_parquet(record / "samples" / "final.parquet")
    (record / "samples" / "final-papers.parquet").unlink()
    rehash_without(record)
    checks = verify.verify(read_run(record))
    left = {c.what: c.found for c in checks if c.held is None}
    assert not [c for c in checks if c.held is False]
    assert all("older than the columns" in left[f"final {n}"] for n in ("entropy", "kl_per_token", "eos_rate", "ppl"))
    papers = [c for c in rescore.rescored(read_run(record)) if c.what == "final papers' metrics"]
    assert papers[0].held is None and "no samples 'final-papers'" in papers[0].found


def rehash_without(dir: Path) -> None:
    manifest = json.loads((dir / "manifest.json").read_text())
    there = {name: content_hash(dir / name) for name in manifest["files"] if (dir / name).exists()}
    edit(dir / "manifest.json", "files", to=there)


def test_other_scorers_than_those_of_the_record(record):
    edit(record / "manifest.json", "identity", "scorers", "reward", "version", to=0)
    assert [c.what for c in rescore.rescored(read_run(record)) if c.held is False] == ["scorers here"]


def test_a_hash_is_of_what_a_file_says(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1.5, "b": [1]}')
    (tmp_path / "b.json").write_text('{ "b":[1],\n"a":1.50}')
    (tmp_path / "c.jsonl").write_text('{"a":1}\n{"b":2}\n')
    (tmp_path / "d.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    (tmp_path / "e.jsonl").write_text('{"b":2}\n{"a":1}\n')
    same = {name: content_hash(tmp_path / name) for name in ("a.json", "b.json", "c.jsonl", "d.jsonl", "e.jsonl")}
    assert same["a.json"] == same["b.json"] and same["c.jsonl"] == same["d.jsonl"]
    assert max(Counter(same.values()).values()) == 2
    assert hashing.identity_hash({"b": [1], "a": 1.5}) == same["a.json"]


def test_the_command(made, record, capsys, monkeypatch):
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["harness", "verify", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    code, out, _ = call(made["quark"], made["best_of_n"])
    assert code == 0 and "MISMATCH" not in out and out.count("0 did not") == 2
    edit(record / "summary.json", "final", "judge", "value", to=0.5)
    code, out, err = call(record, "--json")
    assert code == 5 and err.startswith("error: ") and len(err.splitlines()) == 1
    checks = json.loads(out.splitlines()[-1])["runs"][str(record)]
    assert [c["what"] for c in checks if c["held"] is False] == ["summary.json", "last row of the trajectory", "final judge"]
    code, out, _ = call(record)
    assert sum(line.startswith("MISMATCH") for line in out.splitlines()) == 3
    with pytest.raises(Mismatch, match="3 of "):
        records.verify_command([str(record)], record, False, False, False)
    assert call(record, "--rescore")[0] == 5
