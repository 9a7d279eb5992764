"""Claims with a known answer: one that holds, one that does not, one that the runs leave open; on synthetic records."""

import json
import random
from dataclasses import replace
from pathlib import Path

import claims_page
import fake_records as fake
import numpy as np
import pytest
from claims import quantities as q
from claims.catalogue import CLAIMS, Claim
from claims.evidence import Compare, Level, Undominated
from claims.page import figure, page, tried
from claims.records import Measured, Records, Side, read_measured, varied
from claims.rule import FAILS, HOLDS, OPEN, Finding, Missing, all_of, decided, either

from harness.analysis.stats import Difference, detectable, paired_by_prompt
from harness.core import registry
from harness.core.errors import CorruptRecord
from harness.records.read import find_runs

KNOB = {"quark": {"kl_coef": 0.2}, "ppo": {"kl_coef": 0.05}, "mle": {}, "base": {}}


def write(root: Path, method: str, seed: int, settings: dict | None = None, judge: list[float] | None = None, **final) -> None:
    """A run with scores of each prompt, if given, whose judge is their mean."""
    identity = fake.identity("toxicity", method, seed)
    identity["method"] = {"name": method, "version": 1, "settings": KNOB.get(method, {}) | (settings or {})}
    metrics = {name: fake.point(value, 0.01) for name, value in final.items()}
    if judge is not None:
        metrics["judge"] = fake.point(float(np.mean(judge)), 0.01)
    key = "-".join(f"{k}{v}" for k, v in (settings or {}).items())
    dir = fake.write_run(root / f"{key or 'plain'}", method, seed, final=metrics, manifest={"identity": identity})
    if judge is not None:
        n = len(judge)
        scores = {"reward": judge, "judge": judge, "kl": [0.5] * n, "nll_per_token": [1.0] * n, "n_scored": [8] * n}
        ids = {"id": [f"{x:08x}" for x in range(n)], "kind": ["calm"] * n}
        base = {"base_judge": [0.7] * n, "base_reward": [0.6] * n}
        fake.dump(dir / "prompts.json", {"schema_version": 1, "split": "test", **ids, **scores, **base})


def judges(mean: float, seed: int, spread: float = 0.02) -> list[float]:
    rng = random.Random(f"{mean}{seed}")
    return [mean + rng.gauss(0, spread) for _ in range(40)]


def records(reference: Path, varied_runs: Path | None = None, measured: dict | None = None) -> Records:
    return Records(find_runs([reference])[0], find_runs([varied_runs])[0] if varied_runs else [], measured or {})


MORE = Compare(Side("quark"), Side("ppo"), q.REMOVED, "more")


@pytest.mark.parametrize(
    ("quark", "ppo", "spread", "verdict"),
    [(0.9, 0.8, 0.0, HOLDS), (0.8, 0.9, 0.0, FAILS), (0.85, 0.851, 0.0, FAILS), (0.86, 0.85, 0.03, OPEN)],
    ids=["holds", "the other way", "no difference of practical size", "too noisy to tell"],
)
def test_a_claim_of_known_truth(tmp_path, quark, ppo, spread, verdict):
    for seed, off in enumerate((-spread, 0.0, spread)):
        write(tmp_path, "quark", seed, judge=judges(quark + off, seed))
        write(tmp_path, "ppo", seed, judge=judges(ppo - off, seed))
    (found,) = MORE.outcomes(records(tmp_path), "toxicity")
    assert found.verdict == verdict == MORE.verdict([found])
    assert found.seeds == (3, 3) and found.prompts == 40


def test_the_interval_is_that_of_seeds_and_prompts(tmp_path):
    table = {m: np.array([judges(mean, seed) for seed in range(3)]) for m, mean in (("quark", 0.9), ("ppo", 0.8))}
    for method, rows in table.items():
        for seed, row in enumerate(rows):
            write(tmp_path, method, seed, judge=row.tolist())
    (found,) = Compare(Side("quark"), Side("ppo"), q.UNDESIRED, "less").outcomes(records(tmp_path), "toxicity")
    expected = paired_by_prompt(1 - table["quark"], 1 - table["ppo"], seeds_paired=True)
    assert found.difference == pytest.approx(expected)
    assert found.smallest == pytest.approx(detectable(expected.stderr, expected.df))
    assert found.means == pytest.approx((1 - table["quark"].mean(), 1 - table["ppo"].mean()))


