"""The policy: padding, prefix, control tokens, dropout, and its folder on disk."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from tiny import EOS, TINY, left_padded, ragged_rows, rng, steered, tiny_gpt2, tiny_llama

from harness.core.errors import BadData
from harness.core.types import Rollout
from harness.policy.policy import Policy, positions, prepend

kinds = pytest.mark.parametrize("kind", TINY)
tied = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def rollout_of(rows: list[list[int]], steps: int = 5) -> Rollout:
    rng = torch.Generator().manual_seed(3)
    response = torch.randint(2, 12, (len(rows), steps), generator=rng)
    return Rollout(left_padded(rows), response, torch.ones_like(response, dtype=torch.bool))


def one(rollout: Rollout, i: int, row: list[int]) -> Rollout:
    """Row i alone, without padding."""
    return Rollout(left_padded([row]), rollout.response[i : i + 1], rollout.response_mask[i : i + 1])


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: x.detach().clone() for name, x in policy.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("steering", [False, True], ids=["bare", "prefix"])
@kinds
@torch.no_grad()
def test_padding_does_not_move_the_logits(kind, steering):
    policy, rows = TINY[kind](), ragged_rows()
    policy = steered(policy) if steering else policy
    rollout = rollout_of(rows)
    together = policy.deployed_logits(rollout)
    for i, row in enumerate(rows):
        torch.testing.assert_close(together[i], policy.deployed_logits(one(rollout, i, row))[0], atol=1e-5, rtol=0)


@kinds
@torch.no_grad()
def test_the_logits_are_the_models_own_one_step_before_each_token(kind):
    policy, row = TINY[kind](), [3, 4, 5]
    rollout = rollout_of([row])
    whole = policy.model(input_ids=torch.tensor([row + rollout.response[0].tolist()])).logits
    torch.testing.assert_close(policy.logits(rollout), whole[:, 2:-1], atol=1e-5, rtol=0)


@kinds
@torch.no_grad()
def test_the_logits_of_a_token_do_not_see_it(kind):
    policy, rollout = TINY[kind](), rollout_of([[3, 4]])
    other = rollout.response.clone()
    other[0, 2] = (other[0, 2] + 1) % 12
    before, after = policy.logits(rollout), policy.logits(rollout._replace(response=other))
    assert torch.equal(before[0, :3], after[0, :3]) and not torch.equal(before[0, 3], after[0, 3])


@kinds
@torch.no_grad()
def test_the_states_are_those_that_the_head_reads(kind):
    """Ragged prompts in one batch, none of one token: the head on them gives the logits; alone they are the same."""
    policy, rollout = TINY[kind](), rollout_of(ragged_rows((3, 5, 2)))
    counted = []
    policy.on_forward = lambda tokens, trained: counted.append(tokens)
    logits, states = policy.logits_and_states(rollout)
    assert states.shape == (3, 5, 16)
    torch.testing.assert_close(policy.model.get_output_embeddings()(states), logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(policy.states(rollout), states, atol=1e-5, rtol=0)
    assert torch.equal(policy.logits(rollout), logits) and counted == [10 + 15] * 3


def test_rows_of_a_rollout():
    rollout = rollout_of(ragged_rows())
    some = rollout.rows(torch.tensor([2, 0]))
    assert torch.equal(some.response, rollout.response[[2, 0]]) and some.logprobs is None
    assert torch.equal(some.prompts.tokens, rollout.prompts.tokens[[2, 0]]) and some.response_mask.shape == (2, 5)
    scored = rollout._replace(logprobs=torch.arange(20.0).view(4, 5)).rows(torch.tensor([False, True, False, True]))
    assert scored.logprobs.tolist() == [[5, 6, 7, 8, 9], [15, 16, 17, 18, 19]]


def test_positions_start_at_the_first_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]).bool()
    assert positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 0, 0]]


def test_prepend_goes_behind_the_bos_that_opens_a_prompt():
    prompts = left_padded([[0, 5], [5, 0, 6], [], [0]])
    found = prepend(torch.tensor([9, 10, 11, 2]), prompts, bos=0)
    assert [t[m].tolist() for t, m in zip(*found, strict=True)] == [[0, 9, 5], [10, 5, 0, 6], [11], [0, 2]]
    policy = tiny_gpt2()
    policy.prefix = (7, 8)
    assert [t[m].tolist() for t, m in zip(*policy.condition(prompts), strict=True)][:2] == [[0, 7, 8, 5], [7, 8, 5, 0, 6]]


def test_prepend_puts_the_token_after_the_padding():
    prompts = left_padded([[3], [4, 5, 6], [7, 8], []])
    same, each = prepend(torch.tensor(9), prompts), prepend(torch.tensor([9, 10, 11, 2]), prompts)
    expected = left_padded([[9, 3], [9, 4, 5, 6], [9, 7, 8], [9]])
    assert torch.equal(same.tokens, expected.tokens) and torch.equal(same.mask, expected.mask)
    assert torch.equal(each.tokens, left_padded([[9, 3], [10, 4, 5, 6], [11, 7, 8], [2]]).tokens)
    assert prompts.tokens.shape == (4, 3)  # the prompts given are left alone


def test_condition_keeps_the_order_of_the_prefix():
    policy, prompts = tiny_gpt2(), left_padded([[3], [4, 5]])
    assert policy.condition(prompts) is prompts
    policy.prefix = (9, 8)
    assert torch.equal(policy.condition(prompts).tokens, left_padded([[9, 8, 3], [9, 8, 4, 5]]).tokens)


@torch.no_grad()
def test_only_the_deployed_logits_see_the_prefix():
    policy, rollout = steered(tiny_gpt2()), rollout_of(ragged_rows())
    by_hand = policy.logits(rollout._replace(prompts=policy.condition(rollout.prompts)))
    assert torch.equal(policy.deployed_logits(rollout), by_hand)
    assert not torch.allclose(policy.logits(rollout), by_hand, atol=0.1)


@tied
@kinds
@torch.no_grad()
def test_control_tokens(kind, tied):
    policy, rollout = TINY[kind](tied=tied), rollout_of(ragged_rows())
    before, old = policy.logits(rollout), policy.model.get_input_embeddings().weight.clone()
    ids = policy.control_tokens(4, torch.Generator().manual_seed(0))
    rows = policy.model.get_input_embeddings().weight
    assert ids.tolist() == [12, 13, 14, 15] and policy.num_control == 4 and policy.vocab_size == 12
    assert torch.equal(rows[:12], old) and torch.equal(policy.logits(rollout), before)  # the base is as it was
    assert torch.pdist(rows[12:]).min() > 0.5 * torch.pdist(old).min()  # as far apart as words are
    assert torch.equal(policy.control_tokens(4, torch.Generator().manual_seed(9)), ids)  # made once
    assert torch.equal(policy.model.get_input_embeddings().weight, rows)
    assert (policy.model.get_output_embeddings().weight is rows) == tied


@pytest.mark.parametrize("spread", [1.0, 2.5])
def test_control_tokens_are_drawn_like_the_words(spread):
    """With many of them the mean of each dimension is the vocabulary's, and the deviation `spread` times its."""
    policy = tiny_gpt2(vocab=400)
    old = policy.model.get_input_embeddings().weight.detach().clone()
    ids = policy.control_tokens(20_000, torch.Generator().manual_seed(0), spread)
    new = policy.model.get_input_embeddings().weight.detach()[ids]
    torch.testing.assert_close(new.mean(0), old.mean(0), atol=0.02 * spread, rtol=0)
    torch.testing.assert_close(new.std(0), spread * old.std(0), atol=0, rtol=0.03)


