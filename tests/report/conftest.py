"""A report over everything that can go wrong, made once a process; sheets that are not drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fake_records as fake
import pytest
from fake_reports import report

from harness.report.build import BuildResult
from harness.report.figures import sheets


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sheets without marks, for tests of anything but the pictures: drawing takes most of the time of a report."""
    empty = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>'

    def curves(data: dict[str, Any], panels: Sequence[Any], tag: str, columns: int = 2) -> sheets.Sheet:
        return sheets.Sheet(empty.encode(), [empty] * len(panels), b"")

    monkeypatch.setattr(sheets, "curves", curves)
    monkeypatch.setattr(sheets, "dots", lambda title, methods, panels, tag, columns=3: curves({}, panels, tag))
    monkeypatch.setattr(sheets, "bands", lambda data, methods, columns=4: curves({}, methods, ""))


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
