"""`harness compare`: what is selected, what is refused, what the numbers are."""

import json
import subprocess
import sys
from math import sqrt
from pathlib import Path
from typing import Any

import fake_records as fake
import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness.analysis import compare as compare_module
from harness.analysis.compare import parse_condition
from harness.analysis.select import select
from harness.core.errors import BadSetting, CorruptRecord
from harness.records.read import prompt_scores

KINDS = ["calm", "heated"]


def write(root: Path, method: str, seed: int, judge: float, prompts: list[float | None] | None = None, **more: Any) -> Path:
    """A record whose judge is known; with `prompts` the judge of each prompt too."""
    final = {"judge": fake.point(judge, 0.008), "judge@heated": fake.point(prompts[1] if prompts else judge)}
    dir = fake.write_run(root, method, seed, final=final, **more)
    if prompts is not None:
        write_prompts(dir, prompts)
    return dir


def write_prompts(dir: Path, scores: list[float | None], **changes: Any) -> None:
    x, half = len(scores), [0.5] * len(scores)
    columns = {"id": [f"{i:08x}" for i in range(x)], "kind": [KINDS[i % 2] for i in range(x)], "judge": scores}
    columns |= {"reward": half, "kl": half, "nll_per_token": half, "n_scored": [4] * x}
    fake.dump(dir / "prompts.json", {"schema_version": 1, "split": "test", **columns, **changes})


A, B = [0.70, 0.72, 0.69], [0.80, 0.83, 0.78]


def study(root: Path, a: list[float] = A, b: list[float] = B) -> Path:
    for method, values in (("quark", a), ("ppo", b)):
        for seed, value in enumerate(values):
            write(root, method, seed, value)
    return root


def judge(out: str) -> dict[str, Any]:
    return next(row for row in json.loads(out.splitlines()[-1])["metrics"] if row["metric"] == "judge")


def test_paired_seeds_are_scipys_paired_t(harness, tmp_path):
    code, out, err = harness("compare", "quark", "ppo", "--out", study(tmp_path), "--metric", "judge", "--json")
    row, theirs = judge(out), scipy_stats.ttest_rel(B, A)
    low, high = theirs.confidence_interval()
    assert (code, err) == (0, "")
    assert [row[k] for k in ("a", "b", "low", "high", "p", "p_holm")] == pytest.approx(
        [np.mean(A), np.mean(B), low, high, theirs.pvalue, theirs.pvalue]
    )
    assert row["test"] == "paired seeds" and row["verdict"] == "B better" and row["n_prompts"] is None
    assert any("seeds alone" in note for note in row["notes"])


def test_other_seeds_are_scipys_welch(harness, tmp_path):
    study(tmp_path, b=[])
    for seed, value in ((1, 0.80), (2, 0.83), (7, 0.78), (8, 0.81)):
        write(tmp_path, "ppo", seed, value)
    code, out, _ = harness("compare", "ppo", "quark", "--out", tmp_path, "--metric", "judge", "--json")
    row, theirs = judge(out), scipy_stats.ttest_ind(A, [0.80, 0.83, 0.78, 0.81], equal_var=False)
    assert code == 0 and row["test"] == "Welch" and row["verdict"] == "B worse"
    assert [row["difference"], row["df"], row["p"]] == pytest.approx([np.mean(A) - 0.805, theirs.df, theirs.pvalue])


def test_as_many_other_seeds_are_no_pairs(harness, tmp_path):
    study(tmp_path, b=[])
    for seed, value in enumerate(B):
        write(tmp_path, "ppo", seed + 3, value)
    row = judge(harness("compare", "quark", "ppo", "--out", tmp_path, "--metric", "judge", "--json")[1])
    assert row["test"] == "Welch" and row["df"] == pytest.approx(scipy_stats.ttest_ind(A, B, equal_var=False).df)


