"""PPO against TRL's own trainer.

Its last release that has one is needed,
    pip install --no-deps --target FOLDER trl==1.12.0
in the folder named by the variable TRL_112, or in `.trl112` at the root of the repository; it is skipped elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from places import FIXTURES, ROOT
from tiny import tiny_gpt2

from harness.core.types import Prompts, Rollout
from harness.methods.ppo import PPO, PPOSettings, Value, gae, shaped, whiten
from harness.policy.policy import Policy

FOLDER = Path(os.environ.get("TRL_112", ROOT / ".trl112"))

TRL_SETTINGS = PPOSettings(kl_coef=0.05, kl_controller="fixed", minibatches=1)  # the rest are TRL's defaults too


@pytest.fixture(scope="module")
def trl(tmp_path_factory):
    if not (FOLDER / "trl" / "experimental" / "ppo").is_dir():
        pytest.skip(f"no TRL 1.12 in {FOLDER}; see the top of this file")
    out = tmp_path_factory.mktemp("trl") / "record.pt"
    done = subprocess.run([sys.executable, FIXTURES / "trl_ppo.py", FOLDER, out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = torch.load(out, weights_only=True)
    assert record["version"] == "1.12.0"
    return record["runs"]


def off(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    error = (ours - theirs).abs().max().item()
    print(f"\n{what}: off by {error:.1e} at most, of {theirs.abs().max().item():.3f}")
    return error


def as_network(weights: dict[str, torch.Tensor]) -> Value:
    """TRL's value model (a trunk and a score) in ours."""
    value = Value(16, tiny_gpt2())
    value.trunk.model.transformer.load_state_dict(
        {k.removeprefix("transformer."): v for k, v in weights.items() if "score" not in k}
    )
    value.head.load_state_dict({"weight": weights["score.weight"], "bias": torch.zeros(1)})
    return value


def as_policy(weights: dict[str, torch.Tensor]) -> Policy:
    policy = tiny_gpt2()
    policy.model.load_state_dict(weights)
    return policy


def test_a_whole_rollout_as_trl_computes_it(trl):
    """Responses of full length: both put the score on the last token. Our own models read the same tokens."""
    run = trl["None"]
    tokens, context, scores = (run["reward"][1][k] for k in ("tokens", "context", "last"))
    prompts = Prompts(tokens[:, :context], tokens[:, :context] != 12)
    response = tokens[:, context:]
    rollout = Rollout(prompts, response, torch.ones_like(response, dtype=torch.bool), run["logprobs"][0])
    steps = [w for w in run["forward"] if w is not None]
    trial = SimpleNamespace(
        policy=as_policy(steps[0]["policy"]), reference=tiny_gpt2(seed=1), charge=lambda *_: None,
        prompts=lambda n: None, sample=lambda prompts: None, scored=lambda *_, **__: (rollout, scores),
    )  # fmt: skip
    ppo = PPO(TRL_SETTINGS)
    experience, _ = ppo._explore(trial, as_network(steps[0]["value"]), 0.05)
    assert off("whitened advantages", experience["advantage"], run["whiten"][0]["whitened"]) < 1e-6
    for epoch, step in enumerate(steps):
        trial.policy, trial.update = as_policy(step["policy"]), lambda loss: None
        got = ppo._learn(trial, as_network(step["value"]), experience)
        value_cost, policy_cost = run["mean"][3 + 4 * epoch] / 2, run["mean"][5 + 4 * epoch]
        assert off(f"policy loss, epoch {epoch + 1}", torch.tensor(got["policy_loss"]), policy_cost) < 1e-6
        assert off(f"value loss, epoch {epoch + 1}", torch.tensor(got["value_loss"]), value_cost) < 1e-6


def test_responses_that_end_as_trl_computes_them(trl):
    """TRL puts the score one position behind EOS and gives that position a value: our functions on its masks."""
    run = trl["eos"]
    trained = run["whiten"][0]["mask"]
    length = trained.sum(1, keepdim=True)
    assert int((length < 5).sum()) > 3
    valued = torch.arange(5) <= length
    log_ratio = (run["logprobs"][0] - run["logprobs"][1]).masked_fill(~trained, 0)
    context = run["reward"][0]["context"]
    values = run["reward"][0]["all"][:, context - 1 : -1, 0]
    rewards = shaped(run["reward"][1]["last"], log_ratio, valued, 0.05)
    advantage = gae(rewards, values, valued, 0.95)
    assert off("advantages", advantage * trained, run["whiten"][0]["advantage"] * trained) < 1e-6
    assert off("whitened", whiten(advantage, trained), run["whiten"][0]["whitened"] * trained) < 1e-6


def test_the_comparison_would_see_a_difference(trl):
    """The two stops differ in what they measure, and the weights move: neither comparison is one of constants."""
    steps = [w for w in trl["None"]["forward"] if w is not None]
    assert len(steps) == 3 and not torch.equal(steps[0]["value"]["score.weight"], steps[2]["value"]["score.weight"])
    assert trl["None"]["mean"][6 + 4] > 0.05 and trl["None"]["mean"][4 + 4] > 0.05  # shares that were clipped
