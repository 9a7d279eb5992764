"""The picture of log-ratio against reward: at the optimum of KL-regularised RL a line of slope 1 / beta."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.core.errors import Unwritable
from harness.report.figures.style import STYLE, save_small

from .quantities import Table
from .records import Records, Side, settings_of

SHOWN = ("reinforce", "gdc", "ppo", "rloo")
TASKS = ("toxicity", "sentiment")
BINS = "log_ratio_bins"
SIZE, DOT = (3.6, 2.6), 3.0


def draw(records: Records, path: Path) -> bool:
    """Draw a panel for each task and method with the binned log-ratios of its seeds; False if none was measured.

    Raises Unwritable if the picture cannot be written.
    """
    found = {key: rows for key in _panels() if (rows := _rows(records, *key))}
    if not found:
        return False
    content = save_small(_figure(found))
    try:
        path.write_bytes(content)
    except OSError as error:
        raise Unwritable(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    return True


def _panels() -> list[tuple[str, str]]:
    return [(task, method) for task in TASKS for method in SHOWN]


class Seed(NamedTuple):
    """What a panel shows of one run."""

    beta: float
    slope: float  # times beta
    bins: Table  # reward and log-ratio, both less the prompt's mean: [n bins, 2]


def _rows(records: Records, task: str, method: str) -> list[Seed]:
    runs = Side(method).runs(records, task)
    found = []
    for run in [] if isinstance(runs, str) else runs:
        slope, bins = (records.measured.get((run.manifest.run_id, name)) for name in ("slope", BINS))
        beta = settings_of(run).get("kl_coef")
        if slope is not None and bins is not None and beta:
            found.append(Seed(float(beta), slope.value, np.array(bins.terms).reshape(-1, 2)))
    return found


def _figure(found: dict[tuple[str, str], list[Seed]]):  # type: ignore[no-untyped-def]
    import matplotlib
    from matplotlib.figure import Figure

    rows = defaultdict(list)
    for key in found:
        rows[key[0]].append(key)
    with matplotlib.style.context(["default", STYLE]):
        width = max(map(len, rows.values()))
        figure = Figure(figsize=(SIZE[0] * width, SIZE[1] * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), width, squeeze=False)
        for line, keys in zip(panels, rows.values(), strict=True):
            for axes, key in zip(line, keys, strict=False):
                _panel(axes, key, found[key])
            for axes in line[len(keys) :]:
                axes.set_axis_off()
        handles, labels = panels[0, 0].get_legend_handles_labels()
        panels[0, 0].legend(handles[:1], labels[:1], loc="lower right", frameon=False)
    return figure


def _panel(axes, key: tuple[str, str], seeds: list[Seed]) -> None:  # type: ignore[no-untyped-def]
    for beta, _, bins in seeds:
        axes.plot(bins[:, 0], bins[:, 1], "o", markersize=DOT, color="#1b6ca8", alpha=0.7)
        ends = np.array([bins[:, 0].min(), bins[:, 0].max()])
        axes.plot(ends, ends / beta, color="#888888", linewidth=1, zorder=0, label="posterior: slope 1 / beta")
    axes.set_title(f"{key[1]}, {key[0]}: slope {np.mean([seed.slope for seed in seeds]):.2f} / beta")
    axes.set_xlabel("reward, less the prompt's mean")
    axes.set_ylabel("log-ratio, nats")