def test_prompts_are_paired_by_hand(harness, tmp_path):
    """Seed means 0.5, 0.6 against 0.6, 0.8, but over prompts B - A is 0.4 and -0.1 on average: nothing is shown."""
    for method, seed, values in (
        ("quark", 0, [0.4, 0.6]),
        ("quark", 1, [0.5, 0.7]),
        ("ppo", 0, [0.7, 0.5]),
        ("ppo", 1, [1.0, 0.6]),
    ):
        write(tmp_path, method, seed, float(np.mean(values)), values)
    words = ["compare", "quark", "ppo", "--out", tmp_path, "--json"]
    code, out, _ = harness(*words, "--metric", "judge", "--metric", "judge@heated", "--metric", "undesired", "--metric", "ppl")
    row = judge(out)
    # differences [[.3, -.1], [.5, -.1]]: seeds 0.1, 0.2 -> 0.005 / 2; prompts 0.4, -0.1 -> 0.125 / 2;
    # residuals 0.05 four times, one degree of freedom: 0.01 / 4
    assert code == 0 and row["n_prompts"] == 2 and row["test"] == "paired seeds, prompts"
    assert row["difference"] == pytest.approx(0.15) and row["stderr"] == pytest.approx(sqrt(0.0025 + 0.0625 - 0.0025))
    rows = {r["metric"]: r for r in json.loads(out.splitlines()[-1])["metrics"]}
    assert rows["undesired"]["difference"] == pytest.approx(-0.15) and rows["undesired"]["stderr"] == pytest.approx(
        row["stderr"]
    )
    assert rows["ppl"]["n_prompts"] is None
    # of the heated prompt alone: -0.1 for each seed, so there is no interval over seeds
    assert rows["judge@heated"]["difference"] == pytest.approx(-0.1) and rows["judge@heated"]["p"] is None


def test_prompts_without_a_score_are_left_out_and_said(harness, tmp_path):
    for seed in range(2):
        write(tmp_path, "quark", seed, 0.5, [0.4, 0.6, 0.1 * seed])
        write(tmp_path, "ppo", seed, 0.6, [0.5, 0.7 + 0.1 * seed, None])
    _, out, _ = harness("compare", "quark", "ppo", "--out", tmp_path, "--metric", "judge", "--json")
    row = judge(out)
    assert row["n_prompts"] == 2 and row["difference"] == pytest.approx((0.1 + 0.15) / 2)
    assert row["notes"] == ["1 prompts without a score in some run are left out of the difference"]
    write_prompts(next(tmp_path.rglob("ppo/*s1")), [None, None, None])
    _, out, _ = harness("compare", "quark", "ppo", "--out", tmp_path, "--metric", "judge", "--json")
    assert judge(out)["n_prompts"] is None and any("no prompt has a score" in note for note in judge(out)["notes"])


def test_two_records_of_a_seed_count_once(harness, tmp_path):
    study(tmp_path)
    for n, dir in enumerate(sorted(tmp_path.rglob("manifest.json"))):
        write_prompts(dir.parent, [0.5, 0.5 + 0.01 * n**2])
    second = write(tmp_path, "quark", 0, 0.60, [0.1, 0.3], id8="6f6f6f6f", manifest={"run_id": "6f6f6f6f-s0"})
    code, out, err = harness("compare", "quark", "ppo", "--out", tmp_path, "--metric", "judge", "--json")
    row = judge(out)
    assert code == 4 and "a second record" in err and str(second) in err
    assert (row["n_seeds_a"], row["n_seeds_b"]) == (3, 3) and row["a"] == pytest.approx((0.65 + 0.72 + 0.69) / 3)
    # by prompt: the seed of two records is [0.3, 0.445], the mean of [0.5, 0.59] and [0.1, 0.3]; 3.05 / 6 less 3.155 / 6
    assert row["n_prompts"] == 2 and row["difference"] == pytest.approx(-0.0175)


def test_other_prompts_are_not_paired(harness, tmp_path):
    study(tmp_path)
    for dir in (m.parent for m in sorted(tmp_path.rglob("manifest.json"))):
        write_prompts(dir, [0.1, 0.2], **({"id": ["aaaaaaaa", "00000001"]} if "ppo" in str(dir) else {}))
    _, out, _ = harness("compare", "quark", "ppo", "--out", tmp_path, "--metric", "judge", "--json")
    assert judge(out)["n_prompts"] is None and "prompts of the records differ" in judge(out)["notes"][0]


