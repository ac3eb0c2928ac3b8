"""Checks of lesson 6: ROUGE-L by hand, a verdict from both orders, the biases of an unknown judge."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rlhf_mini.classroom.checks import Verdict, answer_of, check, right, todo, wrong
from rlhf_mini.classroom.data import rouge_l, words
from rlhf_mini.classroom.judge import Judge, biased_judge, wins

FIRST_BONUS, WORD_BONUS = 0.35, -0.04  # of the unknown judge


@check
def check_rouge(rouge: Mapping[tuple[str, str], Any]) -> Verdict:
    if any(found is ... for found in rouge.values()):
        return todo("replace all three ... above, run that cell, then this one.")
    for (first, second), found in rouge.items():
        one, other = words(first), words(second)
        expected = rouge_l(one, other)
        if abs(found - expected) < 0.006:
            continue
        pair = f"{first!r} and {second!r}"
        common = expected * (len(one) + len(other)) / 2
        if abs(found - common) < 0.006:
            return wrong(f"{pair}: {found:g} is the number of common words; put it into the formula.")
        if any(abs(found - common / length) < 0.006 for length in (len(one), len(other))):
            return wrong(f"{pair}: you divided by the words of one text; the formula has those of both, and a 2 above.")
        if abs(found - 2 * len(set(one) & set(other)) / (len(one) + len(other))) < 0.006 or found == 1:
            return wrong(f"{pair}: you counted common words in any order; they must come in the same order in both.")
        return wrong(f"{pair}: it is not {found:.2f}. They have {len(one)} and {len(other)} words; count again.")
    return right("rlhf_mini.classroom.data.rouge_l gives the same. Which of the three would the filter drop?")


@check
def check_fair_wins(fair_wins: Callable[[np.ndarray, np.ndarray], Any]) -> Verdict:
    ours_first, ours_second = np.array([0.9, 0.4, -0.2, -0.1]), np.array([0.1, -0.6, -0.3, 0.5])
    expected = np.array([1.0, 0.5, 0.0, 0.5])
    found = np.asarray(answer_of(fair_wins, ours_first, ours_second), dtype=float)
    if found.shape != expected.shape:
        return wrong(f"it must return one number for each of the {len(expected)} pairs, not {found.tolist()}.")
    if np.allclose(found, expected):
        return right("a pair counts in full only if both orders agree.")
    if np.allclose(found, ours_first > 0):
        return wrong("you look at the first order only, in which the bias helps ours.")
    if np.allclose(found, (ours_first + ours_second) / 2):
        return wrong("these are mean margins; a win is 1, a loss 0, whatever the size of the margin.")
    if np.allclose(found, ours_first + ours_second > 0):
        return wrong("you add the margins, so the larger one decides; where the orders disagree, the pair is a tie.")
    if np.allclose(found, 2 * expected):
        return wrong("a pair that wins in both orders counts 2; take the mean of both.")
    if np.allclose(found, ((ours_first > 0) | (ours_second > 0)) / 2):
        return wrong("True + True is True for numpy; make numbers of both before you add them: (ours_first > 0) * 1.0.")
    if np.allclose(found, (wins(ours_first) + wins(-ours_second)) / 2):
        return wrong("both margins are ours: above 0 is a win for us in the second order, too.")
    worst = int(np.argmax(np.abs(found - expected)))
    return wrong(
        f"margins {ours_first[worst]:g} (ours first) and {ours_second[worst]:g} (ours second) gave {found[worst]:g}."
    )


def unknown_judge() -> Judge:
    """The judge of exercise 3."""
    return biased_judge(FIRST_BONUS, WORD_BONUS)


@check
def check_biases(first_bonus: Any, word_bonus: Any) -> Verdict:
    if abs(first_bonus - FIRST_BONUS) > 0.005:
        if abs(first_bonus + FIRST_BONUS) < 0.005:
            return wrong("first_bonus: mind the sign; a margin above 0 is for the answer shown first.")
        if abs(first_bonus - (FIRST_BONUS - 2 * WORD_BONUS)) < 0.005:
            return wrong("first_bonus: your two answers differ in length, so the margin has the words in it, too.")
        return wrong("first_bonus: compare an answer with itself. Then neither gold nor length can make a difference.")
    if abs(word_bonus - WORD_BONUS) > 0.002:
        if abs(word_bonus + WORD_BONUS) < 0.002:
            return wrong("word_bonus: mind the sign; it is what a word more in the first answer adds to the margin.")
        if abs(word_bonus - 2 * WORD_BONUS) < 0.002:
            return wrong("word_bonus: that is for two words; divide by the difference in words.")
        return wrong(
            "word_bonus: the margin of two useless answers is first_bonus + word_bonus times the difference in words."
        )
    return right("this judge likes the first place, and short answers: not every judge prefers length.")
