"""One measurement of a policy, against an enumerable world and by hand."""

import numpy as np
import pytest
import quick
import torch
from tiny import left_padded, steered, tiny_gpt2

from harness.core.types import Decoding, Rollout
from harness.measure import evaluator as evaluation
from harness.measure.base_responses import Cache
from harness.measure.evaluator import batches, divergence, mean_nll
from harness.measure.frontier import estimate
from harness.measure.optimum import judge_along
from harness.policy.sampler import sample
from harness.runs.progress import Progress

pytestmark = pytest.mark.usefixtures("few_prompts")

PROMPTS = 11  # of the thinned validation split


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def test_divergence_is_the_same_row_by_row_and_in_batches():
    policy, reference = steered(tiny_gpt2()), tiny_gpt2(seed=1)
    prompts = left_padded([[3, 4, 5], [6], [7, 8]])
    rollout = sample(policy, prompts, decoding=Decoding(max_new_tokens=5), rng=rng(), n=3)
    whole, parts = divergence(policy, reference, rollout), divergence(policy, reference, rollout, batch_size=2)
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    for i in range(9):
        prompt, response = (x[i][m[i]] for x, m in ((rollout.prompts[0], rollout.prompts[1]), rollout[1:3]))
        expected = [0.0, 0.0, 0.0]
        for t, token in enumerate(response):
            seen = torch.cat([prompt, response[:t]])
            ours = policy.model(torch.cat([torch.tensor(policy.prefix), seen])[None]).logits[0, -1, :12].softmax(-1)
            theirs = reference.model(seen[None]).logits[0, -1].softmax(-1)
            expected[0] += float((ours * (ours / theirs).log()).sum())
            expected[1] += float((ours[token] / theirs[token]).log())
            expected[2] += float(-(ours * ours.log()).sum())
        assert [float(x[i]) for x in whole] == pytest.approx(expected, abs=1e-4)


def test_two_runs_may_fill_the_cache_at_once(tmp_path, monkeypatch):
    cache, whole = Cache(tmp_path), np.savez_compressed

    def interrupted(file, **arrays):
        monkeypatch.setattr(np, "savez_compressed", whole)
        cache.put("scores", {"of": "a model"}, reward=np.ones(3))  # another run is done in the middle of ours
        whole(file, **arrays)

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    cache.put("scores", {"of": "a model"}, reward=np.ones(3))
    assert cache.get("scores", {"of": "a model"})["reward"].tolist() == [1, 1, 1]
    assert len(list(tmp_path.iterdir())) == 1


def test_mean_nll_and_batches():
    policy = tiny_gpt2()
    rollout = sample(policy, left_padded([[3, 4, 5], [6]]), decoding=Decoding(max_new_tokens=4), rng=rng(), n=5)
    nll, tokens = mean_nll(policy, rollout, batch_size=3)
    assert nll == pytest.approx(-rollout.logprobs.sum(1).numpy(), abs=1e-5)
    assert tokens.tolist() == rollout.response_mask.sum(1).tolist()
    rejoined = Rollout(*(torch.cat(x) for x in zip(*(p[1:4] for p in batches(rollout, 3)), strict=True)))
    assert torch.equal(rejoined.prompts, rollout.response)
    assert [len(p.response) for p in batches(rollout, 4)] == [4, 4, 2]


def test_the_judge_along_the_frontier_by_hand():
    reward = np.array([[0.0, 1.0, 1.0, np.nan], [0.5, 0.5, 0.0, 1.0]])
    judge = np.array([[0.0, 1.0, 0.5, 1.0], [1.0, np.nan, 0.0, 0.25]])
    found = judge_along(estimate(reward), reward, judge)
    assert found["kl"][0] == 0.0 and found["judge"][0] == pytest.approx((0.5 + 1.25 / 3) / 2)
    assert found["judge"][-1] == pytest.approx((0.75 + 0.25) / 2, abs=1e-3)


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    return quick.cell(tmp_path_factory.mktemp("out")).make_evaluator(Progress(quiet=True))


@torch.no_grad()
def moved(reference):
    """A copy with noise on every weight."""
    policy = reference.copy()
    for weight in policy.parameters():
        weight += 0.02 * torch.randn(weight.shape, generator=rng())
    return policy


