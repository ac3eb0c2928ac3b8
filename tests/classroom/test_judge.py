"""Lesson 6's judges: margins and shares by hand, and a model whose margin swaps its sign when the letters do."""

from pathlib import Path

import numpy as np
import pytest

from rlhf_mini.classroom.judge import (
    EXAMPLES,
    Verdicts,
    agreement,
    asked,
    at_equal_length,
    biased_judge,
    both_orders,
    model_judge,
    share,
    wins,
)
from rlhf_mini.core.examples import Prompt, Response, read_prompts
from rlhf_mini.evaluation.responses import load_stage

GOOD, BAD = Response("Two birds: owl and duck.", True), Response("no", True)


def bird() -> Prompt:
    """A prompt for which gold tells the two apart."""
    check = {"items": {"of": "animals/class/bird", "n": 2}, "max_words": 15}
    return {"prompt": [{"role": "user", "content": "Name two birds."}], "check": check}


def unknown() -> Prompt:
    return {"prompt": [{"role": "user", "content": "Name two birds."}]}


def test_a_biased_judge_adds_up_gold_place_and_words() -> None:
    (fair,) = biased_judge(0, 0)([bird()], [GOOD], [BAD])
    assert fair > 0.5
    (biased,) = biased_judge(0.2, 0.02)([bird()], [GOOD], [BAD])
    assert biased == pytest.approx(fair + 0.2 + 0.02 * (5 - 1))
    (swapped,) = biased_judge(0.2, 0.02)([bird()], [BAD], [GOOD])
    assert swapped == pytest.approx(-fair + 0.2 - 0.02 * 4)
    assert np.isnan(biased_judge(0.2, 0.02)([unknown()], [GOOD], [BAD])).all()


def test_verdicts_are_ours_in_both_orders() -> None:
    verdicts = both_orders(biased_judge(5, 0), [bird(), bird()], [GOOD, BAD], [BAD, GOOD])
    assert (verdicts.ours_first > 0).all() and (verdicts.ours_second < 0).all()  # the place decides everything
    assert verdicts.longer.tolist() == [4, -4]
    assert verdicts.consistent.mean == 0 and verdicts.first_wins.mean == 1
    assert verdicts.one_order.tolist() == [1, 1] and verdicts.both_orders.tolist() == [0.5, 0.5]
    fair = both_orders(biased_judge(0, 0), [bird(), bird()], [GOOD, BAD], [BAD, GOOD])
    assert fair.consistent.mean == 1 and fair.first_wins.mean == 0.5 and fair.both_orders.tolist() == [1, 0]


def test_shares_of_known_verdicts() -> None:
    verdicts = Verdicts(np.array([1.0, 1.0, -1.0, 1.0]), np.array([1.0, -1.0, -1.0, -1.0]), np.zeros(4))
    assert verdicts.consistent.mean == 0.5  # the first and the third pair
    assert verdicts.first_wins.mean == (3 + 3) / 8  # ours in three pairs; theirs, shown first, in three
    assert verdicts.both_orders.tolist() == [1, 0.5, 0, 0.5]


def test_wins_and_agreement() -> None:
    assert np.array_equal(wins(np.array([0.3, 0.0, -2.0, np.nan])), [1, 0.5, 0, np.nan], equal_nan=True)
    truth = np.array([1.0, 0.0, 0.5, np.nan, 1.0])  # two pairs have no better answer
    assert agreement(np.array([1.0, 0.5, 0.0, 1.0, 0.0]), truth).mean == pytest.approx((1 + 0.5 + 0) / 3)


def test_at_equal_length_what_length_alone_decides_is_a_tie() -> None:
    longer = np.tile([-4.0, 4.0, 4.0, 4.0], 50)
    won = (longer > 0).astype(float)  # the longer one always wins
    assert share(won).mean == 0.75
    found = at_equal_length(won, longer)
    assert found.low <= found.mean <= found.high and found.mean < 0.65
    assert at_equal_length(np.tile([1.0, 0.0], 50), np.zeros(100)).mean == pytest.approx(0.5)


def test_the_model_reads_judged_examples_for_either_letter() -> None:
    assert sorted(letter for *_, letter in EXAMPLES) == ["A", "B"]
    assert asked("How\nmany?", "one", "two\nthree") == "Question: How many?\nA: one\nB: two three\nThe better answer is"
    judge = model_judge(load_stage(Path("data/base"), "base"))
    prompts = read_prompts("data/prompts/validation.jsonl")[:2]
    margins = judge(prompts, [GOOD, BAD], [BAD, GOOD])
    assert margins.shape == (2,) and np.isfinite(margins).all()
    (alone,) = judge(prompts[1:], [BAD], [GOOD])
    assert alone == pytest.approx(margins[1], abs=1e-4)
    assert np.isfinite(judge(prompts[:1], [Response("word " * 300, True)], [BAD])).all()  # longer than the context
