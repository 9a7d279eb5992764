"""`harness eval --prefix`: policies of others that are wider than their base by control tokens, as Quark's checkpoints are."""

from __future__ import annotations

import json
from pathlib import Path

import folders
import pytest
import torch
import transformers
from tiny import left_padded

from harness.core.errors import BadData, BadSetting
from harness.core.settings import RunSettings, resolve
from harness.core.types import Rollout
from harness.policy.loading import load_model
from harness.policy.policy import Policy
from harness.runs import assemble
from harness.runs.finished import external

NAMES = [f" _TREE_TOKEN_{i:05}" for i in range(5)]
SMALL = {
    "task.fluency": "none", "task.decoding.max_new_tokens": 6, "evaluation.base_samples": 50, "evaluation.points": 0,
    "evaluation.paper_samples": 0, "evaluation.samples": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A base of 320 ids, and the same with five more rows: named by its tokenizer, or by none."""
    root = tmp_path_factory.mktemp("models")
    folders.gpt2_folder(root / "base")
    model = transformers.GPT2LMHeadModel.from_pretrained(root / "base")
    torch.manual_seed(1)
    model.resize_token_embeddings(325, mean_resizing=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(root / "base")
    for name in ("unnamed", "named"):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        tokenizer.add_tokens(NAMES)
    (root / "prompts.jsonl").write_text("\n".join(json.dumps({"text": f"the cat number {i} sat"}) for i in range(120)))
    return root


def settings(models: Path) -> RunSettings:
    told = [f"{key}={value}" for key, value in SMALL.items()]
    named = {"model__id": str(models / "base"), "task__prompts": str(models / "prompts.jsonl")}
    return resolve("micro", "eval", "toxicity", told, **named)


@pytest.fixture(scope="module")
def shared(models) -> assemble.Parts:
    return assemble.parts(settings(models), "toxicity", offline=True)


@torch.no_grad()
@pytest.mark.parametrize(
    ("folder", "text", "ids"),
    [
        ("named", NAMES[0], [320]),
        ("named", NAMES[3] + NAMES[1], [323, 321]),
        ("unnamed", "<|control_324|>", [324]),
        ("named", "", []),
        ("base", "she made", None),
    ],
)
def test_the_policy_reads_its_prefix_and_speaks_the_vocabulary_of_its_base(models, shared, folder, text, ids):
    policy, identity = external.external_model(str(models / folder), shared, True, text)
    ids = shared.model.tokenizer(text).input_ids if ids is None else ids
    assert list(policy.prefix) == ids and policy.vocab_size == 320 and policy.num_control == (0 if folder == "base" else 5)
    prompt, response = [40, 41, 42], [50, 51]
    rollout = Rollout(left_padded([prompt]), torch.tensor([response]), torch.ones(1, 2, dtype=torch.bool))
    model = transformers.GPT2LMHeadModel.from_pretrained(models / folder).eval()
    whole = model(torch.tensor([[*ids, *prompt, *response]])).logits[:, -3:-1, :320]
    torch.testing.assert_close(policy.deployed_logits(rollout), whole, atol=1e-5, rtol=0)
    plain = external.external_model(str(models / folder), shared, True, "")[1]
    assert identity == plain | ({"prefix": ids} if ids else {})


def test_it_is_measured_as_the_same_policy_saved_by_a_run(harness, models, tmp_path):
    loaded = load_model(str(models / "named"))
    policy = Policy(loaded.policy.model, bos=0, eos=0, num_control=5, prefix=(320,))
    policy.save(tmp_path / "policy")
    words = ["-t", "toxicity", "--model", models / "base", "--prompts", models / "prompts.jsonl", "--out", tmp_path / "out"]
    words += ["--json", *(word for key, value in SMALL.items() for word in ("--set", f"{key}={value}"))]
    finals = []
    for which in (["--policy", models / "named", "--prefix", NAMES[0]], ["--policy", tmp_path / "policy"]):
        code, out, err = harness("eval", *which, *words)
        assert code == 0, err
        finals.append(json.loads(out.splitlines()[-1])["final"])
    assert finals[0] == finals[1] and finals[0]["kl"]["value"] > 0


def test_a_wider_policy_without_a_prefix_is_told_of_it(models, shared):
    with pytest.raises(BadData, match=r"predicts 325 ids and the base policy 320.*\(--prefix\) if the ids beyond are control"):
        external.external_model(str(models / "unnamed"), shared, True)


@pytest.mark.parametrize("folder", ["named", "unnamed"])
def test_a_prefix_without_a_control_token_is_refused(models, shared, folder):
    """A name with a slip in it would be read as ordinary text."""
    first = NAMES[0] if folder == "named" else "<|control_320|>"
    with pytest.raises(BadSetting, match="has none of the policy's 5 control tokens") as caught:
        external.external_model(str(models / folder), shared, True, " _TREE_TOKEN_0")
    assert repr(first) in str(caught.value) and "\n" not in str(caught.value)


def test_a_policy_that_is_narrower_than_its_base_is_refused(models, shared):
    told = settings(models)
    told = told.model_copy(update={"model": told.model.model_copy(update={"id": str(models / "unnamed")})})
    wide = assemble.parts(told, "toxicity")
    with pytest.raises(BadData, match="320 ids and the base policy 325"):
        external.external_model(str(models / "base"), wide, True, "")


def test_the_policy_of_a_run_has_its_own_prefix(models, shared, tmp_path):
    load_model(str(models / "base")).policy.save(tmp_path / "policy")
    with pytest.raises(BadSetting, match="leave out --prefix"):
        external.external_model(str(tmp_path / "policy"), shared, True, "she made")


def test_other_tokens_below_the_control_tokens_are_refused(models, shared, tmp_path):
    for path in (models / "named").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    ids = content["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BadData, match="another vocabulary"):
        external.external_model(str(tmp_path), shared, True, NAMES[0])
