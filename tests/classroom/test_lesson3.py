"""The checks of lesson 3 say what is wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_mini.classroom.checks import Verdict
from rlhf_mini.classroom.checks.lesson3 import check_clip, check_gae, check_rewards


def rewards(score: float, kl: Tensor, kl_coef: float) -> Tensor:
    made = -kl_coef * kl
    made[-1] += score
    return made


def everywhere(score: float, kl: Tensor, kl_coef: float) -> Tensor:
    return score - kl_coef * kl


def paid(score: float, kl: Tensor, kl_coef: float) -> Tensor:
    return rewards(score, -kl, kl_coef)


def uncharged(score: float, kl: Tensor, kl_coef: float) -> Tensor:
    made = -kl_coef * kl
    made[-1] = score
    return made


def in_place(score: float, kl: Tensor, kl_coef: float) -> Tensor:
    kl *= -kl_coef
    kl[-1] += score
    return kl


def crashing(score: float, kl: Tensor, kl_coef: float) -> Tensor:
    return kl[7:8] + kl[7]


@pytest.mark.parametrize(
    ("function", "state", "words"),
    [
        (rewards, "right", "compute_rewards"),
        (lambda *_: ..., "todo", "replace"),
        (everywhere, "wrong", "every token gets the score"),
        (paid, "wrong", "mind the sign"),
        (uncharged, "wrong", "is charged no KL"),
        (in_place, "wrong", "changes the tensor `kl`"),
        (crashing, "wrong", "stopped with IndexError"),
        (lambda *_: 0.0, "wrong", "one reward per token"),
        (lambda *_: torch.zeros(3), "wrong", "it gave [0.0, 0.0, 0.0]"),
    ],
)
def test_rewards(function: Callable[..., Tensor], state: str, words: str) -> None:
    verdict = check_rewards(function)
    assert verdict.state == state and words in verdict.text


# By hand: A5 = .1, A4 = .3 + .05, A3 = .4 + .175, A2 = -.3 + .2875, A1 = -.0125 / 2.
GAE = [-0.00625, -0.0125, 0.575, 0.35, 0.1]


@pytest.mark.parametrize(
    ("advantages", "state", "words"),
    [
        (GAE, "right", "gae"),
        ([..., -0.0125, 0.575, 0.35, 0.1], "todo", "all five"),
        (GAE[:4], "wrong", "you gave 4 numbers"),
        ([*GAE[:4], 1.0], "wrong", "token 5: the value before it, 0.9, is missing"),
        ([*GAE[:4], 0.5], "wrong", "nothing comes after it"),
        ([*GAE[:3], 0.3, 0.1], "wrong", "token 4: 0.3 is its prediction error alone"),
        ([*GAE[:3], 0.4, 0.1], "wrong", "token 4: the next advantage counts in full"),
        ([0.7, *GAE[1:]], "wrong", "token 1: 0.7 is not"),
    ],
)
def test_gae(advantages: list[float], state: str, words: str) -> None:
    verdict = check_gae(advantages)
    assert verdict.state == state and words in verdict.text


def clip(**changed: Any) -> dict[tuple[float, str], Any]:
    """By hand: no gradient where the ratio is beyond the limit that the advantage drives it to."""
    flows = {(ratio, sign): (ratio, sign) not in ((1.5, "+"), (0.5, "-")) for ratio in (0.5, 1.0, 1.5) for sign in "+-"}
    return flows | {(float(key[1:].replace("_", ".")), "+" if key[0] == "p" else "-"): v for key, v in changed.items()}


@pytest.mark.parametrize(
    ("flows", "state", "words"),
    [
        (clip(), "right", "far enough"),
        (clip(p1_0=...), "todo", "all six"),
        (clip(p1_5=True), "wrong", "ratio 1.5, advantage +: the token has become likelier, and should become likelier"),
        (clip(m1_5=False), "wrong", "ratio 1.5, advantage -: the token has become likelier, and should become rarer"),
    ],
)
def test_clip(flows: dict[tuple[float, str], Any], state: str, words: str) -> None:
    verdict = check_clip(flows)
    assert verdict.state == state and words in verdict.text


def test_a_verdict_shows_itself_as_text() -> None:
    assert repr(Verdict("right", "well done.")) == "✓ Right: well done."
