"""A model is known by its bytes, wherever they lie and whatever they are called; a text begins with the policy's own BOS."""

import shutil
from pathlib import Path

import fake_records
import folders
import pytest

from harness.analysis.groups import described, groups, unlike
from harness.core.hashing import identity_hash
from harness.core.settings import resolve
from harness.policy.loading import load_model
from harness.records.read import read_run
from harness.runs import assemble
from harness.runs.assemble import fluency_model
from harness.runs.finished.external import external_model
from harness.tasks.data.prompt_files import tokenize
from harness.tasks.micro import world

POLICY = "065bacd35380299035e7918289b631c44dd54d176aa2a79e420003b4a7a6ffe6"  # of world 3
JUDGE = "82fa5aff99520c5bab9b266bbaf14426bf7f5d8a3d26fe79167e8c87c1d3992f"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "mine.jsonl"
    path.write_text("".join(f'{{"text": "the cat number {i} sat"}}\n' for i in range(120)))
    return path


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return folders.gpt2_folder(tmp_path_factory.mktemp("models") / "tiny")


def settings(model: object, prompts: object = "micro", *more: str, fluency: object = "none"):
    told = [f"task.fluency={fluency}", *(["task.decoding.max_new_tokens=6"] if prompts != "micro" else []), *more]
    return resolve("micro", "base", "toxicity", told, model__id=str(model), task__prompts=str(prompts))


def cell(told, out: Path):
    parts = assemble.parts(told, "toxicity", offline=True)
    return assemble.cell(told, parts, "base", "toxicity", 0, out)


def test_a_copy_of_the_models_that_ship_is_known_as_in_the_committed_records(tmp_path):
    assert identity_hash(assemble._known(load_model(str(world.verified("policy")))).identity) == POLICY
    policy, judge = (shutil.copytree(world.folder() / name, tmp_path / f"my {name}") for name in ("policy", "judge"))
    parts = assemble.parts(settings(policy, fluency=judge), "toxicity", offline=True)
    assert identity_hash(parts.model.identity) == POLICY and identity_hash(parts.task.fluency.identity) == JUDGE
    assert parts.micro  # and so the shipped base responses are taken


def test_a_renamed_folder_and_a_hub_id_are_the_same_run(gpt2, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folders.fake_hub(tmp_path, "someone/tiny", gpt2)))
    renamed = shutil.copytree(gpt2, tmp_path / "another name")
    moved = shutil.copy(prompts, tmp_path / "other.jsonl")
    first, *others = (
        cell(settings(model, file), tmp_path) for model, file in ((gpt2, prompts), (renamed, prompts), ("someone/tiny", moved))
    )
    assert all(other.identity == first.identity for other in others)
    assert "name" not in first.identity["model"]


def test_how_many_responses_are_scored_at_once_makes_no_other_run(gpt2, prompts, tmp_path):
    few, many = (settings(gpt2, prompts, f"evaluation.batch_size={n}") for n in (3, 256))
    parts = assemble.parts(few, "toxicity", offline=True)
    one, two = (assemble.cell(told, parts, "base", "toxicity", 0, tmp_path) for told in (few, many))
    assert one.run_id == two.run_id and one.identity == two.identity


def test_a_judge_of_fluency_is_known_by_its_bytes(gpt2, tmp_path):
    renamed = shutil.copytree(gpt2, tmp_path / "another name")
    one, two = (fluency_model(str(folder), settings("micro"), True).identity for folder in (gpt2, renamed))
    assert one == two and set(one) == {"sha256", "tokenizer_sha256"}


def test_a_policy_of_a_run_is_known_by_its_bytes(gpt2, prompts, tmp_path):
    told = settings(gpt2, prompts)
    parts = assemble.parts(told, "toxicity")
    parts.model.policy.save(tmp_path / "policy")
    assert (tmp_path / "policy" / "policy.json").is_file()
    renamed = shutil.copytree(tmp_path / "policy", tmp_path / "another name")
    one, two = (external_model(str(folder), parts, True)[1] for folder in (tmp_path / "policy", renamed))
    assert one == two and "name" not in one


def test_a_page_calls_a_model_as_its_settings_do(tmp_path):
    made = {"model": {"sha256": "ab"}, "fluency": {"name": "judge", "sha256": "cd"}}
    made["scorers"] = {"reward": {"name": "classifier", "sha256": "ef"}, "judge": {"name": "stars"}}
    told = {"model": {"id": "/home/me/tiny"}, "task": {"fluency": "micro", "reward": "mine", "judge": "x"}}
    manifest = {"identity": made, "settings": told | {"scorers": {"mine": {"kind": "classifier", "model": "someone/c"}}}}
    found = described(read_run(fake_records.write_run(tmp_path / "a", "quark", 0, manifest=manifest)).manifest, made)
    assert found["model"] == {"name": "tiny", "sha256": "ab"} and found["fluency"]["name"] == "judge"
    assert found["scorers"]["reward"]["model"] == "someone/c" and "model" not in found["scorers"]["judge"]
    bare = read_run(fake_records.write_run(tmp_path / "b", "quark", 0, manifest={"identity": made})).manifest
    assert described(bare, made) == made and "name" not in made["model"]


def test_worlds_of_two_models_are_told_apart_by_their_names(tmp_path):
    for number, (digest, where) in enumerate((("a" * 8, "gpt2"), ("b" * 8, "/models/mine"), ("b" * 8, "moved/mine2"))):
        identity = fake_records.identity("toxicity", "base", number) | {"model": {"sha256": digest}}
        told = {"settings": {"model": {"id": where}}, "identity": identity}
        fake_records.write_run(tmp_path, "base", number, manifest=told)
    found = groups([read_run(path.parent) for path in sorted(tmp_path.rglob("manifest.json"))])
    assert len(found) == 2 and unlike(found) == "model (mine sha256 bbbbbbbb and gpt2 sha256 aaaaaaaa)"
    assert unlike(found[:1] * 2) == "their frontiers"


@pytest.fixture(scope="module")
def config_only(tmp_path_factory) -> Path:
    """A model whose BOS and EOS its config alone names."""
    folder = folders.gpt2_folder(tmp_path_factory.mktemp("models") / "config", n_positions=320)
    folders.edit_json(folder / "tokenizer_config.json", bos_token=None, eos_token=None, pad_token=None, unk_token=None)
    return folder


def test_built_in_prompts_without_words_begin_with_the_bos_of_the_policy(config_only):
    parts = assemble.parts(settings(config_only), "toxicity")
    assert parts.model.tokenizer.eos_token_id is None and parts.model.policy.eos == 0
    chosen = parts.task.prompts("test")
    tokens, mask = (x[chosen.texts.index("")] for x in chosen.prompts)
    assert tokens[mask].tolist() == [parts.model.policy.bos]
    clean = parts.task.clean_documents()  # whose responses end with the EOS of the policy
    assert (clean.response.gather(1, clean.response_mask.sum(1, keepdim=True) - 1) == parts.model.policy.eos).all()


def test_the_bos_that_is_given_goes_before_the_one_of_the_tokenizer(gpt2):
    from transformers import AutoTokenizer

    tokens, _ = tokenize([""], AutoTokenizer.from_pretrained(gpt2), max_new_tokens=4, context=64, bos=7)
    assert tokens.tolist() == [[7]]
