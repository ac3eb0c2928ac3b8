"""What rankings say: pairs, agreement between labelers, accuracy of scores. And the labelers who make them.

Ranks are lists of one whole number a response, 1 = best, equal = tied. Everything counted here is a pair of responses
to one prompt, because InstructGPT trains on pairs and states agreement and accuracy in them (Ouyang et al. 2022, 3.4
and 4.1). A tie orders nothing, so tied pairs are left out of every count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, runtime_checkable

import numpy as np

from rlhf_mini.core.bootstrap import interval, resampled_ratios
from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.core.options import load_function

# --- labelers --------------------------------------------------------------------------------------------------------


@runtime_checkable
class Labeler(Protocol):
    """Whoever ranks responses: a simulated labeler of the mini world, a rule, a bridge to people."""

    @property
    def name(self) -> str: ...

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        """Ranks of `responses` to the prompt, 1 = best, equal = tied.

        Raises:
            UserError: this labeler cannot judge this prompt.
        """
        ...


def load_labelers(provider: str) -> list[Labeler]:
    """Calls the function that "package.module:function" names, which returns a list of labelers.

    Raises:
        UserError: there is no such module or function, or it returns something else.
    """
    labelers = load_function(provider, "labelers")()
    if not isinstance(labelers, list) or not labelers or not all(isinstance(each, Labeler) for each in labelers):
        raise UserError(f"labelers {provider!r} must be a function that returns a list of objects with name and rank()")
    return labelers


# --- counting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """How many of the pairs that could be compared came out right."""

    right: float
    pairs: int

    @property
    def share(self) -> float:
        """In [0, 1]; NaN without a pair."""
        return self.right / self.pairs if self.pairs else float("nan")

    def __add__(self, other: "Count") -> "Count":
        return Count(self.right + other.right, self.pairs + other.pairs)


def pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """The comparisons that a ranking holds: (index of the better, index of the worse), ties left out.

    >>> pairs([1, 3, 1])
    [(0, 1), (2, 1)]
    """
    both = combinations(range(len(ranks)), 2)
    return [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in both if ranks[i] != ranks[j]]


def accuracy(scores: Sequence[float], ranks: Sequence[int]) -> Count:
    """Pairs of the ranking whose better response has the higher score; equal scores are half right, as a coin is."""
    ordered = pairs(ranks)
    right = sum(
        1.0 if scores[better] > scores[worse] else 0.5 if scores[better] == scores[worse] else 0.0
        for better, worse in ordered
    )
    return Count(right, len(ordered))


def agreement(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]] | None = None) -> Count:
    """Pairs that two labelers order alike, of those that neither of them ties, over all couples of labelers.

    Args:
        first: one ranking a labeler, all of the same responses.
        second: the rankings of another group. Then each couple has one labeler of each group, otherwise both are
            from `first`.
    """
    couples = combinations(first, 2) if second is None else ((one, other) for one in first for other in second)
    right = total = 0
    for one, other in couples:
        for i, j in combinations(range(len(one)), 2):
            signs = (one[i] - one[j]) * (other[i] - other[j])  # > 0 alike, < 0 contrary, 0 tied by one of them
            right += signs > 0
            total += signs != 0
    return Count(right, total)


def bootstrap_interval(counts: Sequence[Count], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the share of right pairs. `counts` has one entry a prompt: prompts are drawn, not pairs."""
    right = np.array([[count.right] for count in counts], dtype=float)  # (n, 1)
    total = np.array([[count.pairs] for count in counts], dtype=float)  # (n, 1)
    low, high = interval(resampled_ratios(right, total, seed=seed))  # (1,), (1,)
    return float(low[0]), float(high[0])
