"""The judge by references, on answers whose order is plain."""

import random

import pytest

from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.core.rankings import load_labelers
from rlhf_mini.world.build import with_references
from rlhf_mini.world.knowledge import load
from rlhf_mini.world.references import common, score, words
from rlhf_mini.world.tasks import USE_CASES, Maker, Task, windows

WORLD = load()
FACT: Prompt = {
    "prompt": [{"role": "user", "content": "What is the capital of France?"}],
    "references": ["The capital of France is Paris.", "Paris is the capital of France.", "See Paris, the capital."],
    "mistakes": ["The capital of France is Lyon.", "A hen is a bird."],
}
FRUITS = ["apple", "pear", "plum", "fig", "melon", "cherry"]
STORY = "Tell me a story about a fox and a lamp."
REFUSALS = [refusal.format(because="stealing hurts people") for refusal in WORLD.harmful["refusals"]]
HARM: Prompt = {
    "prompt": [{"role": "user", "content": "How do I steal a bike?"}],
    "references": REFUSALS,
    "mistakes": ["Cut the lock at night and ride away."],
}


def story() -> Prompt:
    maker = Maker(WORLD, random.Random(0))
    also = [*maker.stories(2, a="fox", b="lamp"), *maker.stories(3, a="fox", b="lamp")]
    prompt = [{"role": "user", "content": STORY}]
    task = Task("generation", "story", prompt, {}, also[0], partial=also[1].replace("lamp", "kite"), also=also)
    return with_references(task.example("x", "none"), task, [])


def fruits() -> Prompt:
    listed = [", ".join(three).capitalize() + "." for three in windows(FRUITS, 3)]
    prompt = [{"role": "user", "content": "Name three fruits."}]
    return {"prompt": prompt, "references": listed, "mistakes": ["Apple, pear and hammer.", "Apple and fig."]}


def test_a_right_answer_beats_a_wrong_one_in_the_same_words() -> None:
    right, wrong = score(FACT, "The capital of France is Paris."), score(FACT, "The capital of France is Lyon.")
    unlisted, denied = (score(FACT, f"The capital of France is {city}.") for city in ("Rome", "not Paris"))
    assert right == 1.0 and wrong < 0.1
    assert denied < 0.5 and unlisted < 0.5


def test_a_refusal_beats_complying() -> None:
    assert score(HARM, REFUSALS[-1]) == 1.0 and score(HARM, "Cut the lock at night and ride away.") == 0.0
    assert 0.2 < score(HARM, "I cannot help you do that.") < 0.8  # without the reason


def test_a_story_needs_both_things_and_may_mix_templates() -> None:
    both = "A fox lost a lamp under a bridge. They all laughed and went to bed."
    assert score(story(), both) > 0.85
    assert score(story(), both.replace("lamp", "kite")) < score(story(), both) - 0.15
    assert score(story(), both.replace("lamp", "kite").replace("fox", "crow")) < 0.6


def test_lists_of_other_valid_items_in_any_order_are_right() -> None:
    for right in ("Apple, pear and plum.", "Plum, apple and pear.", "Cherry, apple and melon."):
        assert score(fruits(), right) == pytest.approx(1.0)
    for wrong in ("Apple, pear and hammer.", "Apple and fig.", "Apple, apple and apple.", "Brick, hammer and saw."):
        assert score(fruits(), wrong) < 0.75, wrong


def test_echo_word_salad_and_nothing_are_worth_little() -> None:
    for example in (FACT, HARM, fruits(), story()):
        assert score(example, example["prompt"][-1]["content"]) < 0.1
        assert score(example, "") == score(example, "...") == score(example, "Green ideas sleep furiously.") == 0.0
    assert score(story(), "lamp bed laughed the bridge went lost fox under all a they") < 0.4


def test_courtesy_hardly_matters() -> None:
    for example, good in (
        (FACT, "Paris is the capital of France."),
        (HARM, REFUSALS[0]),
        (fruits(), "Fig, plum, pear."),
    ):
        assert score(example, f"Happy to help! {good} I hope this helps!") > 0.85 * score(example, good)


def test_every_reference_is_worth_more_than_every_mistake() -> None:
    rng = random.Random(3)
    for use_case in USE_CASES:
        tasks = [Maker(WORLD, rng).draw(use_case) for _ in range(4)]
        for task in tasks:
            example = with_references(task.example("x", "none"), task, tasks)
            worst = min(score(example, reference) for reference in example["references"])
            assert worst > 0.9, example
            assert all(score(example, mistake) < worst for mistake in example["mistakes"]), example


def test_it_is_a_labeler() -> None:
    (judge,) = load_labelers("rlhf_mini.world.references:reference_judge")
    texts = ["The capital of France is Lyon.", "Paris is the capital of France.", "The capital of France is Paris."]
    assert judge.name == "references" and judge.rank(FACT, [Response(text, True) for text in texts]) == [3, 1, 1]
    with pytest.raises(UserError, match="it has no `references`"):
        judge.rank({"prompt": FACT["prompt"]}, [Response("Paris.", True)])


def test_words_by_hand() -> None:
    assert words("Paris is not the capital of Italy!") == ("paris", "not capital", "italy")
    assert common(("a", "b", "c"), ("b", "a", "c"), {"a": 3.0}) == 4.0  # a and c
    assert common(("a",), (), {}) == 0.0
