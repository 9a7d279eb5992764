"""The trial: what is counted, where a budget ends, and a killed run that goes on bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError
from toy_task import BAD, ToyTask, toy_policy
from trials import new_trial, resumed, same, weights

from harness.core.errors import NotFinite, RunFailed
from harness.policy.logprobs import kl, masked_mean, masked_sum, token_logprobs
from harness.training.trial import Budget, OptimizerSettings, Trial


def loss_of(trial: Trial) -> torch.Tensor:
    """Any loss with a gradient."""
    return next(trial.policy.parameters()).square().mean()


class Mean:
    """An object that keeps itself by `state_dict`: the running mean of the reward."""

    def __init__(self) -> None:
        self.total, self.n = 0.0, 0

    def add(self, reward: torch.Tensor) -> float:
        self.total, self.n = self.total + float(reward.sum()), self.n + len(reward)
        return self.total / self.n

    def state_dict(self) -> dict:
        return {"total": self.total, "n": self.n}

    def load_state_dict(self, state: dict) -> None:
        self.total, self.n = state["total"], state["n"]


class Reinforce:
    """A method with all that a checkpoint must hold: control tokens, a pool, a step, an object, the generator."""

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        kept = trial.keep(step=0, pool=torch.zeros(0), mean=Mean(), seen={"best": [0.0]})
        trial.policy.prefix = (int(trial.policy.control_tokens(2, trial.rng)[-1]),)
        while True:
            kept.step += 1
            rollout = trial.sample(trial.prompts(6), n=2)
            reward = trial.reward(rollout)
            baseline = kept.mean.add(reward)
            kept.pool = torch.cat([kept.pool, reward])
            kept.seen["best"].append(max(kept.seen["best"][-1], float(reward.max())))
            logits = trial.policy.deployed_logits(rollout)
            with torch.no_grad():
                ref_logits = trial.reference.logits(rollout)
            score = masked_sum(token_logprobs(logits, rollout.response), rollout.response_mask)
            loss = -((reward - baseline) * score).mean() + 0.01 * masked_mean(kl(logits, ref_logits), rollout.response_mask)
            trial.update(loss)
            yield {"loss": loss.item(), "baseline": baseline, "pool": float(kept.pool.mean()), "step": kept.step}


def run(trial: Trial, updates: int) -> list[dict[str, float]]:
    """The next updates of a run."""
    return [row for _, row in zip(range(updates), Reinforce().train(trial), strict=False)]


def test_the_toy_can_be_learned():
    trial = new_trial(updates=40)
    before = trial.policy
    prompts = ToyTask().train_prompts(500, torch.Generator().manual_seed(1))
    start = trial.sample(prompts, policy=trial.reference).response
    run(trial, 40)
    assert (trial.sample(prompts).response == BAD).sum() < 0.5 * (start == BAD).sum()
    assert before is trial.policy


def test_every_cost_is_counted():
    """By hand: responses are of 5 tokens, N is the parameters of the reference."""
    trial = new_trial()
    n = sum(p.numel() for p in toy_policy().parameters())
    prompts = trial.prompts(4)
    length = int(prompts.mask.sum())
    assert trial.cost.record() == {"parameters": n, "flops": 0.0} | dict.fromkeys(
        [
            "sampled_tokens",
            "trained_tokens",
            "forward_tokens",
            "scorer_calls",
            "document_tokens",
            "documents",
            "own_documents",
            "updates",
            "beside_flops",
        ],
        0,
    )

    rollout = trial.sample(prompts, n=3)  # each prompt is read once, each response grows by 5
    assert (trial.cost.sampled_tokens, trial.cost.forward_tokens) == (4 * 3 * 5, length)
    assert trial.cost.flops == 2 * n * (60 + length)

    trial.reward(rollout)
    assert trial.cost.scorer_calls == 12

    with torch.no_grad():
        trial.reference.logits(rollout)
    trial.reference.logits(rollout)  # frozen: no gradient whatever the mode
    read = 2 * (3 * length + 60)
    assert (trial.cost.forward_tokens, trial.cost.trained_tokens) == (length + read, 0)

    trial.update(masked_mean(token_logprobs(trial.policy.logits(rollout), rollout.response), rollout.response_mask))
    trained = 3 * length + 60
    assert (trial.cost.trained_tokens, trial.cost.updates) == (trained, 1)
    assert trial.cost.flops == 2 * n * (60 + length + read) + 6 * n * trained

    documents = trial.documents(7)
    lengths = documents.rollout.response_mask.sum(1)
    assert trial.cost.document_tokens == int(lengths.sum()) < 28
    assert trial.cost.scorer_calls == 12 + int((1 + (lengths > 2).long()).sum())  # a call a segment, of two tokens each
    assert trial.cost.record()["flops"] == trial.cost.flops


def test_another_policy_s_samples_are_charged_too():
    trial = new_trial()
    rollout = trial.sample(trial.prompts(2), policy=trial.reference)
    assert trial.cost.sampled_tokens == 10
    assert rollout.response.shape == (2, 5)


def test_control_tokens_do_not_change_the_price():
    trial = new_trial()
    trial.policy.control_tokens(4, trial.rng)
    assert trial.cost.parameters == sum(p.numel() for p in trial.reference.parameters())


def test_unscored_responses_are_counted():
    trial = new_trial(task=ToyTask(unscored=2))
    rollout = trial.sample(trial.prompts(5))
    reward = trial.reward(rollout)
    trial.reward(rollout)
    assert reward.isnan().tolist() == [True, True, False, False, False]
    assert (trial.unscored, trial.cost.scorer_calls) == (4, 10)


def until_spent(trial: Trial) -> int:
    for _, row in zip(range(20), Reinforce().train(trial), strict=False):
        if trial.progress >= 1:
            return row["step"]
    raise AssertionError("the budget has no end")


def test_a_budget_of_updates():
    trial = new_trial(updates=4)
    assert trial.progress == 0
    assert until_spent(trial) == 4 == trial.cost.updates


def test_a_budget_in_flops_ends_with_the_first_update_that_reaches_it():
    free = new_trial(updates=100)
    flops = []
    for _ in zip(range(5), Reinforce().train(free), strict=False):
        flops.append(free.cost.flops)
    assert until_spent(new_trial(flops=flops[2])) == 3  # reached exactly
    assert until_spent(new_trial(flops=flops[2] + 1)) == 4
    assert until_spent(new_trial(flops=flops[2], updates=2)) == 2  # whichever comes first
    assert until_spent(new_trial(flops=flops[1], updates=9)) == 2


def test_progress_is_the_share_spent():
    trial = new_trial(updates=4)
    trial.update(loss_of(trial))
    assert trial.progress == 0.25
    trial = new_trial(flops=1e9)
    trial.sample(trial.prompts(3))
    assert trial.progress == trial.cost.flops / 1e9 > 0
    trial.cost.sampled_tokens = 10**9
    assert trial.progress == 1.0  # never more


def rates(trial: Trial, updates: int, between=lambda trial: None) -> list[float]:
    got = []
    for _ in range(updates):
        between(trial)
        trial.update(loss_of(trial))
        got.append(trial._optimizer.param_groups[0]["lr"])
    return got


def test_the_learning_rate_warms_up_and_decays_to_zero_over_the_budget():
    settings = OptimizerSettings(warmup_updates=2)
    assert rates(new_trial(updates=4, lr=1.0, optimizer=settings), 4) == pytest.approx([0.5, 0.75, 0.5, 0.25])
    constant = OptimizerSettings(warmup_updates=2, decay="constant")
    assert rates(new_trial(updates=4, lr=1.0, optimizer=constant), 4) == pytest.approx([0.5, 1, 1, 1])
    cold = OptimizerSettings(warmup_updates=0)
    assert rates(new_trial(updates=2, lr=1.0, optimizer=cold), 2) == pytest.approx([1.0, 0.5])
    assert rates(new_trial(lr=1.0), 1) == pytest.approx([0.1])  # ten updates of warm-up, by default


def test_in_flops_too_the_rate_goes_by_what_was_spent_before_the_update():

    def spend(trial: Trial) -> None:
        trial.cost.forward_tokens += 100

    n = sum(p.numel() for p in toy_policy().parameters())
    trial = new_trial(flops=4 * 100 * 2 * n, lr=1.0, optimizer=OptimizerSettings(warmup_updates=0))
    assert rates(trial, 4, spend) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    whole = new_trial(flops=1.0, lr=1.0, optimizer=OptimizerSettings(warmup_updates=0))
    assert rates(whole, 1, spend) == [1.0]  # an update that is the whole budget still trains


def test_the_gradient_is_clipped():
    """Adam's first moment after one step is (1 - beta1) times the clipped gradient."""
    trial = new_trial(optimizer=OptimizerSettings(clip_norm=0.5))
    trial.update(1e3 * loss_of(trial))
    moments = [s["exp_avg"] for s in trial._optimizer.state.values()]
    assert torch.cat([m.flatten() for m in moments]).norm().item() == pytest.approx(0.1 * 0.5, rel=1e-3)


