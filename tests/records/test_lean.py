"""Records of which as much is held as pages show, and what many of them share once."""

from pathlib import Path

import fake_records as fake

from harness.records.read import find_runs, locate, read_run
from harness.records.tables.lean import METRICS, Lean


def test_what_records_share_is_one_object_and_nothing_that_a_page_shows_is_lost(tmp_path: Path) -> None:
    for seed in range(2):
        fake.write_run(tmp_path, "quark", seed)
    whole, lean = find_runs([tmp_path])[0], find_runs([tmp_path], kept=Lean())[0]
    for a, b in zip(whole, lean, strict=True):
        assert (a.dir, a.manifest.plain(), a.summary.plain()) == (b.dir, b.manifest.plain(), b.summary.plain())
        for before, after in zip(a.trajectory, b.trajectory, strict=True):
            kept = {name: metric for name, metric in before.metrics.items() if name in METRICS}
            assert (after.metrics, after.update, after.split, after.seconds) == (
                kept,
                before.update,
                before.split,
                before.seconds,
            )
            assert len(after.metrics) < len(before.metrics)
        assert b.trajectory[-1].cost == a.trajectory[-1].cost and b.trajectory[-1].metrics["kl"] is b.summary.final["kl"]
    one, two = (run.summary for run in lean)
    assert one.base is two.base and one.frontier.curve is two.frontier.curve
    assert lean[0].manifest.identity["model"] is lean[1].manifest.identity["model"]
    assert lean[0].manifest.identity["seed"] == 0 and lean[1].manifest.identity["seed"] == 1
    assert one.final["kl"].__pydantic_fields_set__ is two.final["reward"].__pydantic_fields_set__


def test_values_that_json_tells_apart_are_not_shared(tmp_path: Path) -> None:
    for seed, value in enumerate((1, 1.0, True)):
        method = {"name": "quark", "version": 2, "settings": {"lr": value}}
        fake.write_run(tmp_path, "quark", seed, manifest={"identity": fake.identity("toxicity", "quark", seed, method=method)})
    found = [run.manifest.identity["method"]["settings"]["lr"] for run in find_runs([tmp_path], kept=Lean())[0]]
    assert [type(value) for value in found] == [int, float, bool]


def test_a_frontier_that_says_of_one_run_alone_that_it_is_above_is_shared_but_for_that(tmp_path: Path) -> None:
    for seed, above in enumerate((True, False)):
        fake.write_run(tmp_path, "quark", seed, summary={"frontier": fake.frontier() | {"above": above}})
    one, two = (run.summary.frontier for run in find_runs([tmp_path], kept=Lean())[0])
    assert (one.above, two.above) == (True, False) and one.curve is two.curve


def test_a_run_that_is_looked_up_by_its_id_is_read_whole(tmp_path: Path) -> None:
    dir = fake.write_run(tmp_path, "quark", 0)
    fake.write_run(tmp_path, "ppo", 0, id8="6f6f6f6f")
    assert locate("5e5e", tmp_path) == read_run(dir)
