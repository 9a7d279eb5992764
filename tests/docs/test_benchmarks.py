"""The page of the benchmarks from its file of results, and the count of operations that its floors rest on."""

from __future__ import annotations

from pathlib import Path

import counts
import page
import pytest
import torch
from tiny import TINY, left_padded, ragged_rows
from torch.utils.flop_counter import FlopCounterMode

from harness.core.types import Rollout

MACHINE = {
    "processor": "x86_64", "features": ["avx2"], "cores": 2, "gpu": False, "python": "3.11", "torch": "2.13",
    "transformers": "5", "threads": 1, "matmul": 1e11, "bandwidth": 1e10,
}  # fmt: skip


def row(section: str, seconds: dict, **more) -> dict:
    return {"section": section, "measured": "2026-01-02", "machine": MACHINE, "note": "", "seconds": seconds} | more


def results() -> dict:
    """A row with a peer and a floor, one without either, and growth."""
    ours, theirs = [2.0, 2.0, 2.0, 4.0, 2.0], [3.0, 4.0, 5.0, 4.0, 8.0]
    points = [{"size": n, "seconds": 2.0 * n, "mb": 300, "measured": "2026-01-03"} for n in (1, 4)]
    return {
        "rows": {
            "a workload": row(
                "sampling", {"suite": ours, "peer": theirs}, operations=5e10, bytes=1e9, memory={"suite": 1234.5}
            ),
            "a command": row("commands", {"command": [0.25]}, note="as it is"),
        },
        "growth": {"note": "whole runs", "units": {"prompts": "prompt"}, "series": {"prompts": points}},
    }  # fmt: skip


def test_the_page_shows_time_floor_share_and_quartiles_of_the_ratio():
    lines = page.render(results()).splitlines()
    assert "| a workload | 2.00 s | 500 ms | 25 % | peer | **2.00** | 1.50 to 2.50 | 5 | suite 1,234 MB | 2026-01-02 |" in lines
    assert "| a command | 250 ms |  |  |  |  |  |  |  | 2026-01-02 |" in lines and "- a command: as it is" in lines
    assert "| prompts | 4 | 8.00 s | 2e+03 ms per prompt | 300 MB | 2026-01-03 |" in lines
    assert [line for line in lines if "100 G operations/s, memory 10.0 GB/s" in line and "1 thread:" in line]


def test_a_partial_run_changes_its_rows_alone(tmp_path):
    page.write(tmp_path, results())
    later = row("commands", {"command": [0.5]}) | {"measured": "2026-02-01", "machine": MACHINE | {"threads": 2}}
    page.keep(tmp_path, "a command", later)
    found = page.read(tmp_path)
    assert list(found["rows"]) == ["a workload", "a command"] and found["growth"] == results()["growth"]
    page.main(tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert "| a command | 500 ms |  |  |  |  |  |  |  | 2026-02-01 B |" in lines
    assert next(line for line in lines if line.startswith("| a workload")).endswith("| 2026-01-02 A |")


@pytest.mark.parametrize("kind", TINY)
def test_operations_are_those_that_torch_counts(kind):
    """Of whole rows: torch counts attention to later tokens too, which the floor leaves out."""
    model = TINY[kind]().model
    model.set_attn_implementation("eager")  # whose products torch counts
    prompts = left_padded(ragged_rows((5, 5, 5)))
    response = torch.full((3, 4), 2)
    rollout = Rollout(prompts, response, torch.ones_like(response, dtype=torch.bool))
    s = counts.shape_of(model)
    with FlopCounterMode(display=False) as counted:
        model(torch.cat([prompts.tokens, response[:, :-1]], 1), logits_to_keep=4)
    later = 4 * s.layers * s.queries * 3 * (8 * 8 - 8 * 9 // 2)
    assert counts.reading(s, rollout).operations + later == counted.get_total_flops()


def test_work_of_sampling_by_hand():
    """Two prompts of 1 and 2 tokens, a response of 2 tokens to each: one token of each response is read."""
    s = counts.Shape(body=10, head=6, vocab=3, parameters=20, layers=1, queries=2, keys=1)
    work = counts.sampling(s, torch.tensor([1, 2]), torch.tensor([2, 2]))
    assert work.operations == 2 * 10 * (3 + 2) + 4 * 2 * ((1 + 3) + (2 + 3)) + 2 * 6 * 4
    assert work.bytes == 4 * (2 * (10 + 6) + 2 * 1 * (3 * 2 + 2) + 2 * 3 * 4)
    assert counts.floor(counts.Work(8.0, 3.0), 2.0, 1.0) == 4.0 and counts.floor(counts.Work(1.0, 3.0), 2.0, 1.0) == 3.0


def test_the_committed_page_is_that_of_the_committed_results():
    folder = Path(page.__file__).parent
    assert (folder / "README.md").read_text() == page.render(page.read(folder), (folder / "gpu.txt").read_text())