def test_an_update_starts_from_no_gradient():
    once, twice = new_trial(), new_trial()
    loss_of(twice).backward()  # left over
    for trial in (once, twice):
        trial.update(loss_of(trial))
    assert same(weights(once.policy), weights(twice.policy))


def test_only_the_policy_is_trained():
    trial = new_trial()
    before, reference = weights(trial.policy), weights(trial.reference)
    run(trial, 2)
    assert not same(before[1:], weights(trial.policy)[1:])  # the embeddings, first, have grown by control tokens
    assert same(reference, weights(trial.reference))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(value):
    trial = new_trial()
    trial.update(loss_of(trial))
    before = weights(trial.policy)
    with pytest.raises(NotFinite, match=r"loss of update 2 is (nan|inf).*smaller lr"):
        trial.update(loss_of(trial) * value)
    assert same(before, weights(trial.policy)) and trial.cost.updates == 1


def test_a_gradient_that_is_not_finite():
    """The loss is 0, its gradient infinite: the square root at 0."""
    trial = new_trial()
    trial.update(loss_of(trial))
    before = weights(trial.policy)
    loss = (next(trial.policy.parameters()) * 0).sum().sqrt()
    assert loss.item() == 0
    with pytest.raises(NotFinite, match=r"gradient norm of update 2 is (nan|inf)"):
        trial.update(loss)
    assert same(before, weights(trial.policy)) and trial.cost.updates == 1
    trial.update(loss_of(trial))  # the method may go on: nothing of the bad gradient is left
    assert all(p.isfinite().all() for p in trial.policy.parameters())


