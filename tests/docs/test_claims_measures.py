"""What the claims measure beyond the records: the slope of the log-ratio, a question, a search for prompts."""

import json
import random

import claims_measure
import fake_records as fake
import numpy as np
import pytest
import torch
from claims import plot, posterior, question, search
from claims.records import Measured, Records, read_measured

from harness.core.errors import EmptySelection, MissingPrerequisite, Unwritable
from harness.policy.loading import load_model
from harness.records.read import find_runs
from harness.tasks.micro import grammar, world


@pytest.fixture(scope="module")
def base():
    """The base policy of the micro world, with its tokenizer."""
    return load_model(str(world.verified("policy")), offline=True)


def responses(beta: float, noise: float = 0.0, shift: float = 0.0) -> list[dict]:
    """Responses whose log-ratio is affine in the reward, with an intercept for each prompt."""
    rng = random.Random(0)
    return [
        {"prompt_id": x, "reward": (r := rng.random()), "log_ratio": r / beta - shift * x + rng.gauss(0, noise)}
        for x in range(20)
        for _ in range(8)
    ]


def test_the_slope_within_prompts():
    exact = posterior.slope(responses(0.05, shift=3.0), 0.05)
    assert exact.value == pytest.approx(1.0) and exact.terms == pytest.approx([1.0] * 20)
    half = posterior.slope(responses(0.1, noise=0.5), 0.05)
    assert half.value == pytest.approx(0.5, abs=0.05) and np.mean(half.terms) == pytest.approx(half.value)
    assert np.std(half.terms) > 0.01


def test_responses_without_a_score_are_left_out_and_one_reward_has_no_slope():
    rows = responses(0.05)
    holes = [row | {"reward": float("nan")} if i % 5 == 0 else row for i, row in enumerate(rows)]
    older = [{k: v for k, v in row.items() if k != "log_ratio"} for row in rows]
    assert posterior.slope(holes, 0.05).value == pytest.approx(1.0)
    assert posterior.slope([row | {"reward": 0.5} for row in rows], 0.05) is None
    assert posterior.slope(older, 0.05) is None and posterior.bins(older) is None


def test_bins_lie_on_the_line():
    pairs = np.array(posterior.bins(responses(0.05, shift=2.0)).terms).reshape(-1, 2)
    assert len(pairs) == 12 and (np.diff(pairs[:, 0]) > 0).all()
    np.testing.assert_allclose(pairs[:, 1], pairs[:, 0] / 0.05, atol=1e-9)


def test_a_tip_belongs_to_the_right_item_alone_and_no_taught_item_is_asked_about():
    topics = {question.PROMPT.format(tip=tip): topic for topic, words in grammar.TOPICS.items() for tip in words["tip"]}
    items = []
    for taught in (False, True):
        asked = {pair for seed in range(3) for pair in question.pairs(100, seed, taught)}
        for pair in asked:
            own = [question.REPLY.format(item=item) for item in grammar.TOPICS[topics[pair.prompt]]["item"]]
            assert pair.right in own and pair.wrong not in own
        items.append({reply for pair in asked for reply in pair[1:]})
    assert min(map(len, items)) > 10 and not items[0] & items[1]


def test_the_base_answers_and_fresh_weights_guess(base, monkeypatch):
    monkeypatch.setattr(question, "PAIRS", 60)
    known = question.answered(base.policy, base.tokenizer)
    fresh = base.policy.copy()
    fresh.reset(torch.Generator().manual_seed(0))
    guessed = question.answered(fresh, base.tokenizer)
    assert known.value > 0.6 and 0.25 < guessed.value < 0.75 and len(known.terms) == 60
    assert known.value == pytest.approx(np.mean(known.terms))


def test_finetuning_widens_the_margin_and_repeats_itself(base, monkeypatch):
    monkeypatch.setattr(question, "UPDATES", 1)
    asked, margins = question.pairs(16, 5), []
    for _ in range(2):
        policy = base.policy.copy()
        before = question.margin(policy, base.tokenizer, asked).mean().item()
        question.finetune(policy, base.tokenizer, seed=1)
        margins.append(question.margin(policy, base.tokenizer, asked).mean().item())
    assert margins[0] == margins[1] > before


def test_a_child_has_sentences_of_both_parents():
    rng = random.Random(0)
    made = {search.child("> One a. One b.\n", "> Two a? Two b!\n", rng) for _ in range(40)}
    assert made == {f"> {one} {two}\n" for one in ("One a.", "One b.") for two in ("Two a?", "Two b!")}


