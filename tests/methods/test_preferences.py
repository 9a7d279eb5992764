"""The methods that learn from pairs, labels, groups and worst samples, against numbers worked out without their code."""

from __future__ import annotations

import inspect
import math
import random
import socket
import tempfile
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
import world
from pydantic import ValidationError
from tiny import left_padded, ragged_rows, steered, tiny_gpt2
from torch import Tensor
from toy_task import ToyTask, toy_policy

from harness.core.errors import MissingPrerequisite, RunFailed
from harness.core.types import Decoding, Prompts, Rollout
from harness.methods.dpo import DPO, DPOSettings, preferences
from harness.methods.gradient_ascent import GradientAscent, GradientAscentSettings
from harness.methods.grpo import GRPO, GRPOSettings
from harness.methods.kto import KTO, KTOSettings, labelled, mismatched
from harness.methods.npo import NPO, NPOSettings
from harness.methods.rloo import RLOO, RLOOSettings
from harness.policy.logprobs import masked_sum, token_logprobs
from harness.policy.policy import Policy
from harness.training import trl_bridge as ours
from harness.training.pool import Pool
from harness.training.trial import Budget, Trial

pytestmark = pytest.mark.usefixtures("few_prompts")

BY_TRL = [DPO, KTO, RLOO, GRPO]
ALL = [*BY_TRL, NPO, GradientAscent]
VOCAB = 12


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quick(method, **more):
    return method(method.Settings(**method.quick | more))


class SameLength(ToyTask):
    """Prompts of 2 tokens, so that a sequence has 7."""

    def train_prompts(self, n: int, rng: torch.Generator) -> Prompts:
        return Prompts(torch.randint(2, 12, (n, 2), generator=rng), torch.ones(n, 2, dtype=torch.bool))


class Indifferent(ToyTask):
    def reward(self, rollout: Rollout) -> Tensor:
        return torch.full((len(rollout.response),), 0.7)


def new_trial(policy: Policy | None = None, reference: Policy | None = None, *, task=None, seed=0, lr=1e-3, **options) -> Trial:
    policy = policy or toy_policy()
    reference = (reference or policy).frozen_copy()
    return Trial(policy, reference, task or ToyTask(), seed=seed, budget=Budget(updates=20), lr=lr, **options)


def run(method, trial: Trial, updates: int) -> list[dict[str, float]]:
    return [row for _, row in zip(range(updates), method.train(trial))]


def unigram(**probability: float) -> Policy:
    """A policy that says token k with probability tk at every step, whatever it has read; the rest share what is left."""
    left = (1 - sum(probability.values())) / (VOCAB - len(probability))
    p = torch.tensor([probability.get(f"t{k}", left) for k in range(VOCAB)])
    policy = tiny_gpt2(eos=99)
    with torch.no_grad():
        body = policy.model.transformer
        body.wte.weight.copy_(torch.eye(VOCAB, body.wte.weight.shape[1]))
        body.ln_f.weight.zero_()
        body.ln_f.bias[:VOCAB] = p.log()
    return policy


def half_quarter() -> tuple[Policy, Policy]:
    """p(2) = 1/2, p(3) = 1/4, each other token 1/40; against the uniform law the ratios are 6, 3 and 0.3."""
    return unigram(t2=0.5, t3=0.25), unigram()


KL_FROM_UNIFORM = -(math.log(6) + math.log(3) + 10 * math.log(0.3)) / 12  # KL(uniform || half_quarter), nats a token


def responses(rows: list[list[int]], prompts: list[list[int]] | None = None) -> Rollout:
    width = max(map(len, rows))
    response = torch.tensor([r + [0] * (width - len(r)) for r in rows])
    mask = torch.tensor([[True] * len(r) + [False] * (width - len(r)) for r in rows])
    return Rollout(left_padded(prompts or ragged_rows((1, 3, 2, 4))[: len(rows)]), response, mask)


# --- TRL: there, and as it was when it was checked


