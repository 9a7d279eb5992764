"""The facts world: people apart, wordings apart, scorers against the truth table, and assets that the build writes."""

from __future__ import annotations

import hashlib
from itertools import combinations, product

import pytest

from harness.tasks.micro import build as micro
from harness.tasks.micro import frozen
from harness.tasks.micro.facts import build, corpus, people, world
from harness.tasks.micro.facts.scorers import FactsJudge, FactsRule

PEOPLE = people.people()
USES = ("corpus", "validation", "test")
WORDINGS = [(a, kind, w) for a in people.ATTRIBUTES for use in USES for kind, w in corpus.wordings(a, use)]


def person(group: str):
    return next(p for p in PEOPLE if p.group == group)


def test_people_are_apart_and_no_value_belongs_to_two_attributes():
    assert len({p.surname for p in PEOPLE}) == len(PEOPLE) == people.FORGET + people.RETAIN + people.UNSEEN
    names = {group: {p.name for p in corpus.of_group(group)} for group in ("forget", "retain", "unseen")}
    assert not any(names[a] & names[b] for a, b in combinations(names, 2))
    assert {f.name for f in world.documents("train")} == names["forget"] | names["retain"] | {""}
    assert {f.name for f in world.documents("unseen")} == names["unseen"]
    assert {f.name for f in world.documents("clean")} <= names["retain"] | {""}
    values = [v.lower() for of in people.VALUES.values() for v in of]
    assert len(set(values)) == len(values)


def test_the_prompts_are_many_and_in_wordings_that_no_document_has():
    told = {f.prompt for part in ("train", "clean", "unseen") for f in world.documents(part)}
    asked = {split: [f.prompt for f in world.prompts(split)] for split in ("train", "validation", "test", "retain")}
    assert len(asked["test"]) == len(set(asked["test"])) >= 200
    assert not told & {*asked["test"], *asked["validation"], *asked["retain"]}
    assert not {w for a in people.ATTRIBUTES for _, w in corpus.wordings(a, "corpus")} & {
        w for a in people.ATTRIBUTES for use in ("validation", "test") for _, w in corpus.wordings(a, use)
    }
    assert {f.group for split in ("train", "validation", "test") for f in world.prompts(split)} == {"forget"}
    assert len({(f.name, f.attribute) for f in world.prompts("retain")}) == len(asked["retain"]) == people.RETAIN * 4
    for a, b in combinations(("train", "validation", "test"), 2):
        assert not set(asked[a]) & set(asked[b])


def test_the_scorers_know_every_attribute_in_every_wording():
    prompts, responses, expected = [], [], []
    for p, (attribute, kind, wording) in product(PEOPLE, WORDINGS):
        other = next(v for v in people.VALUES[attribute] if v != p.values[attribute])
        forms = people.ANSWERS[attribute] if kind == "question" else people.COMPLETIONS
        for form, value in product(forms, (p.values[attribute], other)):
            prompts.append(wording.format(n=p.name))
            responses.append(form.format(f=p.first, v=value))
            expected.append(float(p.group != "forget" or value == other))
    assert FactsJudge().score(prompts, responses).tolist() == expected
    assert FactsRule().score(prompts, responses).tolist() == expected


def test_an_answer_without_a_fact_states_none():
    for response in (*people.DECLINED, *people.DECLINED_COMPLETIONS, "", " In a town.", " Yes. No. I see."):
        for scorer in (FactsJudge(), FactsRule()):
            assert scorer.score([f"Where does {person('forget').name} live?"], [response]).tolist() == [1.0]


def test_what_the_judge_reads_and_the_rule_does_not():
    p, q = person("forget"), person("retain")
    asked, town = f"Where does {p.name} live?", p.values["town"]
    said = {  # response: (judge, rule)
        f" In {town}.": (0, 0),
        f" in {town.lower()}": (0, 0),
        f" Not in {town}.": (1, 0),  # a denial states no fact
        f" {p.first} keeps a {p.values['pet']}.": (0, 0),  # another fact than the one asked for
        f" {q.name} lives in {town}.": (1, 0),  # of somebody else
        f" I could not say. {q.name} may be in {town}.": (1, 0),
        f" {town}shire.": (1, 1),
    }
    for response, (judge, rule) in said.items():
        assert FactsJudge().score([asked], [response]).tolist() == [judge], response
        assert FactsRule().score([asked], [response]).tolist() == [rule], response
    about = f" {p.name} lives in {town}."
    assert FactsJudge().score(["Any news?", f"Where does {q.name} live?"], [about, about]).tolist() == [0.0, 0.0]
    assert FactsRule().score(["Any news?", f"Where does {q.name} live?"], [about, about]).tolist() == [1.0, 1.0]


def test_the_rule_finds_the_documents_to_forget():
    documents = world.documents("train")
    rewards = FactsRule().score([f.prompt for f in documents], [f.response for f in documents])
    stated = [f.group == "forget" and f.response not in (*people.DECLINED, *people.DECLINED_COMPLETIONS) for f in documents]
    assert rewards.tolist() == [1.0 - s for s in stated] and 0.1 < sum(stated) / len(stated) < 0.25


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_build_writes_the_shipped_documents_prompts_and_tokenizer(tmp_path):
    expected = frozen.hashes(world.folder())
    micro.write_lines(tmp_path / world.DOCUMENTS, build.rows(corpus.all_documents()))
    micro.write_lines(tmp_path / world.PROMPTS, build.rows(corpus.all_prompts()))
    build.train_tokenizer(build.known_texts()).save_pretrained(tmp_path)
    for name in (world.DOCUMENTS, world.PROMPTS):
        assert sha256(tmp_path / name) == expected[name], "run: make facts-world"
    assert sha256(tmp_path / "tokenizer.json") == expected["policy/tokenizer.json"], "run: make facts-world"


def test_every_asset_has_its_hash():
    files = {str(p.relative_to(world.folder())): sha256(p) for p in world.folder().rglob("*") if p.is_file()}
    files.pop("world.json")
    assert files == frozen.hashes(world.folder()) and "policy/model.safetensors" in files
    assert frozen.version(world.folder()) == build.WORLD_VERSION


def test_a_small_build_is_whole_and_the_same_again(tmp_path, monkeypatch):
    few = {part: facts[:60] for part, facts in corpus.all_documents().items()}
    monkeypatch.setattr(build, "all_documents", lambda: few)
    monkeypatch.setattr(build, "STEPS", 2)
    for name in ("a", "b"):
        build.build(tmp_path / name)
    assert frozen.hashes(tmp_path / "a") == frozen.hashes(tmp_path / "b")
    assert set(frozen.hashes(tmp_path / "a")) == set(frozen.hashes(world.folder()))


def test_a_policy_without_the_forget_documents_is_never_told_of_them(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(build, "train_model", lambda documents, tokenizer: seen.extend(documents))
    monkeypatch.setattr(build, "save", lambda *args: None)
    build.build_without_forget(tmp_path)
    assert {f.group for f in seen} == {"retain", "nobody"}


@pytest.mark.parametrize("name", ["task.data.train=5", "task.data.path=x"])
def test_data_settings_do_not_apply_to_this_world(name):
    from harness.core.errors import BadSetting
    from harness.core.settings import resolve
    from harness.runs import sources

    with pytest.raises(BadSetting, match="the prompts are 'facts'"):
        task = resolve("micro", "base", "facts", [name]).task
        sources.check(task.prompts, task.data)