def test_the_base_policy_is_at_the_origin(evaluator):
    base = evaluator.base_evaluation().metrics
    assert base["kl"].value == base["forward_kl"].value == 0.0
    assert base["excess_kl"].value == pytest.approx(0, abs=1e-9) == base["regret"].value
    assert base["efficiency"].value is None and base["efficiency"].reason
    assert base["reward"].value == pytest.approx(evaluator.base.frontier.base_reward)


def test_the_scores_of_the_base_are_of_all_its_responses_and_the_rest_of_its_draws(evaluator):
    """The means and errors over prompts by hand; the draws alone are a lucky or an unlucky few."""
    found = evaluator.base_evaluation()
    for name, scores in (("reward", evaluator.base.reward), ("judge", evaluator.base.judge)):
        of_prompts = scores.mean(1)
        assert found.metrics[name].value == pytest.approx(of_prompts.mean())
        assert found.metrics[name].stderr == pytest.approx(of_prompts.std(ddof=1) / np.sqrt(PROMPTS))
        assert found.metrics[name].n == scores.size and found.prompts[name] == pytest.approx(of_prompts.tolist())
        assert found.metrics[name].value != pytest.approx(np.mean([row[name] for row in found.rows]), abs=1e-6)
        heated = [x for x, kind in enumerate(evaluator.base.prompts.kinds) if kind == "heated"]
        assert found.metrics[f"{name}@heated"].value == pytest.approx(of_prompts[heated].mean())
    final = evaluator.final(evaluator.reference).prompts
    assert final["base_judge"] == pytest.approx(evaluator.base.judge.mean(1).tolist())


def test_a_policy_that_moved_pays_for_it(evaluator):
    found = evaluator.final(moved(evaluator.reference)).metrics
    gap = abs(found["kl"].value - found["kl_log_ratio"].value)
    assert found["kl"].value > 0.05 and gap < 4 * np.hypot(found["kl"].stderr, found["kl_log_ratio"].stderr)
    base = evaluator.base_evaluation().metrics
    assert found["forward_kl"].value > 0.05 and found["clean_nll"].value > base["clean_nll"].value
    assert found["excess_kl"].value > 0 and not evaluator.above
    assert found["ppl"].value > base["ppl"].value


@torch.no_grad()
def test_forward_kl_and_kl_per_token_by_hand(evaluator):
    """KL(base || policy), step by step, over the first four base responses to each prompt, one row at a time."""
    policy = moved(evaluator.reference)
    found, base = evaluator.final(policy), evaluator.base
    hand = []
    for x, (tokens, mask) in enumerate(zip(*base.prompts.prompts, strict=True)):
        for m in range(4):
            seen = torch.cat([tokens[mask], base.responses[x, m][base.response_mask[x, m]]])
            ours, theirs = (
                p.model(seen[None]).logits[0, mask.sum() - 1 : -1].double().log_softmax(-1)
                for p in (policy, evaluator.reference)
            )
            hand.append(float((theirs.exp() * (theirs - ours)).sum()))
    assert found.metrics["forward_kl"].value == pytest.approx(np.mean(hand), rel=1e-4)
    tokens = sum(len(row["tokens"]) for row in found.rows)
    assert found.metrics["kl_per_token"].value == pytest.approx(sum(row["kl"] for row in found.rows) / tokens)


def test_a_point_is_a_quick_look_and_the_seed_is_of_the_settings(evaluator, monkeypatch):
    """Of the small settings: one response a prompt along the run, two at its end; other draws with another seed."""
    said = {n: [row["response"] for row in rows] for n, rows in (
        ("point", evaluator.point(evaluator.reference).rows), ("final", evaluator.final(evaluator.reference).rows),
        ("again", evaluator.final(evaluator.reference).rows),
    )}  # fmt: skip
    assert 2 * len(said["point"]) == len(said["final"]) == 2 * PROMPTS and said["final"] == said["again"]
    monkeypatch.setattr(evaluator, "settings", evaluator.settings.model_copy(update={"seed": 12345}))
    assert [row["response"] for row in evaluator.final(evaluator.reference).rows] != said["final"]


