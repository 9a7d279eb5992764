"""PPO's adaptive coefficient stays above 0 whatever the horizon, and is the paper's where the paper's settings are."""

import pytest

from harness.core.settings import preset_names, read_preset
from harness.methods.ppo import PPO, PPOSettings


@pytest.mark.parametrize("horizon", [1, 10, 12, 64, 300])
def test_beta_moves_by_a_fifth_at_most_and_stays_above_zero(horizon):
    ppo = PPO(PPOSettings(kl_horizon=horizon, explore_prompts=64))
    share = min(1.0, 64 / horizon)
    assert ppo._controlled(0.15, 0.0) == pytest.approx(0.15 * (1 - 0.2 * share))
    assert ppo._controlled(0.15, 1e9) == pytest.approx(0.15 * (1 + 0.2 * share))
    beta = 0.15
    for kl in [0.0, -3.0] * 50:  # the estimate from samples may be negative
        beta = ppo._controlled(beta, kl)
    assert beta > 0


def test_the_bound_changes_no_published_setting():
    """It binds where a rollout is longer than the horizon: in no preset, for no task, and not at the defaults."""
    found = [{}]
    for name in preset_names():
        tables = read_preset(name)
        own = [t.get("methods", {}).get("ppo", {}) for t in tables["tasks"].values()]
        found += [tables.get("methods", {}).get("ppo", {}) | more for more in own]
    settings = [PPOSettings(**more) for more in found]
    assert len(settings) > 10 and all(s.explore_prompts <= s.kl_horizon for s in settings)