def test_nll_per_token_is_of_the_prompts_alone(harness, tmp_path):
    study(tmp_path)
    _, out, _ = harness("compare", "quark", "ppo", "--out", tmp_path, "--metric", "nll_per_token")
    assert "not measured" in out and "no score of any prompt is kept" in out
    for n, dir in enumerate(sorted(tmp_path.rglob("manifest.json"))):
        write_prompts(dir.parent, [0.5, 0.5], nll_per_token=[1.0 + 0.1 * n, 1.2])
    _, out, _ = harness("compare", "ppo", "quark", "--out", tmp_path, "--metric", "nll_per_token", "--json")
    row = json.loads(out.splitlines()[-1])["metrics"][0]
    assert (row["a"], row["b"], row["n_prompts"]) == (pytest.approx(1.15), pytest.approx(1.3), 2)


def test_the_table(harness, tmp_path):
    code, out, err = harness("compare", "quark", "ppo", "--out", study(tmp_path))
    lines = out.splitlines()
    assert (code, err) == (0, "") and lines[0] == "toxicity, preset micro" and lines[2].startswith("B  ppo, seed 0, 1, 2")
    rows = {line.split()[0]: line for line in lines if line}
    assert set(compare_module.DEFAULT) <= set(rows)
    assert rows["judge"].endswith("B better") and rows["kl"].endswith("B worse") and "[0.075, 0.125]" in rows["judge"]
    assert "Holm-corrected" in out and "Student's t over seeds, so of these prompts alone: judge" in out


def test_holm_is_over_the_metrics_asked_for(harness, tmp_path):
    words = ("compare", "quark", "ppo", "--out", study(tmp_path), "--json")
    alone = judge(harness(*words, "--metric", "judge")[1])
    rows = json.loads(harness(*words)[1].splitlines()[-1])["metrics"]
    together = next(r for r in rows if r["metric"] == "judge")
    p = sorted(r["p"] for r in rows)
    assert together["p"] == alone["p"] == alone["p_holm"]
    assert together["p_holm"] == pytest.approx(max((len(p) - i) * x for i, x in enumerate(p) if x <= together["p"]))


@pytest.mark.parametrize(
    ("condition", "code"),
    [("judge<-0.02", 5), ("judge<-0.2", 0), ("judge<-0.095", 0), ("undesired>0.02", 5), ("kl>0.0", 0), ("kl>9", 0)],
)  # fmt: skip
def test_regressions(harness, tmp_path, condition, code):
    """B is 0.1 below A; its interval, of width 0.03 to each side, holds -0.095; its KL is lower."""
    words = ("compare", "ppo", "quark", "--out", study(tmp_path))
    found, out, err = harness(*words, "--regress-if", condition)
    assert found == code and out.startswith("toxicity")
    assert ("regression beyond its error: " + condition in err) is (code == 5)
    found, out, _ = harness(*words, "--regress-if", condition, "--json")
    assert found == code and bool(json.loads(out.splitlines()[-1])["regressions"]) is (code == 5)


def test_a_regression_that_one_seed_cannot_judge(harness, tmp_path):
    study(tmp_path, A[:1], B[:1])
    code, out, err = harness("compare", "ppo", "quark", "--out", tmp_path, "--regress-if", "judge<-0.02")
    assert code == 4 and "one seed: no error known" in out and "cannot judge judge<-0.02" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("judge", "takes METRIC"), ("judge<-x", "takes METRIC"), ("judge<=-0.1", "takes METRIC"), ("judge<--1", "takes METRIC"),
        ("judge>0.02", "where B is better"), ("kl<-1", "where B is better"), ("judge@heated>0", "where B is better"),
        ("judge<0.02", "where nothing differs"), ("kl>-1e-2", "where nothing differs"),
    ],
)  # fmt: skip
def test_conditions_that_cannot_be_meant(text, said):
    with pytest.raises(BadSetting, match=said):
        parse_condition(text)
    assert parse_condition(" length < -1.5e0 ")[1:] == ("length", True, -1.5)


