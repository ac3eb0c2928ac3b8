"""The checks of lesson 2: right on the solution, and with a message on each typical mistake."""

import math
from typing import Any

import pytest
import torch

from rlhf_mini.classroom import notebook
from rlhf_mini.classroom.checks.lesson2 import SPLITS, check_larger, check_leaks, check_loss
from rlhf_mini.classroom.reward import Errors, Fit, Point

BEATS_B, BEATS_C = math.log(1 + math.e), math.log(1 + math.exp(-2))  # A's margins are -1 and 2
LOSS = (BEATS_B + BEATS_C) / 3
TIE = math.log(1 + math.exp(-3))  # as if B were better than C
LEAKS = [True, False, True, False]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# --- exercise 1 ------------------------------------------------------------------------------------------------------


def test_a_loss() -> None:
    assert check_loss(LOSS).state == check_loss(0.48).state == check_loss(torch.tensor(LOSS)).state == "right"
    assert check_loss(...).state == "todo"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (3 * LOSS, "sum over the pairs"),
        (3 * LOSS / 2, "ordered pairs only"),
        ((3 * LOSS + TIE) / 3, "tied pair must add nothing"),
        ((3 * LOSS + TIE + 3) / 3, "tied pair must add nothing"),  # C better: -log sigmoid(-3) = 3 - log sigmoid(3)
        ((3 * LOSS + math.log(2)) / 3, "tied pair must add nothing"),
        ((BEATS_B - 1 + BEATS_C + 2) / 3, "rank 1 is the best"),
        (-LOSS, "negative"),
        (LOSS / math.log(10), "natural logarithm"),
        (LOSS / math.log(2), "natural logarithm"),
        ((sigmoid(-1) + sigmoid(2)) / 3, "logarithm"),
        (0.1, "two margins"),
        ("0.48", "TypeError"),
    ],
)
def test_what_is_wrong_with_a_loss(answer: Any, message: str) -> None:
    verdict = check_loss(answer)
    assert verdict.state == "wrong" and message in verdict.text
    assert "0.48" not in verdict.text


# --- exercise 2 ------------------------------------------------------------------------------------------------------


def fitted(training: float, validation: float) -> Fit:
    return Fit(None, [Point(1.0, Errors(training, 0.0), Errors(validation, 0.0))], 0.0, 0)


FLOOR = 0.2
FITS = {"few": fitted(0.05, 0.4), "many": fitted(0.35, 0.38), "even": fitted(0.3, 0.405)}
"""Bias -0.15, 0.15 and 0.1; variance 0.35, 0.03 and 0.105."""


def test_bias_and_variance() -> None:
    for even in ("bias", "variance"):  # too close to call
        assert check_larger({"few": "variance", "many": "bias", "even": even}, FITS, FLOOR).state == "right"
    assert check_larger({"few": "variance", "many": ..., "even": "bias"}, FITS, FLOOR).state == "todo"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"few": "bias", "many": "bias", "even": "bias"}, "few: "),
        ({"few": "variance", "many": "variance", "even": "bias"}, "many: "),
        ({"few": "variance", "many": "noise", "even": "bias"}, "not 'noise'"),
        ({"few": "variance", "many": "bias"}, "'even' is missing"),
        ({"few": "variance", "many": "bias", "even": "bias", "more": "bias"}, "there is no 'more'"),
    ],
)
def test_what_is_wrong_with_bias_and_variance(answers: dict[str, Any], message: str) -> None:
    verdict = check_larger(answers, FITS, FLOOR)
    assert verdict.state == "wrong" and message in verdict.text


# --- exercise 3 ------------------------------------------------------------------------------------------------------


def leaks(*answers: Any) -> dict[str, Any]:
    return dict(zip(SPLITS, answers, strict=True))


def test_splits() -> None:
    assert check_leaks(leaks(*LEAKS)).state == "right"
    assert check_leaks(leaks(True, False, ..., False)).state == "todo"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([False, False, True, False], "B over C"),
        ([True, True, True, False], "could be about a prompt of validation"),
        ([True, False, False, False], "ranked the same responses"),
        ([True, False, True, True], "who else has ranked"),
    ],
)
def test_what_is_wrong_with_splits(answers: list[bool], message: str) -> None:
    verdict = check_leaks(leaks(*answers))
    assert verdict.state == "wrong" and message in verdict.text


def test_the_lesson_asks_about_these_splits() -> None:
    lesson = notebook.read(notebook.source_of(2))
    (exercise,) = (cell for cell in lesson.cells if cell.id == "exercise-leaks")
    assert all(f'"{split}": ...' in exercise.source for split in SPLITS)
