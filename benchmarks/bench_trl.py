"""Updates of DPO, GRPO and PPO through the suite against TRL's own trainers, driven by their own `train()`.

Both sides have the same weights, prompts, pairs or responses, batch size and loss. The peers' settings are TRL's defaults but
for float32, no gradient checkpointing, no logs and no files. A step of theirs lasts from one `on_step_end` to the next.

TRL 1.16 has no PPO trainer. The peer is that of 1.12, the last release with one, if it lies in the folder named by TRL_112:
    pip install --no-deps --target FOLDER trl==1.12.0
"""

from __future__ import annotations

import copy
import os
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench_quark import Task
from counts import Work, full_length, reading, sampling, shape_of, update
from paired import alone, pairs
from shapes import VOCAB, micro, new_policy, sized, stock
from transformers import TrainerCallback

from harness.core.types import Rollout
from harness.methods.dpo import DPO, DPOSettings
from harness.methods.grpo import GRPO, GRPOSettings
from harness.methods.ppo import PPO, PPOSettings
from harness.training.trial import Budget, OptimizerSettings, Trial

STEPS, FOREVER = sized(24, 4), 10**6
BATCH, GROUP = sized(64, 8), 8
COMMON: dict[str, Any] = {
    "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "use_cpu": True, "bf16": False,
    "gradient_checkpointing": False, "learning_rate": 1e-5,
}  # fmt: skip


class Turns(TrainerCallback):
    """A trainer whose `train()` runs in a thread and waits after each step until the next one is asked for."""

    def __init__(self, trainer: Any) -> None:
        self.asked, self.done, self.error = threading.Semaphore(0), threading.Semaphore(0), None
        trainer.add_callback(self)
        self.thread = threading.Thread(target=self._train, args=(trainer,), daemon=True)
        self.thread.start()
        self.done.acquire()  # it is built up

    def __call__(self) -> None:
        self.asked.release()
        self.done.acquire()
        if self.error is not None:
            raise RuntimeError("the trainer ended") from self.error

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        torch.set_num_threads(1)
        self._wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._wait()

    def _wait(self) -> None:
        self.done.release()
        self.asked.acquire()

    def _train(self, trainer: Any) -> None:
        try:
            trainer.train()
        except BaseException as e:
            self.error = e
        self.done.release()


def trial_of(steps: int = STEPS) -> Trial:
    policy = new_policy(micro())
    budget = Budget(updates=10**9)
    return Trial(policy, policy.frozen_copy(), Task(steps), seed=0, budget=budget, lr=1e-5, optimizer=OptimizerSettings())


def updates_of(method: Any, trial: Trial):
    """A call that is an update of the plugin, after the first one."""
    updates = method.train(trial)
    next(updates)
    return lambda: next(updates)


def tokenizer():
    """Ids as words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(i): i for i in range(VOCAB)}, "1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="0", padding_side="left")


def rollout_of(trial: Trial, n: int) -> Rollout:
    """As many prompts and responses as a batch holds, for the count of operations."""
    return trial.sample(trial.prompts(n))


def test_a_dpo_update(workload, tmp_path):
    import trl
    from datasets import Dataset

    trial, pairs_of_both = trial_of(), BATCH // 2
    settings = DPOSettings(explore_every=10**9, explore_prompts=sized(256, 16), batch_size=pairs_of_both, lr=1e-5)
    ours = updates_of(DPO(settings), trial)

    class Trainer(trl.DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset  # the same token ids

    args = trl.DPOConfig(output_dir=str(tmp_path), per_device_train_batch_size=pairs_of_both, max_steps=FOREVER, **COMMON)
    data = Dataset.from_list(trial.state_dict()["kept"]["pairs"])
    model, reference = stock(trial.reference.model), stock(trial.reference.model)
    theirs = Turns(Trainer(model=model, ref_model=reference, args=args, train_dataset=data, processing_class=tokenizer()))
    s, batch = shape_of(model), rollout_of(trial, BATCH)
    name = f"DPO update, micro, {pairs_of_both} pairs, {STEPS} tokens"
    work, note = (
        update(s, batch) + reading(s, batch),
        "the loss is TRL's own code on both sides, so that only what is around it differs",
    )
    workload(name, "training", {"suite": ours, "TRL 1.16": theirs}, rounds=21, work=work, note=note)


NOTES = {
    "update": "the responses are given; the loss is TRL's own code on both sides, so that only what is around it differs",
    "rollout and update": "responses are drawn by `sample` and by TRL's `generate`",
}


@pytest.mark.parametrize("what", NOTES)
def test_a_grpo_update(what, workload, tmp_path):
    import trl
    from datasets import Dataset

    trial, given = trial_of(), what == "update"
    every = FOREVER if given else 1
    settings = GRPOSettings(explore_every=every, group_size=GROUP, batch_size=BATCH, lr=1e-5)
    ours = updates_of(GRPO(settings), trial)
    args = trl.GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=BATCH, num_generations=GROUP, max_completion_length=STEPS,
        num_iterations=every, beta=0.0, max_steps=FOREVER, **COMMON,
    )  # fmt: skip
    task = Task(STEPS)
    texts = [" ".join(map(str, row[counts].tolist())) for row, counts in zip(*task.all, strict=True)]
    model = stock(trial.reference.model)
    trainer = trl.GRPOTrainer(
        model=model, args=args, train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
        processing_class=tokenizer(), reward_funcs=even,
    )  # fmt: skip
    with_reference(trainer, stock(trial.reference.model), settings.kl_coef)
    s, batch = shape_of(model), rollout_of(trial, BATCH)
    before = batch.prompts.mask.sum(1)[::GROUP]
    drawn = sampling(s, before, full_length(before, GROUP, STEPS)) if not given else Work()
    work = update(s, batch) + (Work() if given else reading(s, batch)) + drawn
    name = f"GRPO {what}, micro, {BATCH} responses, {STEPS} tokens"
    workload(name, "training", {"suite": ours, "TRL 1.16": Turns(trainer)}, rounds=15, work=work, note=NOTES[what])


def even(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The reward of the benchmarks, on lists of ids."""
    return [sum(i % 2 == 0 for i in ids) / max(1, len(ids)) for ids in completion_ids]


