"""Each architecture that people bring works from its folder and back, or is refused in one line when it is loaded."""

from __future__ import annotations

import architectures
import pytest
import torch
from architectures import CONFIGS, REFUSED

from harness.conformance.toy import ToyTask
from harness.core.types import Rollout
from harness.methods.awr import AWR, AWRSettings
from harness.policy.configs import UNLIMITED, context_length
from harness.policy.loading import load_model
from harness.policy.policy import Policy
from harness.training.trial import Budget, Trial


@pytest.mark.parametrize("name", CONFIGS)
def test_an_architecture_works_or_is_refused_in_one_line(name, tmp_path):
    found = architectures.outcome(name, tmp_path)
    assert REFUSED[name] in found if name in REFUSED else found == ""
    assert "\n" not in found and len(found) < 500


def test_the_page_has_a_row_for_each_architecture_and_says_what_is_so():
    text = architectures.PAGE.read_text()
    rows = text.split(architectures.START)[1].split(architectures.END)[0].strip().splitlines()[2:]
    cells = [row.strip("| ").split(" | ") for row in rows if row.startswith("|")]
    assert [name for name, *_ in cells] == list(CONFIGS)
    for name, _, found in cells:
        assert REFUSED[name] in found if name in REFUSED else found == "yes"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Policy:
    """An OPT whose head reads states of 8 numbers and whose layers have 16."""
    folder = architectures.write("OPT, embeddings narrower than its layers", tmp_path_factory.mktemp("models") / "opt")
    return load_model(str(folder)).policy


def test_the_width_is_that_of_the_states(narrow):
    prompts = ToyTask().train_prompts(3, torch.Generator())
    rollout = Rollout(prompts, torch.full((3, 2), 4), torch.ones(3, 2, dtype=torch.bool))
    assert narrow.width == narrow.states(rollout).shape[-1] == narrow.logits_and_states(rollout)[1].shape[-1] == 8
    assert narrow.model.config.hidden_size == 16


def test_awr_reads_its_values_off_states_of_any_width(narrow):
    trial = Trial(narrow.copy(), narrow.frozen_copy(), ToyTask(), seed=0, budget=Budget(updates=2), lr=1e-2)
    steps = AWR(AWRSettings(batch_size=4, mle_share=0)).train(trial)
    assert "value_error" in next(steps) and "value_error" in next(steps)


def test_the_context_ends_where_the_scale_of_positions_changes():
    kind = architectures.transformers.Phi3Config
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    scaled = kind(**architectures.SIZE, original_max_position_embeddings=16, rope_parameters=rope)
    plain = kind(**architectures.SIZE, original_max_position_embeddings=16)
    of = architectures.transformers.AutoModelForCausalLM.from_config
    assert (context_length(of(scaled)), context_length(of(plain))) == (16, 64)
    assert context_length(of(CONFIGS["Mamba"]())) == UNLIMITED
    assert context_length(of(CONFIGS["Gemma 3, text and images"]())) == 64
