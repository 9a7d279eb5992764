"""Runs of MLflow: in a SQLite file of its own below the records, unless MLFLOW_TRACKING_URI names another store."""

from __future__ import annotations

import fcntl
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .events import Begin, End, Held, Values
from .trackers import PROJECT

KEY = "harness.key"  # the tag that finds the run again
LONGEST_VALUE = 500  # characters of a parameter
BATCH = 1000  # metrics in a request, MLflow's limit
STATES = {"done": "FINISHED", "degraded": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class Mlflow:
    """A run of MLflow, which a later attempt finds by a tag."""

    def __init__(self, root: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow
        from mlflow.entities import Metric, Param

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            import sqlalchemy  # noqa: F401  # mlflow-skinny comes without it
        self.root, self._local = root, not uri
        self.uri = uri or f"sqlite:///{root.resolve()}/mlflow.db"
        self.hint = f"mlflow ui --backend-store-uri {self.uri}"
        self._library: Any = mlflow
        self._metric, self._param = Metric, Param
        self._client: Any = None
        self._run = ""

    def begin(self, run: Begin) -> Held:
        with self._alone():
            self._client = self._library.MlflowClient(tracking_uri=self.uri)
            experiment = self._experiment()
            found = self._client.search_runs([experiment], f"tags.`{KEY}` = '{run.key}'", max_results=1)
            if not found:
                return self._created(experiment, run)
            self._run = found[0].info.run_id
            held = self._held(found[0].data.metrics)
            if not held.ended:
                self._client.update_run(self._run, status="RUNNING")
            return held

    def add(self, rows: Sequence[Values]) -> None:
        with self._alone():
            for row in rows:
                self._log(row.values, row.update, row.at)

    def end(self, result: End) -> None:
        with self._alone():
            if result.picture is not None:
                from PIL import Image

                self._client.log_image(self._run, Image.open(io.BytesIO(result.picture)), artifact_file="picture.png")
            if result.samples:
                self._client.log_dict(self._run, {"samples": result.samples}, "samples.json")
            self._log(result.values, result.update, result.at)

    def close(self, status: str) -> None:
        if self._run:
            with self._alone():
                self._client.set_terminated(self._run, STATES[status])
            self._run = ""

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Context manager in which no other process of ours is at work on the local store, which MLflow makes in many steps."""
        if not self._local:
            yield
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        where = (self.root.resolve() / "artifacts").as_uri() if self._local else None
        return found.experiment_id if found is not None else self._client.create_experiment(name, artifact_location=where)

    def _created(self, experiment: str, run: Begin) -> Held:
        tags = {KEY: run.key, **{f"harness.{k}": v for k, v in run.labels.items()}}
        made = self._client.create_run(experiment, int(1000 * run.started), tags, run_name=run.name)
        self._run = made.info.run_id
        params = [self._param(_named(name), str(value)[:LONGEST_VALUE]) for name, value in run.settings.items()]
        for i in range(0, len(params), 100):
            self._client.log_batch(self._run, params=params[i : i + 100])
        return Held()

    def _held(self, metrics: Mapping[str, float]) -> Held:
        steps = {name: [m.step for m in self._client.get_metric_history(self._run, name)] for name in metrics}
        updates = [step for name, found in steps.items() if name.startswith("train/") for step in found]
        rows = [len(found) for name, found in steps.items() if name.startswith("eval/")]
        return Held(max(updates, default=-1), max(rows, default=0), any(name.startswith("final/") for name in metrics))

    def _log(self, values: Mapping[str, float], update: int, at: float) -> None:
        metrics = [self._metric(_named(name), value, int(1000 * at), update) for name, value in values.items()]
        for i in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run, metrics=metrics[i : i + BATCH])


def _named(name: str) -> str:
    """A name that MLflow accepts."""
    return name.replace("@", "_at_")