def with_reference(trainer: Any, reference: Any, beta: float) -> None:
    """A reference for the KL term: the constructor would load it from the hub by its name."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(reference)
    trainer.beta, trainer.ref_model = beta, reference


def test_a_ppo_rollout_and_its_updates(workload):
    folder = Path(os.environ.get("TRL_112", Path(__file__).parent.parent / ".trl112"))
    if not (folder / "trl" / "experimental" / "ppo").is_dir():
        pytest.skip(f"no TRL 1.12 in {folder}; see the top of bench_trl.py")
    rounds = alone("bench_trl", "ppo", sized(9, 2), env={"PYTHONPATH": str(folder.resolve()), "TRL_EXPERIMENTAL_SILENCE": "1"})
    trial, n = trial_of(), BATCH
    s, batch = shape_of(trial.policy.model), rollout_of(trial, n)
    before = batch.prompts.mask.sum(1)
    work = sampling(s, before, full_length(before, 1, STEPS)) + reading(s, batch) + reading(s, batch, head=False)
    work += (update(s, batch) + update(s, batch, head=False)) * 4
    seconds = {side: list(x) for side, x in zip(("suite", "TRL 1.12"), zip(*rounds, strict=True), strict=True)}
    workload(
        f"PPO rollout and its 16 updates, micro, {n} responses, {STEPS} tokens", "training", seconds=seconds, work=work,
        note="TRL 1.16 has no PPO trainer; that of 1.12, the last release with one. Four epochs of four minibatches, a value "
        "network with a trunk of its own",
    )  # fmt: skip


def ppo(rounds: int) -> list[list[float]]:
    """Seconds of each side a round; TRL 1.12 is on the path."""
    torch.set_num_threads(1)
    trial = trial_of()
    settings = PPOSettings(lr=1e-5, kl_coef=0.05, kl_controller="fixed", explore_prompts=BATCH, epochs=4, minibatches=4)
    updates = PPO(settings).train(trial)
    with tempfile.TemporaryDirectory() as folder:
        theirs = Turns(_ppo_trainer(trial, folder))
        return pairs((lambda: [next(updates) for _ in range(16)], theirs), rounds)


def _ppo_trainer(trial: Trial, folder: str) -> Any:
    from datasets import Dataset
    from transformers import GPT2ForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    args = PPOConfig(
        output_dir=folder, per_device_train_batch_size=BATCH, num_mini_batches=4, num_ppo_epochs=4, kl_coef=0.05,
        gradient_accumulation_steps=1, total_episodes=BATCH * FOREVER, response_length=STEPS, temperature=1.0,
        local_rollout_forward_batch_size=BATCH, num_sample_generations=0, **COMMON,
    )  # fmt: skip
    model = stock(trial.reference.model)
    config = copy.deepcopy(model.config)
    config.num_labels, config.pad_token_id = 1, None
    rows = [{"input_ids": row[counts].tolist()} for row, counts in zip(*Task(STEPS).all, strict=True)]
    words = tokenizer()
    return PPOTrainer(
        args=args, processing_class=words, model=model, ref_model=stock(trial.reference.model), reward_model=Reward(),
        train_dataset=Dataset.from_list(rows * 16), value_model=GPT2ForSequenceClassification(config),
    )  # fmt: skip


class Reward(torch.nn.Module):
    """A reward by the tokens alone, in the form that the trainer asks for: it costs nothing on either side."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = lambda input_ids, **_: SimpleNamespace(hidden_states=[input_ids[..., None].float()])

    def score(self, states: torch.Tensor) -> torch.Tensor:
        return (states % 2 == 0).float().cumsum(1) / states.shape[1]
