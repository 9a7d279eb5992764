"""How many documents of its task's own habit a method that learns from the corpus reads."""

from __future__ import annotations

from pathlib import Path

import fake_records as fake
import pytest
import quick
import torch
from fake_reports import only_group
from toy_task import ToyTask
from trials import new_trial

from harness.core.types import Documents
from harness.report.tables import method_table
from harness.tasks.micro import world
from harness.tasks.toxicity import Toxicity


class Kinds(ToyTask):
    """Every fourth document has the task's habit."""

    def documents(self, n: int, rng: torch.Generator) -> Documents:
        return super().documents(n, rng)._replace(own=torch.arange(n) % 4 == 0)


def test_documents_are_counted_by_kind_where_it_is_known():
    trial = new_trial(task=Kinds())
    trial.documents(8)
    trial.documents(8)
    assert (trial.cost.documents, trial.cost.own_documents) == (16, 4)
    unknown = new_trial()
    unknown.documents(8)
    assert (unknown.cost.documents, unknown.cost.own_documents) == (0, 0)


@pytest.mark.usefixtures("few_prompts")
def test_the_micro_world_knows_the_kind_of_every_document(tmp_path):
    task = quick.cell(tmp_path, "filtering").task
    found = task.documents(400, torch.Generator().manual_seed(0))
    share = [text.kind in Toxicity.kinds for text in world.data(Toxicity.kinds).documents]
    assert found.own is not None and abs(found.own.float().mean() - sum(share) / len(share)) < 0.08
    assert found.rows(torch.tensor([2, 0])).own.tolist() == [found.own[2], found.own[0]]


def test_the_share_is_in_the_table(tmp_path: Path):
    cost = {"updates": 60, "flops": 1.0, "seconds": 1.0, "peak_memory_mb": 1.0, "documents": 200, "own_documents": 50}
    fake.write_run(tmp_path, "filtering", 0, summary={"cost": cost})
    fake.write_run(tmp_path, "quark", 0, summary={"cost": cost | {"documents": 0, "own_documents": 0}})
    table = method_table(only_group(tmp_path))
    at = next(i for i, title in enumerate(table.header) if title.startswith("Own documents"))
    shown = {row[0]: row[at] for row in table.rows}
    assert shown["filtering"] == "0.25" and shown["quark"].startswith("–")
    assert any("reads no document whose kind is known" in note for note in table.notes)
