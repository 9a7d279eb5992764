"""Several processes give what one gives: logits, gradients, samples and scores, whoever has how many rows."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from tiny import left_padded, ragged_rows, rng, tiny_gpt2, tiny_llama
from together import together
from torch import nn

from harness.core.errors import BadScorer, BadSetting, NotFinite, PeerLost, RunFailed
from harness.core.types import Decoding, Rollout
from harness.policy.logprobs import entropy, kl, masked_mean, token_logprobs
from harness.policy.models import processes
from harness.policy.models.ensemble import Ensemble
from harness.policy.models.setup import Setup
from harness.policy.policy import Policy
from harness.policy.sampler import sample

LENGTHS = (1, 4, 2, 6, 3)


def rollout(n: int = 5) -> Rollout:
    """Of n rows, the prompts of 1 to 6 tokens and the responses of 2 to 4."""
    response, length = torch.randint(2, 12, (n, 4), generator=rng(1)), torch.randint(2, 5, (n, 1), generator=rng(2))
    return Rollout(left_padded(ragged_rows(LENGTHS[:n])), response, torch.arange(4) < length)


def full(n: int = 5) -> Rollout:
    """As `rollout`, without padding of the responses."""
    return rollout(n)._replace(response_mask=torch.ones(n, 4, dtype=torch.bool))


def ensemble() -> Policy:
    parts = [tiny_gpt2(seed=seed) for seed in range(3)]
    return parts[0].around(Ensemble(*(part.model for part in parts), 0.5))


def in_micro_batches() -> Policy:
    policy = tiny_gpt2()
    policy.setup = Setup(micro_batch=2)
    return policy


POLICIES = {"gpt2": tiny_gpt2, "llama": tiny_llama, "ensemble": ensemble, "micro-batches": in_micro_batches}


def gradients(policy: Policy, batch: Rollout) -> list[torch.Tensor]:
    """Of a loss that couples the rows, by logits, states, a value head on them, and the embeddings themselves."""
    head = nn.Linear(16, 1)
    nn.init.constant_(head.weight, 0.1)
    nn.init.zeros_(head.bias)
    logits, mask = policy.logits(batch), batch.response_mask
    logp = token_logprobs(logits, batch.response).masked_fill(~mask, 0).sum(1)
    loss = ((logp - logp.detach().mean()) * logp).mean() + logits[mask].square().mean()
    other = tiny_gpt2(seed=7).logits(batch).detach()
    loss = loss + masked_mean(kl(logits, other), mask) - 0.1 * masked_mean(entropy(logits), mask)
    if policy.plain_head:
        again, states = policy.logits_and_states(batch)
        values = head(policy.states(batch) + states).squeeze(-1)
        loss = loss + masked_mean(values * token_logprobs(again, batch.response), mask)
        loss = loss + policy.model.get_input_embeddings().weight.square().mean()
    processes.backward(loss)
    found = [p.grad for p in (*policy.parameters(), *head.parameters()) if p.grad is not None]
    processes.summed(found)
    return found


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize(("n", "batch"), [(2, rollout()), (3, full()), (3, rollout(2)), (2, full(1))])
def test_the_gradient_is_that_of_the_whole_batch(kind, n, batch):
    """Of 5 rows two and three, of 2 rows in three processes none for one."""
    policy = POLICIES[kind]().requires_grad_(True)
    found = together(n, lambda: gradients(policy, batch))
    expected = gradients(policy, batch)
    for of_one in found:
        for x, y in zip(of_one, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=float(3e-6 * (1 + y.abs().max())))
        assert all(torch.equal(x, y) for x, y in zip(of_one, found[0], strict=True))


@pytest.mark.parametrize("kind", POLICIES)
def test_every_process_has_the_logits_and_states_of_all_rows(kind):
    policy, read = POLICIES[kind](), []
    policy.on_forward = lambda tokens, trained: read.append(tokens)

    def seen():
        read.clear()
        with torch.no_grad():
            states = policy.states(rollout()) if policy.plain_head else torch.zeros(1)
            return policy.logits(rollout()), states, read

    mask, (logits, states, counted) = rollout().response_mask, seen()
    for found in together(3, seen):
        torch.testing.assert_close(found[0][mask], logits[mask])
        torch.testing.assert_close(found[1], states)
        assert found[2] == counted  # of the whole batch: a budget ends where it did


@pytest.mark.parametrize(("x", "n"), [(5, 1), (3, 3), (1, 5), (1, 1), (2, 4)])
def test_responses_are_those_of_one_process(x, n):
    policy, prompts = tiny_gpt2(), left_padded(ragged_rows(LENGTHS[:x]))

    def drawn():
        return sample(policy, prompts, decoding=Decoding(max_new_tokens=6), rng=rng(3), n=n)

    one = drawn()
    for found in together(3, drawn):
        assert torch.equal(found.response, one.response) and torch.equal(found.response_mask, one.response_mask)
        torch.testing.assert_close(found.logprobs, one.logprobs)
        assert torch.equal(found.prompts.tokens, one.prompts.tokens)


def test_scores_are_gathered_with_those_that_are_missing():
    calls = []

    def score(part: Rollout) -> torch.Tensor:
        calls.append(len(part.response))
        return (part.response[:, 0] / 12).where(part.response[:, 0] != int(rollout().response[3, 0]), torch.nan)

    def scored():
        calls.clear()
        return processes.scores(score, rollout()), list(calls)

    expected, _ = scored()
    found = together(3, scored)
    assert expected.isnan().any()
    assert all(torch.equal(scores.nan_to_num(-1), expected.nan_to_num(-1)) for scores, _ in found)
    assert [rows for _, rows in found] == [[2], [2], [1]]


def test_what_one_process_does_alone_is_not_divided():
    def work():
        with processes.alone():
            return processes.size(), tiny_gpt2().logits(rollout()).shape[0], processes.rank()

    assert together(2, work) == [(1, 5, 0), (1, 5, 1)]


def nothing_in(places: tuple[int, ...], error: Exception):
    def work(rows: slice) -> tuple[torch.Tensor]:
        if processes.rank() in places:
            raise error
        return (torch.zeros(rows.stop - rows.start),)

    return lambda: processes.divided(4, work)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (NotFinite("too large"), NotFinite, "too large"),
        (ValueError("odd\nvalue"), RunFailed, "process 1 of this run raised ValueError: odd value"),
    ],
)
def test_an_error_of_one_process_is_raised_by_all(error, kind, text):
    first, second = together(2, nothing_in((1,), error))
    assert type(first) is kind and str(first) == text
    assert type(second) is type(error) and str(second) == str(error)


def test_of_two_errors_the_first_is_raised():
    found = together(3, nothing_in((1, 2), BadSetting("as it is")))
    assert [str(e) for e in found] == ["as it is"] * 3


def test_scores_of_another_shape_are_refused():
    found = together(2, lambda: processes.scores(lambda part: torch.zeros(2, 2), rollout(4)))
    assert all(isinstance(e, BadScorer) and "shape (2, 2) for 2 responses" in str(e) for e in found)


def test_the_first_process_works_for_all(tmp_path):
    class Store:
        path = tmp_path

        def write(self, text: str) -> str:
            with (tmp_path / "file").open("a") as f:
                f.write(text)
            return text * 2

        def fail(self) -> None:
            raise BadSetting("not so")

    def work():
        store = processes.by_first(Store())
        assert store.path == tmp_path
        try:
            store.fail()
        except BadSetting as e:
            return store.write("a"), str(e), type(processes.itself(store)).__name__

    assert together(3, work) == [("aa", "not so", "Store")] * 3
    assert (tmp_path / "file").read_text() == "a"
    assert processes.by_first(store := Store()) is store is processes.itself(store)


def test_a_flag_holds_where_any_process_raises_it():
    assert together(2, lambda: processes.any_of(processes.rank() == 1, False)) == [(True, False)] * 2
    assert processes.any_of(True, False) == (True, False)


def test_processes_that_compute_something_else_are_refused():
    def other_draw():
        processes.check_same(rng(processes.rank()), torch.tensor(1.0))

    def other_loss():
        processes.check_same(rng(), torch.tensor(1.0 + processes.rank()))

    for work in (other_draw, other_loss):
        assert all(isinstance(e, RunFailed) and "no longer compute the same" in str(e) for e in together(2, work))
    assert together(2, lambda: processes.check_same(rng(), torch.tensor(1.0))) == [None, None]


def test_a_process_that_has_ended_is_an_error_of_the_others():
    found = together(2, lambda: None if processes.rank() else processes.any_of(True))
    assert isinstance(found[0], PeerLost) and "the same command goes on" in str(found[0])


def test_gradients_of_any_number_and_type_are_summed(monkeypatch):
    monkeypatch.setattr(processes, "BUCKET", 4)

    def work():
        r = processes.rank() + 1
        given = [torch.full((3,), 1.0 * r), torch.full((2, 2), 2.0 * r), torch.ones(1, dtype=torch.float64) * r]
        processes.summed(given)
        return given

    for found in together(2, work):
        assert [x.unique().item() for x in found] == [3.0, 6.0, 3.0] and [x.dtype for x in found][2] == torch.float64


def test_of_processes_that_fail_one_speaks_and_the_first_ends_first(tmp_path):
    meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def ends() -> None:
        with (tmp_path / "order").open("a") as f:
            f.write(os.environ["RANK"])

    def fails():
        os.environ |= {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting.port)}
        first = processes.rank() == 0
        with processes.last_words() as speaks:
            time.sleep(0.3 * first)
            if first:
                ends()
        if not first:
            ends()
        return speaks

    assert sorted(together(3, fails)) == [False, False, True]
    assert (tmp_path / "order").read_text()[0] == "0"


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadSetting, match=r"each process needs a GPU of its own; found 1: --nproc_per_node 1"):
        processes.join()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    processes.join()
    assert processes.size() == 1


def test_a_process_ends_as_if_interrupted_once_torchrun_is_gone(monkeypatch):
    parents, sent = iter([7, 7, 1]), []
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number, next(parents, None))))
    processes._watch(7)
    assert sent == [(os.getpid(), signal.SIGTERM, None)]
