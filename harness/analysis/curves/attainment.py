"""Attainment over seeds: the share of seeds that reach a reward within a KL, and the area below."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from ..stats import attainment, hypervolume

SHARES = {"every": 0.0, "half": 0.5, "one": 1.0}  # quantile 0 is the worst: attained by every seed
MOST = 24  # panels; the data has all


def attained(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The corners (KL, reward) attained by all, half and one of a method's seeds; sorted by the area of the half.

    Of `figures.figure_data`: finished runs, test prompts, KL up to the task's cap. Nothing where the base or the cap is not
    known; a method of one seed is left out, as its three curves are one.
    """
    base, cap = corner(data)
    if base is None or cap is None:
        return []
    found = []
    for method in data["methods"]:
        fronts = _fronts(method, base, cap)
        if len(fronts) > 1:
            curves = {name: attainment(fronts, share).tolist() for name, share in SHARES.items()}
            found.append({**{key: method[key] for key in ("name", "colour")}, "n": len(fronts), **curves})
    return sorted(found, key=lambda m: (-hypervolume(m["half"], (cap, base)), m["name"]))


def corner(data: dict[str, Any]) -> tuple[float | None, float | None]:
    """The base policy's reward and the task's KL cap."""
    base, frontier = data["base"], data["frontier"]
    return base["reward"]["value"] if base else None, (frontier["kl_cap"] or None) if frontier else None


def _fronts(method: dict[str, Any], base: float, cap: float) -> list[list[tuple[float, float]]]:
    """The points of each seed, with the base policy's own among them."""
    by_seed: dict[int, list[tuple[float, float]]] = defaultdict(lambda: [(0.0, base)])
    for run in method["runs"]:
        if run["status"] == "done" and run["final"]:
            ends = (run["final"]["kl"]["value"], run["final"]["reward"]["value"])
            points = [*((p["kl"], p["reward"]) for p in run["path"]), ends]
            by_seed[run["seed"]] += [(x, y) for x, y in points if x is not None and y is not None and x <= cap]
    return [by_seed[seed] for seed in sorted(by_seed)]
