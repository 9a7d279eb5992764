"""What a policy from elsewhere must have in common with the base, and where its responses end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import folders
import micro_text
import pytest
import torch
import transformers
from folders import edit_json
from tiny import left_padded, rng
from trials import new_trial

from harness.core.errors import BadData, PromptTooLong
from harness.core.settings import RunSettings, resolve
from harness.core.types import Decoding, Prompts, Rollout
from harness.measure.evaluator import Evaluator
from harness.policy.loading import load_model
from harness.policy.models.ensemble import Ensemble
from harness.policy.policy import Policy
from harness.policy.sampler import sample, until_eos
from harness.runs import assemble
from harness.runs.finished import external
from harness.runs.progress import Progress


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """One tokenizer of 320 ids; models that differ in what the name says."""
    root = tmp_path_factory.mktemp("models")
    folders.gpt2_folder(root / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(root / "base")
    size = {"vocab_size": 320, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    for name, changes in {"wide": {"vocab_size": 384}, "short": {"n_positions": 32}}.items():
        torch.manual_seed(1)
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**size | changes)).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    (root / "prompts.jsonl").write_text("\n".join(json.dumps({"text": f"the cat number {i} sat"}) for i in range(120)))
    long = "qzxv" * 9  # one word: prompts that share eight are kept out of training
    (root / "long.jsonl").write_text("\n".join(json.dumps({"text": f"{i * 7} {long} {i * 13}"}) for i in range(120)))
    return root


def settings(models: Path, *more: str, model: str = "base", prompts: str = "prompts") -> RunSettings:
    small = [
        "task.fluency=none", "task.decoding.max_new_tokens=6", "evaluation.base_samples=50", "evaluation.points=0",
        "evaluation.paper_samples=0", f"model.id={models / model}", f"task.prompts={models / f'{prompts}.jsonl'}",
    ]  # fmt: skip
    return resolve("micro", "eval", "toxicity", [*small, *more])


@pytest.fixture(scope="module")
def shared(models) -> assemble.Parts:
    return assemble.parts(settings(models), "toxicity")


def cell(models: Path, shared: assemble.Parts, policy: Path, out: Path, *more: str, **which: str):
    return external.external_cell(settings(models, *more, **which), shared, str(policy), "toxicity", out, offline=True)


def refused(*words: str):
    return pytest.raises(BadData, match="".join(f"(?=.*{word})" for word in words))


def saved(models: Path, name: str, folder: Path, control: int = 0) -> Path:
    """The policy of a run that started from a model."""
    loaded = load_model(str(models / name))
    loaded.policy.tokenizer = loaded.tokenizer
    if control:
        loaded.policy.prefix = (int(loaded.policy.control_tokens(control, torch.Generator())[0]),)
    loaded.policy.save(folder)
    return folder


@pytest.mark.parametrize("control", [None, 0, 2], ids=["a model", "a run's policy", "one with control tokens"])
def test_a_wider_embedding_table_is_refused(models, shared, tmp_path, control):
    policy = models / "wide" if control is None else saved(models, "wide", tmp_path / "policy", control)
    with refused("predicts 384 ids and the base policy 320", r"resize_token_embeddings\(320\)") as e:
        cell(models, shared, policy, tmp_path)
    assert e.value.exit_code == 3 and "\n" not in str(e.value)


def test_a_wider_base_is_refused(models, tmp_path):
    wide = assemble.parts(settings(models, model="wide"), "toxicity")
    with refused("predicts 320 ids and the base policy 384"):
        cell(models, wide, models / "base", tmp_path)


def test_a_runs_policy_with_another_tokenizer_of_the_same_size_is_refused(models, shared, tmp_path):
    """As many ids, of other tokens: two of them have changed places."""
    policy = saved(models, "base", tmp_path / "policy")
    text = (policy / "tokenizer.json").read_text()
    vocab = json.loads(text)
    ids = vocab["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (policy / "tokenizer.json").write_text(json.dumps(vocab))
    with refused("another vocabulary"):
        cell(models, shared, policy, tmp_path)


def test_a_policy_of_an_older_run_has_no_tokenizer(models, shared, tmp_path):
    policy = saved(models, "base", tmp_path / "policy", control=2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (policy / name).unlink()
    deployed = cell(models, shared, policy, tmp_path).make_method().policy
    assert deployed.prefix == (320,) and len(deployed.tokenizer) == 322
    with refused("predicts 384 ids"):
        policy = saved(models, "wide", tmp_path / "other", control=2)
        (policy / "tokenizer_config.json").unlink()
        cell(models, shared, policy, tmp_path)


def test_a_context_too_short_for_prompt_and_response_is_refused(models, tmp_path):
    there = assemble.parts(settings(models, prompts="long"), "toxicity")
    needed = int(there.task.prompts("test").prompts.mask.sum(1).max()) + 6 - 1
    assert 32 < needed < 64
    with refused("reads 32 tokens at once", f"needs {needed} for its longest prompt", "choose shorter prompts") as e:
        cell(models, there, models / "short", tmp_path, prompts="long")
    assert e.value.exit_code == 3 and "\n" not in str(e.value)


def test_a_context_that_is_just_long_enough_is_taken(models, shared, tmp_path):
    """The last token of a response is drawn and never read; a prefix takes one more place."""
    longest = int(shared.task.prompts("test").prompts.mask.sum(1).max())
    fits = [f"task.decoding.max_new_tokens={33 - longest}"]
    there = assemble.parts(settings(models, *fits), "toxicity")
    policy = cell(models, there, models / "short", tmp_path, *fits).make_method().policy
    rollout = sample(
        policy, there.task.prompts("test").prompts, decoding=there.task.decoding, rng=torch.Generator().manual_seed(0)
    )
    assert rollout.response.shape[1] == 33 - longest
    with refused("reads 32 tokens at once", "needs 33"):
        cell(models, there, saved(models, "short", tmp_path / "policy", control=2), tmp_path, *fits)


def test_responses_of_the_papers_count_too(models, tmp_path):
    """They may be longer than the task's own, for which alone the prompts were measured."""
    there = assemble.parts(settings(models, prompts="long"), "toxicity")
    more = ["evaluation.paper_samples=2", "task.paper_tokens=40"]
    with_papers = assemble.parts(settings(models, *more, prompts="long"), "toxicity")
    with pytest.raises(PromptTooLong, match=r"papers' decoding draws 40 tokens, .*the model reads 64; lower") as e:
        assemble.cell(settings(models, *more, prompts="long"), with_papers, "base", "toxicity", 0, tmp_path)
    assert e.value.exit_code == 2 and "\n" not in str(e.value)
    assert assemble.cell(settings(models, prompts="long"), there, "base", "toxicity", 0, tmp_path)


