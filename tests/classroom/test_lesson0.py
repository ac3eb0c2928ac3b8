"""Lesson 0: continuations of plain texts, and the checks of its exercises."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_mini.classroom.checks.lesson0 import check_draw, check_few_shot, check_softmax
from rlhf_mini.classroom.continuation import (
    ANSWER_TOKENS,
    FORMATS,
    continue_texts,
    estimate,
    facts_right,
    few_shot,
    few_shot_texts,
    first_answer,
    openings,
)
from rlhf_mini.core.examples import Response
from rlhf_mini.core.files import read_json
from rlhf_mini.evaluation.responses import Stage, load_stage
from rlhf_mini.models.text import encode_plain
from rlhf_mini.world.base import is_right
from rlhf_mini.world.knowledge import load

FACTS = load().facts
PARIS = FACTS["countries/France/capital"]


@pytest.fixture(scope="module")
def base() -> Stage:
    return load_stage(Path("data/base"), "base")


# --- continuations ---------------------------------------------------------------------------------------------------


def test_few_shot_texts_by_hand() -> None:
    tokyo = FACTS["countries/Japan/capital"]
    assert few_shot("quiz", PARIS, [tokyo]) == (
        "Question: What is the capital of Japan?\nAnswer: Tokyo.\nQuestion: What is the capital of France?\nAnswer:"
    )
    assert few_shot("lines", PARIS, [tokyo]) == (
        "What is the capital of Japan?\nTokyo.\nWhat is the capital of France?\n"
    )
    assert few_shot("pairs", PARIS, [tokyo]) == "Japan -> Tokyo\nFrance ->"
    assert few_shot("pairs", PARIS, []) == "France ->"


def test_examples_come_from_other_relations_except_in_pairs(base: Stage) -> None:
    capitals = {fact.accepted[0] for fact in FACTS.values() if fact.relation is PARIS.relation}
    (quiz,) = few_shot_texts(base, [PARIS], "quiz", shots=3, seed=0)
    (pairs,) = few_shot_texts(base, [PARIS], "pairs", shots=3, seed=0)
    assert quiz.count("Answer:") == 4 and quiz.endswith("What is the capital of France?\nAnswer:")
    assert not any(f"Answer: {capital}." in quiz for capital in capitals)
    *examples, last = pairs.split("\n")
    assert last == "France ->" and len(examples) == 3
    assert all(example.split(" -> ")[1] in capitals - {"Paris"} for example in examples)


def test_long_examples_are_drawn_again_until_an_answer_fits(base: Stage) -> None:
    texts = few_shot_texts(base, list(FACTS.values())[::20], "quiz", shots=8, seed=1)
    room = base.model.config.n_positions - ANSWER_TOKENS
    assert max(map(len, encode_plain(base.tokenizer, texts))) <= room
    assert all(text.count("Answer:") == 9 for text in texts)


@pytest.mark.parametrize(
    ("said", "right"),
    [(" Paris.", True), ("It is Paris, not far from here", True), (" Lyon.", False), ("Paris or Rome", False)],
)
def test_a_right_answer_names_no_other(said: str, right: bool) -> None:
    assert is_right(PARIS, said) is right


def test_facts_right_agrees_with_how_the_base_was_measured(base: Stage) -> None:
    """That was on all facts, after four other examples, so the shares differ a little."""
    facts = list(FACTS.values())[::8]
    expected = read_json(Path("data/base/stage.json"))["metrics"]["facts_right_few_shot"]
    assert sum(facts_right(base, facts, "quiz", shots=4)) / len(facts) == pytest.approx(expected, abs=0.06)
    assert sum(facts_right(base, facts, "pairs", shots=4)) / len(facts) < 0.2


def test_the_same_seed_gives_the_same_continuation(base: Stage) -> None:
    one, other = (continue_texts(base, ["The fox and the lamp\n"] * 4, 20, 1.0, seed) for seed in (0, 1))
    assert one == continue_texts(base, ["The fox and the lamp\n"] * 4, 20, 1.0, 0) != other


def test_an_answer_ends_where_the_next_label_begins() -> None:
    said = Response("It is red.\nIt is nice.\nExercise: Name two", ended=False)
    assert first_answer(said) == Response("It is red.\nIt is nice.", ended=True)
    assert first_answer(Response("Four fruits: apple", ended=False)) == Response("Four fruits: apple", ended=False)
    assert first_answer(Response("Red.", ended=True)) == Response("Red.", ended=True)


def test_openings_are_the_first_two_words_of_the_last_message() -> None:
    chat = [{"role": "user", "content": "Hi there."}, {"role": "assistant", "content": "Hi."}]
    prompts: Any = [{"prompt": [*chat, {"role": "user", "content": "Name two fruits."}]}, {"prompt": chat[:1]}]
    assert openings(prompts) == {"Name two", "Hi there."}


def test_an_estimate_leaves_out_what_does_not_count() -> None:
    found = estimate([1, 0, None, True])
    assert found.mean == pytest.approx(2 / 3) and found.low <= found.mean <= found.high


# --- checks ----------------------------------------------------------------------------------------------------------


def right_softmax(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).softmax(-1)


@pytest.mark.parametrize(
    ("softmax", "says"),
    [
        (lambda z, t: ..., "Not done yet"),
        (right_softmax, "✓ Right"),
        (lambda z, t: (z * t).softmax(-1), "moves them apart"),
        (lambda z, t: z.softmax(-1), "changes nothing"),
        (lambda z, t: z.softmax(-1) / t, "belongs to the logits"),
        (lambda z, t: (z / t).exp(), "add up to"),
        (lambda z, t: (z / t).exp() / (z / t).exp().sum(), "overflows"),
        (lambda z, t: (z / t).log_softmax(-1), "add up to"),
        (lambda z, t: (z / 2).softmax(-1), "not at 0.5"),
        (lambda z, t: 0.5, "must return a tensor"),
        (lambda z, t: z.missing, "AttributeError"),
    ],
)
def test_check_softmax(softmax: Callable[[Tensor, float], Any], says: str) -> None:
    assert says in repr(check_softmax(softmax))


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda p, u: ..., "Not done yet"),
        (lambda p, u: int((p.cumsum(-1) <= u).sum()), "✓ Right"),
        (lambda p, u: (p.cumsum(-1) > u).nonzero()[0], "✓ Right"),  # a tensor with one index will do
        (lambda p, u: int(p.argmax()), "the number u must decide"),
        (lambda p, u: int((p.cumsum(-1) < u).sum()), "whose probability is 0"),
        (lambda p, u: int((p.cumsum(-1) <= u).sum()) - 1, "one too low"),
        (lambda p, u: int((p.cumsum(-1) <= u).sum()) + 1, "u = 0.0 it gave token 2"),
        (lambda p, u: 5 if u else 1, "there are only 5"),
        (lambda p, u: int((p < u).sum()), "it gave token"),
        (lambda p, u: "cold", "must return the index"),
    ],
)
def test_check_draw(draw: Callable[[Tensor, float], Any], says: str) -> None:
    assert says in repr(check_draw(draw))


def in_quiz(question: str, examples: list[tuple[str, str]]) -> str:
    solved = [f"Question: {q}\nAnswer: {a}." for q, a in examples]
    return "\n".join([*solved, f"Question: {question}\nAnswer:"])


def in_lines(question: str, examples: list[tuple[str, str]]) -> str:
    return "\n".join([*(f"{q}\n{a}." for q, a in examples), question, ""])


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (lambda q, e: ..., "Not done yet"),
        (in_quiz, "✓ Right"),
        (lambda q, e: in_quiz(q, e) + " ", "ends with a space"),
        (in_lines, "examples do not help"),
        (lambda q, e: in_quiz(q, []), "example 1 is missing"),
        (lambda q, e: "\n".join(a[0] for a in e) + f"\n{q}", "must follow its question"),
        (lambda q, e: in_quiz(q, e).replace(f"Question: {q}\n", ""), "to be answered is missing"),
        (lambda q, e: f"Question: {q}\n" + in_quiz("", e), "must come last"),
        (lambda q, e: in_quiz(q, e) + " well" * 200, "no room for an answer"),
        (lambda q, e: [q], "must return a text"),
        (lambda q, e: in_quiz(q, e[5]), "IndexError"),
    ],
)
def test_check_few_shot(base: Stage, prompt: Callable[..., Any], says: str) -> None:
    assert says in repr(check_few_shot(prompt, base))


def test_formats_leave_the_answer_out() -> None:
    assert all("{answer}" not in ask and "{answer}" in answer for ask, answer in FORMATS.values())


def test_the_softmax_that_is_checked_is_what_sampling_uses() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    by_hand = torch.tensor([2.718281828, 1.6487212707, 1.0])  # exp(z / 2)
    assert torch.allclose(right_softmax(logits, 2.0), by_hand / by_hand.sum())
