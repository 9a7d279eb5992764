"""A run under LoRA: interrupted and resumed, saved as an adapter or merged, and measured again from its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import quick
import transformers

from harness.policy.models.adapters import WEIGHTS
from harness.runs import assemble, session
from harness.runs.finished import external

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("few_prompts", "one_thread")
LORA = {"model__lora__rank": 2, "evaluation__paper_samples": 0, "evaluation__points": 2}


def measured_again(cell: session.Cell, out: Path) -> dict[str, float | None]:
    """The final metrics of `harness eval` on the policy of a run, whose own setup it does not know."""
    plain = quick.cell(out, evaluation__paper_samples=0).settings
    shared = assemble.parts(plain, "toxicity", offline=True)
    summary, _ = session.run(external.external_cell(plain, shared, str(cell.path / "policy"), "toxicity", out, offline=True))
    return {name: summary.final[name].value for name in ("reward", "judge", "kl", "ppl")}


def test_an_adapter_is_resumed_bit_for_bit_and_measured_again(tmp_path, monkeypatch):
    cell = quick.cell(tmp_path, **LORA)
    summary, _ = session.run(cell)
    saved = (cell.path / "policy" / WEIGHTS).read_bytes()
    update = session.Trial.update

    def pressed(trial, loss):
        if trial.cost.updates == 5:
            raise KeyboardInterrupt
        update(trial, loss)

    with monkeypatch.context() as at_5, pytest.raises(KeyboardInterrupt):
        at_5.setattr(session.Trial, "update", pressed)
        session.run(cell, fresh=True)
    again, resumed = session.run(cell)
    assert resumed and quick.without_clock(again) == quick.without_clock(summary)
    assert (cell.path / "policy" / WEIGHTS).read_bytes() == saved and not (cell.path / "policy" / "config.json").exists()
    assert cell.identity["setup"]["lora"]["rank"] == 2 and summary.settings["model"]["lora"]["rank"] == 2
    found = measured_again(cell, tmp_path)
    assert found == {name: summary.final[name].value for name in found}


@pytest.mark.slow
def test_a_merged_policy_is_a_model_as_any_other(tmp_path):
    cell = quick.cell(tmp_path, **LORA | {"model__lora__merge": "true", "evaluation__select": "best_validation"})
    summary, _ = session.run(cell)
    folder = cell.path / "policy"
    assert not (folder / WEIGHTS).exists()
    speak = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    assert speak("the", max_new_tokens=4, return_full_text=False)[0]["generated_text"]
    assert measured_again(cell, tmp_path)["kl"] == pytest.approx(summary.final["kl"].value, rel=0.05)
