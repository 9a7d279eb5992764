"""Methods that learn from scored text: the documents, the labels in them, each objective by hand, the ensemble."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import world
from hand_worked import batch, picked, rows
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from tiny import left_padded, ragged_rows, tiny_gpt2
from torch import Tensor
from toy_task import ToyTask, toy_policy
from transformers import PreTrainedTokenizerFast
from trials import new_trial, same, weights

from harness.core.errors import BadData, EmptySelection, RunFailed
from harness.core.settings import resolve
from harness.core.types import Decoding, Documents, Prompts, Rollout
from harness.measure.evaluator import divergence
from harness.methods.awr import AWR, AWRSettings, ValueHead
from harness.methods.conditional_pretraining import ConditionalPretraining, ConditionalPretrainingSettings, first_is_scored
from harness.methods.dexperts import DExperts, DExpertsSettings
from harness.methods.dexperts import tokens as expert_tokens
from harness.methods.filtering import Filtering, FilteringSettings
from harness.methods.mle import MLE, MLESettings
from harness.methods.rwr import RWR, RWRSettings
from harness.methods.unlikelihood import Unlikelihood, UnlikelihoodSettings, repeated, said_before
from harness.policy.ensemble import Ensemble
from harness.policy.loading import load_model
from harness.policy.logprobs import log_not, log_nots, token_logprobs
from harness.policy.policy import Policy, insert
from harness.policy.sampler import sample
from harness.runs import assemble
from harness.tasks.micro import grammar
from harness.tasks.micro import world as micro
from harness.tasks.micro.scorers import LEXICON, WORD, InsultJudge, LexiconReward
from harness.tasks.text_task import Data, Text, segments
from harness.tasks.toxicity import Toxicity
from harness.training import corpus
from harness.training.pool import Pool

NAN = float("nan")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- scored documents


@given(st.text(alphabet="ab .?!\n\"'", max_size=40))
def test_the_segments_of_a_text_are_the_text(text):
    found = segments(text)
    assert "".join(found) == text and all(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Poor you. You daft muppet. I s", ["Poor you.", " You daft muppet.", " I s"]),
        ('He said "no." Then what?! Go', ['He said "no."', " Then what?!", " Go"]),
        ("Version 1.5 is out. tom@example.com.", ["Version 1.5 is out.", " tom@example.com."]),
        ("    if x:\n        return 1.0\n    return x\n", ["    if x:\n", "        return 1.0\n", "    return x\n"]),
        ("One.\n\nTwo. \nThree", ["One.\n\n", "Two. \n", "Three"]),
        ("One. ", ["One. "]),
        ("", []),
    ],
)
def test_segments_by_hand(text, expected):
    assert segments(text) == expected


class Fussy:
    """Rewards by the first letter of a segment; cannot score what begins with n."""

    def __init__(self):
        self.identity = {"name": "fussy"}
        self.asked: list[str] = []

    def score(self, prompts: list[str], responses: list[str]) -> np.ndarray:
        assert len(prompts) == len(responses)
        self.asked += responses
        return np.array([{"a": 1.0, "b": 0.25, "n": NAN}[r.strip()[0]] for r in responses])


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(micro.folder() / "policy")


@pytest.fixture(scope="module")
def data() -> Data:
    return micro.data(grammar.TOXIC_KINDS)


@pytest.fixture(scope="module")
def task(tokenizer, data) -> Toxicity:
    """A quarter of the micro world's corpus."""
    return text_task(tokenizer, data, data.documents[::4])


def text_task(tokenizer, data: Data, documents: list, reward=None, context: int = 128) -> Toxicity:
    data = data._replace(documents=[Text(*d) for d in documents])
    return Toxicity(
        data, tokenizer, reward=reward or LexiconReward(), judge=InsultJudge(), fluency=None,
        decoding=Decoding(max_new_tokens=24), context=context,
    )  # fmt: skip


def test_documents_carry_the_reward_of_each_segment(tokenizer, data):
    written = [("> one\n", "a is good. b is bad."), ("> two, longer\n", "nobody knows. a is good. b"), ("> three\n", "")]
    scorer = Fussy()
    task = text_task(tokenizer, data, written, scorer)
    found = task.documents(40, rng())
    seen = set()
    for i in range(40):
        prompt = tokenizer.decode(found.rollout.prompts.tokens[i][found.rollout.prompts.mask[i]], skip_special_tokens=True)
        _, response = next(d for d in written if d[0] == prompt)
        seen.add(prompt)
        length = int(found.rollout.response_mask[i].sum())
        ids, where, reward = (x[i, :length].tolist() for x in (found.rollout.response, found.segment, found.reward))
        parts = segments(response)
        assert ids[-1] == tokenizer.eos_token_id and ids == [*tokenizer(response, add_special_tokens=False).input_ids, 0]
        for number, part in enumerate(parts):
            own = [t for t, w in zip(ids[:-1], where) if w == number]
            value = {"a": 1.0, "b": 0.25, "n": NAN}[part.strip()[0]]
            assert tokenizer.decode(own) == part
            assert reward[where.index(number)] == pytest.approx(value, nan_ok=True)
        assert where[-1] == len(parts) - 1  # the EOS is the last segment's
        assert (found.segment[i, length:] == -1).all() and found.reward[i, length:].isnan().all()
        assert found.starts()[i].sum() == len(parts)
    assert len(seen) == 3
    task.documents(3, rng(1))
    assert sorted(scorer.asked) == sorted(s for _, r in written for s in segments(r))  # once, however many are drawn


def test_segments_end_at_the_end_of_a_token(tokenizer, data, task):
    """The base's tokens of a response are those of its segments in a row, and the rewards are the word list's.

    In code a token may reach over the end of a line, so functions are left out here.
    """
    assert len(data.documents) >= 4000 and len(task._corpus) >= 1000
    for text, found in zip(data.documents[::4], task._corpus):
        if "\n" in text.response:
            assert found.response[:-1] == tokenizer(text.response, add_special_tokens=False).input_ids
            continue
        apart = [tokenizer(part, add_special_tokens=False).input_ids for part in segments(text.response)]
        numbers = [i for i, ids in enumerate(apart) for _ in ids]
        assert found.response == [t for ids in apart for t in ids] + [tokenizer.eos_token_id]
        assert found.segment == [*numbers, numbers[-1]]
        for part, reward in zip(segments(text.response), found.reward):
            assert reward == pytest.approx(math.prod(1 - LEXICON.get(w, 0) for w in WORD.findall(part.lower())))


