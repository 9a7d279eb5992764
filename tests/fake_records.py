"""Synthetic records: invented numbers in the form of real ones, for tests only; no model was run."""

from __future__ import annotations

import json
from math import exp, log
from pathlib import Path
from random import Random
from typing import Any

BASE_REWARD, SPREAD, BASE_JUDGE = 0.62, 0.36, 0.70
METHODS = {  # share of the possible gain, KL at the end, gap between reward and judge, perplexity
    "quark": (0.90, 0.95, 0.03, 5.6),
    "ppo": (0.84, 1.9, 0.16, 7.9),
    "conditional": (0.62, 0.40, 0.02, 5.2),
    "unlikelihood": (0.35, 0.62, 0.01, 6.4),
}


def best_reward(kl: float) -> float:
    """An invented concave frontier."""
    return BASE_REWARD + SPREAD * (1 - exp(-2.6 * kl**0.75))


def point(value: float | None, stderr: float | None = None, n: int = 800, reason: str | None = None) -> dict[str, Any]:
    return {"value": value, "stderr": stderr, "n": n if value is not None else 0, "n_unscored": 0, "reason": reason}


def metrics(gain: float, kl: float, gap: float, ppl: float) -> dict[str, Any]:
    reward = BASE_REWARD + gain * (best_reward(kl) - BASE_REWARD)
    need = next((k / 400 for k in range(4000) if best_reward(k / 400) >= reward), kl)
    judge = BASE_JUDGE + (1 - BASE_JUDGE) * (reward - BASE_REWARD) / SPREAD * (1 - gap)
    return {
        "reward": point(reward, 0.006),
        "judge": point(judge, 0.008),
        "kl": point(kl, 0.02 * kl + 0.002),
        "kl_per_token": point(kl / 18, 0.001),
        "efficiency": point(need / kl if kl else None, 0.02, reason=None if kl else "the KL is zero"),
        "excess_kl": point(kl - need, 0.02),
        "regret": point(best_reward(kl) - reward, 0.006),
        "ppl": point(ppl, 0.05),
        "distinct_2": point(0.93 - 0.05 * kl, 0.004),
        "grammatical": point(0.97 - 0.03 * kl, 0.004),
    }


BASE = metrics(0.0, 0.0, 0.0, 5.0)


def frontier() -> dict[str, Any]:
    kls = [(i / 30) ** 2 * 4 for i in range(31)]
    curve = [
        {"lambda": 4 * k, "kl": k, "reward": best_reward(k), "reward_stderr": 0.004, "kl_stderr": 0.01, "solid": k < 1.3}
        for k in kls
    ]
    best_of_n = [
        {
            "n": n,
            "kl": log(n) - (n - 1) / n,
            "reward": best_reward(log(n) - (n - 1) / n) - 0.02 * (n > 1),
            "reward_stderr": 0.004,
        }
        for n in (1, 2, 4, 8, 16)
    ]
    judge = [BASE_JUDGE + (1 - BASE_JUDGE) * 0.97 * (best_reward(k) - BASE_REWARD) / SPREAD for k in kls]
    upper = [{"kl": k, "reward": min(1.0, best_reward(k) + 0.012 * (k - 1.2))} for k in kls if k >= 1.2]
    return {
        "base_reward": BASE_REWARD, "n_prompts": 200, "n_samples": 200, "kl_cap": 1.5, "curve": curve, "upper": upper,
        "best_of_n": best_of_n, "judge_at": {"kl": kls, "judge": judge},
    }  # fmt: skip


def identity(task: str, method: str, seed: int, /, **changes: Any) -> dict[str, Any]:
    same = {
        "model": {"name": "synthetic", "sha256": "ab" * 32},
        "data": "cd" * 32,
        "scorers": "ef" * 32,
        "evaluation": {"n": 200},
    }
    settings = {"name": method, "version": 1, "settings": {"lr": 1e-4}}
    return {**same, "schema": 1, "task": {"name": task, "version": 1}, "method": settings, "seed": seed, **changes}