def test_a_ratio_is_a_difference_from_a_multiple(tmp_path):
    """0.05 is a tenth of 0.6 and less; 0.05 against 0.02 is not."""
    for seed in range(3):
        write(tmp_path, "quark", seed, judge=judges(0.95, seed, 0.001))
        write(tmp_path, "ppo", seed, judge=judges(0.4, seed, 0.001))
    found = records(tmp_path)
    (tenth,) = Compare(Side("quark"), Side("ppo"), q.UNDESIRED, "less", scale=0.1).outcomes(found, "toxicity")
    (thirtieth,) = Compare(Side("quark"), Side("ppo"), q.UNDESIRED, "less", scale=1 / 30).outcomes(found, "toxicity")
    assert (tenth.verdict, thirtieth.verdict) == (HOLDS, FAILS)
    assert tenth.means == pytest.approx((0.05, 0.06), abs=0.001) and tenth.names[1] == "0.1 times ppo"
    assert tenth.margin == pytest.approx(0.1 * q.UNDESIRED.margin)  # a fiftieth would hide a tenth of a small score


@pytest.mark.parametrize(
    ("way", "low", "high", "verdict"),
    [
        ("more", 0.1, 9, HOLDS), ("more", -9, -0.1, FAILS), ("more", -0.5, 0.9, FAILS), ("more", -0.1, 1.1, OPEN),
        ("less", -9, -0.1, HOLDS), ("less", 0.1, 9, FAILS), ("less", -0.9, 0.5, FAILS), ("less", -1.1, 0.1, OPEN),
        ("equal", -0.9, 0.9, HOLDS), ("equal", 1.1, 2, FAILS), ("equal", -2, -1.1, FAILS), ("equal", 0.5, 1.5, OPEN),
    ],
)  # fmt: skip
def test_the_rule(way, low, high, verdict):
    assert decided(way, low, high, margin=1.0) == verdict


def test_a_claim_of_several_parts():
    assert all_of([HOLDS, HOLDS]) == HOLDS and all_of([HOLDS, OPEN]) == OPEN
    assert all_of([HOLDS, OPEN, FAILS]) == FAILS and all_of([]) == OPEN


def finding(low: float, high: float, way: str = "less", seeds: tuple[int, int] = (3, 3)) -> Finding:
    gap = Difference((low + high) / 2, 1.0, 2.0, low, high, 0.5)
    return Finding("a score", ("a", "b"), (0.0, 0.0), gap, way, 1.0, seeds)


def test_one_seed_and_seeds_that_do_not_differ_tell_nothing():
    alone = replace(finding(-2, -1), difference=Difference(-1.5, None, None, None, None, None))
    same = replace(finding(-2, -1), difference=Difference(-1.5, 0.0, 2.0, -1.5, -1.5, 0.0))
    assert alone.verdict == same.verdict == OPEN and alone.smallest is None and not same.reversed
    assert figure(alone).endswith("difference −1.500, no error known")


def test_one_of_several_is_enough_and_all_must_be_the_other_way_to_refute():
    better, worse, open_ = finding(-2, -1), finding(1, 2), finding(-2, 2)
    assert either([better, worse]) == HOLDS and either([worse, worse]) == FAILS
    assert either([worse, open_]) == OPEN and either([worse, Missing("a score", "no run")]) == OPEN


def test_a_side_without_another_better_on_all_is_undominated(tmp_path):
    """mle is better on text, worse on the habit; npo is worse on both; ppo better on both."""
    judge, nll = {"quark": 0.9, "mle": 0.6, "npo": 0.8, "ppo": 0.95}, {"quark": 0.8, "mle": 0.7, "npo": 0.9, "ppo": 0.6}
    for seed, off in enumerate((-0.001, 0.0, 0.001)):
        for method in judge:
            settings = {"beta": 0.1} if method == "npo" else {}
            good = judge[method] - 2 * off * (method != "quark")
            write(tmp_path, method, seed, settings, [good, good], clean_nll=nll[method] + off * (method == "quark"))
    both = ((q.UNDESIRED, "less"), (q.CLEAN, "less"))
    for others, verdict in ((("mle", "npo"), HOLDS), (("mle", "ppo"), FAILS), (("mle", "kto"), OPEN)):
        claim = Undominated(Side("quark"), tuple(Side(name) for name in others), both)
        assert claim.verdict(claim.outcomes(records(tmp_path), "toxicity")) == verdict