def test_a_budget_needs_a_limit():
    with pytest.raises(ValidationError, match="a budget needs flops or updates"):
        Budget()
    for bad in ({"flops": 0}, {"updates": 0}, {"seconds": 3}):
        with pytest.raises(ValidationError):
            Budget(**bad)


def test_an_update_needs_a_learning_rate():
    trial = new_trial(lr=None)
    with pytest.raises(ValueError, match="needs a setting lr"):
        trial.update(loss_of(trial))


def test_the_seed_is_all_the_randomness():
    torch.manual_seed(1)
    first = run(new_trial(), 3)
    torch.manual_seed(2)
    assert first == run(new_trial(), 3)
    assert first != run(new_trial(seed=1), 3)


@pytest.mark.parametrize("at", [1, 3])
def test_a_killed_run_goes_on_bit_for_bit(at, tmp_path):
    whole = new_trial(updates=8)
    rows = run(whole, 6)
    half = new_trial(updates=8)
    assert run(half, at) == rows[:at]
    again = resumed(half, tmp_path)
    assert run(again, 6 - at) == rows[at:]
    assert same(weights(whole.policy), weights(again.policy))
    assert whole.cost == again.cost and whole.policy.prefix == again.policy.prefix
    assert torch.equal(whole.rng.get_state(), again.rng.get_state())


def test_a_run_killed_before_its_next_update_loses_nothing(tmp_path):
    """Twice in a row: the second checkpoint is written before the method has taken up its state."""
    whole, half = new_trial(updates=8), new_trial(updates=8)
    rows = run(whole, 6)
    run(half, 3)
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    again = resumed(resumed(half, tmp_path / "1"), tmp_path / "2")
    assert run(again, 3) == rows[3:]
    assert same(weights(whole.policy), weights(again.policy))


def test_the_rest_of_a_checkpoint_comes_back_too(tmp_path):
    trial = new_trial(task=ToyTask(unscored=1))
    unscored = int((documents := trial.documents(3)).reward[documents.starts()].isnan().sum())
    trial.reward(trial.sample(trial.prompts(2)))
    trial.update(loss_of(trial))
    again = resumed(trial, tmp_path)
    assert again.unscored == trial.unscored == unscored + 1 > 1
    assert again.cost == trial.cost


def new_network() -> torch.nn.Linear:
    network = torch.nn.Linear(3, 2)
    for p in network.parameters():
        torch.nn.init.constant_(p, 0.5)
    return network


def both(trial: Trial, network: torch.nn.Module) -> torch.Tensor:
    """A loss in which the policy and the network both stand."""
    return loss_of(trial) + network(torch.tensor([1.0, -2.0, 3.0])).square().sum()


def test_a_network_beside_the_policy_is_stepped_and_clipped_with_it():
    alone, trial, network = new_trial(), new_trial(), new_network()
    trial.train_also(network)
    for t, loss in ((alone, loss_of(alone)), (trial, both(trial, network))):
        t.update(loss)
    assert not (network.weight == 0.5).any() and not (network.bias == 0.5).any()
    assert same([p for p in alone.policy.parameters()][1:], [p for p in trial.policy.parameters()][1:])  # no gradient there
    order = [p for group in trial._optimizer.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(order, [*trial.policy.parameters(), *network.parameters()], strict=True))
    moments = [s["exp_avg"] for s in trial._optimizer.state.values()]
    assert torch.cat([m.flatten() for m in moments]).norm().item() == pytest.approx(0.1, rel=1e-3)  # clipped to 1 as one