def test_a_metric_without_a_better_way_is_higher_or_lower(harness, tmp_path):
    for method, at in (("quark", 10.0), ("ppo", 12.0)):
        for seed in range(3):
            fake.write_run(tmp_path, method, seed, final={"length": fake.point(at + 0.01 * seed**2 * (method == "ppo"))})
    _, out, _ = harness("compare", "quark", "ppo", "--out", tmp_path, "--metric", "length")
    assert "B higher" in out
    _, out, _ = harness("compare", "ppo", "quark", "--out", tmp_path, "--metric", "length")
    assert "B lower" in out


def test_seeds_that_decide_nothing_give_no_error(harness, tmp_path):
    _, out, _ = harness(
        "compare", "quark", "ppo", "--out", study(tmp_path, [0.7] * 3, [0.8] * 3), "--metric", "judge", "--json"
    )
    row = judge(out)
    assert row["p"] is None and row["low"] is None and row["verdict"] == "no error known" and row["test"] == "none"
    assert any("identical across seeds" in note for note in row["notes"])


def test_equal_runs_show_no_difference(harness, tmp_path):
    _, out, _ = harness("compare", "quark", "ppo", "--out", study(tmp_path, A, A), "--metric", "judge", "--json")
    assert judge(out)["difference"] == 0 and judge(out)["verdict"] == "no difference shown"


@pytest.mark.parametrize("status", ["degraded", "failed", "running", "interrupted"])
def test_what_is_not_done_is_left_out_and_said(harness, tmp_path, status):
    write(study(tmp_path), "ppo", 3, 0.1, status=status)
    code, out, _ = harness("compare", "quark", "ppo", "--out", tmp_path)
    assert code == 4 and f"left out of B: seed 3 is {status}" in out and "B  ppo, seed 0, 1, 2:" in out


def test_what_cannot_be_is_left_out(harness, tmp_path):
    fake.write_run(study(tmp_path), "ppo", 3, final={"reward": fake.point(0.99, 0.001), "kl": fake.point(0.1, 0.001)})
    code, out, _ = harness("compare", "quark", "ppo", "--out", tmp_path)
    assert code == 4 and "left out of B: seed 3 lies above the frontier" in out


def test_a_metric_without_a_value_is_said(harness, tmp_path):
    nothing = fake.point(None, reason="the judge\x1b[31m was away")
    fake.write_run(study(tmp_path), "ppo", 3, final={"judge": nothing, "reward": fake.point(0.7, 0.01) | {"n_unscored": 7}})
    code, out, _ = harness("compare", "quark", "ppo", "--out", tmp_path)
    assert code == 0 and "\x1b" not in out
    assert "judge: B: seed 3: the judge\\x1b[31m was away" in out
    assert "reward: B: seed 3: 7 responses without a score" in out
    row = judge(harness("compare", "quark", "ppo", "--out", tmp_path, "--json")[1])
    assert row["n_seeds_b"] == 3 and row["test"] == "paired seeds"  # the seeds that have a judge are those of A


def test_selections(tmp_path):
    study(tmp_path)
    other = fake.identity(
        "toxicity", "quark", 0, method={"name": "quark", "version": 1, "settings": {"lr": 3e-4, "variant": "code"}}
    )
    for seed in (0, 1):
        write(tmp_path, "quark", seed, 0.9, id8="7a7a7a7a", manifest={"identity": other | {"seed": seed}})
    folder = tmp_path / "micro" / "toxicity"
    assert select(["ppo"], tmp_path)[0].seeds == [0, 1, 2]
    assert select([str(folder / "ppo")], Path("nowhere"))[0].seeds == [0, 1, 2]
    assert select([str(next((folder / "ppo").iterdir()))], Path("nowhere"))[0].seeds in ([0], [1], [2])
    assert select(["quark:lr=3e-4"], tmp_path)[0].seeds == [0, 1]
    assert select(["quark:lr=0.0003,variant=code,task=toxicity"], tmp_path)[0].seeds == [0, 1]
    assert select(["quark:method.settings.lr=1e-4"], tmp_path)[0].seeds == [0, 1, 2]
    assert select(["quark:lr=3e-4,seed=1"], tmp_path)[0].seeds == [1]