def test_runs_are_chosen_by_study_knob_and_settings(tmp_path):
    reference, others = tmp_path / "reference", tmp_path / "varied"
    for seed in range(2):
        for beta in (2.0, 0.2, 0.02):
            write(reference, "quark", seed, {"kl_coef": beta})
        for k in (2, 6):
            write(others, "quark", seed, {"num_quantiles": k})
    found = records(reference, others)
    sides = [Side("quark"), Side("quark", knob=0), varied("quark", num_quantiles=6)]
    values = [{r.manifest.identity["method"]["settings"].get(key) for r in side.runs(found, "toxicity")}
              for side, key in zip(sides, ("kl_coef", "kl_coef", "num_quantiles"), strict=True)]  # fmt: skip
    assert values == [{0.2}, {2.0}, {6}]
    assert [side.name for side in sides] == ["quark", "quark (kl_coef = 2)", "quark (num_quantiles = 6)"]
    assert "2 choices of settings" in varied("quark").runs(found, "toxicity")
    assert Side("ppo").runs(found, "toxicity") == "no finished run of ppo" == Side("ppo").runs(found, "pii")


def test_trials_on_validation_prompts_are_no_evidence(tmp_path):
    identity = fake.identity("toxicity", "mle", 0, evaluation={"n": 200, "split": "validation"})
    fake.write_run(tmp_path, "mle", 0, manifest={"identity": identity})
    assert Side("mle").runs(records(tmp_path), "toxicity") == "no finished run of mle"


def test_runs_of_two_worlds_are_not_compared(tmp_path):
    for seed in range(2):
        write(tmp_path, "quark", seed, judge=judges(0.9, seed))
        identity = fake.identity("toxicity", "ppo", seed, data="another")
        identity["method"] = {"name": "ppo", "version": 1, "settings": {"kl_coef": 0.05}}
        fake.write_run(tmp_path / "other", "ppo", seed, manifest={"identity": identity})
    (found,) = MORE.outcomes(records(tmp_path), "toxicity")
    assert found.verdict == OPEN and "different worlds" in found.why


def test_a_quantity_against_a_number(tmp_path):
    """The slope of 1.02 on 30 prompts is 1 within a fifth; the KL to the posterior is below the base's."""
    measured = {}
    for seed in range(3):
        terms = [1.02 + 0.2 * random.Random(f"{x} {seed}").gauss(0, 1) for x in range(30)]
        write(tmp_path, "ppo", seed, judge=judges(0.9, seed))
        for run in find_runs([tmp_path])[0]:
            measured.setdefault((run.manifest.run_id, "slope"), Measured(float(np.mean(terms)), tuple(terms)))
    found = records(tmp_path, None, measured)
    (slope,) = Level(Side("ppo"), q.SLOPE, "equal", 1.0).outcomes(found, "toxicity")
    assert slope.verdict == HOLDS and slope.prompts == 30
    (steeper,) = Level(Side("ppo"), q.SLOPE, "equal", 2.0).outcomes(found, "toxicity")
    assert steeper.verdict == FAILS and "2; difference −" in figure(steeper)
    (approach,) = Level(Side("ppo"), q.APPROACH, "less").outcomes(found, "toxicity")
    rewards = np.array([judges(0.9, seed) for seed in range(3)])
    assert approach.means[0] == pytest.approx(0.5 - (rewards.mean() - 0.6) / 0.05) and approach.verdict == HOLDS
    (missing,) = Level(Side("ppo"), q.SEARCHED, "less").outcomes(found, "toxicity")
    assert missing.why == "not measured on the runs of ppo" and missing.verdict == OPEN


def test_the_page_has_every_claim_once_a_task_and_the_same_bytes_twice(tmp_path):
    for seed in range(3):
        write(tmp_path, "quark", seed, judge=judges(0.9, seed))
        write(tmp_path, "ppo", seed, judge=judges(0.8, seed))
    for name in ("one.md", "two.md"):
        claims_page.main([str(tmp_path / name), "--reference", str(tmp_path)])
    one, two = ((tmp_path / name).read_text() for name in ("one.md", "two.md"))
    assert one.replace("one.md", "two.md") == two
    rows = [line for line in one.splitlines() if line.startswith("| ") and line[2:5] not in ("Cla", "---")]
    assert len(rows) == sum(len(claim.tasks) for claim in CLAIMS)
    (held,) = [row for row in rows if "than ppo, at equal compute" in row and "| toxicity |" in row]
    assert "| holds |" in held and "| 3 seeds, 40 prompts |" in held and "% of the habit removed: quark 6" in held
    (absent,) = [row for row in rows if "Reward tokens" in row and "| toxicity |" in row]
    assert "| cannot tell: not run |" in absent and "no finished run of best\\_quantile" in absent


