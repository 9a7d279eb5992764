"""What the methods that learn from scored text have in common: resuming, a first stage, settings that exclude each other."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from scored_documents import Shelf, documents
from toy_task import ToyTask, toy_policy
from trials import new_trial, same, weights

from harness.core.types import Documents
from harness.methods.awr import AWR, AWRSettings
from harness.methods.conditional_pretraining import ConditionalPretraining, ConditionalPretrainingSettings
from harness.methods.dexperts import DExperts, DExpertsSettings
from harness.methods.filtering import Filtering, FilteringSettings
from harness.methods.mle import MLE, MLESettings
from harness.methods.rwr import RWR, RWRSettings
from harness.methods.unlikelihood import Unlikelihood, UnlikelihoodSettings
from harness.policy.policy import Policy

METHODS = {
    "awr": (AWR, AWRSettings(batch_size=4)),
    "conditional": (ConditionalPretraining, ConditionalPretrainingSettings(batch_size=4, drop=0.3)),
    "dexperts": (DExperts, DExpertsSettings(batch_size=4)),
    "filtering": (Filtering, FilteringSettings(batch_size=4)),
    "mle from scratch": (MLE, MLESettings(batch_size=4, start="scratch")),
    "rwr": (RWR, RWRSettings(batch_size=4, start="scratch", mle_share=0.5)),
    "rwr on samples": (RWR, RWRSettings(batch_size=4, source="samples", explore_every=3, explore_prompts=16)),
    "unlikelihood": (Unlikelihood, UnlikelihoodSettings(batch_size=4, source="corpus", num_quantiles=2)),
    "unlikelihood of tokens": (
        Unlikelihood,
        UnlikelihoodSettings(batch_size=4, source="corpus", num_quantiles=2, level="token"),
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_goes_on_bit_for_bit(name, tmp_path):
    kind, settings = METHODS[name]

    def go(trial, n):
        return [row for _, row in zip(range(n), kind(settings).train(trial), strict=False)]

    whole, half = new_trial(task=ToyTask(unscored=1), updates=8), new_trial(task=ToyTask(unscored=1), updates=8)
    got = go(whole, 6)
    assert go(half, 3) == got[:3]
    half.policy.save(tmp_path / "policy")
    torch.save(half.state_dict(), tmp_path / "trial.pt")
    state = torch.load(tmp_path / "trial.pt", weights_only=True)
    again = new_trial(
        Policy.load(tmp_path / "policy"), reference=toy_policy().frozen_copy(), updates=8, seed=5, state=state, task=ToyTask(1)
    )
    assert go(again, 3) == got[3:]
    assert same(weights(whole.policy), weights(again.policy))
    assert whole.cost == again.cost and whole.policy.prefix == again.policy.prefix
    assert torch.equal(whole.rng.get_state(), again.rng.get_state())
    assert whole.unscored == again.unscored > 0 or name == "rwr on samples"


class Same(Shelf):
    """The same documents at every draw."""

    def documents(self, n: int, rng: torch.Generator) -> Documents:
        return documents().rows(torch.arange(n) % 3)


@pytest.mark.parametrize(
    ("kind", "settings", "word"),
    [
        (AWR, AWRSettings, "loss"),
        (ConditionalPretraining, ConditionalPretrainingSettings, "nll"),
        (Filtering, FilteringSettings, "nll"),
        (RWR, RWRSettings, "nll"),
        (Unlikelihood, lambda **s: UnlikelihoodSettings(source="corpus", num_quantiles=2, **s), "cost"),
    ],
)
def test_the_first_stage_is_plain_maximum_likelihood(kind, settings, word):
    def losses(kind, settings, word):
        trial = new_trial(task=Same(), updates=6)
        return [row[word] for _, row in zip(range(6), kind(settings).train(trial), strict=False)]

    plain = losses(MLE, MLESettings(batch_size=4), "nll")
    both = losses(kind, settings(batch_size=4, mle_share=0.5), word)
    # the first loss of the second stage is already another objective, of the same weights
    assert both[:3] == pytest.approx(plain[:3], abs=1e-6)
    assert both[3] != pytest.approx(plain[3], abs=1e-4) or kind is Filtering
    assert losses(kind, settings(batch_size=4, mle_share=1.0), word) == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (RWRSettings, {"source": "samples", "start": "scratch"}),
        (RWRSettings, {"source": "samples", "mle_share": 0.5}),
        (RWRSettings, {"beta": 0}),
        (UnlikelihoodSettings, {"start": "scratch"}),
        (UnlikelihoodSettings, {"level": "token", "ngram": 4}),
        (MLESettings, {"mle_share": 0.5}),
        (FilteringSettings, {"quantile": 0}),
        (AWRSettings, {"alpha": 0}),
        (DExpertsSettings, {"alpha": -1}),
        (ConditionalPretrainingSettings, {"drop": 1.1}),
    ],
)
def test_settings_that_cannot_be_meant(kind, wrong):
    with pytest.raises(ValidationError):
        kind(**wrong)