def write_run(
    root: Path, method: str, seed: int, *, status: str = "done", task: str = "toxicity", preset: str = "micro",
    final: dict[str, Any] | None = None, manifest: dict[str, Any] = {}, summary: dict[str, Any] = {}, id8: str = "5e5e5e5e",
) -> Path:  # fmt: skip
    """One synthetic record; `final`, `manifest` and `summary` replace keys of it."""
    rng = Random(f"{method}{seed}")
    gain, kl, gap, ppl = METHODS.get(method, (0.5, 0.5, 0.05, 5.5))
    gain, kl, ppl = min(0.98, gain + rng.uniform(-0.03, 0.03)), kl * rng.uniform(0.9, 1.1), ppl * rng.uniform(0.98, 1.02)
    last = {**metrics(gain, kl, gap, ppl), **(final or {})}
    run_id = f"{id8}-s{seed}"
    dir = root / preset / task / method / run_id
    dir.mkdir(parents=True)
    key = {"run_id": run_id, "status": status, "preset": preset, "task": task, "method": method, "seed": seed}
    error = {"type": "NotFinite", "message": "the loss is nan at update 12"} if status == "failed" else None
    times = {"started_at": "2024-01-01T00:00:00Z", "ended_at": None}
    provenance = {"package": "0.1.0", "torch": "0.0-synthetic", "commit": "0" * 40}
    record = {
        "schema_version": 1,
        **key,
        "identity": identity(task, method, seed),
        "error": error,
        **times,
        "provenance": provenance,
    }
    dump(dir / "manifest.json", {**record, **manifest})
    dump_rows(dir / "trajectory.jsonl", trajectory(gain, kl, gap, ppl, last if status in ("done", "degraded") else None))
    if status in ("done", "degraded"):
        cost = {"updates": 60, "sampled_tokens": 170_000, "flops": 3.1e13, "seconds": 71.5, "peak_memory_mb": 900.0}
        body = {"settings": {"lr": 1e-4}, "base": BASE, "final": last, "frontier": frontier(), "cost": cost}
        dump(dir / "summary.json", {"schema_version": 1, **key, "run_dir": str(dir), **body, **summary})
    return dir


def trajectory(gain: float, kl: float, gap: float, ppl: float, last: dict[str, Any] | None) -> list[dict[str, Any]]:
    rows = []
    for i in range(7 if last else 4):
        share = i / 6
        now = metrics(gain * min(1, 0.5 + 0.5 * share), kl * share**1.5, gap * share, 5 + (ppl - 5) * share)
        now = {**now, **last} if last and i == 6 else now
        rows.append({"update": 10 * i, "split": "test", "metrics": now, "cost": {"updates": 10 * i}, "seconds": 12.0 * i})
    return rows


def write_samples(dir: Path, method: str, more: str = "") -> None:
    """Invented answers to six prompts of two kinds, two each; `more` is part of each answer."""
    import pyarrow
    import pyarrow.parquet

    (dir / "samples").mkdir()
    for name, judge in (("base", 0.5), ("final", {"quark": 0.9, "ppo": 0.8, "npo": 0.7}.get(method, 0.6))):
        rows = [
            {"prompt_id": i, "kind": kind, "prompt": f"{kind} prompt {i}", "response": f"answer {j} of {method}\n{clean(more)}",
             "reward": 0.5, "judge": judge, "kl": 0.1, "tokens": [1, 2]}
            for i in range(3) for kind in ("calm", "heated") for j in range(2)
        ]  # fmt: skip
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), dir / "samples" / f"{name}.parquet")


def clean(text: str) -> str:
    """Parquet holds no lone surrogate; a page must still bear one where JSON brings it."""
    return text.encode("utf-8", "replace").decode()


def dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, allow_nan=False))


def dump_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def write_study(root: Path) -> Path:
    """Four synthetic methods of three seeds each, all done."""
    for method in METHODS:
        for seed in range(3):
            write_run(root, method, seed)
    return root
