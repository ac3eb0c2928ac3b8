"""Checks of lesson 5: agreement of two rankings, ranks from qualities, what ten rankings can tell."""

import math
from collections.abc import Callable
from typing import Any

from rlhf_mini.classroom.checks import Verdict, answer_of, check, right, todo, wrong
from rlhf_mini.core.rankings import agreement


@check
def check_agreement(agreeing_pairs: Callable[[list[int], list[int]], Any]) -> Verdict:
    cases = [([1, 2, 3], [1, 2, 3]), ([1, 2, 3], [3, 2, 1]), ([1, 1, 3], [1, 2, 3]), ([1, 3, 1, 4], [2, 3, 1, 3])]
    for a, b in cases:
        found = answer_of(agreeing_pairs, a, b)
        if not isinstance(found, tuple | list) or len(found) != 2:
            return wrong("return two numbers: the pairs in the same order, and the pairs that count.")
        same, counted = found
        expected = agreement([a], [b])
        every = len(a) * (len(a) - 1) // 2
        if counted == every != expected.pairs:
            return wrong(f"{a} and {b}: a pair that one of them ties does not count, so fewer than {every} pairs do.")
        if counted == 2 * expected.pairs:
            return wrong(f"{a} and {b}: each pair is counted twice, as (i, j) and as (j, i).")
        if counted != expected.pairs:
            return wrong(f"{a} and {b}: {counted} pairs is not the number that neither of the two ties.")
        if same == expected.pairs - expected.right != expected.right:
            return wrong(f"{a} and {b}: that is how many pairs they put in *opposite* order.")
        if same != expected.right:
            return wrong(f"{a} and {b}: {same} is not the number of pairs that both put in the same order.")
    return right("rlhf_mini.core.rankings.agreement counts the same.")


@check
def check_ranks(ranks_of: Callable[[list[float]], Any]) -> Verdict:
    found = answer_of(ranks_of, [0.2, 0.9, 0.5])
    if not isinstance(found, list):
        return wrong("return a list with one rank for each response.")
    if found == [1, 3, 2]:
        return wrong("rank 1 is the best, not the worst.")
    if found == [1, 2, 0]:
        return wrong("that is a list of places; give the rank of each response, in the order of the qualities.")
    if found == [2, 0, 1]:
        return wrong("ranks begin at 1, not at 0.")
    if found != [3, 1, 2]:
        return wrong(f"for the qualities [0.2, 0.9, 0.5] it gave {found}; the second response is the best.")
    tied = answer_of(ranks_of, [0.7, 0.7, 0.1])
    if sorted(tied) == [1, 2, 3]:
        return wrong("equal qualities must share a rank: it breaks the tie of [0.7, 0.7, 0.1].")
    if tied == [1, 1, 2]:
        return wrong("after two that share rank 1, the next one has rank 3: two responses are better.")
    if tied != [1, 1, 3]:
        return wrong(f"for the qualities [0.7, 0.7, 0.1] it gave {tied}.")
    return right("the labelers of this project rank by the same rule.")


@check
def check_half_width(half_width: Callable[[float, int], Any], truth: Any) -> Verdict:
    found = float(answer_of(half_width, 0.7, 60))
    error = math.sqrt(0.7 * 0.3 / 60)
    if math.isclose(found, error, rel_tol=1e-3):
        return wrong("that is one standard error; a 95 % interval reaches further to both sides.")
    if math.isclose(found, 2 * 1.96 * error, rel_tol=2e-2):
        return wrong("that is the whole width of the interval; give half of it.")
    if math.isclose(found, 1.96 * 0.7 * 0.3 / 60, rel_tol=1e-3):
        return wrong("take the square root: a standard deviation, not a variance.")
    if not math.isclose(found, 1.96 * error, rel_tol=3e-2):
        return wrong(f"for a share of 0.7 of 60 pairs it gave {found:.3g}.")
    if truth is ...:
        return todo('the width is right; now set truth to "wider" or "narrower".')
    if truth != "wider":
        return wrong("60 pairs of ten prompts: are they more, or fewer, independent observations than 60?")
    return right(
        f"a share of 0.7 of 60 pairs is known to about {found:.2f} to each side at best: too little to tell most of "
        "the labelers apart."
    )
