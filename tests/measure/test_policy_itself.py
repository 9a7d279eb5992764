"""What is measured is the policy itself, by a judge that is not its reward: whatever says otherwise is refused."""

import pytest
from toy_base import Task, known

from harness.core.errors import BadSetting
from harness.core.settings import resolve
from harness.core.types import Decoding
from harness.runs import assemble


@pytest.mark.parametrize("setting", ["top_p=0.5", "temperature=0", "temperature=0.7", "top_k=40"])
def test_a_decoding_that_cuts_off_is_refused_and_told_where_it_belongs(setting):
    name, _, value = setting.partition("=")
    with pytest.raises(BadSetting, match=rf"setting 'task.decoding.{name}': expected .*papers' decoding.*; found {value}") as e:
        resolve("micro", "base", "toxicity", [f"task.decoding.{setting}"])
    assert e.value.exit_code == 2 and "\n" not in str(e.value)


def test_the_policy_itself_may_be_spelled_out():
    told = ["task.decoding.top_p=1", "task.decoding.temperature=1", "task.decoding.top_k=0"]
    plain = resolve("micro", "base", "toxicity")
    assert resolve("micro", "base", "toxicity", told).model_dump() == plain.model_dump()


def test_a_task_that_decodes_otherwise_is_refused_before_anything_is_drawn(tmp_path):
    task = Task()
    task.decoding = Decoding(max_new_tokens=5, top_p=0.9)
    said = []
    with pytest.raises(BadSetting, match=r"has the decoding {'top_p': 0.9}, .*paper_decodings"):
        known(tmp_path, task=task, say=said.append)
    assert said == []


def test_a_judge_that_is_the_reward_is_refused():
    with pytest.raises(BadSetting, match="judge is the reward 'toxicity-linear'; expected a scorer that no method trains on"):
        assemble.check(resolve("micro", "base", "toxicity", ["task.judge=toxicity-linear"]), "base")
    twice = ["task.judge=mine", "scorers.mine.kind=toxicity-linear"]
    with pytest.raises(BadSetting, match="the judge is the reward 'mine'"):
        assemble.parts(resolve("micro", "base", "toxicity", twice), "toxicity")


def test_the_cap_of_the_kl_is_a_number():
    with pytest.raises(BadSetting, match=r"setting 'task.kl_cap': .*finite number"):
        resolve("micro", "base", "toxicity", ["task.kl_cap=inf"])
