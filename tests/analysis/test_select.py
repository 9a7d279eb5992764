"""Which runs an argument of `harness compare` selects, and what narrows a selection that is too wide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_records as fake

from harness.analysis.select import select


def write(root: Path, method: str, seed: int, judge: float, **options: Any) -> None:
    fake.write_run(root, method, seed, final={"judge": fake.point(judge, 0.01)}, **options)


def test_a_run_is_selected_by_its_id_or_a_unique_prefix(harness, tmp_path):
    for seed, id8 in ((0, "7a7a0000"), (1, "7a7b0000")):
        write(tmp_path, "quark", seed, 0.9, id8=id8)
    write(tmp_path, "ppo", 0, 0.8, id8="0c0c0c0c")
    assert [side.seeds for side in select(["7a7b0000-s1", "7a7b"], tmp_path)] == [[1], [1]]
    code, out, _ = harness("compare", "7a7a", "0c0", "--out", tmp_path)
    assert code == 0 and "A  quark, seed 0: 7a7a" in out and "B  ppo, seed 0: 0c0" in out
    code, _, err = harness("compare", "7a7", "0c0", "--out", tmp_path)
    assert code == 2 and "'7a7' matches 2 runs" in err and err.count("\n") == 1
    assert (
        "no method or run named '7a7a0000-s9'; did you mean '7a7a0000-s0'"
        in harness("compare", "7a7a0000-s9", "ppo", "--out", tmp_path)[2]
    )


def test_runs_of_one_method_in_two_worlds_are_narrowed_by_what_differs(harness, tmp_path):
    for digits in ("0a", "1b"):
        scorers = {"judge": {"name": "mine", "sha256": digits * 32}}
        for seed in (0, 1):
            own = fake.identity("toxicity", "quark", seed, scorers=scorers)
            write(tmp_path, "quark", seed, 0.9, id8=digits * 4, manifest={"identity": own})
    other = fake.identity("toxicity", "quark", 0, scorers=scorers, method={"name": "quark", "sha256": "12" * 32})
    write(tmp_path, "ppo", 0, 0.8, manifest={"identity": other})
    said = harness("compare", "quark", "ppo", "--out", tmp_path)[2]
    assert "2 worlds, unlike in scorers.judge (mine sha256 " in said
    how = said.partition("narrow it, as by ")[2].strip()
    assert how in [f"quark:scorers.judge.sha256={digits * 4}" for digits in ("0a", "1b")]
    # the digits are text, not the number that TOML reads
    assert [side.seeds for side in select([how, "ppo:method.sha256=12121212"], tmp_path)] == [[0, 1], [0]]
    assert "give the folder or the id of one" in harness("compare", tmp_path, "ppo", "--out", tmp_path)[2]
    said = harness("compare", "quark:scorers.judge.sha256=0a0a0a0a", "ppo", "--out", tmp_path)[2]
    assert "sha256 1b1b1b1b); scores of two worlds cannot be compared: choose two selections of one" in said