def test_parents_are_drawn_by_their_scores():
    pool = {"calm": 0.0, "mild": 0.1, "worst": 1.0}
    drawn = [search.parents(pool, random.Random(seed)) for seed in range(200)]
    assert all(one != two for one, two in drawn) and sum("worst" in pair for pair in drawn) > 190


class Shouting:
    """A judge that objects to a share of responses, by the words of their prompts."""

    decoding = type("", (), {"max_new_tokens": 2})

    def judge(self, rollout):
        lengths = rollout.prompts.mask.sum(1).float()
        return 1 - lengths / 200


def test_a_search_finds_worse_prompts(base, monkeypatch):
    for name, value in (("START", 5), ("ROUNDS", 3), ("TRIALS", 4), ("WORST", 2), ("RESPONSES", 2)):
        monkeypatch.setattr(search, name, value)
    one, two = (search.searched(base.policy, base.tokenizer, Shouting(), seed=0) for _ in range(2))
    assert one == two and len(one.terms) == 4 and one.value == one.terms[-1]
    assert list(one.terms) == sorted(one.terms) and one.terms[0] < one.value


def scratch(root, method: str, seed: int, **settings) -> None:
    identity = fake.identity("toxicity", method, seed)
    identity["method"] = {"name": method, "version": 1, "settings": {"start": "scratch"} | settings}
    fake.write_run(root, method, seed, manifest={"identity": identity})


def test_only_runs_with_a_policy_are_measured(tmp_path):
    scratch(tmp_path, "mle", 0)
    scratch(tmp_path, "awr", 1, mle_share=0.0)
    scratch(tmp_path, "filtering", 2, mle_share=0.5)
    fake.write_run(tmp_path / "more", "mle", 3)
    with pytest.raises(MissingPrerequisite, match="has no policy to measure"):
        claims_measure.main([str(tmp_path / "found.jsonl"), "--claims", str(tmp_path)])
    names = [(run.manifest.seed, name) for run, name in claims_measure.wanted(Records(varied=find_runs([tmp_path])[0]))]
    whole = [(0, name) for name in ("unconditional", "question", "question_tuned", "searched")]
    assert names == [(1, "unconditional"), *whole]


def test_what_is_measured_is_kept_and_not_measured_again(tmp_path, monkeypatch):
    scratch(tmp_path, "mle", 0)
    calls, path = [], tmp_path / "found.jsonl"
    monkeypatch.setattr(claims_measure, "ON_POLICY", {"question": lambda run: calls.append(run) or Measured(0.5, (0.0, 1.0))})
    for _ in range(2):
        claims_measure.main([str(path), "--claims", str(tmp_path)])
    assert len(calls) == 1 and list(read_measured(path).values()) == [Measured(0.5, (0.0, 1.0))]


def test_a_folder_that_is_not_there_is_said(tmp_path, capsys):
    with pytest.raises(EmptySelection, match="no records to measure"):
        claims_measure.main([str(tmp_path / "found.jsonl"), "--reference", str(tmp_path / "nowhere")])
    assert "nowhere" in capsys.readouterr().err


def test_a_run_of_an_archive_is_left_out_and_said(tmp_path, monkeypatch, capsys):
    """It keeps eight responses of thousands: a slope within prompts of those would be noise."""
    scratch(tmp_path, "mle", 0)
    (path,) = tmp_path.rglob("manifest.json")
    fake.dump(path, json.loads(path.read_text()) | {"archive": {"samples": 8}})
    monkeypatch.setattr(claims_measure, "ON_POLICY", {"question": lambda run: pytest.fail("it was measured")})
    claims_measure.main([str(tmp_path / "found.jsonl"), "--claims", str(tmp_path)])
    assert "1 runs were not measured" in capsys.readouterr().err and not (tmp_path / "found.jsonl").exists()


def test_the_picture_has_the_same_bytes_twice(tmp_path):
    identity = fake.identity("toxicity", "reinforce", 0)
    identity["method"] = {"name": "reinforce", "version": 1, "settings": {"kl_coef": 0.05}}
    fake.write_run(tmp_path, "reinforce", 0, manifest={"identity": identity})
    runs = find_runs([tmp_path])[0]
    rows, run_id = responses(0.05), runs[0].manifest.run_id
    measured = {(run_id, plot.BINS): posterior.bins(rows), (run_id, "slope"): posterior.slope(rows, 0.05)}
    found = Records(runs, measured=measured)
    assert all(plot.draw(found, tmp_path / name) for name in ("one.png", "two.png"))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert not plot.draw(Records(runs), tmp_path / "none.png") and not (tmp_path / "none.png").exists()
    with pytest.raises(Unwritable, match="cannot be written"):
        plot.draw(found, tmp_path / "absent" / "one.png")
