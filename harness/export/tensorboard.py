"""Event files of TensorBoard, by its own writer: no TensorFlow, no torch. It keeps numbers in single precision."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from .events import Begin, End, Held, Values


class Tensorboard:
    """Writer of event files, a folder a run; scalars, the picture, settings and samples in the tabs of their kinds."""

    def __init__(self, root: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.root, self.hint = root, f"tensorboard --logdir {root}"
        self._writer_of: Any = RecordWriter  # its writer of events has a thread of its own, which hides errors
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer: Any = None
        self.folder = root

    def begin(self, run: Begin) -> Held:
        self.folder = self.root / run.place.parent / run.key
        held = held_in(self.folder)
        if held.ended:
            return held
        self.folder.mkdir(parents=True, exist_ok=True)
        attempt = len(list(self.folder.iterdir()))
        name = f"events.out.tfevents.{int(time.time()):010d}.{attempt:04d}"  # in the order of the attempts
        self._writer = self._writer_of((self.folder / name).open("xb"))
        self._writer.write(self._event(wall_time=run.started, file_version="brain.Event:2").SerializeToString())
        if held == Held():
            self._text("settings", dict(run.settings), 0, run.started)
        return held

    def add(self, rows: Sequence[Values]) -> None:
        for row in rows:
            self._write(row.values, row.update, row.at)
        self._writer.flush()

    def end(self, result: End) -> None:
        if result.samples:
            self._text("samples", result.samples, result.update, result.at)
        if result.picture is not None:
            width, height = struct.unpack(">II", result.picture[16:24])  # of a PNG
            image = self._summary.Image(width=width, height=height, colorspace=4, encoded_image_string=result.picture)
            self._put(self._summary.Value(tag="picture", image=image), result.update, result.at)
        self._write(result.values, result.update, result.at)

    def close(self, status: str) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _write(self, values: Mapping[str, float], update: int, at: float) -> None:
        found = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._put_all(found, update, at)

    def _put(self, value: Any, update: int, at: float) -> None:
        self._put_all([value], update, at)

    def _put_all(self, values: list[Any], update: int, at: float) -> None:
        event = self._event(wall_time=at, step=update, summary=self._summary(value=values))
        self._writer.write(event.SerializeToString())

    def _text(self, tag: str, value: object, update: int, at: float) -> None:
        """Write plain data for the tab of texts, which reads Markdown: as an indented block, in which nothing is markup."""
        from tensorboard.compat.proto import tensor_pb2, types_pb2

        block = "\n".join(f"    {line}" for line in json.dumps(value, indent=1, ensure_ascii=True).splitlines())
        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[block.encode()])
        entry = self._summary.Value(tag=tag, tensor=tensor)
        entry.metadata.plugin_data.plugin_name = "text"
        self._put(entry, update, at)


def held_in(folder: Path) -> Held:
    """What the event files in a folder hold."""
    if not folder.is_dir():
        return Held()
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    files = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    tags = sorted(files.Tags()["scalars"], key=_side)
    points = {side: [files.Scalars(tag) for tag in found] for side, found in groupby(tags, _side)}
    updates = [point.step for found in points.get("train", []) for point in found]
    return Held(max(updates, default=-1), max(map(len, points.get("eval", [])), default=0), "final" in points)


def _side(tag: str) -> str:
    return tag.partition("/")[0]