def test_frozen_weights_of_a_network_stay():
    trial, network = new_trial(), new_network()
    network.bias.requires_grad_(False)
    trial.train_also(network)
    trial.update(both(trial, network))
    assert (network.bias == 0.5).all() and not (network.weight == 0.5).any()


def test_a_network_that_comes_too_late():
    trial = new_trial()
    trial.update(loss_of(trial))
    with pytest.raises(ValueError, match="train_also comes before the first update"):
        trial.train_also(new_network())


def test_a_network_survives_a_kill_bit_for_bit(tmp_path):
    def steps(trial: Trial, n: int) -> list[torch.Tensor]:
        network = new_network()
        trial.train_also(network)
        kept = trial.keep(network=network)
        for _ in range(n):
            trial.update(both(trial, kept.network))
        return weights(trial.policy) + weights(network)

    half = new_trial(updates=8)
    steps(half, 3)
    assert same(steps(resumed(half, tmp_path), 4), steps(new_trial(updates=8), 7))


def test_a_network_is_charged_by_its_own_size():
    trial, network = new_trial(), new_network()  # 8 weights
    trial.charge(network, 10)
    assert trial.cost.beside_flops == 6 * 8 * 10
    with torch.no_grad():
        trial.charge(network, 10)
    trial.charge(network.requires_grad_(False), 10)
    assert trial.cost.beside_flops == trial.cost.flops == 10 * 8 * (6 + 2 + 2)
    with trial.off_the_clock():
        trial.charge(network, 10)
    assert killed_cost(trial).beside_flops == 800


def killed_cost(trial: Trial):
    return new_trial(state=trial.state_dict()).cost


def test_the_scored_responses_come_with_their_rewards():
    trial = new_trial(task=ToyTask(unscored=2))
    drawn = trial.sample(trial.prompts(5))
    rollout, reward = trial.scored(drawn)
    assert torch.equal(rollout.response, drawn.response[2:]) and torch.equal(rollout.prompts.mask, drawn.prompts.mask[2:])
    assert torch.equal(rollout.logprobs, drawn.logprobs[2:]) and torch.equal(reward, ToyTask().reward(rollout))
    assert (trial.unscored, trial.cost.scorer_calls) == (2, 5)
    with pytest.raises(
        RunFailed, match=r"3 rewards for 5 responses, fewer than the 4 that an update needs; look at the scorer"
    ):
        trial.scored(drawn, at_least=4)


def test_as_many_scored_responses_as_an_update_needs_are_enough():
    trial = new_trial(task=ToyTask(unscored=2))
    rollout, reward = trial.scored(trial.sample(trial.prompts(5)), at_least=3)
    assert len(rollout.response) == len(reward) == 3


def test_what_the_harness_could_not_score_is_not_the_methods():
    trial = new_trial(task=ToyTask(unscored=2))
    with trial.off_the_clock():
        trial.reward(trial.sample(trial.prompts(5)))
    assert trial.unscored == trial.cost.scorer_calls == trial.cost.sampled_tokens == 0


def test_a_policy_of_several_passes_is_charged_for_each():
    """Three passes a token: one is the sampled token's, two read all that there is once more."""
    trial, several = new_trial(), toy_policy()
    several.model.passes = 3
    prompts = trial.prompts(4)
    rollout = trial.sample(prompts, policy=several, n=1)
    said, read = int(rollout.response_mask.sum()), int(prompts.mask.sum())
    assert (trial.cost.sampled_tokens, trial.cost.forward_tokens) == (said, read + 2 * (said + read))


def test_the_optimizer_has_the_settings_that_were_asked_for():
    """Adam's first step is lr * g / (|g| + eps): an eps far above the gradient makes it lr * g / eps."""
    plain = {"warmup_updates": 0, "decay": "constant", "clip_norm": 1e9}
    trial = new_trial(lr=1.0, optimizer=OptimizerSettings(eps=10.0, **plain))
    before, loss = weights(trial.policy), loss_of(trial)
    (gradient,) = torch.autograd.grad(loss, [next(trial.policy.parameters())])
    trial.update(loss_of(trial))
    moved = before[0] - weights(trial.policy)[0]
    assert torch.allclose(10.0 * moved, gradient, rtol=0.01, atol=1e-5)
    assert trial._optimizer.defaults["betas"] == OptimizerSettings().betas
    other = new_trial(optimizer=OptimizerSettings(betas=(0.5, 0.6), **plain))
    other.update(loss_of(other))
    assert other._optimizer.defaults["betas"] == (0.5, 0.6)


def test_keep_gives_back_what_it_was_given():
    trial, mean = new_trial(), Mean()
    kept = trial.keep(step=3, mean=mean)
    assert kept.step == 3 and kept.mean is mean
    kept.step = 4
    assert trial.state_dict()["kept"] == {"step": 4, "mean": {"total": 0.0, "n": 0}}
    assert trial.state_dict()["optimizer"] is None
