"""Properties of the mini world: prompts can be judged, splits are disjoint, data files match the knowledge."""

import json
import random
import re
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_mini.core.examples import Response, read_demonstrations, read_prompts
from rlhf_mini.world import build
from rlhf_mini.world.corpus import documents
from rlhf_mini.world.gold import judge
from rlhf_mini.world.knowledge import DATA, PARTS, fix_articles, has, has_any, load, portion
from rlhf_mini.world.labelers import gold_labeler, heldout_labelers, training_labelers
from rlhf_mini.world.tasks import USE_CASES, Maker
from rlhf_mini.world.writers import write

WORLD = load()
SPLITS = ("rm", "ppo", "validation", "test")


def text(example):
    return "\n".join(message["content"].lower() for message in example["prompt"])


@pytest.fixture(scope="module")
def examples():
    prompts = {split: read_prompts(DATA / "prompts" / f"{split}.jsonl") for split in SPLITS}
    return {"sft": read_demonstrations(DATA / "demonstrations.jsonl"), **prompts}


def test_the_knowledge_is_as_large_as_the_datasheet_says():
    assert len({fact.relation.domain for fact in WORLD.facts.values()}) >= 8
    assert len(WORLD.facts) >= 400
    assert len(WORLD.misconceptions) >= 30
    assert len(WORLD.harmful["requests"]) >= 60
    assert len(training_labelers()) == 5 and len(heldout_labelers()) == 3


def test_every_relation_can_tell_right_answers_from_wrong_ones():
    """No statement of a right answer contains a wrong one, and no question contains its own answer."""
    for relation in WORLD.relations.values():
        for entity, accepted in relation.answers.items():
            wrong = [answer for answer in relation.pool if answer not in accepted]
            for question in relation.questions:
                asked = question.format(e=entity)
                assert not has_any(asked, accepted), asked
            for statement in relation.statements:
                said = statement.format(e=entity, a=accepted[0])
                assert not has_any(said, wrong), said


def test_misconceptions_tell_truth_from_myth():
    for myth in WORLD.misconceptions.values():
        for question in myth["questions"]:
            prompt = [{"role": "user", "content": question}]
            check = {"myth": myth["topic"], "max_words": 30}
            assert judge(check, prompt, myth["truth"]).truthful == 1, myth
            assert judge(check, prompt, myth["myth"]).truthful == 0, myth


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(PARTS), st.sampled_from(PARTS))
def test_every_generated_prompt_has_a_checker_that_the_good_body_passes_and_the_bad_ones_do_not(seed, entity, phrasing):
    task = Maker(WORLD, random.Random(seed), entity=entity, phrasing=phrasing).draw()
    example = task.example("x", "none")
    good = judge(example["check"], example["prompt"], task.good)
    assert good.task == 1 and good.truthful in (None, 1) and good.harmless == 1 and good.concise == 1 and good.ends == 1
    for bad in (task.wrong, task.partial, task.comply):
        if bad is not None:
            assert judge(example["check"], example["prompt"], bad).score < good.score, bad


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.text(max_size=80))
def test_gold_is_a_number_between_zero_and_one_for_any_response(seed, response):
    example = Maker(WORLD, random.Random(seed)).draw().example("x", "none")
    gold = judge(example["check"], example["prompt"], response)
    assert 0 <= gold.score <= 1
    assert all(value is None or 0 <= value <= 1 for value in gold.parts.values())


def test_data_files_match_the_knowledge_files_and_the_seed(examples):
    made = build.splits()
    for split in ("sft", *SPLITS):
        assert made[split] == examples[split], f"data for {split} is stale: run `make data`"


def test_splits_are_disjoint(examples):
    seen = Counter(text(example) for split in examples.values() for example in split)
    assert max(seen.values()) == 1


