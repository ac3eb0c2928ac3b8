"""The checks of lesson 7: right on the solution, and a message of its own for each typical mistake."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rlhf_mini.classroom.checks import Verdict
from rlhf_mini.classroom.checks.lesson7 import check_advantages, check_dpo, check_principles
from rlhf_mini.classroom.notebook import LESSONS, read

SOLUTIONS: dict[str, Any] = {"torch": torch}
for cell in read(LESSONS / "solutions" / "7_beyond_ppo.py").cells:
    if cell.cell_type == "code":
        exec(cell.source, SOLUTIONS)


def says(verdict: Verdict, state: str, text: str) -> None:
    assert verdict.state == state and text in verdict.text, verdict


def test_solutions_are_right() -> None:
    for verdict in (
        check_dpo(SOLUTIONS["dpo_loss"]),
        check_advantages(SOLUTIONS["rloo"], SOLUTIONS["grpo"]),
        check_principles(SOLUTIONS["needs"]),
    ):
        says(verdict, "right", "")


def test_stubs_are_not_done() -> None:
    dots: list[Any] = [...] * 4
    says(check_dpo(lambda c, r, sc, sr, beta: ...), "todo", "replace")  # type: ignore[arg-type,return-value]
    says(check_advantages(dots, dots), "todo", "all eight")
    says(check_principles(dict.fromkeys(SOLUTIONS["needs"], ...)), "todo", "all four")


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda c, r, sc, sr, beta: -F.logsigmoid(beta * (c - r)), "SFT's are missing"),
        (lambda c, r, sc, sr, beta: -F.logsigmoid((c - sc) - (r - sr)), "beta is missing"),
        (lambda c, r, sc, sr, beta: -F.logsigmoid(beta * ((r - sr) - (c - sc))), "sign"),
        (lambda c, r, sc, sr, beta: F.logsigmoid(beta * ((c - sc) - (r - sr))), "negative"),
        (lambda c, r, sc, sr, beta: -torch.sigmoid(beta * ((c - sc) - (r - sr))), "logarithm"),
        (lambda c, r, sc, sr, beta: -F.logsigmoid(beta * (c - sc) - (r - sr)), "first reward only"),
        (lambda c, r, sc, sr, beta: -F.logsigmoid(beta * ((c - sc) - (r - sr))).mean(), "without a mean"),
        (lambda c, r, sc, sr, beta: beta * ((r - sr) - (c - sc)), "log 2, not 0.000"),
        (lambda c, r, sc, sr, beta: -F.logsigmoid(beta * ((c - sc) + (r - sr))), "moved the right way"),
        (lambda c, r, sc, sr, beta: c.missing, "AttributeError"),
    ],
)
def test_wrong_losses(loss: Any, text: str) -> None:
    says(check_dpo(loss), "wrong", text)


@pytest.mark.parametrize(
    ("rloo", "grpo", "text"),
    [
        ([1, -1, 0, 0], [1.22, -1.22, 0, 0], "without its own reward"),
        ([2, -1.33, 0, 0], [1.22, -1.22, 0, 0], "RLOO, response 1: 2 is not"),
        ([1.33, -1.33, 0, 0], [1.41, -1.41, 0, 0], "by 3, not by 4"),
        ([1.33, -1.33, 0, 0], [1, -1, 0, 0], "not yet divided"),
        ([1.33, -1.33, 0, 0], [1.22, -1.22, 0, 5], "GRPO, response 4: 5 is not"),
        ([1.33], [1.22], "four responses"),
    ],
)
def test_wrong_advantages(rloo: list[float], grpo: list[float], text: str) -> None:
    says(check_advantages(rloo, grpo), "wrong", text)


@pytest.mark.parametrize(
    ("principle", "need", "text"),
    [
        (0, "knowledge", "counted"),
        (1, "text", "differ in one word"),
        (2, "rule", 'write "text"'),
        (3, "text", "differ"),
    ],
)
def test_wrong_needs(principle: int, need: str, text: str) -> None:
    needs = dict(SOLUTIONS["needs"])
    needs[list(needs)[principle]] = need
    verdict = check_principles(needs)
    says(verdict, "wrong", text)
    assert need == "rule" or list(needs)[principle] in verdict.text
