import pytest

from harness.core.errors import BadData
from harness.tasks.data import splits as hygiene
from harness.tasks.data.prompt_files import Prompt

SONG = "one two three four five six seven eight nine"


def splits(**texts: list[str]) -> dict[str, list[Prompt]]:
    return {name: [Prompt(text, "calm", None) for text in found] for name, found in texts.items()}


def test_a_training_prompt_that_shares_eight_words_with_a_held_out_one_is_dropped():
    """Eight words in another dress, and seven words, which are not enough."""
    found = splits(
        train=["Now: ONE two, three four five six seven Eight!", "one two three four five six seven ten", ""],
        validation=["Two. Three."], test=[SONG],
    )  # fmt: skip
    kept, dropped = hygiene.apart(found)
    assert dropped == 1 and [p.text for p in kept["train"]] == ["one two three four five six seven ten", ""]
    assert kept["test"] == found["test"] and kept["validation"] == found["validation"]
    assert hygiene.check(found)["shared_8_grams"] == {"train-validation": 0, "train-test": 1, "validation-test": 0}
    assert hygiene.check(kept)["shared_8_grams"]["train-test"] == 0


def test_a_prompt_in_two_splits_is_refused_and_the_empty_one_is_everybodys():
    with pytest.raises(BadData, match="1 prompts are in both train and test"):
        hygiene.check(splits(train=["a", "b"], validation=["c"], test=["b"]))
    assert hygiene.check(splits(train=["", "a"], validation=[""], test=[""]))["counts"] == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }


def test_no_training_prompt_of_any_micro_task_shares_eight_words_with_a_held_out_one():
    from harness.core import registry
    from harness.tasks.micro import world

    for name in set(registry.table("task")) - {"facts"}:  # which has a world of its own
        kinds = registry.load("task", name).kinds
        found = world.data(kinds)
        told = hygiene.check(found.splits)["shared_8_grams"]
        assert told["train-validation"] == told["train-test"] == 0, name
        assert {p.kind for p in found.splits["train"]} == set(kinds)
