"""A report over everything that can go wrong, made once a process."""

from __future__ import annotations

from pathlib import Path

import fake_records as fake
import pytest
from fake_reports import report

from harness.report.build import BuildResult


@pytest.fixture(scope="session")
def messy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, BuildResult]:
    """A report over everything that can go wrong at once."""
    top = tmp_path_factory.mktemp("messy")
    root = fake.write_study(top / "results")
    fake.write_run(root, "quark", 3, status="degraded")
    for method, status in (("ppo", "failed"), ("unlikelihood", "interrupted"), ("conditional", "running")):
        fake.write_run(root, method, 3, status=status)
    fake.write_run(root, "nulls", 0, final={k: fake.point(None, reason="SCORER-OFFLINE") for k in fake.BASE if k != "kl"})
    fake.write_run(root, "leaky", 0, final={"reward": fake.point(0.99, 0.003), "kl": fake.point(0.4, 0.01)})
    (fake.write_run(root, "corrupt", 0) / "summary.json").write_text("{]")
    (fake.write_run(root, "truncated", 0) / "trajectory.jsonl").write_text('{"update": 0')
    fake.write_run(root, "newer", 0, manifest={"schema_version": 9})
    fake.write_run(root / "copy", "quark", 0)
    return root, top / "report", report(root, top / "report")
