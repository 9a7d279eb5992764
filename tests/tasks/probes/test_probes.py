"""What each probe does to a policy, against worked values."""

from __future__ import annotations

from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from harness.api import Decoding, Metric, Prompts, Rollout, with_matrices
from harness.conformance.toy import BAD, BOS, EOS, ToyTask, toy_policy
from harness.core.errors import EmptySelection, NotFinite
from harness.measure.probed import Probed
from harness.policy.policy import Policy
from harness.tasks.probes.decode import Decode, NoPrefix
from harness.tasks.probes.prompt_search import PromptSearch, padded, rewritten, starting
from harness.tasks.probes.quantize import Quantize, rounded
from harness.tasks.probes.relearn import Relearn, RelearnClean, RelearnHabit
from harness.tasks.probes.sample_more import SampleMore, worst_of


class Evaluator:
    """Keeps what it is asked to measure; its judge is the share of tokens that are not the bad one."""

    def __init__(self) -> None:
        self.task = ToyTask(ragged=False)
        prompts = self.task.prompts("test") if hasattr(self.task, "prompts") else None
        self.base = SimpleNamespace(prompts=prompts)
        self.asked: list[tuple[Policy, int, Decoding | None, tuple[int, ...]]] = []

    def probed(self, policy, samples, decoding):
        self.asked.append((policy, samples, decoding, policy.prefix))
        return {"judge": Metric(0.5, 0.1, 3)}

    def judged(self, rollout):
        bad = ((rollout.response == BAD) & rollout.response_mask).sum(1)
        return (1 - bad / rollout.response_mask.sum(1)).double().numpy()


def probed(policy: Policy | None = None, seed: int = 0) -> tuple[Probed, Evaluator]:
    """A policy under a probe on the toy; of its 12 held-out base responses the even ones have the habit."""
    policy = policy or toy_policy()
    response = torch.arange(2, 14).remainder(10)[:, None].repeat(1, 4).view(3, 4, 4)
    prompts = Prompts(torch.tensor([[BOS, 3], [BOS, 7], [BOS, 9]]), torch.ones(3, 2, dtype=torch.bool))
    held_out = SimpleNamespace(
        prompts=SimpleNamespace(prompts=prompts), responses=response, response_mask=torch.ones(3, 4, 4, dtype=torch.bool),
        judge=np.array([0.0, 1.0] * 6).reshape(3, 4),
    )  # fmt: skip
    evaluator = Evaluator()
    return Probed(policy, toy_policy(), evaluator, held_out, torch.Generator().manual_seed(seed)), evaluator  # type: ignore[arg-type]


def weights(policy: Policy) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in policy.parameters()])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_expected_worst_of_n_is_the_mean_over_all_subsets(n):
    scores = np.array([0.9, 0.1, 0.5, 0.5, 1.0])
    assert worst_of(scores, n) == pytest.approx(np.mean([min(part) for part in combinations(scores, n)]))


def test_the_worst_of_more_than_there_are_is_missing():
    assert np.isnan(worst_of(np.array([0.3, 0.4]), 3))


def test_a_matrix_is_rounded_to_steps_of_each_output():
    weight = torch.tensor([[7.0, -3.4, 0.4], [0.7, 0.0, -0.16]])
    by_row = torch.tensor([[7.0, -3.0, 0.0], [0.7, 0.0, -0.2]])  # steps of 1 and of 0.1
    torch.testing.assert_close(rounded(4, weight, 0), by_row)
    torch.testing.assert_close(rounded(4, weight.T, 1), by_row.T)
    assert torch.equal(rounded(32, weight, 0), weight) and torch.equal(rounded(16, weight, 0), weight.bfloat16().float())
    assert torch.equal(rounded(4, torch.zeros(2, 3), 0), torch.zeros(2, 3))


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_has_so_many_levels_and_errs_by_half_a_step(bits):
    weight = torch.randn(5, 4000, generator=torch.Generator().manual_seed(0))
    found = rounded(bits, weight, 0)
    step = weight.abs().amax(1) / (2 ** (bits - 1) - 1)
    assert all(len(row.unique()) <= 2**bits - 1 for row in found)
    assert ((found - weight).abs().amax(1) <= 0.5001 * step).all()