@kinds
def test_control_tokens_depend_on_the_seed_alone(kind):
    torch.manual_seed(1)
    first = weights(steered(TINY[kind]()))
    torch.manual_seed(2)
    assert equal(first, weights(steered(TINY[kind]())))


def test_another_number_of_control_tokens_is_a_bug():
    with pytest.raises(ValueError, match="has 3 control tokens, not 4"):
        steered(tiny_gpt2()).control_tokens(4, torch.Generator())


@kinds
@torch.no_grad()
def test_logits_are_over_the_base_vocabulary(kind):
    policy, rollout = steered(TINY[kind]()), rollout_of(ragged_rows())
    logits = policy.logits(rollout)
    assert logits.shape == (4, 5, 12) and logits.dtype == torch.float32
    raw = policy.model(
        input_ids=torch.cat([rollout.prompts.tokens, rollout.response], 1)[3:], attention_mask=torch.ones(1, 11)
    ).logits[:, 5:-1]
    renormalised = raw.softmax(-1)[..., :12] / raw.softmax(-1)[..., :12].sum(-1, keepdim=True)
    torch.testing.assert_close(logits[3:].softmax(-1), renormalised, atol=1e-5, rtol=0)


@kinds
def test_half_precision_gives_float32_logits(kind):
    policy = TINY[kind]().to(torch.bfloat16)
    assert policy.logits(rollout_of([[3, 4]])).dtype == torch.float32


@tied
@kinds
@torch.no_grad()
def test_a_saved_policy_comes_back_bit_for_bit(kind, tied, tmp_path):
    policy, rollout = steered(TINY[kind](tied=tied)), rollout_of(ragged_rows())
    policy.save(tmp_path / "policy")
    again = Policy.load(tmp_path / "policy")
    assert equal(weights(policy), weights(again))
    assert torch.equal(policy.deployed_logits(rollout), again.deployed_logits(rollout))
    for name in ("bos", "eos", "num_control", "prefix", "vocab_size", "context"):
        assert getattr(again, name) == getattr(policy, name)
    assert type(again.prefix) is tuple and again.eos == EOS and again.num_control == 3
    assert torch.equal(again.control_tokens(3, torch.Generator()), torch.tensor([12, 13, 14]))


@torch.no_grad()
def test_load_gives_the_dtype_asked_for(tmp_path):
    tiny_gpt2().to(torch.bfloat16).save(tmp_path)
    assert next(Policy.load(tmp_path).parameters()).dtype == torch.float32
    assert next(Policy.load(tmp_path, dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def drop_a_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in tensors if name.endswith("ln_f.weight"))]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