@pytest.fixture(scope="module")
def evaluator(models, shared, tmp_path_factory) -> Evaluator:
    made = cell(models, shared, models / "base", tmp_path_factory.mktemp("out"))
    return made.make_evaluator(Progress(quiet=True))


def last_tokens(evaluation) -> list[int]:
    return [row["tokens"][-1] for row in evaluation.rows]


def test_a_response_ends_where_the_policys_own_end_stands(shared, evaluator):
    """The share is counted by hand; the base's end is another id, which the policy never says here."""
    base = shared.model.policy
    said = evaluator.point(base).rows
    often = max({t for row in said for t in row["tokens"]}, key=[t for row in said for t in row["tokens"]].count)
    found = evaluator.point(Policy(base.model, bos=0, eos=often))
    ended = [row["tokens"].count(often) for row in found.rows]
    assert 0 < sum(ended) < len(ended) and max(ended) == 1
    assert found.metrics["eos_rate"].value == pytest.approx(sum(ended) / len(ended))
    assert [row["ended"] for row in found.rows] == [bool(n) for n in ended]


def test_each_of_several_ends_ends_a_response(shared, evaluator):
    base = shared.model.policy
    before = evaluator.point(base).rows
    ends = (before[0]["tokens"][2], before[1]["tokens"][3])
    found = evaluator.point(Policy(base.model, bos=0, eos=ends[0], ends=ends))
    for row, whole in zip(found.rows, before, strict=True):
        stop = next((i + 1 for i, t in enumerate(whole["tokens"]) if t in ends), None)
        seen = len(whole["tokens"]) if stop is None else stop  # behind the base policy's own end it goes on
        assert row["tokens"][:seen] == whole["tokens"][:seen]
        assert stop is None or (row["ended"] and len(row["tokens"]) == stop)
    assert found.metrics["eos_rate"].value > 0