def test_settings_of_one_method_are_named_by_what_sets_them_apart(harness, tmp_path):
    for lr in (1e-4, 3e-4):
        for seed in range(3):
            method = {"name": "quark", "version": 1, "settings": {"lr": lr}}
            own = fake.identity("toxicity", "quark", seed, method=method)
            write(tmp_path, "quark", seed, 0.7 + seed / 50 + 100 * lr, id8=f"{int(lr * 1e4):08x}", manifest={"identity": own})
    code, out, _ = harness("compare", "quark:lr=1e-4", "quark:lr=3e-4", "--out", tmp_path)
    assert code == 0 and "A  quark (lr=0.0001), seed" in out and "B  quark (lr=0.0003), seed" in out
    code, _, err = harness("compare", "quark", "quark:lr=3e-4", "--out", tmp_path)
    assert (
        code == 2
        and "2 methods or settings: quark (1: lr=0.0001); quark (2: lr=0.0003); narrow it, as by quark:lr=0.0001" in err
    )


def test_a_condition_that_does_not_hold_is_said(harness, tmp_path):
    study(tmp_path)
    words = ("compare", "quark", "ppo", "--out", tmp_path, "--regress-if", "judge<-0.5", "--regress-if", "kl>90")
    code, out, err = harness(*words)
    assert (code, err) == (0, "") and "no regression by judge<-0.5: B - A is " in out and "no regression by kl>90: " in out
    assert [text.partition(":")[0] for text in json.loads(harness(*words, "--json")[1])["passed"]] == ["judge<-0.5", "kl>90"]
    assert "no regression" not in harness("compare", "ppo", "quark", "--out", tmp_path)[1]


def test_the_table_says_what_is_corrected(harness, tmp_path):
    out = harness("compare", "ppo", "quark", "--out", study(tmp_path))[1]
    assert "p (Holm)" in out and "95 % interval: of each metric alone, without a correction" in out


def elsewhere(root: Path, **changes: Any) -> Path:
    for seed in range(2):
        manifest = {"identity": fake.identity("toxicity", "ppo", seed, **changes)}
        write(root / "other", "ppo", seed, 0.9, manifest=manifest)
    return root / "other"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quark", "pqo"], "did you mean 'ppo'"),
        (["quark", "ppo:lr=7"], "selects no run"),
        (["quark", "ppo:l=7"], "no setting named 'l'; did you mean 'lr'"),
        (["quark", "ppo:lr"], "found 'lr'"),
        (["quark", "./ppo"], "no folder './ppo'"),
        (["quark", "ppo", "--out", "nowhere"], "no records in nowhere"),
        (["quark", "quark:seed=1"], "share 1 run; cannot"),
        (["quark", "ppo", "--metric", "jugde"], "did you mean 'judge'"),
        (["quark", "ppo", "--regress-if", "jugde<-1"], "did you mean 'judge'"),
        (["quark", "ppo", "--regress-if", "judge"], "takes METRIC"),
        (["quark", "micro"], "holds 2 methods or settings: ppo; quark"),
    ],
)
def test_what_cannot_be_compared_is_one_line(harness, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(study(tmp_path))
    words = words if "--out" in words else [*words, "--out", "."]
    code, out, err = harness("compare", *words)
    assert (code, out) == (2, "") and said in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluation": {"n": 100}}, "unlike in evaluation.n (200 and 100)"),
        ({"fluency": {"name": "other"}}, "unlike in fluency (none and other"),
        ({"model": {"name": "big", "sha256": "00"}}, "unlike in model (synthetic sha256 abababab and big"),
    ],
)
def test_worlds_that_differ_are_refused(harness, tmp_path, changes, said):
    other = elsewhere(study(tmp_path / "one"), **changes)
    code, out, err = harness("compare", "quark", other, "--out", tmp_path / "one" / "micro")
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1
    code, _, err = harness("compare", tmp_path / "one", tmp_path / "one" / "micro" / "toxicity" / "ppo")
    assert code == 2 and "2 worlds" in err