def test_a_document_longer_than_the_context_leaves_room_for_control_tokens(tokenizer, data):
    text = "a b. " * 30
    task = text_task(tokenizer, data, [("> one\n", text)], Fussy(), context=80)
    found = task.documents(2, rng()).rollout
    tokens = int(found.prompts.mask[0].sum() + found.response_mask[0].sum())
    assert tokens + len(segments(text)) + 1 <= 80 < len(tokenizer(text).input_ids) + 30


def test_a_task_without_documents_or_without_offsets(tokenizer, data):
    with pytest.raises(EmptySelection, match="no labelled documents"):
        text_task(tokenizer, data, []).documents(1, rng())

    class Slow:
        is_fast = False
        eos_token_id = tokenizer.eos_token_id

        def __call__(self, *args, **kw):
            return tokenizer(*args, **kw)

    with pytest.raises(BadData, match=r"give one with a tokenizer\.json"):
        text_task(Slow(), data, [("> one\n", "a.")]).documents(1, rng())


# --- what the methods share


def documents() -> Documents:
    """Three hand-written ones: two segments; an unscored and a scored one; one segment. BOS 0 and EOS 1."""
    prompts = left_padded([[0, 5, 6], [0, 7], [0]])
    response = torch.tensor([[2, 3, 4, 8, 1], [9, 10, 3, 1, 0], [4, 4, 1, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]).bool()
    segment = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, -1], [0, 0, 0, -1, -1]])
    reward = torch.tensor([[1.0, 1, 0.2, 0.2, 0.2], [NAN, NAN, 0.6, 0.6, NAN], [0.4, 0.4, 0.4, NAN, NAN]])
    return Documents(Rollout(prompts, response, mask), segment, reward)


# each document whole: its tokens after the first, and the reward of each (None: plain text; nan: left out)
WHOLE = [
    ([5, 6, 2, 3, 4, 8, 1], [None, None, 1.0, 1.0, 0.2, 0.2, 0.2]),
    ([7, 9, 10, 3, 1], [None, NAN, NAN, 0.6, 0.6]),
    ([4, 4, 1], [0.4, 0.4, 0.4]),
]


def known(reward: float | None) -> bool:
    return reward is None or not math.isnan(reward)


def test_whole_documents():
    found = corpus.whole(documents())
    assert found.rollout.prompts.tokens.tolist() == [[0], [0], [0]] and found.rollout.prompts.mask.all()
    for i, (tokens, rewards) in enumerate(WHOLE):
        n = len(tokens)
        assert found.rollout.response[i, :n].tolist() == tokens and found.rollout.response_mask[i].sum() == n
        assert found.reward[i, :n].tolist() == pytest.approx([NAN if r is None else r for r in rewards], nan_ok=True)
        assert (found.segment[i, n:] == -1).all() and found.reward[i, n:].isnan().all()
        assert corpus.plain(found)[i, :n].tolist() == [r is None for r in rewards]
        assert corpus.scored(found)[i].tolist() == [r is not None and known(r) for r in rewards] + [False] * (7 - n)
    assert corpus.segment_rewards(found).tolist() == pytest.approx([1.0, 0.2, NAN, 0.6, 0.4], nan_ok=True)
    assert corpus.document_rewards(found).tolist() == pytest.approx([0.6, 0.6, 0.4])
    assert corpus.document_rewards(documents().rows(torch.tensor([1])))[0] == pytest.approx(0.6)
    unscored = documents()._replace(reward=documents().reward * NAN)
    assert corpus.document_rewards(unscored).isnan().all()


def test_the_threshold_is_a_reward_that_occurs():
    rewards = torch.tensor([0.0, 0.2, NAN, 0.5, 1.0, 1.0, 1.0])
    assert corpus.threshold(rewards, 0.5) == 0.5  # of 0, 0.2, 0.5, 1, 1, 1
    assert corpus.threshold(rewards, 0.9) == 1.0
    with pytest.raises(RunFailed, match=r"no reward of the corpus is below 0, its quantile 0\.1; raise the quantile"):
        corpus.threshold(rewards, 0.1)
    with pytest.raises(RunFailed, match="could be scored"):
        corpus.threshold(torch.tensor([NAN, NAN]), 0.5)


class Shelf(ToyTask):
    """The hand-written documents, at random; wider ones now and then."""

    def documents(self, n: int, rng: torch.Generator) -> Documents:
        found = documents().rows(torch.randint(3, (n,), generator=rng))
        if torch.rand((), generator=rng) < 0.5:
            return found
        (prompts, response, mask, _), pad = found.rollout, torch.nn.functional.pad
        prompts = Prompts(pad(prompts.tokens, (2, 0)), pad(prompts.mask, (2, 0)))
        rollout = Rollout(prompts, pad(response, (0, 3)), pad(mask, (0, 3)))
        return Documents(rollout, pad(found.segment, (0, 3), value=-1), pad(found.reward, (0, 3), value=NAN))


def test_wanted_documents_only_and_all_are_charged():
    trial = new_trial(task=Shelf())
    found = corpus.draw(trial, 50, lambda d: (d.reward < 0.3) & (d.segment == 1))
    assert found.segment.shape[0] == 50
    for i in range(50):
        assert found.rollout.response[i][found.rollout.response_mask[i]].tolist() == WHOLE[0][0]
    assert trial.cost.document_tokens > 3 * 50 * 3  # about a third of what was read is wanted
    assert trial.cost.scorer_calls > trial.cost.document_tokens / 4
    with pytest.raises(RunFailed, match="none of 5000 documents drawn can be used"):
        corpus.draw(trial, 50, lambda d: d.reward > 2)


