"""Lesson 6's data sets: ROUGE-L and the filter, by hand; a few generated instructions from the real base."""

import random
from pathlib import Path

import pytest

from rlhf_mini.classroom.data import (
    Pool,
    answer,
    bag,
    continue_lists,
    draw_list,
    epochs,
    generate_instructions,
    malformed,
    of_writer,
    rouge_l,
    words,
)
from rlhf_mini.core.examples import Demonstration, read_prompts
from rlhf_mini.evaluation.responses import Stage, load_stage

SEEDS = ["Name three birds.", "What is the capital of France?", "Write a poem about the sea.", "Say tree two times."]


@pytest.fixture(scope="module")
def base() -> Stage:
    return load_stage(Path("data/base"), "base")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a b c", "a b c", 1.0),
        ("a b c d", "a x c", 2 * 2 / 7),  # a c
        ("a b c", "c b a", 2 * 1 / 6),
        ("a b", "c d", 0.0),
        ("Name three birds.", "name, three? BIRDS", 1.0),
        ("", "a", 0.0),
    ],
)
def test_rouge_l(first: str, second: str, expected: float) -> None:
    assert rouge_l(words(first), words(second)) == rouge_l(words(second), words(first)) == pytest.approx(expected)


def test_a_bag_counts_words_as_often_as_they_come() -> None:
    assert len(bag("the dog sees the cat") & bag("the the the")) == 2


@pytest.mark.parametrize(
    ("instruction", "fault"),
    [
        ("Name three rivers.", None),
        ("What is the capital of Peru?", "too similar to another"),  # 5 of 6 words: 10 / 12
        ("Name two birds.", None),  # 2 of 3 words: 4 / 6
        ("Name three birds!", "too similar to another"),
        ("name three rivers.", "not one whole instruction"),
        ("Name three", "not one whole instruction"),
        ("anna: Name three rivers.", "not one whole instruction"),
        ("Name rivers.", "not one whole instruction"),
        ("", "not one whole instruction"),
        ("A " * 41 + "b.", "not one whole instruction"),
    ],
)
def test_the_filter(instruction: str, fault: str | None) -> None:
    assert Pool(SEEDS).fault(instruction) == fault
    assert malformed(instruction) == (fault == "not one whole instruction")


def test_prompts_of_the_evaluation_are_dropped_in_any_wrapping() -> None:
    asked = next(each["prompt"] for each in read_prompts("data/prompts/test.jsonl") if len(each["prompt"]) == 1)
    assert Pool([]).fault(asked[0]["content"]) == "a prompt of the evaluation"
    assert Pool([]).fault(f"Hello! {asked[0]['content']} Thank you!") == "a prompt of the evaluation"


def test_what_is_kept_is_compared_with_from_then_on() -> None:
    pool = Pool(SEEDS)
    for instruction in ("Name two birds.", "Name two birds.", "Hm"):
        pool.offer(instruction)
    assert pool.kept == ["Name two birds."] and pool.offered == 3
    assert pool.dropped == {"too similar to another": ["Name two birds."], "not one whole instruction": ["Hm"]}


def test_lists_hold_seeds_and_one_generated_instruction() -> None:
    pool = Pool([str(number) for number in range(20)])
    assert len(set(draw_list(pool, random.Random(0)))) == 5
    pool.kept = ["new", "newer"]
    drawn = [draw_list(pool, random.Random(seed)) for seed in range(20)]
    assert all(len(set(each)) == 5 and len({"new", "newer"} & set(each)) == 1 for each in drawn)
    assert {each.index(one) for each in drawn for one in each if "new" in one} == set(range(5))  # in any place


def test_the_base_writes_new_instructions(base: Stage) -> None:
    pool = generate_instructions(base, SEEDS, 4, lists=16, rounds=2)
    again = generate_instructions(base, SEEDS, 4, lists=16, rounds=2)
    assert pool.kept == again.kept and 1 <= len(pool.kept) <= 4
    assert all(Pool(SEEDS).fault(instruction) is None for instruction in pool.kept)


def test_a_list_longer_than_the_context_is_cut_at_its_beginning(base: Stage) -> None:
    (line,) = continue_lists(base, [["What does a baker make?"] * 60], 0.7, 0)
    assert "\n" not in line


def test_answers_that_do_not_end_are_left_out(base: Stage) -> None:
    """The base knows no end of a turn in a chat; it seldom ends."""
    found = answer(base, SEEDS * 4)
    assert len(found) < 16
    for each in found:
        assert each["prompt"][0]["content"] in SEEDS and each["completion"][0]["content"].strip()


def test_all_sizes_get_as_many_steps() -> None:
    assert epochs(1000, 119, batch_size=32, validation_share=0.05) == pytest.approx(119 * 32 / 950)
    assert epochs(100, 119) == pytest.approx(10 * epochs(1000, 119))


def test_demonstrations_of_a_writer() -> None:
    def one(writer: str) -> Demonstration:
        made: Demonstration = {
            "prompt": [{"role": "user", "content": "Hi"}],
            "completion": [{"role": "assistant", "content": "Hello"}],
        }
        return made | {"writer": writer}  # type: ignore[return-value]

    assert of_writer([one("careful"), one("grumpy")], "grumpy") == [one("grumpy")]