def test_frontiers_that_differ_are_refused(harness, tmp_path):
    study(tmp_path)
    for seed in range(2):
        write(tmp_path, "awr", seed, 0.7, summary={"frontier": {**fake.frontier(), "kl_cap": 2.0}})
    code, _, err = harness("compare", "quark", "awr", "--out", tmp_path)
    assert code == 2 and "unlike in their frontiers" in err


def test_nothing_done_and_nothing_readable_are_empty(harness, tmp_path):
    study(tmp_path)
    write(tmp_path, "awr", 0, 0.5, status="failed")
    code, _, err = harness("compare", "quark", "awr", "--out", tmp_path)
    assert code == 2 and "selects no run that can be compared: seed 0 is failed" in err
    broken = tmp_path / "broken" / "x"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{")
    code, _, err = harness("compare", "quark", broken.parent, "--out", tmp_path)
    assert code == 2 and "1 could not be read" in err


def test_a_record_that_cannot_be_read_is_said_where_it_is_of_the_method(harness, tmp_path):
    study(tmp_path)
    for method in ("ppo", "awr"):
        dir = write(tmp_path, method, 9, 0.5)
        (dir / "manifest.json").write_text("{")
    code, _, err = harness("compare", "quark", "ppo", "--out", tmp_path)
    assert code == 4 and err.count("warning: ") == 1 and "ppo" in err


def test_a_hostile_name_cannot_command_the_terminal(harness, tmp_path):
    study(tmp_path)
    for seed in range(2):
        write(
            tmp_path / "evil", "evil", seed, 0.5 + seed / 10, manifest={"method": "e\x1b[31m"}, summary={"method": "e\x1b[31m"}
        )
    code, out, err = harness("compare", tmp_path / "evil", "ppo", "--out", tmp_path)
    assert code == 0 and "\x1b" not in out + err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema_version": 2}, "reads up to 1"),
        ({"judge": [0.5]}, "different lengths"),
        ({"judge": ["x", 1.0]}, "prompts.json is not a record: judge.0"),
        ({"kind": None}, "prompts.json is not a record: kind"),
    ],
)
def test_scores_of_prompts_that_cannot_be_read(harness, tmp_path, changes, said):
    dir = write(study(tmp_path), "awr", 0, 0.5)
    assert prompt_scores(dir) is None
    write_prompts(dir, [0.5, 1.0], **changes)
    with pytest.raises(CorruptRecord, match=said):
        prompt_scores(dir)
    code, out, err = harness("compare", "quark", "awr", "--out", tmp_path)
    assert (code, out) == (1, "") and said in err


def test_compare_imports_no_torch(tmp_path):
    program = """
import sys
sys.argv = ["harness", *sys.argv[1:]]
import harness.cli.main
try:
    harness.cli.main.main()
except SystemExit as e:
    assert not e.code
print([m for m in ("torch", "transformers", "matplotlib") if m in sys.modules])
"""
    words = [sys.executable, "-c", program, "compare", "quark", "ppo", "--out", str(study(tmp_path))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_method_with_records_of_several_tasks_is_narrowed_by_one(harness, tmp_path):
    for task in ("pii", "toxicity"):
        for method in ("quark", "ppo"):
            for seed in range(2):
                fake.write_run(tmp_path, method, seed, task=task)
    code, _, err = harness("compare", "quark", "ppo", "--out", tmp_path)
    assert code == 2 and "'quark' holds runs of the tasks pii, toxicity; narrow it, as by quark:task=pii" in err
    assert harness("compare", "quark:task=pii", "ppo:task=pii", "--out", tmp_path)[0] == 0