def test_control_tokens_are_put_where_they_are_told():
    rollout = batch()
    control = torch.tensor([[20, -1, 21], [-1, 22, -1], [-1, -1, -1]])
    found, at = insert(control, rollout)
    expected = [[20, 2, 3, 21, 1], [4, 22, 1], [10, 11, 2]]
    assert [r[m].tolist() for r, m in zip(found.response, found.response_mask)] == expected
    assert torch.equal(found.response.gather(1, at)[rollout.response_mask], rollout.response[rollout.response_mask])
    with pytest.raises(ValueError, match="before the padding"):
        insert(torch.tensor([[-1] * 3, [-1, -1, 20], [-1] * 3]), rollout)


@torch.no_grad()
def test_logits_behind_control_tokens_in_the_text():
    policy = tiny_gpt2()
    a, b = policy.control_tokens(2, rng()).tolist()
    control = torch.tensor([[-1, a, b], [b, -1, -1], [-1, -1, a]])
    found = policy.steered_logits(batch(), control)
    for i, (prompt, response) in enumerate([([5, 6], [2, a, 3, b, 1]), ([7], [b, 4, 1]), ([8, 9], [10, 11, a, 2])]):
        out = policy.model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1, :12]
        text = [t for t, token in enumerate(response) if token < 12]
        torch.testing.assert_close(found[i, : len(text)], out[text], atol=1e-5, rtol=0)


def test_from_scratch_is_the_recipe_of_the_model_and_a_seed():
    before, a, b, c = (tiny_gpt2(seed=s) for s in (5, 5, 6, 5))
    state = torch.get_rng_state()
    a.reset(rng(1))
    b.reset(rng(1))
    c.reset(rng(2))
    assert torch.equal(state, torch.get_rng_state())
    assert same(weights(a), weights(b)) and not same(weights(a), weights(c)) and not same(weights(a), weights(before))
    shapes = a.model.transformer.wte.weight.detach(), a.model.transformer.h[0].attn.c_attn.weight.detach()
    for w in shapes:  # the configuration's normal law, its zeros and ones
        assert stats.kstest(w.flatten().numpy(), stats.norm(scale=0.4).cdf).pvalue > 1e-3
    assert (a.model.transformer.ln_f.weight == 1).all() and (a.model.transformer.h[0].attn.c_attn.bias == 0).all()


# --- log(1 - p)


