"""What the stages answered, and what it is worth: the lines of runs/<run>/compare.jsonl, typed."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, TypeVar, cast

from rlhf_mini.core.examples import Messages, Prompt
from rlhf_mini.core.files import plain

T = TypeVar("T")

STAGES = ("base", "sft", "ppo")
GOLD = "gold"  # the name of the judge that is the gold score itself
REFERENCES = "references"  # and of the one that compares with reference answers; all others are labelers
# By their names in evaluate.json, those that people see.
JUDGES = {"gold": "gold score", "references": "reference answers", "heldout": "held-out labelers", "rm": "reward model"}
PAIRS = {"sft/base": "SFT over base", "ppo/sft": "PPO over SFT", "ppo/base": "PPO over base"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One stage's response to a prompt, with everything measured on it."""

    response: str
    ended: bool
    tokens: int
    words: int
    ids: list[int]
    rm_score: float
    gold: float | None
    """In [0, 1]; None for a prompt without a check."""
    parts: dict[str, float | None] | None
    """The parts of the gold score."""
    kl: float | None
    """log p(response) under this stage minus that under SFT, in nats; None for the base."""
    ranks: dict[str, int | None]
    """By judge, among the stages' answers to this prompt, 1 = best, equal = tied; None if the judge cannot judge it."""
    reference_score: float | None = None
    """Likeness to the prompt's references, in [0, 1]; None for a prompt without any."""


@dataclass(frozen=True)
class Row:
    """A prompt and what each stage answered."""

    example: Prompt
    """Without its check, references and mistakes."""
    answers: dict[str, Answer]
    """By stage."""

    @property
    def prompt(self) -> Messages:
        return self.example["prompt"]

    def to_json(self) -> dict[str, Any]:
        """The line of compare.jsonl."""
        answers = {stage: asdict(answer) for stage, answer in self.answers.items()}
        return cast(dict[str, Any], plain({**self.example, "stages": answers}))


def win(answer: Answer, other: Answer, judge: str) -> float | None:
    """1 if the judge ranks `answer` before `other`, 0 if after, 1/2 for a tie, None if the judge could not judge."""
    rank, other_rank = answer.ranks.get(judge), other.ranks.get(judge)
    if rank is None or other_rank is None:
        return None
    return 1.0 if rank < other_rank else 0.5 if rank == other_rank else 0.0


def mixed(items: Sequence[T], group: Callable[[T], Any], number: int, seed: int) -> list[T]:
    """`number` items drawn by `seed`, one of each group in turn."""
    groups: dict[Any, list[T]] = {}
    for item in random.Random(seed).sample(list(items), len(items)):
        groups.setdefault(group(item), []).append(item)
    in_turn = [item for one_each in zip_longest(*groups.values()) for item in one_each if item is not None]
    return in_turn[:number]
