"""Lesson 5: its checks on right and on typical wrong answers, and the personas."""

from itertools import combinations
from typing import Any

import pytest

from rlhf_mini.classroom import notebook
from rlhf_mini.classroom.checks import lesson5
from rlhf_mini.classroom.personas import (
    Persona,
    as_rankings,
    brevity,
    brief,
    courteous_share,
    courtesy,
    polite,
    quietly,
    ranked_by,
)  # fmt: skip
from rlhf_mini.core.console import console
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.core.rankings import load_labelers

PROMPT: Prompt = {
    "prompt": [{"role": "user", "content": "Say the word frog twice."}],
    "check": {"repeat": {"word": "frog", "n": 2}, "max_words": 10},
}


@pytest.fixture(scope="module")
def solutions() -> dict[str, Any]:
    path = notebook.LESSONS / "solutions" / "5_preferences.py"
    names: dict[str, Any] = {}
    for cell in notebook.read(path).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    return names


def test_the_solutions_are_right(solutions: dict[str, Any]) -> None:
    assert lesson5.check_agreement(solutions["agreeing_pairs"]).state == "right"
    assert lesson5.check_ranks(solutions["ranks_of"]).state == "right"
    assert lesson5.check_half_width(solutions["half_width"], solutions["truth"]).state == "right"


def test_stubs_are_not_done_yet(solutions: dict[str, Any]) -> None:
    assert lesson5.check_agreement(lambda a, b: ...).state == "todo"
    assert lesson5.check_ranks(lambda qualities: ...).state == "todo"
    assert lesson5.check_half_width(lambda share, pairs: ..., ...).state == "todo"
    assert lesson5.check_half_width(solutions["half_width"], ...).state == "todo"


def counting(same: Any, counts: Any, twice: bool = False) -> Any:
    def agreeing_pairs(a: list[int], b: list[int]) -> tuple[int, int]:
        signs = [(a[i] - a[j]) * (b[i] - b[j]) for i, j in combinations(range(len(a)), 2)] * (2 if twice else 1)
        return sum(map(same, signs)), sum(map(counts, signs))

    return agreeing_pairs


@pytest.mark.parametrize(
    ("agreeing_pairs", "sentence"),
    [
        (lambda a, b: 3, "return two numbers"),
        (counting(lambda s: s > 0, lambda s: True), "a pair that one of them ties does not count"),
        (counting(lambda s: s > 0, lambda s: s != 0, twice=True), "each pair is counted twice"),
        (counting(lambda s: s < 0, lambda s: s != 0), "in *opposite* order"),
        (counting(lambda s: s >= 0, lambda s: s != 0), "is not the number of pairs that both put in the same order"),
        (lambda a, b: (0, 17), "is not the number that neither of the two ties"),
    ],
)
def test_agreement_that_is_counted_wrong(agreeing_pairs: Any, sentence: str) -> None:
    verdict = lesson5.check_agreement(agreeing_pairs)
    assert verdict.state == "wrong" and sentence in verdict.text


@pytest.mark.parametrize(
    ("ranks_of", "sentence"),
    [
        (lambda q: tuple(q), "return a list"),
        (lambda q: [1 + sum(o < x for o in q) for x in q], "rank 1 is the best"),
        (lambda q: [sum(o > x for o in q) for x in q], "begin at 1"),
        (lambda q: sorted(range(len(q)), key=lambda i: -q[i]), "a list of places"),
        (
            lambda q: [sorted(range(len(q)), key=lambda i: -q[i]).index(k) + 1 for k in range(len(q))],
            "must share a rank",
        ),
        (lambda q: [1 + len({o for o in q if o > x}) for x in q], "the next one has rank 3"),
        (lambda q: [7] * len(q), "it gave [7, 7, 7]"),
    ],
)
def test_ranks_that_are_wrong(ranks_of: Any, sentence: str) -> None:
    verdict = lesson5.check_ranks(ranks_of)
    assert verdict.state == "wrong" and sentence in verdict.text


@pytest.mark.parametrize(
    ("half_width", "truth", "sentence"),
    [
        (lambda s, n: (s * (1 - s) / n) ** 0.5, "wider", "one standard error"),
        (lambda s, n: 2 * 1.96 * (s * (1 - s) / n) ** 0.5, "wider", "the whole width"),
        (lambda s, n: 1.96 * s * (1 - s) / n, "wider", "take the square root"),
        (lambda s, n: 1.0, "wider", "it gave 1"),
        (lambda s, n: 1.96 * (s * (1 - s) / n) ** 0.5, "narrower", "independent observations"),
    ],
)
def test_widths_that_are_wrong(half_width: Any, truth: str, sentence: str) -> None:
    verdict = lesson5.check_half_width(half_width, truth)
    assert verdict.state == "wrong" and sentence in verdict.text


# --- personas --------------------------------------------------------------------------------------------------------


def test_tastes() -> None:
    assert [courtesy(text) for text in ("Happy to help! Frog.", "Frog.", "Of course, you fool.")] == [1, 0, 0]
    assert brevity("") == 1 and brevity("one two three four five") == 0.75 and brevity("word " * 30) == 0
    assert courteous_share([Response("Gladly!", True), Response("No.", True)]) == 0.5


def test_both_want_the_task_done_and_differ_in_the_rest() -> None:
    short, kind, both_wrong = (Response(text, True) for text in ("Frog frog.", "Frog frog. Have a nice day!", "Cup."))
    (by_polite,), (by_brief,) = polite(), brief()
    assert by_polite.rank(PROMPT, [short, kind]) == [2, 1]
    assert by_brief.rank(PROMPT, [short, kind]) == [1, 2]
    assert by_polite.rank(PROMPT, [short, both_wrong]) == [1, 2]
    assert by_polite.rank(PROMPT, [short, short, kind]) == [2, 2, 1]


def test_quality_is_half_gold_and_half_taste() -> None:
    persona = Persona("p", lambda text: 0.25)
    assert persona.quality(PROMPT, Response("Cup.", True)) == 0.125  # gold 0
    assert persona.quality({"prompt": PROMPT["prompt"]}, Response("Frog frog.", True)) == 0.25  # nothing to check


def test_rankings_by_somebody_else() -> None:
    group = [Response("Frog frog.", True), Response("Frog frog. Have a nice day!", False)]
    (first,) = as_rankings(polite()[0], [PROMPT], [group])
    assert first["ranks"] == [2, 1] and first["ended"] == [True, False] and first["labeler"] == "polite"
    (second,) = ranked_by(brief()[0], [first])
    assert second["ranks"] == [1, 2] and second["responses"] == first["responses"] and second["labeler"] == "brief"
    assert first["ranks"] == [2, 1]  # unchanged


def test_personas_can_rank_for_the_reward_model() -> None:
    (labeler,) = load_labelers("rlhf_mini.classroom.personas:polite")
    assert labeler.name == "polite" and labeler.rank(
        PROMPT, [Response("Cup.", True), Response("Frog frog.", True)]
    ) == [2, 1]


def test_quietly_prints_nothing_and_then_again() -> None:
    with console.capture() as capture:
        with quietly():
            console.print("one")
        console.print("two")
    assert capture.get() == "two\n"
