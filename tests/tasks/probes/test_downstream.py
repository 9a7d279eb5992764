"""Downstream tasks: what comes of lm-eval's results, and its own numbers on a plain policy."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.api import BadSetting, MissingPrerequisite
from harness.policy.loading import load_model
from harness.runs.finished.probe import asked as asked_for
from harness.tasks.probes.downstream import Downstream, DownstreamSettings, metrics_of, needed, offline, reading, tasks_of

POLICY = Path(__file__).parents[3] / "tasks" / "micro" / "assets" / "policy"
FOLDER = Path(__file__).parents[3] / "examples" / "downstream"
TEXTS = [("The film was", " too long."), ("", "I see your point."), ("My screen is cracked. ", "Is that normal?")]


def results(**rows: float | str) -> dict:
    return {
        "results": {"t": {"alias": "t", **rows}}, "n-samples": {"t": {"original": 9, "effective": 7}}, "versions": {"t": 2},
        "lm_eval_version": "0.4.13",
    }  # fmt: skip


def test_a_task_becomes_a_reading_with_the_base_beside_it():
    own = results(**{"acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.25, "acc_norm_stderr,none": "N/A"})
    found = reading(3, "t", own, results(**{"acc,none": 1.0, "acc_stderr,none": 0.0}))
    assert found.at == 3 and found.label == "t v2 (lm-eval 0.4.13)"
    assert found.metrics["judge"] == found.metrics["acc"] == (0.5, 0.1, 7, 0, None)
    assert found.metrics["acc_norm"].stderr is None and found.metrics["base_acc"].value == 1.0


def test_what_lm_eval_could_not_compute_is_missing():
    found = metrics_of(results(**{"acc,none": float("nan"), "acc_stderr,none": 0.1, "word_perplexity,none": "N/A"}), "t")
    assert [found[key].value for key in ("acc", "word_perplexity")] == [None, None]
    assert found["acc"].stderr is None and found["acc"].reason


def test_two_filters_are_two_metrics_and_perplexity_is_no_share_of_right_answers():
    found = reading(0, "t", results(**{"f1,strict": 0.5, "f1,loose": 0.75}), results(**{"ppl,none": 9.0}))
    assert found.metrics["f1_strict"].value == 0.5 and found.metrics["f1_loose"].value == 0.75
    assert "judge" not in found.metrics and found.metrics["base_ppl"].value == 9.0


def test_a_group_is_refused():
    with pytest.raises(BadSetting, match="no single task"):
        reading(0, "group", results(), results())


def test_a_changed_file_in_the_folder_is_another_probe(tmp_path):
    (tmp_path / "t.yaml").write_text("task: t\n")
    told = {"tasks": ["t"], "include": str(tmp_path)}
    first = asked_for("downstream", told, 0)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "t.pyc").write_bytes(b"compiled")
    assert asked_for("downstream", told, 0).key == first.key
    assert asked_for("downstream", told | {"sha256": first.settings.sha256}, 0).key == first.key
    (tmp_path / "t.yaml").write_text("task: t\nnum_fewshot: 1\n")
    assert asked_for("downstream", told, 0).key != first.key
    with pytest.raises(BadSetting, match=r"the files in .* have another sha-256"):
        asked_for("downstream", told | {"sha256": first.settings.sha256}, 0)


def test_a_hash_without_a_folder_and_a_file_that_cannot_be_read_are_refused(tmp_path, monkeypatch):
    with pytest.raises(BadSetting, match="give include=folder too"):
        asked_for("downstream", {"tasks": ["t"], "sha256": "ab"}, 0)
    (tmp_path / "t.yaml").write_text("task: t\n")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(BadSetting, match=r"t\.yaml cannot be read"):
        asked_for("downstream", {"tasks": ["t"], "include": str(tmp_path)}, 0)


def test_without_the_package_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingPrerequisite, match=r"unlearning-harness\[lm-eval\]"):
        needed()


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("lm_eval")
    from harness.tasks.probes.lm_eval_model import PolicyLM

    return PolicyLM(*load_model(str(POLICY))[:2], torch.Generator().manual_seed(0))


def asked(*args):
    return SimpleNamespace(args=args)


def test_loglikelihoods_are_those_of_the_hf_model_of_lm_eval(model):
    from lm_eval.models.huggingface import HFLM

    hf = HFLM(pretrained=model.policy.model, tokenizer=model.tokenizer, batch_size=1)
    pairs, texts = [asked(*pair) for pair in TEXTS], [asked("The film was too long. " * n) for n in (1, 12)]
    own, its = model.loglikelihood(pairs), hf.loglikelihood(pairs, disable_tqdm=True)
    assert [a for a, _ in own] == pytest.approx([a for a, _ in its], abs=1e-3)
    assert [same for _, same in own] == [same for _, same in its]
    rolling = hf.loglikelihood_rolling(texts, disable_tqdm=True)
    assert model.loglikelihood_rolling(texts) == pytest.approx(rolling, abs=1e-2)


def test_greedy_generation_is_that_of_the_policy_and_stops(model):
    (text,) = model.generate_until([asked("> My screen is cracked. Is that normal?\n", {"until": ["\n"], "max_gen_toks": 8})])
    (short,) = model.generate_until(
        [asked("> My screen is cracked. Is that normal?\n", {"until": [text[3:]], "max_gen_toks": 8})]
    )
    assert len(text) > 3 and short == text[:3]


def test_the_prefix_is_read(model):
    policy = model.policy.copy()
    plain = model.loglikelihood([asked(*TEXTS[0])])
    tokens = policy.control_tokens(1, torch.Generator().manual_seed(0))
    policy.prefix = tuple(tokens.tolist())
    assert type(model)(policy, model.tokenizer, model.rng).loglikelihood([asked(*TEXTS[0])])[0][0] != pytest.approx(
        plain[0][0], abs=1e-4
    )


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(BadSetting, match="exceeds the policy's context"):
        model.loglikelihood([asked("A", " film" * 2000)])


def test_the_example_runs_without_the_hub(model, monkeypatch):
    import datasets

    monkeypatch.chdir(FOLDER.parents[1])
    settings = DownstreamSettings(tasks=("micro_grammar",), include=str(FOLDER), limit=4)
    model.policy.tokenizer = model.tokenizer
    probed = SimpleNamespace(policy=model.policy, base=model.policy, rng=model.rng)
    (found,) = Downstream(settings).run(probed)  # type: ignore[arg-type]
    assert found.metrics["judge"] == found.metrics["base_acc"] and found.metrics["judge"].n == 4
    assert found.metrics["judge"].stderr is not None
    with offline():
        assert datasets.config.HF_HUB_OFFLINE
    with pytest.raises(MissingPrerequisite, match="no folder nowhere"):
        next(Downstream(settings.model_copy(update={"include": "nowhere"})).run(probed))  # type: ignore[arg-type]
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager", lambda **told: SimpleNamespace(all_tasks=[])
    )  # its own take seconds to list
    with pytest.raises(BadSetting, match="no task no_such_task"):
        tasks_of(str(FOLDER), "no_such_task")
    model.policy.tokenizer = None
    with pytest.raises(MissingPrerequisite, match="no tokenizer"):
        next(Downstream(settings).run(probed))  # type: ignore[arg-type]
