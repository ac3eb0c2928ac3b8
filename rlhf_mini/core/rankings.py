"""Rankings: the labelers who make them, the pairs in them, agreement between labelers, and accuracy of scores.

`ranks` holds one whole number per response, 1 = best, equal = tied. All counts here are of pairs of responses to one
prompt, because InstructGPT trains on pairs and reports agreement and accuracy on pairs (Ouyang et al. 2022, sections
3.4 and 4.1). Tied pairs have no preferred response and are left out of every count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, runtime_checkable

import numpy as np

from rlhf_mini.core.bootstrap import interval, resampled_ratios
from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.core.options import code_of_the_user, load_function

# --- labelers --------------------------------------------------------------------------------------------------------


@runtime_checkable
class Labeler(Protocol):
    """Anything that ranks responses: a simulated labeler of the mini world, a rule, an interface to people."""

    @property
    def name(self) -> str: ...

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        """Ranks the K `responses` to a prompt: K whole numbers, 1 = best, equal = tied.

        Raises:
            UserError: this labeler cannot judge this prompt.
        """
        ...


@dataclass(frozen=True)
class CheckedLabeler:
    """A labeler of the user's own, whose mistakes are one sentence."""

    labeler: Labeler

    @property
    def name(self) -> str:
        return str(self.labeler.name)

    def check(self, example: Prompt) -> None:
        """Lets the labeler raise a UserError for a prompt that it cannot judge, if it can tell beforehand."""
        if check := getattr(self.labeler, "check", None):
            with code_of_the_user(f"the labeler {self.name}"):
                check(example)

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        """The labeler's ranks. UserError if it fails, or does not return a whole number from 1 for each response."""
        with code_of_the_user(f"the labeler {self.name}"):
            ranks = self.labeler.rank(example, responses)
        whole = isinstance(ranks, list) and all(type(rank) is int and rank >= 1 for rank in ranks)
        if not whole or len(ranks) != len(responses):
            raise UserError(
                f"the labeler {self.name} must rank {len(responses)} responses with a list of as many whole numbers, 1 "
                f"for the best, not with {' '.join(repr(ranks).split())[:60]}"
            )
        return ranks


def load_labelers(provider: str) -> list[CheckedLabeler]:
    """Calls the function named by `provider`, "package.module:function", which returns a list of labelers.

    Raises:
        UserError: there is no such function, or it returns anything else.
    """
    function = load_function(provider, "labelers")
    with code_of_the_user(f"labelers {provider!r}"):
        labelers = function()
    if not isinstance(labelers, list) or not labelers or not all(isinstance(each, Labeler) for each in labelers):
        raise UserError(f"labelers {provider!r} must be a function that returns a list of objects with name and rank()")
    return [CheckedLabeler(each) for each in labelers]


# --- counting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """How many of the compared pairs are right."""

    right: float
    pairs: int

    @property
    def share(self) -> float:
        """In [0, 1]; NaN without a pair."""
        return self.right / self.pairs if self.pairs else float("nan")

    def __add__(self, other: "Count") -> "Count":
        return Count(self.right + other.right, self.pairs + other.pairs)


def competition(ranks: Sequence[float]) -> list[int]:
    """The same order, the lowest first, in ranks that skip places after a tie: 1, 1, 3."""
    return [1 + sum(other < rank for other in ranks) for rank in ranks]


def pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """The comparisons in a ranking, without ties: (index of the preferred response, index of the other).

    >>> pairs([1, 3, 1])
    [(0, 1), (2, 1)]
    """
    both = combinations(range(len(ranks)), 2)
    return [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in both if ranks[i] != ranks[j]]


def accuracy(scores: Sequence[float], ranks: Sequence[int]) -> Count:
    """Counts the pairs whose preferred response has the higher score. Equal scores are half right, like a coin flip.

    Args:
        scores: (K,).
        ranks: (K,).
    """
    ordered = pairs(ranks)
    right = sum(
        1.0 if scores[better] > scores[worse] else 0.5 if scores[better] == scores[worse] else 0.0
        for better, worse in ordered
    )
    return Count(right, len(ordered))


def agreement(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]] | None = None) -> Count:
    """Counts the pairs that two labelers order alike, among those that neither of them ties, over couples of labelers.

    Args:
        first: (L, K), one ranking per labeler, all of the same K responses.
        second: the rankings of a second group. If given, each couple has one labeler from each group; otherwise both
            are from `first`.
    """
    couples = combinations(first, 2) if second is None else ((one, other) for one in first for other in second)
    right = total = 0
    for one, other in couples:
        for i, j in combinations(range(len(one)), 2):
            signs = (one[i] - one[j]) * (other[i] - other[j])  # > 0 same order, < 0 opposite, 0 tied by a labeler
            right += signs > 0
            total += signs != 0
    return Count(right, total)


def bootstrap_interval(counts: Sequence[Count]) -> tuple[float, float]:
    """95 % interval of the share of right pairs: (low, high).

    Args:
        counts: one per prompt. Prompts are resampled, not pairs, as the pairs of one prompt are not independent.
    """
    right = np.array([[count.right] for count in counts], dtype=float)  # (n, 1)
    total = np.array([[count.pairs] for count in counts], dtype=float)  # (n, 1)
    low, high = interval(resampled_ratios(right, total, seed=0))  # (1,), (1,)
    return float(low[0]), float(high[0])
