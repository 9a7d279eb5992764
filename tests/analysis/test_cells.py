"""Where each cell stands, from records that say so."""

from pathlib import Path

import fake_records as fake

from harness.analysis.cells import Cell, counts, progress
from harness.analysis.study import Study
from harness.records.read import find_runs, read_run


def found(root: Path, **more) -> dict[tuple[str, str], Cell]:
    made = Study(*find_runs([root]), **more).cells
    assert len(made) == len({(c.name, c.task, c.group) for c in made})
    return {(c.name, c.task): c for c in made}


def external(seed: int) -> dict:
    """The manifest of a policy from elsewhere."""
    return {"identity": fake.identity("toxicity", "eval", seed)}


def test_every_state(tmp_path):
    for method, states in {
        "quark": ("done", "done", "done"),
        "ppo": ("done", "failed", "interrupted"),
        "conditional": ("done", "degraded"),
        "unlikelihood": ("running", "running"),
    }.items():
        for seed, status in enumerate(states):
            fake.write_run(tmp_path, method, seed, status=status)
    fake.write_run(tmp_path, "eval-mine", 0, manifest=external(0))
    old = fake.write_run(tmp_path, "mle", 0)
    dead = tmp_path / "micro/toxicity/unlikelihood/5e5e5e5e-s1"
    made = found(tmp_path, outdated={old: ["method mle: version 1, now 2", "task: version 1, now 3"]}, dead={dead})
    states = {name: (c.state, list(c.seeds.values())) for (name, _), c in made.items()}
    assert states == {
        "quark": ("done", ["done"] * 3),
        "ppo": ("failed", ["done", "failed", "partial"]),
        "conditional": ("degraded", ["done", "degraded", "missing"]),
        "unlikelihood": ("running", ["running", "partial", "missing"]),
        "eval-mine": ("done", ["done"]),
        "mle": ("stale", ["stale", "missing", "missing"]),
    }
    why = {name: c.reasons for (name, _), c in made.items()}
    assert why["ppo"][1] == "NotFinite: the loss is nan at update 12" and why["ppo"][2].startswith("interrupted")
    assert why["mle"][0] == "method mle: version 1, now 2; task: version 1, now 3"
    assert "its process is gone" in why["unlikelihood"][1] and "another method" in why["unlikelihood"][2]
    assert all(set(c.reasons) == {s for s, state in c.seeds.items() if state != "done"} for c in made.values())
    assert counts(made["ppo", "toxicity"]) == {"done": 1, "partial": 1, "failed": 1}


def test_a_method_that_a_task_lacks(tmp_path):
    for task, methods in {"toxicity": ("quark", "ppo"), "sentiment": ("quark", "eval-mine")}.items():
        for method in methods:
            manifest = {"identity": fake.identity(task, "eval" if method == "eval-mine" else method, 2)}
            fake.write_run(tmp_path, method, 2, task=task, manifest=manifest)
    fake.write_run(tmp_path, "npo", 0, task="sentiment", preset="gpt2")
    made = found(tmp_path)
    gone = made["ppo", "sentiment"]
    assert gone.state == "missing" and gone.seeds == {2: "missing"} and gone.runs == [] and gone.preset == "micro"
    assert ("npo", "toxicity") not in made  # of another preset
    assert ("eval-mine", "toxicity") not in made  # nobody has to measure a policy from elsewhere on every task


def test_the_further_values_of_a_knob_need_the_seeds_of_further_values(tmp_path):
    for method, value, seeds in [("quark", 1, 5), ("quark", 2, 2), ("quark", 3, 1), ("ppo", 1, 4), ("mle", 1, 5)]:
        settings = {"name": method, "version": 1, "settings": {"kl_coef": value}}
        for seed in range(seeds):
            manifest = {"identity": fake.identity("toxicity", method, seed, method=settings), "run_id": f"{value}{seed}"}
            fake.write_run(tmp_path, method, seed, manifest=manifest, summary={"run_id": f"{value}{seed}"}, id8=f"{value}")
    states = {name: list(c.seeds.values()) for (name, _), c in found(tmp_path).items()}
    assert states == {
        "quark (1: kl_coef=1)": ["done"] * 5, "quark (2: kl_coef=2)": ["done"] * 2, "quark (3: kl_coef=3)": ["done", "missing"],
        "ppo": ["done"] * 4 + ["missing"], "mle": ["done"] * 5,
    }  # fmt: skip


def test_more_seeds_of_one_curve_are_not_asked_of_all(tmp_path):
    """Three methods at two values; one of them was given a third seed at its further value."""
    for method, seeds in [("quark", 3), ("ppo", 2), ("dpo", 1)]:
        for value, n in [(1, 4), (2, seeds)]:
            settings = {"name": method, "version": 1, "settings": {"kl_coef": value}}
            for seed in range(n):
                manifest = {"identity": fake.identity("toxicity", method, seed, method=settings), "run_id": f"{value}{seed}"}
                fake.write_run(tmp_path, method, seed, manifest=manifest, summary={"run_id": f"{value}{seed}"}, id8=f"{value}")
    further = {name: list(c.seeds.values()) for (name, _), c in found(tmp_path).items() if "kl_coef=2" in name}
    assert further == {
        "quark (2: kl_coef=2)": ["done"] * 3, "ppo (2: kl_coef=2)": ["done"] * 2, "dpo (2: kl_coef=2)": ["done", "missing"],
    }  # fmt: skip


def test_settings_worlds_and_doubles_stay_apart(tmp_path):
    slow = fake.identity("toxicity", "quark", 0, method={"name": "quark", "version": 1, "settings": {"lr": 1.0}})
    fake.write_run(tmp_path, "quark", 0)
    fake.write_run(tmp_path, "quark", 0, manifest={"identity": slow, "run_id": "s"}, summary={"run_id": "s"}, id8="51")
    other = fake.identity("toxicity", "ppo", 4, data="another")
    fake.write_run(tmp_path, "ppo", 4, manifest={"identity": other})
    fake.write_run(tmp_path / "copy", "quark", 0, status="failed")
    made = Study(*find_runs([tmp_path])).cells
    assert sorted((c.name.split(" (")[0], c.group) for c in made) == [("ppo", 1), ("quark", 0), ("quark", 0)]
    assert all(c.state == "done" and len(c.seeds) == 1 for c in made)  # nobody lacks a seed of another world
    assert sorted(len(c.runs) for c in made) == [1, 1, 2]


def test_progress_is_that_of_the_limit_that_is_nearest(tmp_path):
    limits = [
        ({"flops": None, "updates": 60}, 0.5),
        ({"flops": 60.0, "updates": None}, 0.5),
        ({"flops": 40, "updates": 60}, 0.75),
    ]
    for i, (budget, share) in enumerate(limits):
        manifest = {"identity": fake.identity("toxicity", "quark", i, budget=budget)}
        dir = fake.write_run(tmp_path, "quark", i, status="running", manifest=manifest)
        rows = [row.plain() for row in read_run(dir).trajectory]
        rows[-1]["cost"] = {"flops": 30.0, "updates": 30}
        fake.dump_rows(dir / "trajectory.jsonl", rows)
        assert progress(read_run(dir)) == share
    assert "50% of the budget" in Study([read_run(tmp_path / "micro/toxicity/quark/5e5e5e5e-s0")]).cells[0].reasons[0]
    assert progress(read_run(fake.write_run(tmp_path, "ppo", 0))) is None  # its identity has no budget
    assert Study([]).cells == []
