"""model.dtype=auto: the hardware chooses, a measurement reports, and the record holds what was taken."""

from __future__ import annotations

import pytest
import torch

from harness.core.settings import resolve
from harness.runs import assemble
from harness.runs.progress import Progress
from harness.training import precision
from harness.training.precision import Precision, has_bfloat16, step_seconds

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """A machine with bfloat16 or without, and the seconds of a step in each type."""

    def made(able: bool, full: float = 4.0, half: float = 1.0) -> None:
        monkeypatch.setattr(precision, "has_bfloat16", lambda device: able)
        monkeypatch.setattr(precision, "step_seconds", lambda device, dtype: full if dtype == "float32" else half)

    return made


def test_what_is_asked_for_is_taken_unmeasured(machine, monkeypatch):
    machine(True)
    monkeypatch.setattr(precision, "step_seconds", None)
    for dtype in ("float32", "bfloat16"):
        assert precision.precision(dtype, CPU) == Precision(dtype)


def test_auto_goes_by_the_hardware_and_tells_the_ratio(machine):
    machine(False)
    assert precision.precision("auto", CPU) == Precision(
        "float32", "model.dtype=auto: float32, because this cpu has no bfloat16 arithmetic"
    )
    machine(True)
    assert precision.precision("auto", CPU) == Precision(
        "bfloat16", "model.dtype=auto: bfloat16, measured 4.0 times as fast as float32"
    )


def test_the_noise_of_a_measurement_does_not_change_the_choice(machine):
    machine(True, full=0.9)
    taken = precision.precision("auto", CPU)
    assert taken.dtype == "bfloat16" and taken.reason.endswith(
        "0.9 times as fast as float32; model.dtype=float32 may be the faster here"
    )


@pytest.mark.parametrize("major, able", [(7, False), (8, True), (9, True)])
def test_a_gpu_has_bfloat16_from_compute_capability_8(major, able, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert has_bfloat16(torch.device("cuda")) is able


def test_a_processor_has_bfloat16_by_its_instructions(monkeypatch):
    for avx, amx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx, raising=False)
        assert has_bfloat16(CPU) is (avx or amx)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not has_bfloat16(CPU) and not has_bfloat16(torch.device("mps"))


def test_a_step_is_measured_in_the_type_that_it_is_named_by(monkeypatch):
    monkeypatch.setattr(precision, "ROWS", 4)
    monkeypatch.setattr(precision, "WIDTH", 8)
    seen, linear = [], torch.nn.functional.linear

    def watched(x, *weights):
        seen.append(linear(x, *weights).dtype)
        return linear(x, *weights)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    assert step_seconds(CPU, "float32") > 0 and set(seen) == {torch.float32}
    seen.clear()
    assert step_seconds(CPU, "bfloat16") > 0 and set(seen) == {torch.bfloat16}


@pytest.mark.parametrize(
    "able, dtype, computed", [(True, "bfloat16", "float32 under bfloat16 autocast"), (False, "float32", "float32")]
)
def test_a_record_holds_what_was_taken(machine, tmp_path, able, dtype, computed, monkeypatch):
    machine(able)
    auto, named = (resolve("micro", "base", "toxicity", [f"model.dtype={d}"]) for d in ("auto", dtype))
    shared = assemble.parts(auto, "toxicity")
    assert shared.model.policy.precision == getattr(torch, dtype)
    cells = [assemble.cell(s, shared, "base", "toxicity", 0, tmp_path) for s in (auto, named)]
    assert cells[0].run_id == cells[1].run_id and cells[0].identity["dtype"] == computed
    assert cells[0].settings.model.dtype == dtype and cells[0].provenance.precision == shared.precision.reason
    said = []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    monkeypatch.setattr(assemble.base_policy, "known", lambda *_: None)
    monkeypatch.setattr(assemble, "Evaluator", lambda *_: None)
    cells[0].make_evaluator(Progress(quiet=True))
    cells[0].make_evaluator(Progress(quiet=True), "validation")
    assert said == [shared.precision.reason]
