"""The base policy as a method: nothing is trained, drawn or scored."""

from trials import new_trial, same, weights

from harness.methods.base import Base, BaseSettings


def test_the_base_is_left_as_it_is_and_costs_nothing():
    trial = new_trial()
    before = weights(trial.policy)
    assert list(Base(BaseSettings()).train(trial)) == []
    assert same(before, weights(trial.policy)) and trial.deployed is trial.policy
    cost = trial.cost
    assert (cost.updates, cost.sampled_tokens, cost.forward_tokens, cost.trained_tokens, cost.scorer_calls) == (0,) * 5