def test_matrices_are_changed_once_and_by_their_outputs():
    policy = toy_policy()  # GPT-2: its layers are [inputs, outputs], its embeddings [tokens, width] and tied to the head
    seen: list[tuple[tuple[int, ...], int]] = []

    def doubled(weight, output):
        seen.append((tuple(weight.shape), output))
        return 2 * weight

    found = with_matrices(policy, doubled)
    block = [((16, 48), 1), ((16, 16), 1), ((16, 64), 1), ((64, 16), 1)]
    assert sorted(seen) == sorted([((12, 16), 0), ((32, 16), 0), *block])
    assert torch.equal(found.model.lm_head.weight, 2 * policy.model.lm_head.weight)
    assert torch.equal(found.model.transformer.ln_f.bias, policy.model.transformer.ln_f.bias)
    assert not any(weight.requires_grad for weight in found.parameters())
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=12, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    seen.clear()
    with_matrices(Policy(llama, bos=0, eos=1), doubled)
    assert {output for _, output in seen} == {0} and len(seen) == 9


def test_quantize_measures_the_policy_at_each_width_and_leaves_it_as_it_was():
    bench, evaluator = probed()
    before = weights(bench.policy).clone()
    readings = list(Quantize(Quantize.Settings(bits=(32, 4), samples=3)).run(bench))
    assert [reading.at for reading in readings] == [32, 4] and torch.equal(weights(bench.policy), before)
    whole, narrow = (asked[0] for asked in evaluator.asked)
    assert torch.equal(weights(whole), before) and not torch.equal(weights(narrow), before)
    assert [asked[1] for asked in evaluator.asked] == [3, 3]


def test_relearning_measures_along_the_way_and_takes_texts_with_the_habit():
    bench, evaluator = probed()
    settings = RelearnHabit.Settings(points=(0, 2, 3), texts=4, lr=1e-2, batch_size=2)
    before = weights(bench.policy).clone()
    assert [reading.at for reading in RelearnHabit(settings).run(bench)] == [0, 2, 3]
    assert torch.equal(weights(bench.policy), before) and evaluator.asked[0][0] is evaluator.asked[-1][0]
    assert not torch.equal(weights(evaluator.asked[-1][0]), before)
    assert [reading.at for reading in RelearnHabit(settings.model_copy(update={"points": (3, 5)})).run(bench)] == [3, 5]


def test_texts_with_the_habit_are_those_that_the_judge_finds_bad():
    bench, _ = probed()
    found = bench.habit(6).response[:, 0].tolist()
    assert sorted(found) == sorted([2, 4, 6, 8, 0, 2])  # the even places of 2, 3, ... 13 modulo 10
    with pytest.raises(EmptySelection, match="gave 6 responses with the habit to validation prompts; the probe needs 7"):
        bench.habit(7)


def test_harmless_texts_are_documents_of_the_task_where_it_has_some(monkeypatch):
    bench, evaluator = probed()
    mask = torch.ones(2, 3, dtype=torch.bool)
    documents = Rollout(Prompts(torch.zeros(2, 1, dtype=torch.long), mask[:, :1]), torch.tensor([[4] * 3, [6] * 3]), mask)
    monkeypatch.setattr(evaluator.task, "clean_documents", lambda: documents, raising=False)
    assert sorted(bench.clean(4).response[:, 0].tolist()) == [4, 4, 6, 6]
    monkeypatch.setattr(evaluator.task, "clean_documents", lambda: None, raising=False)
    assert set(bench.clean(6).response[:, 0].tolist()) == {3, 5, 7, 9, 1}
    assert [r.at for r in RelearnClean(Relearn.Settings(points=(0, 1), texts=2, batch_size=1)).run(bench)] == [0, 1]
    with pytest.raises(NotImplementedError):
        Relearn(Relearn.Settings()).texts(bench, 1)


def test_tuning_lowers_the_loss_of_the_texts_and_sees_all_before_any_again():
    bench, _ = probed()
    texts, policy = bench.habit(4), bench.policy.copy().requires_grad_(True)
    order = bench._order(4)
    assert sorted(next(order) for _ in range(4)) == sorted(next(order) for _ in range(4)) == [0, 1, 2, 3]

    def loss() -> float:
        with torch.no_grad():
            logprobs = policy.deployed_logits(texts).log_softmax(-1)
        return -logprobs.gather(-1, texts.response[..., None]).mean().item()

    before = loss()
    assert list(bench.tuned(policy, texts, 20, 1e-2, 4)) == list(range(1, 21))
    assert loss() < before - 0.5


def test_a_loss_that_is_not_finite_ends_the_probe():
    bench, _ = probed()
    policy = bench.policy.copy().requires_grad_(True)
    with torch.no_grad():
        policy.model.transformer.wte.weight.fill_(float("nan"))
    with pytest.raises(NotFinite, match="update 1"):
        list(bench.tuned(policy, bench.habit(2), 1, 1e-2, 2))


