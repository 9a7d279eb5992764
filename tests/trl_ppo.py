"""Run TRL 1.12's PPO trainer for one rollout and write down what it computed; started by test_online.py.

    python trl_ppo.py TRL_FOLDER OUT_FILE

TRL_FOLDER holds `pip install --no-deps --target TRL_FOLDER trl==1.12.0`, the last release with a PPO trainer. Two runs:
responses of full length, and responses that end at EOS. Its functions are watched from outside, none is changed.
"""

import copy
import os
import sys
import tempfile
from types import SimpleNamespace
from typing import Any

os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, sys.argv[1])

import torch
import trl
from datasets import Dataset
from tiny import EOS, tiny_gpt2
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerFast
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

PAD = 12  # outside the policy's vocabulary, so that it is never sampled


class Reward(nn.Module):
    """Any number for any text, by the tokens alone, in the shape that the trainer asks for."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = lambda input_ids, **_: SimpleNamespace(hidden_states=[input_ids[..., None].float()])

    def score(self, states: torch.Tensor) -> torch.Tensor:
        return torch.sin(states.cumsum(1))


def tokenizer() -> PreTrainedTokenizerFast:
    words = {str(i): i for i in range(12)} | {"[PAD]": PAD}
    model = Tokenizer(WordLevel(words, unk_token="2"))
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]", eos_token=str(EOS), padding_side="left")


def watch(name: str, calls: list[Any], what) -> None:
    whole = getattr(ppo_trainer, name)

    def watched(*args: Any, **kw: Any) -> Any:
        result = whole(*args, **kw)
        calls.append(copy.deepcopy(what(args, result)))  # a copy: the trainer writes over some
        return result

    setattr(ppo_trainer, name, watched)


def weights(args: Any, _: Any) -> dict[str, Any] | None:
    model = args[0]
    if not hasattr(model, "value_model"):
        return None
    return {"policy": model.policy.state_dict(), "value": model.value_model.state_dict()}


def record(stop: str | None, folder: str) -> dict[str, Any]:
    seen: dict[str, list[Any]] = {k: [] for k in ("whiten", "mean", "forward", "reward", "logprobs")}
    fresh = {name: getattr(ppo_trainer, name) for name in WATCHED}
    for name, (key, what) in WATCHED.items():
        watch(name, seen[key], what)
    policy, ref = tiny_gpt2(seed=0).model, tiny_gpt2(seed=1).model
    args = PPOConfig(
        output_dir=folder, per_device_train_batch_size=48, total_episodes=48, response_length=5, stop_token=stop, seed=3,
        temperature=1.0, num_ppo_epochs=3, learning_rate=3e-2, num_sample_generations=0, report_to="none", use_cpu=True,
        bf16=False, save_strategy="no", gradient_checkpointing=False,
    )  # fmt: skip
    rows = Dataset.from_list([{"input_ids": [2 + (i + j) % 10 for j in range(1 + i % 4)]} for i in range(48)])
    PPOTrainer(
        args=args, processing_class=tokenizer(), model=policy, ref_model=ref, reward_model=Reward(), train_dataset=rows,
        value_model=value_model(policy),
    ).train()  # fmt: skip
    for name, function in fresh.items():
        setattr(ppo_trainer, name, function)
    return seen


def value_model(policy: nn.Module) -> GPT2ForSequenceClassification:
    config = copy.deepcopy(policy.config)
    config.num_labels, config.pad_token_id = 1, None
    torch.manual_seed(5)
    return GPT2ForSequenceClassification(config)


WATCHED = {
    "masked_whiten": ("whiten", lambda args, result: {"advantage": args[0], "mask": args[1], "whitened": result}),
    "masked_mean": ("mean", lambda args, result: result.detach()),
    "forward": ("forward", weights),
    "get_reward": ("reward", lambda args, result: {"tokens": args[1], "context": args[3], "all": result[0], "last": result[1]}),
    "selective_log_softmax": ("logprobs", lambda args, result: result.detach()),
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        runs = {str(stop): record(stop, folder) for stop in (None, "eos")}
    torch.save({"version": trl.__version__, "runs": runs}, sys.argv[2])