def test_log_nots_against_float64():
    logits = torch.randn(2, 3, 7, generator=rng()) * 4
    exact = (-logits.double().softmax(-1)).log1p()
    torch.testing.assert_close(log_nots(logits).double(), exact, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("token", [0, 3])
@pytest.mark.parametrize("function", [log_not, lambda z, t: log_nots(z)[..., int(t)]], ids=["one", "all"])
def test_the_gradient_of_unlikelihood_where_p_is_nearly_1(function, token):
    """p of token 0 is 1 - 1e-12. In closed form the gradient of -log(1 - p_c) is p_c at c, -p_c p_k / (1 - p_c) elsewhere."""
    others = math.log(1e-12 / 4)
    logits = torch.tensor([[[0.0, others, others, others, others]]], requires_grad=True)
    (loss,) = -function(logits, torch.tensor([[token]])).flatten()
    loss.backward()
    z = logits.detach().double().flatten()
    rest = torch.cat([z[:token], z[token + 1 :]]).exp().sum()  # 1 - p without cancellation
    p = z.exp() / z.exp().sum()
    expected = -p[token] * z.exp() / rest
    expected[token] = p[token]
    assert loss.item() == pytest.approx(float(z.exp().sum().log() - rest.log()), rel=1e-5, abs=1e-11)
    torch.testing.assert_close(logits.grad.double().flatten(), expected, rtol=1e-4, atol=1e-12)


# --- the objectives by hand


class Bench:
    """A trial that keeps the loss instead of taking the step."""

    def __init__(self, policy: Policy | None = None, reference: Policy | None = None):
        self.policy = policy or tiny_gpt2()
        self.reference = (reference or tiny_gpt2(seed=1)).requires_grad_(False)
        self.rng, self.charged = rng(), 0

    def update(self, loss: Tensor) -> None:
        self.loss = loss
        loss.backward()

    def charge(self, module, tokens: int) -> None:
        self.charged += tokens


def distributions(policy: Policy) -> list[Tensor]:
    """Next-token distributions of each whole document, without padding: [T, V]."""
    return [
        policy.model(input_ids=torch.tensor([[0, *tokens]])).logits[0, :-1, : policy.vocab_size].softmax(-1)
        for tokens, _ in WHOLE
    ]


def observed(policy: Policy) -> list[list[tuple[Tensor, float | None]]]:
    """The probability of each token, and its reward."""
    ps = distributions(policy)
    return [[(p[t, token], r) for t, (token, r) in enumerate(zip(*doc))] for p, doc in zip(ps, WHOLE)]


def mean(terms: list[Tensor]) -> float:
    return float((sum(terms) / len(terms)).detach())


def finite(policy: Policy) -> bool:
    return all(p.grad is None or bool(p.grad.isfinite().all()) for p in policy.parameters())


def test_the_loss_of_mle_by_hand():
    bench = Bench()
    loss = corpus.nll(bench, corpus.whole(documents()))
    terms = [-p.log() for doc in observed(bench.policy) for p, r in doc if known(r)]
    assert len(terms) == 13 and loss.item() == pytest.approx(mean(terms), abs=1e-5)


def test_the_loss_of_rwr_on_the_corpus_by_hand():
    bench, rwr = Bench(), RWR(RWRSettings(beta=0.5))
    log_mean = rwr._log_mean(torch.tensor([1.0, 0.2, NAN, 0.6, 0.4]))
    loss = rwr._corpus_loss(bench, corpus.whole(documents()), log_mean)
    scale = sum(math.exp(r / 0.5) for r in (1.0, 0.2, 0.6, 0.4)) / 4
    terms = [
        -p.log() * (1.0 if r is None else math.exp(r / 0.5) / scale)
        for doc in observed(bench.policy)
        for p, r in doc
        if known(r)
    ]
    assert loss.item() == pytest.approx(mean(terms), abs=1e-5)
    loss.backward()
    assert finite(bench.policy)  # unscored segments are left out of the gradient too


def test_the_loss_of_awr_by_hand():
    bench, head = Bench(), ValueHead(16)
    with torch.no_grad():
        head.weight.copy_(torch.randn(16, generator=rng()))
    awr = AWR(AWRSettings(alpha=0.3, beta=0.5, max_weight=1.5))
    loss, scalars = awr._loss(bench, corpus.whole(documents()), head)
    costs, errors, cut = [], [], 0
    for (tokens, _), doc in zip(WHOLE, observed(bench.policy)):
        hidden = bench.policy.model.transformer(input_ids=torch.tensor([[0, *tokens]])).last_hidden_state[0]
        for t, (p, r) in enumerate(doc):
            value = 1 / (1 + torch.exp(-(hidden[t] @ head.weight)))
            if r is not None and known(r):
                weight = math.exp((r - value.item()) / 0.5)
                cut += weight > 1.5
                costs.append(-p.log() * min(weight, 1.5))
                errors.append((r - value) ** 2)
            elif r is None:
                costs.append(-p.log())
    by_hand = 0.3 * sum(costs) / len(costs) + 0.7 * sum(errors) / len(errors)
    assert 0 < cut < len(errors) == bench.charged
    assert loss.item() == pytest.approx(float(by_hand.detach()), abs=1e-5)
    assert scalars["value_error"] == pytest.approx(mean(errors), abs=1e-5)
    names = [bench.policy.model.transformer.wte.weight, head.weight]
    for ours, theirs in zip(torch.autograd.grad(loss, names, retain_graph=True), torch.autograd.grad(by_hand, names)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)  # the weight has no gradient, the value's error has


def test_awr_without_a_score_learns_the_text_only():
    nothing = corpus.whole(documents()._replace(reward=documents().reward * NAN))
    bench = Bench()
    loss, scalars = AWR(AWRSettings(alpha=0.5))._loss(bench, nothing, ValueHead(16))
    assert loss.item() == pytest.approx(0.5 * scalars["cost"]) and math.isfinite(loss.item())
    terms = [-p.log() for doc in observed(bench.policy) for p, r in doc if r is None]
    assert scalars["cost"] == pytest.approx(mean(terms), abs=1e-5)


def test_the_value_of_awr_is_learned_and_charged_beside_the_policy():
    trial = new_trial(task=Shelf(), updates=4)
    for _ in zip(range(2), AWR(AWRSettings(batch_size=8)).train(trial)):
        pass
    head = trial.state_dict()["kept"]["head"]["weight"]
    assert head.shape == (16,) and (head != 0).all()
    assert 0 < trial.cost.beside_flops < 2 * 6 * 16 * trial.cost.document_tokens and trial.cost.beside_flops % (6 * 16) == 0
    with pytest.raises(ValueError, match="before the first update"):
        trial.train_also(ValueHead(16))


def corpus_masks(threshold: float) -> tuple[Rollout, Tensor, Tensor]:
    found = corpus.whole(documents())
    bad = corpus.scored(found) & (found.reward < threshold)
    return found.rollout, bad, (corpus.plain(found) | corpus.scored(found)) & ~bad


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_the_loss_of_unlikelihood_on_the_corpus_by_hand(level):
    """Candidates of a row are its own tokens: the others' would change the sum."""
    bench, (rollout, bad, good) = Bench(), corpus_masks(0.5)
    method = Unlikelihood(UnlikelihoodSettings(source="corpus", level=level, alpha=2.0, kl_coef=0.3))
    method._learn(bench, rollout, bad, good)
    terms = []
    for p, q, (tokens, rewards) in zip(distributions(bench.policy), distributions(bench.reference), WHOLE):
        for t, (token, r) in enumerate(zip(tokens, rewards)):
            if not known(r):
                continue
            is_bad = r is not None and r < 0.5
            candidates = ({token} if is_bad else set()) if level == "sequence" else set(tokens[:t]) - {token}
            cost = sum((-2 * (1 - p[t, c]).log() for c in candidates), -p[t, token].log() * (not is_bad))
            terms.append(cost + 0.3 * (q[t] * (q[t] / p[t]).log()).sum())
    assert bench.loss.item() == pytest.approx(mean(terms), abs=1e-5)
    assert finite(bench.policy)


def test_candidates_stay_in_their_row():
    response = torch.tensor([[2, 3, 2, 4], [5, 5, 6, 7]])
    found = said_before(response, 8)
    assert [[set(t.nonzero().flatten().tolist()) for t in row] for row in found] == [
        [set(), {2}, {3}, {2, 3}],
        [set(), set(), {5}, {5, 6}],
    ]
    other = torch.tensor([[2, 3, 2, 4], [7, 6, 5, 4]])
    assert torch.equal(said_before(other, 8)[0], found[0])


def test_repeated_ngrams():
    response = torch.tensor([[2, 3, 4, 2, 3, 5, 2, 3], [2, 2, 2, 6, 7, 2, 2, 2], [2, 3, 2, 3, 0, 0, 0, 0]])
    mask = torch.tensor([[1] * 8, [1] * 8, [1, 1, 1, 0, 0, 0, 0, 0]]).bool()
    expected = [[0, 0, 0, 1, 1, 0, 1, 1], [0, 1, 1, 0, 0, 1, 1, 1], [0] * 8]  # "3 0" in the padding is none
    assert repeated(response, mask, 2).long().tolist() == expected


def test_only_repeated_ngrams_of_bad_text():
    part = batch()
    part = part._replace(response=torch.tensor([[2, 2, 2], [4, 1, 1], [3, 3, 3]]))
    bad = torch.tensor([[True] * 3, [False] * 3, [False] * 3])
    bench = Bench()
    method = Unlikelihood(UnlikelihoodSettings(kl_coef=0.0, ngram=1))
    scalars = method._learn(bench, part, bad, part.response_mask & ~bad)
    total = 0.0
    for y, is_bad in zip(picked(rows(bench.policy, part), part), [True, False, False]):
        total = total - ((1 - y[1:]).log().sum() if is_bad else y.log().sum())
    assert bench.loss.item() == pytest.approx(float(total.detach()) / 8, abs=1e-5)
    assert "drift" not in scalars


# --- filtering


def test_filtering_learns_the_good_documents_only(monkeypatch):
    """Documents of reward 0.6, 0.6 and 0.4: those below the median 0.6 are thrown away."""
    seen: list[Documents] = []
    nll = corpus.nll
    monkeypatch.setattr(corpus, "nll", lambda trial, d: seen.append(d) or nll(trial, d))
    trial = new_trial(task=Shelf(), updates=6)
    method = Filtering(FilteringSettings(batch_size=8, mle_share=0.5))
    got = [scalars for _, scalars in zip(range(6), method.train(trial))]
    assert all(row["threshold"] == pytest.approx(0.6) for row in got)
    first, last = (torch.cat([corpus.document_rewards(d) for d in part]) for part in (seen[:3], seen[3:]))
    assert len(first) == len(last) == 24
    assert (last >= 0.6 - 1e-6).all() and (first < 0.5).any()  # the first half of the budget takes all


# --- conditional pretraining


def conditional(**settings) -> ConditionalPretraining:
    return ConditionalPretraining(ConditionalPretrainingSettings(**settings))


def test_control_tokens_stand_before_their_segments():
    bench, found = Bench(), corpus.whole(documents())
    opening, control = conditional(drop=0.0)._control(bench, found, 0.5, bad=12, good=13)
    assert opening[[0, 2]].tolist() == [13, 12]
    # the second segment of the first document is bad, that of the second good; what is unscored has none of its own
    assert [row.tolist() for row in control] == [[-1] * 4 + [12] + [-1] * 2, [-1] * 3 + [13] + [-1] * 3, [-1] * 7]
    opening, control = conditional(drop=1.0)._control(bench, found, 0.5, bad=12, good=13)
    assert opening.tolist() == [12, 13, 12] and (control == -1).all()  # the only token speaks for the whole document


def long_documents(n: int) -> Documents:
    """n documents of eight segments of two tokens, the last of reward 0, the others of reward 1."""
    response = torch.randint(2, 12, (n, 16), generator=rng(4))
    segment = (torch.arange(16) // 2).expand(n, -1)
    rollout = Rollout(left_padded([[0]] * n), response, torch.ones(n, 16, dtype=torch.bool))
    return Documents(rollout, segment, (segment < 7).float())


def test_a_token_speaks_for_all_segments_up_to_the_next():
    n = 400
    opening, control = conditional(drop=0.25)._control(Bench(), long_documents(n), 0.5, bad=12, good=13)
    inner = control[:, 2::2]
    assert stats.binomtest(int((inner >= 0).sum()), n * 7, 0.75).pvalue > 1e-3
    assert (control[:, 1::2] == -1).all() and (control[:, 0] == -1).all()
    for first, row in zip(opening.tolist(), inner.tolist()):
        tokens = [first, *(t for t in row if t >= 0)]
        assert tokens == [13] * (len(tokens) - 1) + [12]  # the last token of each document speaks for its bad end


def test_the_loss_of_conditional_pretraining_by_hand():
    bench = Bench()
    bad, good = bench.policy.control_tokens(2, rng()).tolist()
    found = corpus.whole(documents()).rows(torch.tensor([0, 2]))
    opening, control = conditional(drop=0.0)._control(bench, found, 0.5, bad, good)
    loss = conditional()._loss(bench, found, opening, control)
    texts = [[0, good, 5, 6, 2, 3, bad, 4, 8, 1], [0, bad, 4, 4, 1]]
    terms = []
    for text in texts:
        log_p = bench.policy.model(input_ids=torch.tensor([text])).logits[0, :, :12].log_softmax(-1)
        terms += [-log_p[t - 1, token] for t, token in enumerate(text) if t > 0 and token < 12]
    assert len(terms) == 10 and loss.item() == pytest.approx(mean(terms), abs=1e-5)


def test_the_deployed_policy_answers_behind_good_and_never_says_it():
    trial = new_trial(task=Shelf(), updates=4)
    seen = []
    for _, _scalars in zip(range(4), conditional(batch_size=8, mle_share=0.5).train(trial)):
        seen.append(trial.policy.prefix)
    assert seen == [(), (), (13,), (13,)]
    with torch.no_grad():  # however much the model wants to say one
        trial.policy.model.transformer.wte.weight[12:] *= 50
    rollout = trial.sample(trial.prompts(200))
    assert int(rollout.response.max()) < 12 == trial.policy.vocab_size
    assert [t.tolist() for t in trial.policy.condition(left_padded([[0, 5], [6, 7]])).tokens] == [[0, 13, 5], [13, 6, 7]]


def test_a_document_whose_first_segment_is_unscored_is_not_used():
    trial = new_trial(task=Shelf())
    found = corpus.draw(trial, 30, first_is_scored)
    assert {tuple(r[m].tolist()) for r, m in zip(found.rollout.response, found.rollout.response_mask)} == {
        tuple(WHOLE[0][0]),
        tuple(WHOLE[2][0]),
    }


# --- reward-weighted regression


class WorldTask(ToyTask):
    """The enumerable world with a table of rewards."""

    decoding = Decoding(max_new_tokens=world.STEPS)

    def train_prompts(self, n: int, rng: torch.Generator) -> Prompts:
        table = world.prompts()
        chosen = torch.randint(len(table.tokens), (n,), generator=rng)
        return Prompts(table.tokens[chosen], table.mask[chosen])

    def reward(self, rollout: Rollout) -> Tensor:
        return torch.tensor(world.rewards()[world.index(rollout.response)], dtype=torch.float32)


def log_prob_table(policy: Policy) -> Tensor:
    """log pi(y | x) with its gradient, a response at a time, in the policy's own model: [X, N]."""
    table = []
    for prompt in world.PROMPTS:
        for length in range(1, world.STEPS + 1):
            chosen = [r for r in world.RESPONSES if len(r) == length]
            steps = policy.model(input_ids=torch.tensor([[*prompt, *r] for r in chosen])).logits.log_softmax(-1)
            at = len(prompt) - 1 + torch.arange(length)
            table.append((chosen, steps[:, at].gather(-1, torch.tensor(chosen)[..., None]).squeeze(-1).sum(1)))
    width = len(world.PROMPTS)
    found = torch.zeros(width, len(world.RESPONSES))
    for i, (chosen, logp) in enumerate(table):
        found = found.index_put((torch.tensor(i // world.STEPS), torch.tensor([world.INDEX[r] for r in chosen])), logp)
    return found


def flat(gradients) -> Tensor:
    return torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("beta", [0.2, 0.5])
def test_the_expected_update_of_rwr_is_the_gradient_of_its_objective(beta, monkeypatch):
    """Weighted maximum likelihood toward base exp(r / beta) / Z, by enumeration: cosine 0.99 or more, and the same length."""
    base = world.policy()
    policy = world.perturbed(base, 0.3, seed=1).requires_grad_(True)
    posterior = np.exp(world.log_probs(base) + world.rewards() / beta)
    target = torch.tensor(posterior / posterior.sum(1).mean(), dtype=torch.float32)
    exact = -(target * log_prob_table(policy)).sum(1).mean()
    exact_gradient = flat(torch.autograd.grad(exact, list(policy.parameters())))

    n = 10_000
    trial = new_trial(policy, reference=base.frozen_copy(), task=WorldTask())
    monkeypatch.setattr(trial, "update", lambda loss: loss.backward())
    settings = RWRSettings(source="samples", beta=beta, batch_size=n, explore_prompts=n)
    monkeypatch.setattr(Pool, "draw_scored", lambda pool, n, rng: (pool._rollout(torch.arange(n)), pool.rewards()))
    scalars = next(RWR(settings).train(trial))
    ours = flat(p.grad for p in policy.parameters())
    cosine = float(ours @ exact_gradient / (ours.norm() * exact_gradient.norm()))
    print(f"rwr, beta {beta}: cosine {cosine:.5f}, ratio of lengths {float(ours.norm() / exact_gradient.norm()):.3f}")
    assert cosine >= 0.99 and float(ours.norm() / exact_gradient.norm()) == pytest.approx(1, abs=0.05)
    assert scalars["nll"] == pytest.approx(exact.item(), rel=0.02)


def test_the_optimum_of_rwr_is_the_posterior():
    """Where the policy is the posterior of each prompt, the exact gradient of the objective is nothing beside the base's."""
    log_p = torch.tensor(world.log_probs(world.policy()))
    tilt = (log_p + torch.tensor(world.rewards() / 0.5)).exp()
    target, logits = tilt / tilt.sum(1).mean(), (tilt / tilt.sum(1, keepdim=True)).log().requires_grad_(True)
    (-(target * logits.log_softmax(1)).sum(1).mean()).backward()
    assert logits.grad.abs().max() < 1e-9


def test_the_pool_draws_with_rewards_and_not_from_nothing():
    pool = Pool()
    pool.add(batch(), torch.tensor([0.1, NAN, 0.7]))
    rollout, reward = pool.draw_scored(200, rng())
    first = {2: 0.1, 10: 0.7}
    assert [first[int(t)] for t in rollout.response[:, 0]] == pytest.approx(reward.tolist()) and len(set(reward.tolist())) == 2
    empty = Pool()
    empty.add(batch(), torch.tensor([NAN, NAN, NAN]))
    with pytest.raises(RunFailed, match="no scored response"):
        empty.draw_scored(2, rng())


@pytest.fixture(scope="module")
def base() -> Policy:
    return load_model(str(micro.folder() / "policy")).policy


def test_rwr_at_the_papers_beta_is_maximum_likelihood(task, base):
    """On the micro corpus: the first gradient, and the policy after four updates, equal to three digits at 10, not at 0.1."""
    read, held_out = [corpus.whole(task.documents(24, rng(i))) for i in range(4)], corpus.whole(task.documents(48, rng(9)))
    rewards = corpus.segment_rewards(task.documents(1000, rng(8)))

    def after(objective) -> tuple[float, Tensor]:
        """The held-out loss after four steps, and the direction of the first."""
        bench = Bench(base.copy().requires_grad_(True), base)
        optimizer, first = torch.optim.Adam(bench.policy.parameters(), lr=5e-4), torch.zeros(0)
        for found in read:
            optimizer.zero_grad()
            objective(bench, found).backward()
            first = first if len(first) else flat(p.grad for p in bench.policy.parameters())
            optimizer.step()
        with torch.no_grad():
            return corpus.nll(bench, held_out).item(), first / first.norm()

    def weighted(beta: float):
        rwr = RWR(RWRSettings(beta=beta))
        return lambda bench, found: rwr._corpus_loss(bench, found, rwr._log_mean(rewards))

    found = {name: after(f) for name, f in (("mle", corpus.nll), ("10", weighted(10.0)), ("0.1", weighted(0.1)))}
    cosine = {name: float(found["mle"][1] @ direction) for name, (_, direction) in found.items()}
    print({name: (round(loss, 5), round(cosine[name], 5)) for name, (loss, _) in found.items()})
    assert cosine["10"] > 0.999 > 0.99 > cosine["0.1"]
    assert found["10"][0] == pytest.approx(found["mle"][0], abs=5e-4)
    far, near = (abs(found[beta][0] - found["mle"][0]) for beta in ("0.1", "10"))
    assert far > 5 * near


# --- DExperts


def assembled(alpha: float = 1.5, make=tiny_gpt2) -> Policy:
    parts = [make(seed=s).model for s in (0, 1, 2)]
    return make(seed=0).around(Ensemble(*parts, alpha=alpha))


@torch.no_grad()
def test_the_logits_of_an_ensemble_are_the_formula():
    policy, part = assembled(), batch()
    base, expert, anti_expert = (tiny_gpt2(seed=s).logits(part) for s in (0, 1, 2))
    torch.testing.assert_close(policy.logits(part), base + 1.5 * (expert - anti_expert), atol=1e-4, rtol=0)
    assert torch.equal(assembled(alpha=0.0).logits(part), base)


@torch.no_grad()
def test_an_ensemble_is_sampled_as_its_formula_says():
    """Pairs of tokens, against the probabilities of three separate forward passes."""
    policy, prompt, n = assembled(alpha=0.7), [3, 4], 20_000
    drawn = sample(policy, left_padded([prompt]), decoding=Decoding(max_new_tokens=2), rng=rng(), n=n)
    pairs = torch.tensor([[a, b] for a in range(12) for b in range(12)])
    logits = [tiny_gpt2(seed=s).model(input_ids=torch.cat([torch.tensor([prompt] * 144), pairs], 1)).logits for s in (0, 1, 2)]
    steps = (logits[0] + 0.7 * (logits[1] - logits[2])).log_softmax(-1)
    logp = steps[:, 1].gather(1, pairs[:, :1]) + steps[:, 2].gather(1, pairs[:, 1:])
    p, first = logp.exp().flatten().double().numpy(), pairs[:, 0].numpy()
    ends = first == 1  # after an EOS nothing more is drawn: one outcome
    law = np.append(p[~ends], p[ends].sum())
    code = (drawn.response[:, 0] * 12 + drawn.response[:, 1]).numpy()
    seen = np.bincount(code, minlength=144)
    counts = np.append(seen[~ends], seen[ends].sum())
    common = law * n > 5
    expected = np.append(law[common], law[~common].sum()) * n
    got = np.append(counts[common], counts[~common].sum())
    assert law.sum() == pytest.approx(1, abs=1e-5)
    assert stats.chisquare(got, expected / expected.sum() * n).pvalue > 1e-3


@torch.no_grad()
def test_an_ensemble_with_its_caches_is_the_one_without():
    """Greedy token by token, and sampled with rows that end early: the caches repeat and lose rows together."""
    policy, prompts = assembled(), left_padded(ragged_rows())
    greedy = sample(policy, prompts, decoding=Decoding(max_new_tokens=6, temperature=0), rng=rng())
    for row in range(4):
        text = prompts.tokens[row][prompts.mask[row]].tolist()
        for t in range(int(greedy.response_mask[row].sum())):
            logits = policy.logits(Rollout(left_padded([text]), torch.tensor([[0]]), torch.tensor([[True]])))[0, 0]
            assert greedy.response[row, t] == logits.argmax()
            text.append(int(logits.argmax()))
    policy.eos = int(greedy.response[0, 3])
    policy.ends = (policy.eos,)
    drawn = sample(policy, prompts, decoding=Decoding(max_new_tokens=9, temperature=3.0), rng=rng(), n=5)
    lengths = drawn.response_mask.sum(1)
    assert (lengths < 9).sum() > 5 and (lengths == 9).any()
    uncached = token_logprobs(policy.logits(drawn), drawn.response).masked_fill(~drawn.response_mask, 0)
    torch.testing.assert_close(drawn.logprobs, uncached, atol=1e-4, rtol=0)


def test_the_divergence_of_an_ensemble_is_exact():
    """Against the enumerated world, whose tables come from the combined logits of every path."""
    base = world.policy()
    expert, anti_expert = world.perturbed(base, 0.2, seed=1), world.perturbed(base, 0.2, seed=2)
    policy = base.around(Ensemble(base.model, expert.model, anti_expert.model, alpha=1.2))
    exact = world.kl(world.log_probs(policy), world.log_probs(base)).mean()
    drawn = sample(policy, world.prompts(), decoding=Decoding(max_new_tokens=world.STEPS), rng=rng(), n=800)
    per_prompt = divergence(policy, base, drawn).kl.view(8, -1).double()
    stderr = float((per_prompt.var(1) / per_prompt.shape[1]).sum().sqrt()) / 8
    assert exact > 0.05 and abs(float(per_prompt.mean()) - exact) < 4 * stderr < 0.08 * exact


def test_an_ensemble_survives_its_folder(tmp_path):
    policy, part = assembled(), batch()
    policy.save(tmp_path)
    again = Policy.load(tmp_path)
    assert isinstance(again.model, Ensemble) and again.model.alpha == 1.5 and again.context == 32
    assert torch.equal(again.logits(part), policy.logits(part))
    assert torch.equal(policy.frozen_copy().logits(part), policy.logits(part))
    (tmp_path / "expert" / "model.safetensors").unlink()
    with pytest.raises(BadData, match="cannot load a causal language model"):
        Policy.load(tmp_path)


def test_an_ensemble_costs_three_passes():
    trial = new_trial(assembled(make=lambda seed: tiny_gpt2(seed=seed, eos=99)), reference=toy_policy().frozen_copy())
    prompts = trial.prompts(4)
    length = int(prompts.mask.sum())
    rollout = trial.sample(prompts)
    assert trial.cost.sampled_tokens == 20 and trial.cost.forward_tokens == length + 2 * (length + 20)
    assert trial.cost.flops == 2 * trial.cost.parameters * 3 * (length + 20)
    with torch.no_grad():
        trial.policy.logits(rollout)
    assert trial.cost.flops == 2 * trial.cost.parameters * 6 * (length + 20)


def test_expert_and_anti_expert_learn_in_turn():
    """Each update moves one of them, on the tokens of its own segments; the base stays."""
    trial = new_trial(task=Shelf(), updates=20)
    method = DExperts(DExpertsSettings(batch_size=8))
    training = method.train(trial)
    first = next(training)
    base, expert, anti_expert = (weights(getattr(trial.policy.model, p)) for p in ("base", "expert", "anti_expert"))
    assert set(first) == {"expert_nll"} and same(base, weights(trial.reference.model)) and same(base, anti_expert)
    assert not same(base, expert)
    assert set(next(training)) == {"anti_expert_nll"}
    assert same(expert, weights(trial.policy.model.expert)) and not same(anti_expert, weights(trial.policy.model.anti_expert))
    spent = trial.cost.trained_tokens
    assert spent > 0 and trial.cost.parameters == sum(p.numel() for p in toy_policy().parameters())
    assert [m.requires_grad for m in trial.policy.model.base.parameters()].count(True) == 0
    assert same(base, weights(trial.policy.model.base))


def test_the_losses_of_expert_and_anti_expert_by_hand():
    bench, found = Bench(), corpus.whole(documents())
    for good in (True, False):
        loss = DExperts(DExpertsSettings())._loss(bench.policy, found, expert_tokens(found, 0.5, good))
        scored = [(p, r) for doc in observed(bench.policy) for p, r in doc if r is not None and known(r)]
        assert loss.item() == pytest.approx(mean([-p.log() for p, r in scored if (r >= 0.5) == good]), abs=1e-5)


# --- runs


METHODS = {
    "awr": (AWR, AWRSettings(batch_size=4)),
    "conditional": (ConditionalPretraining, ConditionalPretrainingSettings(batch_size=4, drop=0.3)),
    "dexperts": (DExperts, DExpertsSettings(batch_size=4)),
    "filtering": (Filtering, FilteringSettings(batch_size=4)),
    "mle from scratch": (MLE, MLESettings(batch_size=4, start="scratch")),
    "rwr": (RWR, RWRSettings(batch_size=4, start="scratch", mle_share=0.5)),
    "rwr on samples": (RWR, RWRSettings(batch_size=4, source="samples", explore_every=3, explore_prompts=16)),
    "unlikelihood": (Unlikelihood, UnlikelihoodSettings(batch_size=4, source="corpus", num_quantiles=2)),
    "unlikelihood of tokens": (
        Unlikelihood,
        UnlikelihoodSettings(batch_size=4, source="corpus", num_quantiles=2, level="token"),
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_goes_on_bit_for_bit(name, tmp_path):
    kind, settings = METHODS[name]

    def go(trial, n):
        return [row for _, row in zip(range(n), kind(settings).train(trial))]

    whole, half = new_trial(task=ToyTask(unscored=1), updates=8), new_trial(task=ToyTask(unscored=1), updates=8)
    got = go(whole, 6)
    assert go(half, 3) == got[:3]
    half.policy.save(tmp_path / "policy")
    torch.save(half.state_dict(), tmp_path / "trial.pt")
    state = torch.load(tmp_path / "trial.pt", weights_only=True)
    again = new_trial(
        Policy.load(tmp_path / "policy"), reference=toy_policy().frozen_copy(), updates=8, seed=5, state=state, task=ToyTask(1)
    )
    assert go(again, 3) == got[3:]
    assert same(weights(whole.policy), weights(again.policy))
    assert whole.cost == again.cost and whole.policy.prefix == again.policy.prefix
    assert torch.equal(whole.rng.get_state(), again.rng.get_state())
    assert whole.unscored == again.unscored > 0 or name == "rwr on samples"


class Same(Shelf):
    """The same documents at every draw."""

    def documents(self, n: int, rng: torch.Generator) -> Documents:
        return documents().rows(torch.arange(n) % 3)


@pytest.mark.parametrize(
    ("kind", "settings", "word"),
    [
        (AWR, AWRSettings, "loss"),
        (ConditionalPretraining, ConditionalPretrainingSettings, "nll"),
        (Filtering, FilteringSettings, "nll"),
        (RWR, RWRSettings, "nll"),
        (Unlikelihood, lambda **s: UnlikelihoodSettings(source="corpus", num_quantiles=2, **s), "cost"),
    ],
)
def test_the_first_stage_is_plain_maximum_likelihood(kind, settings, word):
    def losses(kind, settings, word):
        trial = new_trial(task=Same(), updates=6)
        return [row[word] for _, row in zip(range(6), kind(settings).train(trial))]

    plain = losses(MLE, MLESettings(batch_size=4), "nll")
    both = losses(kind, settings(batch_size=4, mle_share=0.5), word)
    # the first loss of the second stage is already another objective, of the same weights
    assert both[:3] == pytest.approx(plain[:3], abs=1e-6)
    assert both[3] != pytest.approx(plain[3], abs=1e-4) or kind is Filtering
    assert losses(kind, settings(batch_size=4, mle_share=1.0), word) == pytest.approx(plain, abs=1e-6)


def test_from_scratch_forgets_the_base():
    trial = new_trial(task=Shelf(), lr=1e-6)
    next(MLE(MLESettings(batch_size=4, start="scratch")).train(trial))
    twin = toy_policy()
    twin.reset(rng(0))
    moved = max(float((a - b).abs().max()) for a, b in zip(weights(trial.policy), weights(twin)))
    assert moved < 1e-4 and not same(weights(trial.reference), weights(trial.policy))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (RWRSettings, {"source": "samples", "start": "scratch"}),
        (RWRSettings, {"source": "samples", "mle_share": 0.5}),
        (RWRSettings, {"beta": 0}),
        (UnlikelihoodSettings, {"start": "scratch"}),
        (UnlikelihoodSettings, {"level": "token", "ngram": 4}),
        (MLESettings, {"mle_share": 0.5}),
        (FilteringSettings, {"quantile": 0}),
        (AWRSettings, {"alpha": 0}),
        (DExpertsSettings, {"alpha": -1}),
        (ConditionalPretrainingSettings, {"drop": 1.1}),
    ],
)
def test_settings_that_cannot_be_meant(kind, wrong):
    with pytest.raises(ValidationError):
        kind(**wrong)


def test_an_ensemble_is_measured_again_by_its_folder(tmp_path, base):
    settings = resolve("micro", "eval", "toxicity", {})
    shared = assemble.parts(settings, "toxicity")
    parts = [base.copy().model for _ in range(3)]
    with torch.no_grad():
        parts[1].lm_head.weight += 0.01 * torch.randn(parts[1].lm_head.weight.shape, generator=rng())
    policy = base.around(Ensemble(*parts, alpha=2.0))
    policy.save(tmp_path / "policy")
    cells = [assemble.external_cell(settings, shared, str(tmp_path / "policy"), "toxicity", tmp_path, offline=True)]
    trial = new_trial(base, reference=base)
    assert list(cells[0].make_method().train(trial)) == []
    part = Rollout(left_padded([[0, 5, 6]]), torch.tensor([[7, 8]]), torch.tensor([[True, True]]))
    assert torch.equal(trial.deployed.logits(part), policy.logits(part))
    assert not torch.allclose(policy.logits(part), base.logits(part), atol=0.1)
    base.around(Ensemble(parts[0], parts[2], parts[1], alpha=2.0)).save(tmp_path / "policy")  # another expert, another run
    cells.append(assemble.external_cell(settings, shared, str(tmp_path / "policy"), "toxicity", tmp_path, offline=True))
    base.around(Ensemble(parts[0], parts[2], parts[1], alpha=1.0)).save(tmp_path / "policy")
    cells.append(assemble.external_cell(settings, shared, str(tmp_path / "policy"), "toxicity", tmp_path, offline=True))
    assert len({cell.run_id for cell in cells}) == 3
