"""Checks of the exercises: functions that take what a student wrote and say what is wrong with it, one file a lesson.

The lessons call them below each exercise, the tests with right and with wrong answers. A check never shows the
solution.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, ParamSpec

Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class Verdict:
    """What a check found; a notebook shows it as text."""

    state: Literal["todo", "wrong", "right"]
    text: str

    def __repr__(self) -> str:
        return f"{ {'todo': '○ Not done yet', 'wrong': '✗ Not right', 'right': '✓ Right'}[self.state] }: {self.text}"


def todo(text: str = "replace the ... above, run that cell, then this one.") -> Verdict:
    return Verdict("todo", text)


def wrong(text: str) -> Verdict:
    """`text` says what is wrong: what was expected of which input, and what came."""
    return Verdict("wrong", text)


def right(text: str) -> Verdict:
    """`text` says what this shows."""
    return Verdict("right", text)


def check(function: Callable[Arguments, Verdict]) -> Callable[Arguments, Verdict]:
    """Makes a check of a function: an answer that is still `...` is not done yet, nor is a function that returns it.

    An exception in the student's code is told in one sentence.
    """

    @wraps(function)
    def checked(*arguments: Arguments.args, **named: Arguments.kwargs) -> Verdict:
        if any(answer is ... for answer in arguments):
            return todo()
        try:
            return function(*arguments, **named)
        except NotDone:
            return todo()
        except Exception as fault:
            return wrong(f"your code stopped with {type(fault).__name__}: {' '.join(str(fault).split())}")

    return checked


class NotDone(Exception):
    """A function of the student's still returns `...`."""


def answer_of(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a student's function returns. NotDone if that is still `...` or nothing."""
    returned = function(*arguments)
    if returned is ... or returned is None:
        raise NotDone
    return returned
