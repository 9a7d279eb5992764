"""Text to forget and to retain from documents, and the setting that asks for it, which leaves the ids of older runs alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from trials import new_trial

from harness.core.errors import RunFailed
from harness.core.hashing import identity_hash
from harness.core.settings import resolve
from harness.core.types import Documents, Prompts, Rollout, settings_identity
from harness.methods.gradient_ascent import GradientAscent, GradientAscentSettings
from harness.methods.npo import NPO, NPOSettings
from harness.methods.rmu import RMU, RMUSettings
from harness.methods.simnpo import SimNPO, SimNPOSettings
from harness.training import forgetting
from harness.training.pool import Pool

REWARDS = [0.0, 1.0, 0.5, float("nan"), 0.0]


def documents(rewards=REWARDS) -> Documents:
    """Documents of one segment each; the response of number i begins with i + 2."""
    n = len(rewards)
    response = torch.tensor([[i + 2, 1] for i in range(n)])
    prompts = Prompts(torch.full((n, 2), 3), torch.ones(n, 2, dtype=torch.bool))
    reward = torch.tensor(rewards)[:, None].expand(n, 2)
    return Documents(
        Rollout(prompts, response, torch.ones(n, 2, dtype=torch.bool)), torch.zeros(n, 2, dtype=torch.long), reward
    )


def filled(rewards, **line) -> Pool:
    pool = Pool()
    assert forgetting.from_documents(SimpleNamespace(documents=lambda n: documents(rewards)), pool, **line) == line.get(
        "line", 0
    )
    return pool


def drawn(pool: Pool, side: int) -> set[int]:
    rollout, _ = pool.draw(200, torch.Generator().manual_seed(0), quantile=side)
    assert rollout.prompts.tokens.shape[1] == 2  # responses after their prompts
    return set(rollout.response[:, 0].tolist())


def test_forget_is_at_or_below_the_line_and_retain_the_rest():
    pool = filled(REWARDS)
    assert (drawn(pool, 0), drawn(pool, 1)) == ({2, 6}, {3, 4})  # the unscored one is in neither
    pool = filled(REWARDS, line=0.5)
    assert (drawn(pool, 0), drawn(pool, 1)) == ({2, 4, 6}, {3})


@pytest.mark.parametrize(("rewards", "said"), [([1.0, 1.0], "none is"), ([0.0, 0.0], "all are")])
def test_a_corpus_with_one_side_only_is_refused(rewards, said):
    with pytest.raises(RunFailed, match=f"{said} to be forgotten"):
        filled(rewards)


@pytest.mark.parametrize(
    ("kind", "of"), [(NPO, NPOSettings), (GradientAscent, GradientAscentSettings), (SimNPO, SimNPOSettings), (RMU, RMUSettings)]
)
def test_a_method_on_documents_samples_nothing_and_reads_the_corpus_once(kind, of, monkeypatch):
    trial, read, learned = new_trial(updates=3), [], []

    def corpus(n):
        read.append(n)
        return documents([0.0, 1.0])

    monkeypatch.setattr(trial, "documents", corpus)
    monkeypatch.setattr(trial, "sample", lambda *a, **k: pytest.fail("sampled"))
    method = kind(of(forget="documents", explore_every=1, batch_size=4))

    def learn(trial, forget, retain, target=None):
        learned.append(({t % 2 for t in forget.response[:, 0].tolist()}, {t % 2 for t in retain.response[:, 0].tolist()}))
        trial.update(trial.policy.logits(forget).sum() * 0)
        return {}

    monkeypatch.setattr(method, "_learn", learn)
    for _, _ in zip(range(3), method.train(trial), strict=False):
        pass
    assert read == [forgetting.DOCUMENTS] and learned == [({0}, {1})] * 3


@pytest.mark.parametrize("of", [NPOSettings, GradientAscentSettings])
def test_the_setting_enters_the_identity_where_it_is_not_the_default(of):
    assert "forget" not in settings_identity(of()) and of().forget == "samples"
    assert "forget" not in settings_identity(of(forget="samples")) and not of().on_documents
    assert settings_identity(of(forget="documents"))["forget"] == "documents" and of(forget="documents").on_documents
    before = {k: v for k, v in of().model_dump().items() if k != "forget"}
    assert identity_hash(settings_identity(of())) == identity_hash(before)


def test_the_preset_forgets_documents_of_facts_alone():
    tables = {task: resolve("micro", "npo", task).method for task in ("toxicity", "facts")}
    assert "forget" not in tables["toxicity"] and tables["facts"]["forget"] == "documents"
