"""Modules of `evaluate` as scorers, from local files in the real shape, and the suite's metrics as a module of `evaluate`."""

import json
import re
import sys
from importlib.resources import files
from pathlib import Path

import folders
import numpy as np
import own_modules
import pytest
from folders import SENTENCES
from places import ROOT

from harness.core import hub
from harness.core.errors import BadData, BadScorer, BadSetting, MissingPrerequisite
from harness.measure import metrics
from harness.runs import scorers
from harness.tasks.scorers.classifier import ClassifierScorer
from harness.tasks.scorers.evaluate_module import EvaluateScorer

evaluate = pytest.importorskip("evaluate")
PROMPTS = [f"prompt {i}" for i in range(len(SENTENCES))]


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """The two modules, each in a folder of its name, and a classifier."""
    root = tmp_path_factory.mktemp("modules")
    own_modules.write(root)
    folders.classifier_folder(root / "model", "Roberta", ("nothate", "hate"))
    return root


def lengths(modules, key="all", **options) -> EvaluateScorer:
    return EvaluateScorer(str(modules / "lengths"), key, low=-50, high=50, **options)


def test_a_module_of_a_classifier_scores_as_our_own_classifier_does(modules):
    common = {"config": str(modules / "model"), "arguments": {"toxic_label": "hate"}, "invert": True}
    own = ClassifierScorer(str(modules / "model"), "hate", invert=True, device="cpu")
    expected = own.score(PROMPTS, SENTENCES)
    found = scorers.built("tox", {"kind": "evaluate", "module": str(modules / "tone"), "key": "toxicity", **common})
    np.testing.assert_allclose(found.score(PROMPTS, SENTENCES), expected, atol=1e-6)
    assert np.ptp(expected) > 0.01 and found.slow and not found.reads_prompt
    common["arguments"] = {"toxic_label": "hate", "aggregation": "maximum"}
    one_number = EvaluateScorer(str(modules / "tone" / "tone.py"), "max_toxicity", **common)
    for _ in range(2):
        np.testing.assert_allclose(one_number.score(PROMPTS, SENTENCES), expected, atol=1e-6)


def test_the_key_the_inputs_and_the_scale_choose_a_number(modules):
    differences = np.array([len(r) - len(p) for p, r in zip(PROMPTS, SENTENCES, strict=True)])
    expected = (differences + 50) / 100
    for key in ("all", "mean.long", "a.b"):
        found = lengths(modules, key)
        np.testing.assert_allclose(found.score(PROMPTS, SENTENCES), expected)
        assert found.reads_prompt
    turned = lengths(modules, inputs={"data": "prompt", "references": "response"}, invert=True)
    np.testing.assert_allclose(turned.score(PROMPTS, SENTENCES), expected)
    doubled = lengths(modules, arguments={"factor": 100.0})
    assert doubled.score(PROMPTS, SENTENCES).tolist() == [1.0] * len(SENTENCES) and len(doubled.score([], [])) == 0
    missing = EvaluateScorer(str(modules / "lengths"), "missing").score(PROMPTS, SENTENCES)
    assert [bool(x) for x in np.isnan(missing)] == ["tea" in s for s in SENTENCES]


def test_the_identity_follows_code_options_and_models_and_no_path(modules, tmp_path):
    def identity(module=modules / "tone", config=modules / "model", **options):
        return EvaluateScorer(str(module), "toxicity", config=str(config), **options).identity

    first = identity()
    assert str(modules) not in json.dumps(first) and first["module"] == "tone" and len(first["sha256"]) == 64
    assert identity(low=-1.0) != first != identity(arguments={"toxic_label": "hate"})
    (tmp_path / "tone").mkdir()
    (tmp_path / "tone" / "tone.py").write_text(own_modules.TOXICITY)
    assert identity(tmp_path / "tone") == first
    other = folders.classifier_folder(tmp_path / "model", "Roberta", ("nothate", "hate", "other"))
    assert identity(config=other)["config"] != first["config"]
    (tmp_path / "tone" / "tone.py").write_text(own_modules.TOXICITY + "\nMORE = 1\n")
    assert identity(tmp_path / "tone")["sha256"] != first["sha256"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key": "none"}, BadScorer, "the result of module lengths has no 'none'; it has mean, all, a.b"),
        ({"key": "all.more"}, BadScorer, "the result of module lengths has no 'all.more'; it has list"),
        ({"key": "few"}, BadScorer, "'few' of module lengths has 2 numbers for 5 texts"),
        ({"key": "word"}, BadScorer, "'word' of module lengths is str; expected numbers"),
        ({"low": 1.0}, BadSetting, "low is 1.0 and high is 1.0; expected low below high"),
        ({"inputs": {"data": "response"}}, BadSetting, "expected data and references, each response or prompt"),
        ({"inputs": {"data": "response", "references": "x"}}, BadSetting, "expected data and references, each response"),
        ({"module": "toxicity"}, MissingPrerequisite, "no evaluate module toxicity; .* set trust_hub=true and revision=COMMIT"),
        ({"module": "toxicity", "trust_hub": True}, BadSetting, "revision is None; expected the commit of the module toxicity"),
    ],
)
def test_what_cannot_be_meant(options, error, message, modules):
    given = {"module": str(modules / "lengths"), "key": "all"} | options
    with pytest.raises(error, match=message):
        EvaluateScorer(**given).score(PROMPTS, SENTENCES)


