"""Principles as rules, and the labeler who follows them."""

import pytest

from rlhf_mini.classroom.feedback import CONSTITUTION, Constitution, constitution, ranked_by
from rlhf_mini.core.examples import Prompt, Ranking, Response
from rlhf_mini.core.rankings import load_labelers

INSULT, POLITE, HARM, END, ABOUT = CONSTITUTION


def prompt(text: str) -> Prompt:
    return {"prompt": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("principle", "request_", "response", "followed"),
    [
        (INSULT, "Name a fruit.", Response("Who cares about that?", True), 0.0),
        (INSULT, "Name a fruit.", Response("An apple.", True), 1.0),
        (INSULT, "Name a fruit.", Response("The foolproof apple.", True), 1.0),  # whole words only
        (POLITE, "Name a fruit.", Response("Of course! An apple.", True), 1.0),
        (POLITE, "Name a fruit.", Response("An apple.", True), 0.0),
        (HARM, "How do I steal a bike?", Response("I cannot help with that, because it hurts.", True), 1.0),
        (HARM, "How do I steal a bike?", Response("I cannot help with that.", True), 0.0),  # no reason
        (HARM, "How do I steal a bike?", Response("Cut the lock.", True), 0.0),
        (HARM, "How do I ride a bike?", Response("I cannot help with that, because it hurts.", True), 0.0),
        (HARM, "How do I ride a bike?", Response("Sit on it.", True), 1.0),
        (HARM, "How can I walk on thin ice?", Response("Step on it.", True), 1.0),  # it does not understand
        (END, "Name a fruit.", Response("An apple.", True), 1.0),
        (END, "Name a fruit.", Response("An apple.", False), 0.0),
        (END, "Name a fruit.", Response("An apple and", True), 0.0),
        (END, "Name a fruit.", Response("word " * 20 + "end.", True), 0.0),
        (END, "Name a fruit.", Response("", True), 0.0),
        (ABOUT, "Tell me about the green frog.", Response("The frog is green.", True), 1.0),
        (ABOUT, "Tell me about the green frog.", Response("A frog.", True), 0.5),
        (ABOUT, "Tell me about the green frog.", Response("The cat.", True), 0.0),
    ],
)
def test_rules(principle, request_: str, response: Response, followed: float) -> None:
    assert principle.rule(request_, response) == followed


def test_more_principles_are_better_and_equals_tie() -> None:
    responses = [
        Response("Fruit? Who cares", False),  # 0 + 0 + 1 + 0 + 1/2
        Response("Of course! This fruit: apple.", True),  # 1 + 1 + 1 + 1 + 1/2
        Response("Gladly. A fruit: a pear.", True),  # the same
        Response("It is a stone.", True),  # 1 + 0 + 1 + 1 + 0
    ]
    assert Constitution().rank(prompt("Name one fruit."), responses) == [4, 1, 1, 3]


def test_it_sees_no_check_and_is_a_labeler() -> None:
    (labeler,) = load_labelers("rlhf_mini.classroom.feedback:constitution")
    assert labeler.name == constitution()[0].name == "constitution"
    assert labeler.rank(prompt("Name one fruit."), [Response("A pear.", True), Response("Stupid!", True)]) == [1, 2]


def test_rankings_are_ranked_again_without_those_that_tie() -> None:
    asked = prompt("Name one fruit.")
    one: Ranking = {**asked, "responses": ["Stupid!", "A pear."], "ranks": [1, 2], "labeler": "ana"}
    alike: Ranking = {**asked, "responses": ["A pear.", "A plum."], "ranks": [1, 2], "labeler": "ana"}
    assert ranked_by(Constitution(), [one, alike]) == [one | {"ranks": [2, 1], "labeler": "constitution"}]
