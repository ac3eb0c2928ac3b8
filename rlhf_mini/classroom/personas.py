"""Labelers with a taste: they rank as people who like one thing about a response as much as its quality.

A persona is a labeler like any other (rlhf_mini/core/rankings.py), so it can rank for the reward model, too:

    python -m stages.rm --labelers rlhf_mini.classroom.personas:polite
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rlhf_mini.core.console import console
from rlhf_mini.core.examples import Prompt, Ranking, Response
from rlhf_mini.core.rankings import Labeler
from rlhf_mini.evaluation.responses import gold_of
from rlhf_mini.world.knowledge import has_any, load

TASTE = 0.5  # what it weighs beside the gold score
GRID = 0.04  # of the simulated labelers: qualities on the same step of this grid are tied
LONG = 20  # words, from which on a response has no brevity


@dataclass(frozen=True)
class Persona:
    """Weighs a response's gold score and, as much, how far it meets a taste. Always ranks the same way."""

    name: str
    taste: Callable[[str], float]
    """Of a response's text, in [0, 1]."""

    def quality(self, example: Prompt, response: Response) -> float:
        """In [0, 1]; the taste alone for a prompt without a check."""
        gold = gold_of(example, response)
        taste = self.taste(response.text)
        return (1 - TASTE) * gold.score + TASTE * taste if gold else taste

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        """Ranks in the order of `responses`: 1 = best, equal = tied."""
        steps = [round(self.quality(example, response) / GRID) for response in responses]
        return [1 + sum(other > step for other in steps) for step in steps]


def courtesy(text: str) -> float:
    """1 with a courteous phrase and without a rude one."""
    manners = load().manners
    return float(has_any(text, manners["courtesy_words"]) and not has_any(text, manners["rude_words"]))


def courteous_share(responses: Sequence[Response]) -> float:
    """Of responses, how many are courteous."""
    return sum(courtesy(one.text) for one in responses) / len(responses)


def brevity(text: str) -> float:
    """1 for an empty response, falling to 0 at LONG words."""
    return max(0.0, 1 - len(text.split()) / LONG)


def polite() -> list[Labeler]:
    """A labeler who likes courtesy."""
    return [Persona("polite", courtesy)]


def brief() -> list[Labeler]:
    """A labeler who likes few words."""
    return [Persona("brief", brevity)]


def ranked_by(labeler: Labeler, rankings: Iterable[Ranking]) -> list[Ranking]:
    """The same responses to the same prompts, ranked by somebody else."""
    found: list[Ranking] = []
    for ranking in rankings:
        ended = ranking.get("ended", [True] * len(ranking["responses"]))
        responses = [Response(*each) for each in zip(ranking["responses"], ended, strict=True)]
        found.append({**ranking, "ranks": labeler.rank(ranking, responses), "labeler": labeler.name})
    return found


def as_rankings(labeler: Labeler, examples: Sequence[Prompt], groups: Sequence[list[Response]]) -> list[Ranking]:
    """A labeler's rankings of the responses to each prompt."""
    unranked: list[Ranking] = [
        {**example, "responses": [one.text for one in group], "ended": [one.ended for one in group], "ranks": []}
        for example, group in zip(examples, groups, strict=True)
    ]
    return ranked_by(labeler, unranked)


@contextmanager
def quietly() -> Iterator[None]:
    """Within the block, nothing is printed: several trainings in a row say the same things."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