def test_decode_measures_under_each_decoding_and_no_prefix_without_the_token():
    policy = toy_policy()
    policy.control_tokens(2, torch.Generator().manual_seed(0))
    policy.prefix = (13,)
    bench, evaluator = probed(policy)
    readings = list(Decode(Decode.Settings(samples=2)).run(bench))
    assert [r.label for r in readings] == ["as in training", "temperature 0.7", "temperature 1.3", "greedy", "top-p 0.9"]
    ways = [asked[2] for asked in evaluator.asked]
    assert ways[0] is None and [(w.temperature, w.top_p, w.max_new_tokens) for w in ways[1:]] == [
        (0.7, 1, 5), (1.3, 1, 5), (0, 1, 5), (1, 0.9, 5)
    ]  # fmt: skip
    evaluator.asked.clear()
    assert [r.label for r in NoPrefix(NoPrefix.Settings()).run(bench)] == ["as deployed", "without"]
    assert [asked[3] for asked in evaluator.asked] == [(13,), ()] and policy.prefix == (13,)
    bench, _ = probed()
    assert len(list(NoPrefix(NoPrefix.Settings()).run(bench))) == 1


def test_more_samples_are_worse_and_one_is_the_mean():
    bench, _ = probed(toy_policy(ends=False))
    readings = list(SampleMore(SampleMore.Settings(counts=(1, 2, 8))).run(bench))
    values = [reading.metrics["judge"].value for reading in readings]
    assert all(a > b for a, b in pairwise(values)) and [reading.at for reading in readings] == [1, 2, 8]


def test_a_rewritten_prompt_keeps_its_beginning_and_its_last_token():
    bench, _ = probed()
    parent = (BOS, 3, 7, 9, 4)
    children = {rewritten(parent, bench) for _ in range(40)}
    assert len(children) > 5 and all(child[0] == BOS and child[-1] == 4 and len(child) <= 5 for child in children)
    assert all(EOS not in child for child in children)


def test_prompts_are_padded_on_the_left():
    found = padded([(1, 2, 3), (4,)])
    assert found.tokens.tolist() == [[1, 2, 3], [0, 0, 4]] and found.mask.tolist() == [[True] * 3, [False, False, True]]
    assert sorted(starting(found, 5, torch.Generator().manual_seed(0))) == [(1, 2, 3), (4,)]


def test_the_search_finds_worse_prompts_round_by_round(monkeypatch):
    """A judge that counts a token in the prompt: what the search can find is known."""
    bench, evaluator = probed(toy_policy(ends=False))
    tokens = torch.tensor([[BOS, 3, 7, 9, 2, 6, 4], [BOS, 9, 2, 3, 8, 7, 4]])
    evaluator.base = SimpleNamespace(
        prompts=SimpleNamespace(prompts=Prompts(tokens, torch.ones_like(tokens, dtype=torch.bool)))
    )
    counted = lambda rollout: 1 - (rollout.prompts.tokens == BAD).double().mean(1).numpy()  # noqa: E731
    monkeypatch.setattr(evaluator, "judged", counted)
    settings = PromptSearch.Settings(start=2, rounds=6, trials=15, worst=3, responses=2)
    values = [reading.metrics["judge"].value for reading in PromptSearch(settings).run(bench)]
    assert values[0] == 1.0 and all(a >= b for a, b in pairwise(values)) and values[-1] < 0.6
    again = [r.metrics["judge"].value for r in PromptSearch(settings).run(_with(evaluator))]
    assert again == values  # the draws are the generator's alone


def test_the_search_starts_with_the_prompts_that_are_answered_best(monkeypatch):
    """Of eight prompts with none to seven bad tokens, the two with the fewest."""
    bench, evaluator = probed(toy_policy(ends=False))
    tokens = torch.tensor([[BOS, *[BAD] * n, *[3] * (7 - n)] for n in range(8)])
    evaluator.base = SimpleNamespace(
        prompts=SimpleNamespace(prompts=Prompts(tokens, torch.ones_like(tokens, dtype=torch.bool)))
    )
    monkeypatch.setattr(evaluator, "judged", lambda rollout: 1 - (rollout.prompts.tokens == BAD).double().mean(1).numpy())
    first = next(PromptSearch(PromptSearch.Settings(start=2, worst=2, responses=2)).run(bench))
    assert first.metrics["judge"].value == pytest.approx(1 - 0.5 / 8)


def _with(evaluator) -> Probed:
    found, _ = probed(toy_policy(ends=False))
    found._evaluator = evaluator
    return found


def test_a_search_whose_prompts_are_too_short_to_rewrite_keeps_its_pool():
    bench, _ = probed(toy_policy(ends=False))
    settings = PromptSearch.Settings(start=3, rounds=1, trials=2, worst=2, responses=2)
    assert len(list(PromptSearch(settings).run(bench))) == 2
