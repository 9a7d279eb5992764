from pathlib import Path

import fake_records as fake
import pytest
from claims import checks, said

from harness.records.read import find_runs

JUDGES = {"mle": 0.60, "filtering": 0.90, "conditional_pretraining": 0.95, "rwr": 0.602}
NLL = {"mle": 0.80, "filtering": 0.95, "conditional_pretraining": 0.82, "rwr": 0.801}


def write(
    root: Path, method: str, seed: int, judge: float, kl: float, settings: dict, nll: float = 0.8, reward: float = 0.7
) -> None:
    identity = fake.identity("toxicity", method, seed)
    identity["method"] = {"name": method, "version": 1, "settings": settings}
    final = {"judge": fake.point(judge, 0.01), "kl": fake.point(kl, 0.01), "clean_nll": fake.point(nll, 0.01)}
    final["reward"] = fake.point(reward, 0.01)
    key = "-".join(f"{k}{v}" for k, v in settings.items())
    fake.write_run(root / key, method, seed, final=final, manifest={"identity": identity})


@pytest.fixture
def root(tmp_path):
    for seed, off in enumerate((-0.01, 0.0, 0.01)):
        for method, judge in JUDGES.items():
            settings = {"beta": 10.0} if method == "rwr" else {}
            write(tmp_path, method, seed, judge + off, 0.3 + off, settings, NLL[method] + off)
        for k, judge, kl, reward in ((2, 0.80, 0.3, 0.7), (4, 0.85, 0.5, 0.9), (8, 0.9, 0.7, 0.8)):
            write(tmp_path, "quark", seed, judge + off, kl + off, {"num_quantiles": k, "kl_coef": 0.2}, reward=reward + off)
        for beta, judge, kl, reward in ((0.05, 0.9, 0.8, 0.95), (0.8, 0.86, 0.2, 0.6)):
            write(tmp_path, "quark", seed, judge + off, kl + off, {"num_quantiles": 4, "kl_coef": beta}, reward=reward + off)
        for beta, with_it, without in ((0.05, 130.0, 2.0), (0.2, 25.0, 0.8)):
            write(tmp_path, "grpo", seed, 0.5 + off, with_it + off, {"kl_coef": beta, "scale": "group"})
            write(tmp_path, "grpo", seed, 0.9 + off, without + off, {"kl_coef": beta, "scale": "none"})
    return tmp_path


def test_what_the_papers_say_is_held_against_the_records(root):
    runs, problems = find_runs([root])
    assert not problems
    found = checks(runs, runs)
    # Along the quantiles only the judge rises; along beta (judge .9, .85, .86; reward .95, .9, .6) only the reward falls.
    assert [c.holds for c in found] == [True, True, True, True, False, True, True, False, True]
    by_reward, by_judge, _, along_beta, division = found[4:]
    assert by_reward.claim.endswith("by the reward, as in the paper") and by_judge.claim.endswith("by the judge")
    assert "num_quantiles 4: 0.100, KL 0.500; num_quantiles 8: 0.200, KL 0.700" in by_reward.figures
    assert "num_quantiles 2: 0.200, KL 0.300" in by_judge.figures
    assert "does not hold here" in said(along_beta) and "kl_coef 0.8: 0.140, KL 0.200" in said(along_beta)
    assert (
        "at kl_coef 0.05 KL 130.000 and judge 0.500 against KL 2.000 and judge 0.900; at kl_coef 0.2 KL 25.000"
        in division.figures
    )


def test_a_difference_within_the_noise_is_not_a_difference(root):
    """A filtering as good as conditional in clean text, by less than its spread over seeds."""
    for seed, off in enumerate((-0.05, 0.0, 0.05)):
        write(root / "other", "filtering", seed, 0.9, 0.3, {"quantile": 0.3}, 0.83 + off)
    runs = [r for r in find_runs([root])[0] if r.manifest.method != "filtering" or "other" in str(r.dir)]
    assert checks(runs, runs)[2].holds is False


def test_what_takes_runs_that_are_not_there_is_not_shown(root):
    runs = [r for r in find_runs([root])[0] if r.manifest.seed == 0]
    found = checks(runs, [])
    assert [c.holds for c in found] == [None] * 9 and "not tested" in said(found[0])


def test_a_weighting_that_changes_the_result_is_not_maximum_likelihood(root):
    for seed, off in enumerate((-0.01, 0.0, 0.01)):
        write(root / "far", "rwr", seed, 0.9 + off, 0.3 + off, {"beta": 10.0})
    runs = [r for r in find_runs([root])[0] if r.manifest.method != "rwr" or "far" in str(r.dir)]
    assert checks(runs, runs)[3].holds is False


def test_half_of_the_habit_by_chance_is_not_far_below(root):
    """Means of 0.1 and 0.4, whose spread over seeds is wider than what is between them."""
    for seed, judge in enumerate((0.5, 1.0, 1.2)):
        write(root / "wide", "filtering", seed, judge, 0.3, {"quantile": 0.3})
    runs = [r for r in find_runs([root])[0] if r.manifest.method != "filtering" or "wide" in str(r.dir)]
    assert checks(runs, runs)[1].holds is False


def test_a_division_that_matters_at_one_coefficient_alone_is_not_held(tmp_path):
    for seed in range(3):
        for beta, with_it in ((0.05, 130.0), (0.2, 2.0)):
            write(tmp_path, "grpo", seed, 0.5, with_it + seed / 10, {"kl_coef": beta, "scale": "group"})
            write(tmp_path, "grpo", seed, 0.9, 2.0 + seed / 8, {"kl_coef": beta, "scale": "none"})
    runs = find_runs([tmp_path])[0]
    assert checks(runs, runs)[8].holds is False