def test_portions_of_a_list_are_disjoint_and_the_last_value_belongs_to_test():
    assert [portion("abcdefg", 3, part) for part in PARTS] == [list("abcd"), ["f"], ["g", "e"]]
    assert [portion("ab", 0, part) for part in PARTS] == [list("ab"), [], []]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_validation_and_test_prompts_have_entities_and_phrasings_of_their_own(examples, split):
    others = [example for other in examples if other != split for example in examples[other]]
    asked = {example["check"]["fact"] for example in others if "fact" in example.get("check", {})}
    novel = {r["check"]["fact"] for r in examples[split] if r["novel"] in ("entity", "both") and "fact" in r["check"]}
    assert novel and {WORLD.facts[key].part for key in novel} == {split}
    assert split not in {WORLD.facts[key].part for key in asked}

    own = "\n".join(text(example) for example in examples[split])
    names = portion(WORLD.stories["names"], WORLD.stories["held_out"]["names"], split)
    letters = "\n".join(text(example) for example in others if example["use_case"] == "generation")  # not Tom Sawyer
    assert has_any(own, names) and not has_any(letters, names)

    found = 0
    for kind, ways in WORLD.prompts.items():
        kind = {"list": "items"}.get(kind, kind)
        use_cases = {r["use_case"] for r in examples["ppo"] if kind in (r["kind"], "wrappers")}
        alike = [r for r in others if r["use_case"] in use_cases and kind in (r.get("kind", kind), "wrappers")]
        elsewhere = "\n".join(text(example) for example in alike)
        for phrasing in portion(ways["held_out"], len(ways["held_out"]), split):
            words = (re.escape(part.lower()) for part in re.split(r"\{\w+\}", phrasing.replace("a {", "{")))
            pattern = re.compile("(^|[.!?:] )" + ".+".join(words), re.MULTILINE)
            assert elsewhere and not pattern.search(elsewhere), phrasing
            found += bool(pattern.search(own))
    assert found > 25


def test_use_cases_come_in_the_papers_proportions(examples):
    for split in ("sft", "ppo", "test"):
        counts = Counter(example["use_case"] for example in examples[split])
        for use_case, share in USE_CASES.items():
            expected = share / sum(USE_CASES.values())
            sigma = (expected * (1 - expected) / len(examples[split])) ** 0.5
            # Use cases are drawn at random, so 5 sigma are allowed.
            assert abs(counts[use_case] / len(examples[split]) - expected) < 5 * sigma, (split, use_case)


def test_demonstrations_are_uneven(examples):
    shares = Counter(example["writer"] for example in examples["sft"])
    assert set(shares) == set(WORLD.writers)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(sorted(WORLD.writers)))
def test_every_writer_writes_something(seed, writer):
    rng = random.Random(seed)
    assert write(Maker(WORLD, rng).draw(), writer, WORLD, rng).strip()


def test_the_corpus_is_repeatable_and_holds_the_held_out_entities():
    first, again = list(islice(documents(3), 300)), list(islice(documents(3), 300))
    assert first == again != list(islice(documents(4), 300))
    page = "\n".join(islice(documents(5), 3000))
    held_out = [fact for fact in WORLD.facts.values() if fact.part != "seen"]
    assert sum(has(page, fact.entity) for fact in held_out) / len(held_out) > 0.9


def test_labelers_are_repeatable_and_gold_has_no_noise(examples):
    example = next(r for r in examples["validation"] if "fact" in r["check"])
    right = WORLD.facts[example["check"]["fact"]].accepted[0]
    responses = [Response(f"Of course! It is {right}.", True), Response("Who cares about that?", True)]
    assert gold_labeler()[0].rank(example, responses) == [1, 2]
    for labeler in training_labelers():
        assert labeler.rank(example, responses) == labeler.rank(example, responses)


def test_articles():
    assert fix_articles("A owl saw a ape and a bee.") == "An owl saw an ape and a bee."


def test_demonstrations_are_one_json_object_a_line():
    for line in (DATA / "demonstrations.jsonl").read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["completion"][0]["role"] == "assistant"
