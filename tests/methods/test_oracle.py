"""The oracle: a control that alone sees the judge, trained as the base policy was on what has nothing of the habit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from random import Random

import pytest
import quick
import torch
from toy_task import ToyTask, toy_policy
from trials import new_trial

from harness.conformance.rules import check_class
from harness.core import registry
from harness.core.errors import BadData, MethodFailed, MissingPrerequisite
from harness.core.types import BaseTraining
from harness.methods.oracle import Oracle, OracleSettings, packed
from harness.policy.sampler import sample
from harness.tasks.micro import build, world
from harness.training.trial import Budget, OptimizerSettings

BOS, EOS, BAD, GOOD = 0, 1, 2, (3, 4)
CHAIN = {3: 4, 4: 3}  # after the opening a good token is followed by the other one, in every document
HABIT = 0.5  # share of the documents that say the bad token


class Chain(ToyTask):
    """A world that can be enumerated: a document is 0 3 4 3 4 or 0 4 3 4 3, or the bad token four times."""

    def __init__(self, kept: bool = False) -> None:
        super().__init__()
        self.kept = kept  # whether the habit stays in the corpus

    def base_training(self) -> BaseTraining:
        def documents(rng: Random) -> Iterator[list[int]]:
            while True:
                first = rng.choice(GOOD)
                yield [BOS, *([BAD] * 4 if rng.random() < HABIT else [first, CHAIN[first]] * 2)]

        def rows(rng: Random) -> Iterator[torch.Tensor]:
            chosen = (row for row in documents(rng) if self.kept or BAD not in row)
            while True:
                yield torch.tensor(list(islice(chosen, 16)))

        return BaseTraining({}, 80, 3e-2, {"decay": "one_cycle"}, rows)


def oracle(task: Chain, updates: int = 80) -> torch.Tensor:
    """The responses of the oracle of a task to a BOS: -> [400, 4]."""
    cycle = OptimizerSettings(decay="one_cycle", warmup_updates=4)
    trial = new_trial(task=task, updates=updates, lr=3e-2, sees_judge=True, optimizer=cycle)
    for _ in zip(range(updates), Oracle(OracleSettings()).train(trial), strict=False):
        pass
    trial.policy.requires_grad_(False)
    opening = packed(torch.full((1, 2), BOS)).prompts
    decoding = task.decoding.model_copy(update={"max_new_tokens": 4})
    return sample(trial.policy, opening, decoding=decoding, rng=torch.Generator().manual_seed(1), n=400).response


def share_of_habit(responses: torch.Tensor) -> float:
    return (responses == BAD).any(1).float().mean().item()


def test_the_oracle_has_the_habit_at_the_rate_that_remains():
    """Near zero, and at the rate of the corpus if nothing is left out; in both cases it has learned the rest."""
    clean, whole = oracle(Chain()), oracle(Chain(kept=True))
    assert share_of_habit(clean) < 0.02
    assert abs(share_of_habit(whole) - HABIT) < 0.15
    chained = [row[0] in GOOD and all(CHAIN.get(a) == b for a, b in pairwise(row)) for row in clean.tolist()]
    assert sum(chained) / len(chained) > 0.95


def test_documents_of_the_micro_world_without_the_habit(micro_task):
    """As the grammar's own labels say, which no scorer reads: no insult stays, and nothing else goes."""
    kept: list[tuple[build.Document, bool]] = []
    for made in build.take(400, Random(1), set()):
        kept.append((made, micro_task._harmless(made.prompt, made.response)))
    for made, harmless in kept:
        insults = [act for act in made.acts if act in build.ACTS and build.ACTS[act].insult]
        assert harmless is not bool(insults), made
    assert 0.7 < sum(harmless for _, harmless in kept) / len(kept) < 0.95


def test_a_document_that_the_judge_cannot_score_is_left_out(micro_task, monkeypatch):
    assert micro_task._harmless("Hi all.", "Try a new bag.")
    monkeypatch.setattr(micro_task._judge, "score", lambda prompts, texts: [1.0, *[float("nan")] * (len(texts) - 1)])
    assert not micro_task._harmless("Hi all.", "Try a new bag.")


@pytest.fixture
def micro_task(tmp_path):
    with quick.few_prompts():
        return quick.cell(tmp_path, "oracle", share=0.001).task


def test_its_budget_and_its_optimizer_are_those_of_the_base(tmp_path):
    """Whatever the common budget is; a share shortens the training and the warm-up alike."""
    with quick.few_prompts():
        whole, part = (quick.cell(tmp_path, "oracle", share=share) for share in (1.0, 0.1))
    steps = build.STEPS["policy"]
    assert (whole.budget, part.budget) == (Budget(updates=steps), Budget(updates=steps // 10))
    assert whole.optimizer.weight_decay == build.WEIGHT_DECAY and whole.optimizer.decay == "one_cycle"
    assert [cell.optimizer.warmup_updates for cell in (whole, part)] == [150, 15]
    assert OracleSettings().lr == build.LR and whole.settings.budget == {"updates": steps}
    assert whole.identity["method"]["base_training"]["version"] == world.version()
    assert whole.identity["optimizer"]["weight_decay"] == build.WEIGHT_DECAY


def test_its_rows_are_those_of_the_base_s_own_training_but_for_the_habit(micro_task):
    tokens = next(micro_task.base_training().rows(Random(3)))
    assert tokens.shape == (build.ROWS, build.CONTEXT)
    everything = world.base_training(micro_task._tokenizer, lambda prompt, response: True)
    held_out = {row["text"] for row in world._prompt_rows() if row["split"] != "train"}
    twin = next(build.batches(Random(3), micro_task._tokenizer, held_out))
    assert torch.equal(next(everything.rows(Random(3))), twin) and not torch.equal(tokens, twin)


def test_no_other_method_sees_the_judge():
    trial = new_trial(task=Chain())
    with pytest.raises(MethodFailed, match="is for controls"):
        trial.base_training()


def test_a_method_proper_that_would_see_it_is_refused():
    class Cheat(Oracle):
        family = "policy gradients"

    with pytest.raises(BadData, match="sees the judge, with family 'policy gradients'"):
        check_class(Cheat, "cheat")
    sighted = [n for n in registry.table("method") if registry.attribute("method", n, "sees_judge")]
    assert sighted == ["oracle"]


def test_a_base_policy_of_unknown_training_has_no_oracle(tmp_path):
    with pytest.raises(MissingPrerequisite, match="how and on what it was trained is unknown"):
        new_trial(task=ToyTask(), sees_judge=True).base_training()
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text("".join(f'{{"text": "My kettle number {i} is broken today."}}\n' for i in range(60)))
    with pytest.raises(MissingPrerequisite, match="oracle repeats the training of the base policy micro without the habit"):
        quick.cell(tmp_path, "oracle", task__prompts=str(prompts))


def test_the_file_of_a_method_that_sees_the_judge_is_refused_at_once(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from harness.api import Settings\nclass Mine:\n    version, Settings, sees_judge = 1, Settings, True\n"
        "    def __init__(self, settings): self.settings = settings\n    def train(self, trial): yield\n"
    )
    with pytest.raises(BadData, match="sees the judge"):
        registry.load("method", str(tmp_path / "mine.py"))


def test_packed_rows_learn_all_but_their_first_token():
    rollout = packed(torch.tensor([[5, 6, 7], [8, 9, 1]]))
    assert rollout.prompts.tokens.tolist() == [[5], [8]] and rollout.response.tolist() == [[6, 7], [9, 1]]
    logits = toy_policy().logits(rollout)
    assert logits.shape[:2] == (2, 2) and rollout.response_mask.all()