@pytest.mark.parametrize("method", BY_TRL)
def test_without_trl_there_is_one_line_that_says_how_to_get_it(method, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(ours, "version", missing)
    with pytest.raises(
        MissingPrerequisite, match=r"needs TRL 1\.16, which is not installed; .*pip install 'trl>=1\.16,<1\.17'"
    ) as e:
        quick(method)
    assert e.value.exit_code == 3 and "\n" not in str(e.value)
    monkeypatch.setattr(ours, "version", lambda name: "1.17.0")
    with pytest.raises(MissingPrerequisite, match=r"needs TRL 1\.16, found 1\.17\.0; "):
        quick(method)


def test_the_private_names_are_still_there():
    import trl
    from trl.trainer.utils import add_fused_lm_head

    def takes(function) -> list[str]:
        return list(inspect.signature(function).parameters)

    for kind in (trl.DPOTrainer, trl.KTOTrainer, trl.RLOOTrainer, trl.GRPOTrainer):
        assert takes(kind._send_telemetry) == ["self"]
    for kind in (trl.DPOTrainer, trl.KTOTrainer):
        assert takes(kind._prepare_dataset)[:2] == ["self", "dataset"]
    for kind in (trl.RLOOTrainer, trl.GRPOTrainer):
        assert takes(kind._generate) == ["self", "prompts"]
        assert takes(kind._prepare_inputs) == ["self", "generation_batch"]
    assert takes(add_fused_lm_head)[0] == "model"
    assert trl.__version__.startswith("1.16.")


def test_a_policy_with_control_tokens_is_refused():
    with pytest.raises(ValueError, match="3 control tokens; expected a policy without any"):
        next(quick(DPO).train(new_trial(steered(toy_policy()))))


# --- what is put right


def padded_batch() -> Rollout:
    return responses([[5, 6, 7], [8, 9], [4], [3, 2, 10, 11]], ragged_rows((1, 6, 2, 4)))


@pytest.mark.parametrize("kind", ["RLOO", "GRPO"])
def test_left_padding_is_scored_wrongly_by_trl_alone_and_rightly_here(kind):
    import copy

    from trl.trainer.utils import add_fused_lm_head

    policy, batch = tiny_gpt2(dropout=0.5), padded_batch()
    trainer = ours.group_trainer(kind, new_trial(policy), group_size=2, batch_size=4, kl_coef=0.1)
    truth = token_logprobs(policy.logits(batch), batch.response)
    tokens = torch.cat([batch.prompts.tokens, batch.response], 1)
    mask = torch.cat([batch.prompts.mask, batch.response_mask], 1).long()

    def worst_error(model) -> float:
        found = trainer._get_per_token_logps_and_entropies(model, tokens, mask, batch.response.shape[1])[0]
        return ((found - truth) * batch.response_mask).abs().max().item()

    bare = copy.deepcopy(policy.model)
    add_fused_lm_head(bare)
    alone, here = worst_error(bare), worst_error(trainer.model)
    print(f"\n{kind}: worst error of a token's log-probability: TRL alone {alone:.3f}, here {here:.1e}")
    assert alone > 0.1 and here < 1e-5


@pytest.mark.parametrize("kind", ["RLOO", "GRPO"])
def test_what_a_group_trainer_scores_is_our_rollout(kind):
    policy, batch = tiny_gpt2(), padded_batch()
    trainer = ours.group_trainer(kind, new_trial(policy), group_size=2, batch_size=4, kl_coef=0.1, num_iterations=2)
    scored = ours.score(trainer, batch, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert ours.rows(scored["completion_ids"], scored["completion_mask"].bool()) == ours.rows(
        batch.response, batch.response_mask
    )
    assert ours.rows(scored["prompt_ids"], scored["prompt_mask"].bool()) == ours.rows(*batch.prompts)
    truth = token_logprobs(policy.logits(batch), batch.response)
    if kind == "RLOO":
        assert torch.allclose(scored["old_logps"], masked_sum(truth, batch.response_mask), atol=1e-5)
    else:
        old = scored["old_per_token_logps"]
        assert torch.allclose(old[batch.response_mask], truth[batch.response_mask], atol=1e-5)


def test_the_policy_s_own_model_is_left_as_it_was():
    """A deep copy of a model that TRL has patched still runs the first one's layers."""
    trial = new_trial()
    config = trial.policy.model.config.to_dict()
    run(quick(DPO), trial, 1)
    for policy in (trial.policy, trial.reference):
        assert "forward" not in vars(policy.model)
        assert not policy.model._forward_pre_hooks and not any(m.training for m in policy.model.modules())
    assert trial.policy.model.config.to_dict() == config
    twin, batch = trial.policy.copy(), responses([[5, 6]])
    before = trial.policy.logits(batch)
    with torch.no_grad():
        for w in twin.parameters():
            w.zero_()
    assert torch.equal(trial.policy.logits(batch), before) and not torch.equal(twin.logits(batch), before)


@pytest.mark.parametrize("method", BY_TRL)
def test_nothing_is_left_behind_and_nobody_is_called(method, tmp_path, monkeypatch, capfd):
    import trl.trainer.base_trainer as base

    def called(*args, **kw):
        raise AssertionError(f"somebody is called: {args}")

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base, "send_telemetry", called)
    monkeypatch.setattr(socket, "getaddrinfo", called)
    monkeypatch.setattr(socket.socket, "connect", called)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    trial, unlike_its_own = new_trial(), 4321
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(unlike_its_own)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    capfd.readouterr()
    run(quick(method), trial, 2)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("method", ALL)
def test_unscored_responses_are_left_out_without_a_word(method, caplog):
    """TRL would say of each batch that the reward functions returned None."""
    trial = new_trial(task=ToyTask(unscored=2))
    caplog.clear()
    assert all(math.isfinite(v) for row in run(quick(method), trial, 3) for v in row.values())
    assert trial.unscored == 4 and not caplog.records


# --- losses in closed form, from half_quarter()


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_the_loss_of_dpo_in_closed_form(beta):
    """Chosen [2, 2] has ratio 6 * 6, rejected [3] has 3: the margin is log 12."""
    trial = new_trial(*half_quarter())
    pair = {"prompt_ids": [4, 5], "chosen_ids": [2, 2], "rejected_ids": [3]}
    for variant, answer in {
        "sigmoid": math.log(1 + 12**-beta),
        "ipo": (math.log(2) - 1 / (2 * beta)) ** 2,  # means over tokens: log 6 - log 3
    }.items():
        trainer = ours.preference_trainer("DPO", trial, beta=beta, loss_type=[variant])
        value, measured = ours.loss(trainer, trainer.data_collator([pair, pair]))
        assert value.item() == pytest.approx(answer, abs=1e-6)
        assert measured["rewards/margins"] == pytest.approx(beta * math.log(12), abs=1e-5)


def test_the_loss_of_kto_in_closed_form():
    """h is log 6 for the desirable [2] and log 3 for the undesirable [3]; mismatched they are the same, so z = log(18)/2."""
    trial = new_trial(*half_quarter())
    good = {"prompt_ids": [4], "completion_ids": [2], "label": True}
    bad = {"prompt_ids": [5, 6], "completion_ids": [3], "label": False}
    each = 1 / (1 + math.sqrt(2))  # 1 - sigmoid(log(2) / 2), for both
    for weights in [(1.0, 1.0), (2.0, 0.5)]:
        trainer = ours.preference_trainer("KTO", trial, beta=1.0, desirable_weight=weights[0], undesirable_weight=weights[1])
        value, measured = ours.loss(trainer, trainer.data_collator(mismatched([good, bad])))
        assert measured["kl"] == pytest.approx(math.log(18) / 2, abs=1e-5)
        assert value.item() == pytest.approx(each * sum(weights) / 2, abs=1e-6)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_the_loss_of_npo_in_closed_form(beta):
    """[2, 3] has ratio 18."""
    trial, seen = new_trial(*half_quarter()), []
    trial.update = lambda loss: seen.append(loss.item())
    NPO(NPOSettings(beta=beta, kl_coef=0.7))._learn(trial, responses([[2, 3]]), responses([[9, 8, 7], [5]]))
    assert seen == [pytest.approx(2 / beta * math.log(1 + 18**beta) + 0.7 * KL_FROM_UNIFORM, abs=1e-5)]


def test_the_loss_of_gradient_ascent_in_closed_form():
    trial, seen = new_trial(*half_quarter()), []
    trial.update = lambda loss: seen.append(loss.item())
    method = GradientAscent(GradientAscentSettings(kl_coef=0.7))
    method._learn(trial, responses([[2, 3], [2]]), responses([[9, 8, 7], [5]]))
    assert seen == [pytest.approx((2 * math.log(0.5) + math.log(0.25)) / 3 + 0.7 * KL_FROM_UNIFORM, abs=1e-6)]


def gradient(policy: Policy) -> Tensor:
    return torch.cat([w.grad.flatten() for w in policy.parameters()])


def test_npo_at_beta_0_is_gradient_ascent_on_whole_responses():
    policy, forget = tiny_gpt2(), padded_batch()
    trial = new_trial(policy, tiny_gpt2(seed=1))
    trial.update = lambda loss: loss.backward()
    NPO(NPOSettings(beta=1e-4, kl_coef=0.0))._learn(trial, forget, forget)
    found = gradient(policy)
    policy.zero_grad()
    masked_sum(token_logprobs(policy.logits(forget), forget.response), forget.response_mask).mean().backward()
    assert torch.allclose(found, gradient(policy), atol=1e-3 * gradient(policy).abs().max().item())


def test_gradient_ascent_makes_the_worst_less_likely_and_holds_the_rest():
    forget, retain = responses([[5, 5, 5]]), responses([[7, 8, 9]])
    trial, held = new_trial(lr=1e-2), new_trial(lr=1e-2)

    def likelihood(t: Trial, part: Rollout) -> float:
        return token_logprobs(t.policy.logits(part), part.response).sum().item()

    before = likelihood(trial, forget), likelihood(trial, retain)
    for _ in range(10):
        GradientAscent(GradientAscentSettings(kl_coef=0.0))._learn(trial, forget, retain)
        GradientAscent(GradientAscentSettings(kl_coef=100.0))._learn(held, forget, retain)
    assert likelihood(trial, forget) < before[0] - 1
    assert abs(likelihood(held, retain) - before[1]) < 0.2 * abs(likelihood(trial, retain) - before[1])


# --- groups


REWARDS = torch.tensor([1.0, 0.0, 0.5, float("nan"), 0.25, 0.25, 0.25, 0.25])


def eight() -> Rollout:
    """Two groups of four; each response has ratio 6 for a 2 and 3 for a 3."""
    return responses([[2], [3], [2, 2], [3], [2], [3], [3, 3], [2]], [[4]] * 4 + [[6, 7]] * 4)


def test_the_advantages_of_rloo_by_hand():
    trial = new_trial(*half_quarter())
    plain = ours.group_trainer("RLOO", trial, group_size=4, batch_size=8, kl_coef=0.0)
    by_hand = [1 - 0.25, 0 - 0.75, 0.5 - 0.5, 0, 0, 0, 0, 0]
    assert ours.score(plain, eight(), REWARDS)["advantages"].tolist() == pytest.approx(by_hand, abs=1e-6)
    held = ours.group_trainer("RLOO", trial, group_size=4, batch_size=8, kl_coef=0.1)
    six, three = 0.1 * math.log(6), 0.1 * math.log(3)
    q = [1 - six, -three, 0.5 - 2 * six, 0.25 - six, 0.25 - three, 0.25 - 2 * three, 0.25 - six]
    first = [q[0] - (q[1] + q[2]) / 2, q[1] - (q[0] + q[2]) / 2, q[2] - (q[0] + q[1]) / 2, 0]
    second = [own - (sum(q[3:]) - own) / 3 for own in q[3:]]
    assert ours.score(held, eight(), REWARDS)["advantages"].tolist() == pytest.approx(first + second, abs=1e-5)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_the_advantages_of_grpo_by_hand(scale):
    trainer = GRPO(GRPOSettings(scale=scale, kl_coef=0.0, group_size=4, batch_size=8))._trainer(new_trial(*half_quarter()))
    deviation = 0.5 + 1e-4 if scale == "group" else 1  # of 1, 0 and 0.5, unbiased
    by_hand = [0.5 / deviation, -0.5 / deviation, 0, 0, 0, 0, 0, 0]
    assert ours.score(trainer, eight(), REWARDS)["advantages"].tolist() == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_the_loss_of_grpo_by_hand(loss_type):
    """k3 is 1/6 + log 6 - 1 at a 2 and 1/3 + log 3 - 1 at a 3; the advantage counts once a token."""
    settings = GRPOSettings(loss_type=loss_type, scale="none", kl_coef=0.1, group_size=4, batch_size=8)
    trainer = GRPO(settings)._trainer(new_trial(*half_quarter()))
    value, measured = ours.loss(trainer, ours.score(trainer, eight(), torch.tensor([1.0, 0, 1, 0, 0, 0, 0, 0])))
    two, three = 1 / 6 + math.log(6) - 1, 1 / 3 + math.log(3) - 1
    if loss_type == "dapo":  # of 10 tokens; the advantages +1/2, -1/2, +1/2 twice, -1/2 leave 1/2
        answer = -0.5 / 10 + 0.1 * (5 * two + 5 * three) / 10
    else:
        answer = 0.1 * (4 * two + 4 * three) / 8
    assert value.item() == pytest.approx(answer, abs=1e-6)
    assert measured["clip_ratio/region_mean"] == 0


@pytest.mark.parametrize("clip", [0.2, 0.4])
@pytest.mark.parametrize("method, old", [(RLOO, "old_logps"), (GRPO, "old_per_token_logps")])
def test_the_ratio_is_clipped_where_it_would_gain(method, old, clip):
    """One token each, rho = 1.5: the better response counts 1 + clip, the worse one 1.5."""
    settings = {"kl_coef": 0.0, "clip": clip, "group_size": 2, "batch_size": 2, "explore_every": 2}
    form = {"scale": "none"} if method is GRPO else {}
    trainer = method(method.Settings(**settings, **form))._trainer(new_trial(*half_quarter()))
    batch = ours.score(trainer, responses([[2], [3]], [[4], [4]]), torch.tensor([1.0, 0.0]))
    advantage = 1.0 if method is RLOO else 0.5
    value, _ = ours.loss(trainer, batch | {old: batch[old] - math.log(1.5)})
    assert value.item() == pytest.approx(advantage * (1.5 - (1 + clip)) / 2, abs=1e-6)


class WorldTask:
    """The enumerable world, every prompt equally often."""

    decoding = Decoding(max_new_tokens=world.STEPS)

    def train_prompts(self, n: int, rng: torch.Generator) -> Prompts:
        every = world.prompts()
        return Prompts(*(x.repeat(n // len(world.PROMPTS), 1) for x in every))

    def reward(self, rollout: Rollout) -> Tensor:
        return torch.tensor(world.rewards()[world.index(rollout.response)], dtype=torch.float32)


def exact_log_probs(policy: Policy) -> Tensor:
    """log pi(y | x) of every response, with its gradient: -> [X, N]; a prompt at a time, no padding before it."""
    tokens = torch.tensor([[*r, *[world.EOS] * (world.STEPS - len(r))] for r in world.RESPONSES])
    counts = torch.tensor([[t < len(r) for t in range(world.STEPS)] for r in world.RESPONSES])
    table = []
    for prompt in world.PROMPTS:
        paths = torch.cat([torch.tensor(prompt).expand(len(tokens), -1), tokens], 1)
        logits = policy.model(input_ids=paths).logits[:, len(prompt) - 1 : -1]
        table.append((logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] * counts).sum(1))
    return torch.stack(table)


def test_the_expected_update_of_rloo_is_the_exact_gradient():
    """Of E[r] - beta * KL(policy || reference), by enumeration of all 341 responses to 8 prompts."""
    base, beta = world.policy(), 0.3
    policy = world.perturbed(base, 0.2, seed=3).requires_grad_(True)
    trial = Trial(policy, base.frozen_copy(), WorldTask(), seed=0, budget=Budget(updates=9), lr=1.0)
    trial.update = lambda loss: loss.backward()
    method = RLOO(RLOOSettings(kl_coef=beta, group_size=4, batch_size=8 * 4 * 256))
    run(method, trial, 2)  # 16,384 responses
    found = -gradient(policy)
    policy.zero_grad()
    log_p, log_q = exact_log_probs(policy), torch.tensor(world.log_probs(base))
    assert np.allclose(log_p.detach(), world.log_probs(policy), atol=1e-4)
    value = torch.tensor(world.rewards()) - beta * (log_p - log_q)
    (log_p.exp() * value).sum(1).mean().backward()
    cosine = torch.cosine_similarity(found, gradient(policy), dim=0).item()
    length = (found.norm() / 2 / gradient(policy).norm()).item()
    print(f"\nrloo: cosine {cosine:.4f} with the exact gradient, length ratio {length:.3f}")
    assert cosine >= 0.99 and length == pytest.approx(1, abs=0.05)


# --- pairs and labels


def test_the_better_response_is_chosen_and_ties_are_dropped():
    nan = float("nan")
    reward = torch.tensor([[0.2, 0.9], [0.9, 0.2], [0.5, 0.5], [nan, 0.4], [nan, nan]])
    rollout = responses([[i, i] if i % 2 else [i] for i in range(2, 12)], [[2] * (1 + i // 2) for i in range(10)])
    pairs, ties = preferences(rollout, reward)
    assert ties == 1
    assert pairs == [
        {"prompt_ids": [2], "chosen_ids": [3, 3], "rejected_ids": [2]},
        {"prompt_ids": [2, 2], "chosen_ids": [4], "rejected_ids": [5, 5]},
    ]


def test_of_many_responses_the_best_and_the_worst_make_the_pair():
    rollout = responses([[i] for i in range(2, 10)], [[2]] * 4 + [[3, 4]] * 4)
    reward = torch.tensor([[0.3, float("nan"), 0.1, 0.8], [0.5, 0.5, float("nan"), 0.5]])
    assert preferences(rollout, reward) == ([{"prompt_ids": [2], "chosen_ids": [5], "rejected_ids": [4]}], 1)


def test_labels_go_by_the_mean_and_what_equals_it_has_none():
    rollout = responses([[2], [3], [4, 4], [5], [6]], [[7]] * 5)
    examples, ties = labelled(rollout, torch.tensor([1.0, 0.0, 0.5, float("nan"), 0.5]))
    assert ties == 2
    assert [(e["completion_ids"], e["label"]) for e in examples] == [([2], True), ([3], False)]
    alike = responses([[2]] * 1000, [[7]] * 1000)
    assert labelled(alike, torch.full((1000,), 0.7)) == ([], 1000)  # though 0.7 is no float32


def test_mismatched_moves_responses_on_by_one():
    rows = [{"prompt_ids": [i], "completion_ids": [10 + i]} for i in range(3)]
    assert [(r["prompt_ids"], r["KL_completion_ids"]) for r in mismatched(rows)] == [([0], [12]), ([1], [10]), ([2], [11])]


def test_half_of_kto_s_batch_is_undesirable(monkeypatch):
    trial, labels = new_trial(), []
    monkeypatch.setattr("harness.methods.kto.mismatched", lambda b: labels.extend(r["label"] for r in b) or mismatched(b))
    run(quick(KTO, batch_size=10), trial, 3)
    assert labels == ([True] * 5 + [False] * 5) * 3


@pytest.mark.parametrize("method", [DPO, KTO])
def test_rewards_that_are_all_alike_teach_nothing(method):
    with pytest.raises(RunFailed, match="raise explore_prompts"):
        run(quick(method), new_trial(task=Indifferent()), 1)


def test_a_later_exploration_may_find_nothing_new():
    """A policy that has learned the task makes ties only: the older pairs serve."""
    for method in (DPO, KTO):
        trial = new_trial(task=ToyTask())
        train = quick(method).train(trial)
        next(train)
        trial._task = Indifferent()
        rows = [next(train) for _ in range(4)]
        assert rows[-1]["ties"] > rows[0]["ties"]


def test_a_pool_is_drawn_from_a_range_of_quantiles():
    pool = Pool()
    pool.add(responses([[i] for i in range(2, 12)], [[2]] * 10), torch.arange(10) / 10)
    pool.quantize(5, rng())
    drawn, quantile = pool.draw(300, rng(), quantile=range(1, 5))
    assert set(quantile.tolist()) == {1, 2, 3, 4} and set(drawn.response.flatten().tolist()) == set(range(4, 12))


# --- what they are charged, and how they resume


COSTS = {
    # 16 prompts of 2, two responses of 5 each; 8 sequences of 7 through the policy and through the reference
    (DPO, ()): {"sampled": 160, "forward": 32 + 56, "trained": 56, "scorer": 32},
    # 16 responses; 4 sequences: the policy, again mismatched, and the reference on both
    (KTO, ()): {"sampled": 80, "forward": 32 + 3 * 28, "trained": 28, "scorer": 16},
    # 4 prompts, 16 responses: old log-probabilities and the reference once, then the update
    (RLOO, ()): {"sampled": 80, "forward": 8 + 2 * 112, "trained": 112, "scorer": 16},
    (RLOO, (("kl_coef", 0.0),)): {"sampled": 80, "forward": 8 + 112, "trained": 112, "scorer": 16},
    (GRPO, ()): {"sampled": 80, "forward": 8 + 2 * 112, "trained": 112, "scorer": 16},
    # TRL takes the update's own log-probabilities for the old ones where there is one update a rollout
    (GRPO, (("explore_every", 1),)): {"sampled": 80, "forward": 8 + 112, "trained": 112, "scorer": 16},
    # 2 to forget and 2 to retain; NPO asks the reference of both
    (NPO, ()): {"sampled": 80, "forward": 32 + 28, "trained": 28, "scorer": 16},
    (GradientAscent, ()): {"sampled": 80, "forward": 32 + 14, "trained": 28, "scorer": 16},
}


@pytest.mark.parametrize("method, more", COSTS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_one_update_is_charged_in_full(method, more):
    trial = new_trial(task=SameLength())
    run(quick(method, **dict(more)), trial, 1)
    c, hand = trial.cost, COSTS[method, more]
    assert (c.sampled_tokens, c.forward_tokens, c.trained_tokens) == (hand["sampled"], hand["forward"], hand["trained"])
    assert (c.scorer_calls, c.updates) == (hand["scorer"], 1)


def test_a_second_update_on_a_rollout_samples_nothing():
    trial = new_trial(task=SameLength())
    run(quick(RLOO, explore_every=3), trial, 3)
    assert (trial.cost.sampled_tokens, trial.cost.forward_tokens, trial.cost.trained_tokens) == (80, 8 + 2 * 112, 3 * 112)


@pytest.mark.parametrize("method", ALL)
def test_a_killed_run_goes_on_bit_for_bit(method, tmp_path):
    torch.manual_seed(1)
    whole, half = new_trial(), new_trial()
    rows = run(quick(method), whole, 5)
    torch.manual_seed(2)
    assert run(quick(method), half, 3) == rows[:3]  # in the middle of a rollout
    half.policy.save(tmp_path / "policy")
    torch.save(half.state_dict(), tmp_path / "trial.pt")
    state = torch.load(tmp_path / "trial.pt", weights_only=True)
    again = new_trial(Policy.load(tmp_path / "policy"), toy_policy(), seed=5, state=state)
    assert run(quick(method), again, 2) == rows[3:]
    assert all(torch.equal(a, b) for a, b in zip(whole.policy.parameters(), again.policy.parameters()))
    assert whole.cost == again.cost and torch.equal(whole.rng.get_state(), again.rng.get_state())


@pytest.mark.parametrize("method", ALL)
def test_the_reference_stays_and_the_policy_moves(method):
    trial = new_trial()
    run(quick(method), trial, 2)
    start = list(toy_policy().parameters())
    assert all(torch.equal(a, b) for a, b in zip(trial.reference.parameters(), start))
    assert not any(torch.equal(a, b) for a, b in zip(trial.policy.parameters(), start) if b.numel() > 200)


@pytest.mark.parametrize("settings", [RLOOSettings, GRPOSettings])
def test_a_rollout_is_whole_groups(settings):
    with pytest.raises(ValidationError, match="batch_size 10 should be a multiple of group_size 4"):
        settings(group_size=4, batch_size=10)


@pytest.mark.parametrize(
    "settings, wrong",
    [
        (KTOSettings, {"batch_size": 5}),
        (DPOSettings, {"responses": 1}),
        (DPOSettings, {"kl_coef": 0}),
        (NPOSettings, {"beta": 0}),
    ],
)
def test_settings_out_of_range(settings, wrong):
    with pytest.raises(ValidationError):
        settings(**wrong)


EACH = [
    *[(DPO, k, v) for k, v in {"variant": "ipo", "kl_coef": 0.7, "responses": 3, "explore_prompts": 9}.items()],
    *[(KTO, k, v) for k, v in {"kl_coef": 0.7, "desirable_weight": 3.0, "undesirable_weight": 3.0}.items()],
    *[(RLOO, k, v) for k, v in {"kl_coef": 0.7, "group_size": 2, "explore_every": 1}.items()],
    *[(GRPO, k, v) for k, v in {"kl_coef": 0.7, "group_size": 2, "loss_type": "grpo", "scale": "none"}.items()],
    *[(NPO, k, v) for k, v in {"beta": 0.7, "kl_coef": 0.1, "num_quantiles": 2}.items()],
    *[(GradientAscent, k, v) for k, v in {"kl_coef": 0.1, "num_quantiles": 2}.items()],
]


@pytest.mark.parametrize("method, key, value", EACH, ids=lambda x: getattr(x, "__name__", str(x)))
def test_each_setting_counts(method, key, value):
    rows = [run(quick(method, **more), new_trial(tiny_gpt2(), lr=1e-2), 4) for more in ({}, {}, {key: value})]
    assert rows[0] == rows[1] != rows[2]
