"""All of a model's ends end a response, in sampling and in masks: a model whose every token is certain, worked by hand."""

from __future__ import annotations

from pathlib import Path

import folders
import pytest
import torch
from folders import edit_json
from safetensors.torch import load_file, save_file
from tiny import left_padded

from harness.core.hashing import folder_identity
from harness.core.types import Decoding
from harness.policy.loading import load_model
from harness.policy.policy import Policy
from harness.policy.sampler import sample

# token 20 is followed by 21, 21 by 7, 7 by 21; 22 by 0, 0 by 21: 0 is the tokenizer's end, 7 the end of a turn
NEXT = {20: 21, 21: 7, 7: 21, 22: 0, 0: 21}


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """A GPT-2 whose blocks add nothing, so that its head reads the code of the last token."""
    folder = folders.gpt2_folder(tmp_path_factory.mktemp("chain") / "model", tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "c_proj" in name or name in ("transformer.wpe.weight", "lm_head.weight"):
            weight.zero_()
    codes = torch.eye(16)[: len(NEXT)]
    for code, (token, following) in zip(codes, NEXT.items(), strict=True):
        weights["transformer.wte.weight"][token] = code
        weights["lm_head.weight"][following] += 100 * code
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def load(chain: Path, tmp_path: Path, **generation: object) -> Policy:
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in chain.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "generation_config.json").write_text("{}")
    edit_json(folder / "generation_config.json", **generation)
    return load_model(str(folder)).policy


def said(policy: Policy) -> tuple[list[list[int]], list[int]]:
    """The responses to the prompts [20], [22] and [7, 21], and their lengths by the mask."""
    prompts = left_padded([[20], [22], [7, 21]])
    rollout = sample(policy, prompts, decoding=Decoding(max_new_tokens=5), rng=torch.Generator().manual_seed(0))
    assert torch.allclose(rollout.logprobs, torch.zeros(3, 5), atol=1e-6)
    return rollout.response.tolist(), rollout.response_mask.sum(1).tolist()


def test_two_ends_by_hand(chain, tmp_path):
    policy = load(chain, tmp_path, eos_token_id=[7, 0])
    assert policy.ends == (0, 7)
    response, lengths = said(policy)
    assert lengths == [2, 1, 1]
    assert [row[:n] for row, n in zip(response, lengths, strict=True)] == [[21, 7], [0], [7]]
    assert all(token == 0 for row, n in zip(response, lengths, strict=True) for token in row[n:])


def test_one_end_by_hand(chain, tmp_path):
    policy = load(chain, tmp_path, eos_token_id=0)
    response, lengths = said(policy)
    assert policy.ends == (0,) and lengths == [5, 1, 5] and response[0] == [21, 7, 21, 7, 21]


def test_an_end_of_the_generation_config_alone_counts_beside_the_tokenizers(chain, tmp_path):
    assert said(load(chain, tmp_path, eos_token_id=7))[1] == [2, 1, 1]


@pytest.mark.parametrize("told", [True, 5000, -1, None, ["7"]])
def test_what_is_no_id_of_the_model_ends_nothing(chain, tmp_path, told):
    assert load(chain, tmp_path, eos_token_id=told).ends == (0,)


def test_a_model_with_many_ends_passes_its_check(chain, tmp_path):
    """The check's own responses, of random tokens, hold some of them."""
    assert len(load(chain, tmp_path, eos_token_id=[*range(100, 250)]).ends) == 151


def test_an_end_that_transformers_made_of_the_config_is_none(chain, tmp_path):
    """Without the file the generation config repeats the config's, which may be a default of the architecture."""
    assert load(chain, tmp_path, eos_token_id=7, _from_model_config=True).ends == (0,)


def test_ends_that_only_the_generation_config_names_are_part_of_the_identity(chain, tmp_path):
    load(chain, tmp_path, eos_token_id=[7, 0])
    plain = folder_identity(chain)
    assert load_model(str(chain)).identity == plain
    assert load_model(str(tmp_path / "mine")).identity == plain | {"further_ends": "7"}
    edit_json(tmp_path / "mine" / "config.json", eos_token_id=[0, 7])
    assert "further_ends" not in load_model(str(tmp_path / "mine")).identity  # the config is hashed


def test_a_gguf_file_names_the_end_of_a_turn(tmp_path):
    pytest.importorskip("gguf")
    import gguf_files

    loaded = load_model(str(gguf_files.write(tmp_path / "mine.gguf", turn_end=9)))
    assert loaded.policy.ends == (2, 9) and "further_ends" not in loaded.identity
