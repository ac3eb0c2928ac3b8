"""The checks of lesson 6: right on the solution, and with a message on each typical mistake."""

from typing import Any

import numpy as np
import pytest

from rlhf_mini.classroom.checks.lesson6 import (
    FIRST_BONUS,
    WORD_BONUS,
    check_biases,
    check_fair_wins,
    check_rouge,
    unknown_judge,
)
from rlhf_mini.core.examples import Prompt, Response

PAIRS = [
    ("Write a poem about the sea.", "Write a short poem about the moon."),
    ("What sound does a bee make?", "Which sound do bees make?"),
    ("The dog sees the cat.", "The cat sees the dog."),
]
RIGHT = [10 / 13, 4 / 11, 6 / 10]  # five, two and three words in common


def rouge(*found: Any) -> dict[tuple[str, str], Any]:
    return dict(zip(PAIRS, found, strict=True))


def test_rouge_is_right_to_two_places() -> None:
    assert check_rouge(rouge(*RIGHT)).state == check_rouge(rouge(0.77, 0.36, 0.6)).state == "right"
    assert check_rouge(rouge(0.77, ..., 0.6)).state == "todo"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ((5, 0.36, 0.6), "number of common words"),
        ((5 / 7, 0.36, 0.6), "words of one text"),
        ((0.77, 0.36, 0.8), "any order"),
        ((0.77, 0.36, 1.0), "any order"),
        ((0.77, 0.5, 0.6), "6 and 5 words"),
        ((0.77, None, 0.6), "TypeError"),
    ],
)
def test_what_is_wrong_with_rouge(found: tuple[Any, ...], message: str) -> None:
    verdict = check_rouge(rouge(*found))
    assert verdict.state == "wrong" and message in verdict.text
    assert not any(f"{solution:.2f}" in verdict.text for solution in RIGHT)


def test_fair_wins() -> None:
    assert check_fair_wins(lambda a, b: ((a > 0) * 1.0 + (b > 0)) / 2).state == "right"
    assert check_fair_wins(
        lambda a, b: [float(x > 0) / 2 + float(y > 0) / 2 for x, y in zip(a, b, strict=True)]
    ).state == ("right")
    assert check_fair_wins(lambda a, b: ...).state == "todo"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda a, b: a > 0, "first order only"),
        (lambda a, b: (a + b) / 2, "mean margins"),
        (lambda a, b: a + b > 0, "larger one decides"),
        (lambda a, b: (a > 0) * 1 + (b > 0) * 1, "counts 2"),
        (lambda a, b: ((a > 0) * 1.0 + (b < 0)) / 2, "both margins are ours"),
        (lambda a, b: ((a > 0) + (b > 0)) / 2, "True + True is True"),
        (lambda a, b: 0.5, "one number for each of the 4 pairs"),
        (lambda a, b: np.zeros(4), "gave 0"),
        (lambda a, b: a.missing, "AttributeError"),
    ],
)
def test_what_is_wrong_with_fair_wins(answer: Any, message: str) -> None:
    verdict = check_fair_wins(answer)
    assert verdict.state == "wrong" and message in verdict.text


def test_the_unknown_judge_gives_itself_away_as_the_solution_says() -> None:
    asked: list[Prompt] = [{"prompt": [{"role": "user", "content": "Name three birds."}], "check": {"max_words": 9}}]
    short, long = [Response("no", True)], [Response("no no no", True)]
    asked[0]["check"] = {"mention": [["bird"]], "max_words": 9}
    judge = unknown_judge()
    first_bonus = judge(asked, short, short)[0]
    word_bonus = (judge(asked, long, short)[0] - first_bonus) / 2
    assert check_biases(first_bonus, word_bonus).state == "right"


@pytest.mark.parametrize(
    ("first_bonus", "word_bonus", "state", "message"),
    [
        (..., ..., "todo", ""),
        (FIRST_BONUS, ..., "todo", ""),
        (-FIRST_BONUS, WORD_BONUS, "wrong", "first_bonus: mind the sign"),
        (FIRST_BONUS - 2 * WORD_BONUS, WORD_BONUS, "wrong", "differ in length"),
        (0.1, WORD_BONUS, "wrong", "compare an answer with itself"),
        (FIRST_BONUS, -WORD_BONUS, "wrong", "word_bonus: mind the sign"),
        (FIRST_BONUS, 2 * WORD_BONUS, "wrong", "two words"),
        (FIRST_BONUS, 0.5, "wrong", "two useless answers"),
    ],
)
def test_what_is_wrong_with_biases(first_bonus: Any, word_bonus: Any, state: str, message: str) -> None:
    verdict = check_biases(first_bonus, word_bonus)
    assert verdict.state == state and message in verdict.text
    if state == "wrong":
        assert str(FIRST_BONUS) not in verdict.text and str(WORD_BONUS) not in verdict.text