def test_a_policy_without_ends_of_its_own_ends_like_the_base(shared, evaluator):
    """Best of n has no end: its responses are the base's."""

    class Chosen:
        def sample(self, prompts, *, decoding, rng, n):
            return sample(shared.model.policy, prompts, decoding=decoding, rng=rng, n=n)

        def kl_to_base(self, reward):
            return reward.mean(1) * 0

    assert evaluator.point(Chosen()).metrics["eos_rate"] == evaluator.point(shared.model.policy).metrics["eos_rate"]


def test_a_config_that_lists_several_ends_has_them_all(models, tmp_path):
    folder = shutil.copytree(models / "base", tmp_path / "chat")
    edit_json(folder / "config.json", eos_token_id=[7, 0, 5000])
    policy = load_model(str(folder)).policy
    assert policy.eos == 0 and policy.ends == (0, 7)  # the tokenizer's first; 5000 is no id of the model
    prompts = Prompts(torch.zeros(64, 1, dtype=torch.long), torch.ones(64, 1, dtype=torch.bool))
    with torch.no_grad():
        policy.model.transformer.wte.weight[7] = 30 * policy.model.transformer.wte.weight[7]
    rollout = sample(policy, prompts, decoding=Decoding(max_new_tokens=30), rng=torch.Generator().manual_seed(0))
    assert (rollout.response == 7).any() and torch.equal(rollout.response_mask, until_eos(rollout.response, (0, 7)))
    after = ~rollout.response_mask
    assert after.any() and (rollout.response[after] == 0).all()


def test_an_ensemble_is_measured_again_by_its_folder(tmp_path):
    base = micro_text.base()
    settings = resolve("micro", "eval", "toxicity", {})
    shared = assemble.parts(settings, "toxicity")
    parts = [base.copy().model for _ in range(3)]
    with torch.no_grad():
        parts[1].lm_head.weight += 0.01 * torch.randn(parts[1].lm_head.weight.shape, generator=rng())
    policy = base.around(Ensemble(*parts, alpha=2.0))
    policy.save(tmp_path / "policy")
    cells = [external.external_cell(settings, shared, str(tmp_path / "policy"), "toxicity", tmp_path, offline=True)]
    trial = new_trial(base, reference=base)
    assert list(cells[0].make_method().train(trial)) == []
    part = Rollout(left_padded([[0, 5, 6]]), torch.tensor([[7, 8]]), torch.tensor([[True, True]]))
    assert torch.equal(trial.deployed.logits(part), policy.logits(part))
    assert not torch.allclose(policy.logits(part), base.logits(part), atol=0.1)
    base.around(Ensemble(parts[0], parts[2], parts[1], alpha=2.0)).save(tmp_path / "policy")  # another expert, another run
    cells.append(external.external_cell(settings, shared, str(tmp_path / "policy"), "toxicity", tmp_path, offline=True))
    base.around(Ensemble(parts[0], parts[2], parts[1], alpha=1.0)).save(tmp_path / "policy")
    cells.append(external.external_cell(settings, shared, str(tmp_path / "policy"), "toxicity", tmp_path, offline=True))
    assert len({cell.run_id for cell in cells}) == 3
