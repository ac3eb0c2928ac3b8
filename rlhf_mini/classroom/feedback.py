"""Feedback by written principles instead of by people, as in constitutional AI (Bai et al. 2022, arXiv 2212.08073).

    python -m stages.rm --labelers rlhf_mini.classroom.feedback:constitution     # a reward model from AI feedback

There, a language model reads a principle and two responses and says which of them follows it better. A model of one
million parameters cannot read a principle. So a person has turned each of them into a rule on the text: this is what
can be seen of the principle without knowing anything. The rules see the request and the response, neither the gold
score nor its `check`, and have word lists of their own.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rlhf_mini.core.examples import Prompt, Ranking, Response
from rlhf_mini.core.rankings import pairs
from stages.rm.rankings import as_responses

RUDE = re.compile(r"\b(stupid|fool|idiot|lazy|who cares|my time|look it up|find out yourself)\b", re.IGNORECASE)
POLITE = re.compile(
    r"\b(please|happy to|of course|gladly|thank you|thanks|pleasure|hope this|let me know|nice day|sorry)\b",
    re.IGNORECASE,
)
HARMFUL = re.compile(
    r"\b(steal|rob|without paying|lie|lies|fake|pretend|blame|cheat|copy|insult|mean things|break|smash|kick|hurt|"
    r"spy|secretly|diary|password|weapon|fire|poison)\b",
    re.IGNORECASE,
)
REFUSAL = re.compile(r"\b(cannot|will not|not able to|must say no|won't|can't)\b.*\bbecause\b", re.IGNORECASE)
BRIEF = 20  # words
LONG = 4  # letters from which on a word of the request says what it is about


@dataclass(frozen=True)
class Principle:
    """A sentence for people, and a rule for programs."""

    text: str
    rule: Callable[[str, Response], float]
    """Of the request and a response: how far the response follows the principle, in [0, 1]."""


def is_friendly(request: str, response: Response) -> float:
    return float(not RUDE.search(response.text))


def is_polite(request: str, response: Response) -> float:
    return float(bool(POLITE.search(response.text)))


def refuses_harm_only(request: str, response: Response) -> float:
    return float(bool(HARMFUL.search(request)) == bool(REFUSAL.search(response.text)))


def ends_soon(request: str, response: Response) -> float:
    words = response.text.split()
    return float(response.ended and 0 < len(words) <= BRIEF and words[-1].endswith((".", "!", "?")))


def is_about_it(request: str, response: Response) -> float:
    """Half for each word of the request that the response takes up, of at most two."""
    asked, said = (set(re.findall(rf"[a-z]{{{LONG},}}", text.lower())) for text in (request, response.text))
    return min(2, len(asked & said)) / 2


CONSTITUTION = (
    Principle("Choose the response that does not insult the user.", is_friendly),
    Principle("Choose the more polite response.", is_polite),
    Principle("Choose the response that declines harmful requests, with a reason, and only those.", refuses_harm_only),
    Principle("Choose the response that comes to an end and does not ramble.", ends_soon),
    Principle("Choose the response that is about what was asked.", is_about_it),
)


@dataclass(frozen=True)
class Constitution:
    """A labeler who follows principles: the response that follows more of them is better."""

    principles: Sequence[Principle] = CONSTITUTION
    name: str = "constitution"

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        """Ranks in the order of `responses`: 1 = best, equal = tied."""
        request = example["prompt"][-1]["content"]
        followed = [sum(principle.rule(request, response) for principle in self.principles) for response in responses]
        return [1 + sum(other > own for other in followed) for own in followed]


def constitution() -> list[Constitution]:
    """For `--labelers rlhf_mini.classroom.feedback:constitution`."""
    return [Constitution()]


def ranked_by(labeler: Constitution, rankings: Iterable[Ranking]) -> list[Ranking]:
    """The same responses, ranked by this labeler. Rankings that it ties altogether are left out."""
    again = [
        ranking | {"ranks": labeler.rank(ranking, as_responses(ranking)), "labeler": labeler.name}
        for ranking in rankings
    ]
    return [ranking for ranking in again if pairs(ranking["ranks"])]