BREAKS = {
    "no config": lambda f: (f / "config.json").unlink(),
    "config cut off": lambda f: (f / "config.json").write_text('{"model_type": "gpt2"'),
    "unknown model": lambda f: (f / "config.json").write_text('{"model_type": "nothing like it"}'),
    "no policy.json": lambda f: (f / "policy.json").unlink(),
    "policy.json cut off": lambda f: (f / "policy.json").write_text("{"),
    "policy.json without prefix": lambda f: (f / "policy.json").write_text(json.dumps({"bos": 0, "eos": 1})),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "weights cut off": truncate,
    "weights empty": lambda f: (f / "model.safetensors").write_bytes(b""),
    "a weight missing": drop_a_weight,
}


@pytest.mark.parametrize("fault", BREAKS)
def test_a_folder_that_cannot_be_read_is_bad_data(fault, tmp_path):
    tiny_gpt2().save(tmp_path)
    BREAKS[fault](tmp_path)
    with pytest.raises(BadData, match=str(tmp_path)) as caught:
        Policy.load(tmp_path)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


def test_a_policy_json_with_an_unknown_key_is_bad_data(tmp_path):
    tiny_gpt2().save(tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps({"bos": 0, "eos": 1, "num_control": 0, "prefix": [], "more": 1}))
    with pytest.raises(BadData, match="more"):
        Policy.load(tmp_path)


def test_a_folder_that_is_not_there_is_bad_data(tmp_path):
    with pytest.raises(BadData, match="nowhere"):
        Policy.load(tmp_path / "nowhere")


@kinds
def test_a_frozen_copy_is_independent(kind):
    policy = steered(TINY[kind]())
    policy.on_forward = lambda tokens, trained: None
    twin = policy.frozen_copy()
    before = weights(twin)
    assert equal(before, weights(policy)) and twin.prefix == policy.prefix
    assert policy.on_forward is not None and twin.on_forward is None
    with torch.no_grad():
        for p in policy.parameters():
            p += 1
    assert equal(before, weights(twin))
    assert not any(p.requires_grad for p in twin.parameters()) and all(p.requires_grad for p in policy.parameters())


@kinds
@torch.no_grad()
def test_dropout_is_off_even_in_training_mode(kind, tmp_path):
    policy, rollout = TINY[kind](dropout=0.5), rollout_of(ragged_rows())
    plain = TINY[kind](dropout=0.0).logits(rollout)
    policy.save(tmp_path)
    for each in (policy, Policy.load(tmp_path), policy.frozen_copy()):
        assert not each.model.training
        assert torch.equal(each.logits(rollout), plain)
        each.train()  # as a trainer would
        torch.testing.assert_close(each.logits(rollout), plain, atol=1e-5, rtol=0)


def test_llamas_attention_dropout_is_not_a_module():
    """The case that turning off nn.Dropout alone would miss."""
    assert not any(isinstance(m, torch.nn.Dropout) for m in tiny_llama(dropout=0.5).modules())


@kinds
def test_the_gradient_flows_in_eval_mode(kind):
    policy = TINY[kind]()
    policy.logits(rollout_of(ragged_rows())).log_softmax(-1)[..., 3].sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in policy.parameters())


def test_forward_passes_are_told_with_the_tokens_that_count():
    policy, seen = tiny_gpt2(), []
    policy.on_forward = lambda tokens, trained: seen.append((tokens, trained))
    rollout = rollout_of([[3], [4, 5, 6]])
    short = rollout._replace(response_mask=rollout.response_mask.clone())
    short.response_mask[0, 2:] = False
    policy.logits(rollout)  # 1 + 3 tokens of prompts, 2 x 5 of responses
    policy.logits(short)
    policy.prefix = (7,)
    policy.deployed_logits(short)  # and a prefix for each
    with torch.no_grad():
        policy.logits(short)
    next(policy.parameters()).requires_grad_(False)  # a part is trained
    policy.logits(short)
    policy.requires_grad_(False)
    policy.logits(short)
    assert seen == [(14, True), (11, True), (13, True), (11, False), (11, True), (11, False)]


def test_from_scratch_is_the_recipe_of_the_model_and_a_seed():
    before, a, b, c = (tiny_gpt2(seed=s) for s in (5, 5, 6, 5))
    state = torch.get_rng_state()
    a.reset(rng(1))
    b.reset(rng(1))
    c.reset(rng(2))
    assert torch.equal(state, torch.get_rng_state())
    assert equal(weights(a), weights(b)) and not equal(weights(a), weights(c)) and not equal(weights(a), weights(before))
    shapes = a.model.transformer.wte.weight.detach(), a.model.transformer.h[0].attn.c_attn.weight.detach()
    for w in shapes:  # the configuration's normal law, its zeros and ones
        assert stats.kstest(w.flatten().numpy(), stats.norm(scale=0.4).cdf).pvalue > 1e-3
    assert (a.model.transformer.ln_f.weight == 1).all() and (a.model.transformer.h[0].attn.c_attn.bias == 0).all()
