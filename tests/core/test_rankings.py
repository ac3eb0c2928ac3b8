"""Pairs, agreement and accuracy, with expectations counted by hand; functions that provide labelers."""

import math
import sys
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.core.rankings import Count, accuracy, agreement, bootstrap_interval, load_labelers, pairs


def test_pairs_leave_ties_out() -> None:
    assert pairs([1, 3, 2]) == [(0, 1), (0, 2), (2, 1)]
    assert pairs([1, 3, 1]) == [(0, 1), (2, 1)]
    assert pairs([2, 2]) == []


@given(st.lists(st.integers(1, 4), min_size=2, max_size=9))
def test_pairs_are_all_that_are_not_tied(ranks: list[int]) -> None:
    tied = sum(ranks[i] == ranks[j] for i in range(len(ranks)) for j in range(i))
    assert len(pairs(ranks)) == math.comb(len(ranks), 2) - tied
    assert all(ranks[winner] < ranks[loser] for winner, loser in pairs(ranks))


def test_accuracy() -> None:
    # pairs (0,1), (0,2), (2,1): 0.9 > 0.1 right, 0.9 > 0.5 right, 0.5 > 0.1 right
    assert accuracy([0.9, 0.1, 0.5], [1, 3, 2]) == Count(3, 3)
    assert accuracy([0.1, 0.9, 0.5], [1, 3, 2]) == Count(0, 3)
    # (0,1) half right, (0,2) right, (2,1) wrong
    assert accuracy([0.5, 0.5, 0.2], [1, 3, 2]) == Count(1.5, 3)
    assert accuracy([1.0, 2.0], [1, 1]) == Count(0, 0)


def test_agreement_within_a_group() -> None:
    # pairs (0,1), (0,2), (1,2): same order, same order, opposite order
    assert agreement([[1, 2, 3], [1, 3, 2]]) == Count(2, 3)
    # the second labeler ties (0,1)
    assert agreement([[1, 2, 3], [1, 1, 3]]) == Count(2, 2)
    # three labelers are three couples: 1, 0 and 0 of one pair each
    assert agreement([[1, 2], [1, 2], [2, 1]]) == Count(1, 3)


def test_agreement_between_groups_has_one_labeler_of_each() -> None:
    assert agreement([[1, 2], [1, 2]], [[2, 1]]) == Count(0, 2)
    assert agreement([[1, 2], [2, 1]], [[1, 2]]) == Count(1, 2)


def test_counts() -> None:
    assert Count(1, 2) + Count(2.5, 6) == Count(3.5, 8)
    assert Count(3.5, 8).share == 0.4375 and math.isnan(Count(0, 0).share)


def test_the_interval_of_a_share_resamples_prompts() -> None:
    assert bootstrap_interval([Count(1, 2), Count(3, 6)]) == (0.5, 0.5)
    # a quarter of the resamples draw only the first prompt, a quarter only the second
    assert bootstrap_interval([Count(1, 1), Count(0, 3)]) == (0.0, 1.0)


class Ana:
    name = "ana"

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        return [1 for _ in responses]


def provider() -> list[Ana]:
    return [Ana()]


def not_labelers() -> list[str]:
    return ["ana"]


def fails() -> None:
    _ = 1 / 0


class Bad:
    name = "bad"

    def __init__(self, ranks: Any) -> None:
        self.ranks = ranks

    def rank(self, example: Prompt, responses: list[Response]) -> Any:
        return self.ranks(responses)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (lambda responses: None, "a list of as many whole numbers, 1 for the best, not with None$"),
        (lambda responses: [1], r"must rank 2 responses with a list of as many .*, not with \[1\]$"),
        (lambda responses: [0, 1], r"not with \[0, 1\]$"),
        (lambda responses: [1.0, 2.0], r"not with \[1.0, 2.0\]$"),
        (lambda responses: [True, 2], r"not with \[True, 2\]$"),
        (lambda responses: responses[2], r"the labeler bad failed with a IndexError in line \d+ of .*test_rankings.py"),
    ],
)
def test_a_labeler_that_does_not_rank_is_one_sentence(
    ranks: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "provider", lambda: [Bad(ranks)])
    (labeler,) = load_labelers(f"{__name__}:provider")
    with pytest.raises(UserError, match=message):
        labeler.rank({"prompt": []}, [Response("a", True), Response("b", True)])


def test_load_labelers() -> None:
    assert [labeler.name for labeler in load_labelers(f"{__name__}:provider")] == ["ana"]


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ("no_colon", "package.module:function"),
        ("no_such_module:f", "no module no_such_module"),
        ("rlhf_mini.nowhere:f", r"no module rlhf_mini\.nowhere"),
        (f"{__name__}:nothing", "no function nothing"),
        (f"{__name__}:not_labelers", r"name and rank\(\)"),
        (f"{__name__}:types", "is not a function"),
        (
            f"{__name__}:fails",
            r"failed with a ZeroDivisionError in line \d+ of .*test_rankings.py \(division by",
        ),
    ],
)
def test_a_wrong_provider_is_one_sentence(provider: str, message: str) -> None:
    assert isinstance(types, types.ModuleType)
    with pytest.raises(UserError, match=message):
        load_labelers(provider)