def probed(run: Path, probe: str, judge: dict[float, float | None], **settings) -> None:
    """A line of probes.jsonl as the probe writes it."""
    usual = registry.load("probe", probe).Settings().model_dump(mode="json")
    readings = [{"at": at, "label": "", "metrics": {"judge": {"value": v, "stderr": None, "n": 5}}} for at, v in judge.items()]
    value = None if None in judge.values() else float(np.trapezoid([*judge.values()], [*judge])) / max(judge)
    line = {"probe": probe, "version": 1, "settings": usual | settings, "seed": 0, "unit": "updates", "number": "mean"}
    with (run / "probes.jsonl").open("a") as f:
        f.write(json.dumps(line | {"value": value, "readings": readings, "seconds": 1.0}) + "\n")


def test_probes_decide_whether_the_habit_comes_back(tmp_path):
    """ppo falls by 0.4 in ten updates and the oracle by 0.05; harmless text changes nothing; one reading has no score."""
    for seed, off in enumerate((-0.002, 0.0, 0.002)):
        for method in ("ppo", "oracle"):
            write(tmp_path, method, seed)
        for run in find_runs([tmp_path])[0]:
            if run.manifest.seed == seed:
                soon = 0.5 + off if run.manifest.method == "ppo" else 0.85
                probed(run.dir, "relearn_habit", {0: 0.9, 10: soon, 100: 0.1})
                probed(run.dir, "relearn_habit", {0: 0.9, 10: 0.0, 100: 0.0}, texts=4)  # other settings are another probe
                probed(run.dir, "relearn_clean", {0: 0.9, 100: 0.9 - off})
                probed(run.dir, "quantize", {32: 0.9, 4: None})
    found, ppo, oracle = records(tmp_path), Side("ppo"), Side("oracle")
    (soon,) = Compare(ppo, oracle, q.SOON, "more").outcomes(found, "toxicity")
    assert soon.means == pytest.approx((0.4, 0.05)) and soon.verdict == HOLDS and soon.prompts is None
    (taught,) = Compare(oracle, ppo, q.TAUGHT, "more").outcomes(found, "toxicity")
    assert taught.means == pytest.approx((0.0875 + 0.4275, 0.07 + 0.27)) and taught.verdict == HOLDS
    (benign,) = Level(ppo, q.BENIGN, "more").outcomes(found, "toxicity")
    assert benign.means[0] == pytest.approx(0.0) and benign.verdict == FAILS
    (rounded,) = Level(ppo, q.ROUNDED, "more").outcomes(found, "toxicity")
    assert rounded.why == "not measured on the runs of ppo"


def test_the_catalogue_covers_eight_papers():
    assert len({claim.paper for claim in CLAIMS}) == 9  # and the suspected causes
    assert sum(len(claim.tasks) for claim in CLAIMS) >= 18
    assert len({(claim.text, claim.where) for claim in CLAIMS}) == len(CLAIMS)


def test_a_page_of_one_claim(tmp_path):
    claim = Claim("A paper", "2", "Quark removes more", (MORE,))
    text = page(tried([claim], Records()), "a command", "picture.png")
    assert "1 verdicts" in text and "0 hold, 0 do not hold, and of 1 the runs cannot tell (1 of them not run)" in text
    assert "no finished run of quark; no finished run of ppo" in text and "| – | – | – |" in text


BROKEN = ["no json", '{"run_id": "a", "name": "slope"}', '{"run_id": "a", "name": "b", "value": "x", "terms": []}']


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_file_of_measured_quantities_is_said_in_one_line(tmp_path, line):
    path = tmp_path / "measured.jsonl"
    path.write_text(json.dumps({"run_id": "a", "name": "slope", "value": 1, "terms": [1, 1]}) + f"\n{line}\n")
    with pytest.raises(CorruptRecord, match="line 2 is no measured quantity"):
        read_measured(path)
    assert read_measured(tmp_path / "absent.jsonl") == read_measured(None) == {}