def test_a_module_of_the_hub_is_asked_for_by_its_commit(modules, monkeypatch):
    asked = []
    load = evaluate.load
    monkeypatch.setattr(evaluate, "load", lambda *a, **k: asked.append((a, k["revision"])) or load(str(modules / "lengths")))
    EvaluateScorer("someone/lengths", "all", trust_hub=True, revision="a" * 40)
    assert asked == [(("someone/lengths", None), "a" * 40)]


def test_a_module_that_is_broken_and_a_library_that_is_missing(tmp_path, modules, monkeypatch):
    (tmp_path / "broken.py").write_text("import evaluate\n\nraise RuntimeError('no')\n")
    with pytest.raises(BadData, match=r"evaluate module .*broken\.py cannot be loaded \(RuntimeError: no\); check it"):
        EvaluateScorer(str(tmp_path / "broken.py"), "all")
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(MissingPrerequisite, match=r"pip install 'unlearning-harness\[evaluate\]'"):
        lengths(modules)


def test_needs_name_the_library_and_a_local_module(modules):
    found = EvaluateScorer.needs({"module": str(modules / "none")})
    assert [(need.there, need.local) for need in found] == [(True, False), (False, True)] and isinstance(found[0], hub.Need)
    assert len(EvaluateScorer.needs({"module": "someone/else", "trust_hub": True})) == 1


@pytest.mark.slow  # the library writes a table for each call
def test_it_holds_the_rules_of_scorers(harness, modules):
    options = (f"module={modules / 'lengths'}", "key=all", "low=-100", "high=300")
    code, out, _ = harness("check", "scorer", "evaluate", *(w for o in options for w in ("--set", o)))
    assert code == 0, out


def test_the_metrics_of_the_suite_are_a_module_of_evaluate():
    module = evaluate.load(str(files("harness.tasks.scorers") / "unlearning_metrics"), keep_in_memory=True)
    texts = [["the cat sat and the cat sat", "a goose", "a goose"], ["tea"]]
    undesired, flat = np.array([[0.1, 0.7, np.nan], [0.2, np.nan, np.nan]]), [t for row in texts for t in row]
    found = module.compute(predictions=flat, prompts=["x", "x", "x", "y"], undesired=[0.1, 0.7, None, 0.2])
    expected = {
        "distinct_2": metrics.distinct(texts, 2), "unique": metrics.unique_share(texts), "self_bleu": metrics.self_bleu(texts),
        "rep_3": metrics.repetition_rate(texts, 3), "diversity": metrics.corpus_diversity(texts),
        "undesired": metrics.cluster_mean(undesired), "max_undesired": metrics.max_undesired(undesired),
        "undesired_prob": metrics.undesired_prob(undesired),
    }  # fmt: skip
    for name, metric in expected.items():
        assert (found[name], found[f"{name}_stderr"]) == (metric.value, metric.stderr), name
    assert (found["max_undesired"], found["undesired_prob"]) == (pytest.approx(0.45), 0.5)
    without = module.compute(predictions=flat, prompts=["x"] * 4)
    assert "undesired" not in without and without["unique_stderr"] is None


def test_nothing_but_the_scorer_and_the_module_imports_the_library():
    line = re.compile(r"^\s*(?:import|from) evaluate\b", re.MULTILINE)
    code = [path for part in ("harness", "methods", "tasks") for path in Path(ROOT / part).rglob("*.py")]
    assert {path.name for path in code if line.search(path.read_text())} == {"evaluate_module.py", "unlearning_metrics.py"}
