"""Simulated labelers: they see the parts of the gold score through weights of their own, and slip.

A labeler's quality of a response is its weighted mean of the parts plus logistic noise; responses are ranked by it,
and two on the same step of a grid are tied. With logistic noise on both sides the chance of a slip falls with the
margin between two responses, as it does with people. Judgements are seeded by what is judged, so that the same
labeler says the same of the same response whenever asked.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_mini.core.console import UserError
from rlhf_mini.world.gold import WEIGHTS, judge
from rlhf_mini.world.knowledge import load

if TYPE_CHECKING:
    from rlhf_mini.core.examples import Prompt, Response


@dataclass(frozen=True)
class SimulatedLabeler:
    """Ranks responses to one prompt; needs the prompt record's `check`."""

    name: str
    weights: dict[str, float]
    noise: float
    grid: float

    def quality(self, example: Prompt, response: Response) -> float:
        """Weighted mean of the gold parts, in [0, 1], plus logistic noise."""
        if "check" not in example:
            raise UserError(
                f"The simulated labelers cannot judge {example.get('id', example['prompt'][-1]['content'])!r}: it has no "
                "`check`; use prompts of the mini world or give people's rankings with --rankings."
            )
        value = judge(example["check"], example["prompt"], response.text, response.ended).weighted(self.weights)
        return value + self.noise * self._logistic(example, response)

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        """Ranks, 1 = best, equal = tied; in the order of `responses`."""
        steps = [round(self.quality(example, response) / self.grid) for response in responses]
        return [1 + sum(other > step for other in steps) for step in steps]

    def _logistic(self, example: Prompt, response: Response) -> float:
        judged = "\x00".join(
            [self.name, *(m["content"] for m in example["prompt"]), response.text, str(response.ended)]
        )
        u = (int.from_bytes(hashlib.blake2b(judged.encode(), digest_size=8).digest()) + 0.5) / 2**64
        return math.log(u / (1 - u))


def _labelers(group: str) -> list[SimulatedLabeler]:
    settings = load().labelers
    return [SimulatedLabeler(name, w, settings["noise"], settings["grid"]) for name, w in settings[group].items()]


def training_labelers() -> list[SimulatedLabeler]:
    """The labelers whose rankings train the reward model."""
    return _labelers("training")


def heldout_labelers() -> list[SimulatedLabeler]:
    """The labelers who never train anything: they judge."""
    return _labelers("held_out")


def gold_labeler() -> list[SimulatedLabeler]:
    """The gold score as a labeler: its own weights, no noise, ties only where scores are equal."""
    return [SimulatedLabeler("gold", WEIGHTS, noise=0.0, grid=1e-6)]