def test_methods_are_paired_within_a_seed_and_seeds_are_independent(tmp_path):
    """The same draws for every method of a seed, other draws for another seed: no response is the same but by chance."""
    cells = [quick.cell(tmp_path, method, seed) for method, seed in (("quark", 0), ("ppo", 0), ("quark", 1))]
    made = [cell.make_evaluator(Progress(quiet=True)) for cell in cells]
    one, same, other = ([row["tokens"] for row in e.final(e.reference).rows] for e in made)
    base = [row["tokens"] for row in made[0].base_evaluation().rows]
    assert one == same
    for unlike in (other, base):
        assert np.mean([a == b for a, b in zip(one, unlike, strict=True)]) < 0.2


def test_a_point_above_the_frontier_is_noticed(evaluator, monkeypatch):
    monkeypatch.setattr(evaluator, "above", False)
    none = torch.zeros(2 * PROMPTS)
    monkeypatch.setattr(evaluation, "divergence", lambda *a: evaluation.Divergence(none, none, none))
    monkeypatch.setattr(evaluator.task, "reward", lambda rollout: torch.ones(len(rollout.response)))
    evaluator.final(evaluator.reference)
    assert evaluator.above


def test_a_prompt_that_nobody_could_score(evaluator, monkeypatch):
    def reward(rollout):
        scores = torch.ones(len(rollout.response))
        scores[:2] = float("nan")
        return scores

    monkeypatch.setattr(evaluator.task, "reward", reward)
    found = evaluator.final(evaluator.reference)
    assert found.metrics["reward"].n_unscored == 2 and found.unscored_share == pytest.approx(1 / PROMPTS / 2)
    assert found.metrics["regret"].value is None and "1 of the prompts" in found.metrics["regret"].reason


def test_a_prompt_that_is_scored_in_part_keeps_its_place(evaluator, monkeypatch):
    def reward(rollout):
        return torch.ones(len(rollout.response)).index_fill_(0, torch.tensor([0, 2]), float("nan"))

    monkeypatch.setattr(evaluator.task, "reward", reward)
    found = evaluator.final(evaluator.reference).metrics
    assert found["reward"].n_unscored == 2 and found["regret"].value is not None


def test_the_likeliest_response_is_drawn_once(evaluator, monkeypatch):
    decodings = {"greedy": Decoding(max_new_tokens=4, temperature=0), "sampled": Decoding(max_new_tokens=4)}
    monkeypatch.setattr(evaluator.task, "paper_decodings", decodings)
    monkeypatch.setattr(evaluator.task, "paper_metrics", lambda said: {})
    drawn = [row["decoding"] for row in evaluator.final(evaluator.reference).papers]
    assert (drawn.count("greedy"), drawn.count("sampled")) == (PROMPTS, 2 * PROMPTS)


def test_scores_by_kind_add_up_to_the_whole(evaluator):
    """Each kind's mean from the rows themselves; weighted by its prompts, their mean is the whole's."""
    found = evaluator.final(evaluator.reference)
    kinds = dict.fromkeys(evaluator.base.prompts.kinds)
    share = [evaluator.base.prompts.kinds.count(kind) for kind in kinds]
    assert len(kinds) > 1
    for name in ("reward", "judge", "kl"):
        for kind in kinds:
            mean = np.mean([row[name] for row in found.rows if row["kind"] == kind])
            assert found.metrics[f"{name}@{kind}"].value == pytest.approx(mean, abs=1e-6)
    for name in ("reward", "judge", "max_toxicity", "toxicity_prob"):
        parts = [found.metrics[f"{name}@{kind}"].value for kind in kinds]
        assert found.metrics[name].value == pytest.approx(np.average(parts, weights=share))
    assert not any("@" in name for name in evaluator.point(evaluator.reference).metrics)


def test_prompts_of_one_kind_are_not_split(evaluator, monkeypatch):
    prompts = evaluator.base.prompts._replace(kinds=["calm"] * len(evaluator.base.prompts.kinds))
    monkeypatch.setattr(evaluator, "base", evaluator.base._replace(prompts=prompts))
    assert not any("@" in name for name in evaluator.final(evaluator.reference).metrics)
