"""Simulated labelers: each weighs the parts of the gold score differently, overlooks things and makes mistakes.

A labeler has blind spots: with some probability it takes a part for faultless without a look. It rates a response by
its own weighted mean of the parts as it sees them plus logistic noise, rounds the rating to a grid, and ranks by the
result; equal ratings are ties. The larger the difference in quality between two responses, the less
likely the noise is to swap them, as with people. The noise is seeded by the labeler, prompt and response, so a labeler
always gives the same response the same rating.
"""

import hashlib
import math
from dataclasses import dataclass, replace

from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.world.gold import WEIGHTS, judge
from rlhf_mini.world.knowledge import load


@dataclass(frozen=True)
class SimulatedLabeler:
    """Ranks responses to one prompt, which must have a `check`."""

    name: str
    weights: dict[str, float]
    misses: dict[str, float]  # by part, how often the labeler takes it for faultless without a look
    noise: float  # scale of the logistic noise
    grid: float  # ratings are rounded to multiples of this

    def check(self, example: Prompt) -> None:
        """Raises a UserError if the prompt has no `check`, without which it cannot be judged."""
        if "check" not in example:
            raise UserError(
                f"the simulated labelers cannot judge {example.get('id', example['prompt'][-1]['content'])!r}: it has "
                "no `check`; use prompts of the mini world, or give rankings by people with --rankings"
            )

    def quality(self, example: Prompt, response: Response) -> float:
        """The weighted mean of the gold parts, in [0, 1], plus noise. UserError if the prompt has no `check`."""
        self.check(example)
        gold = judge(example["check"], example["prompt"], response.text, response.ended)
        missed = [part for part, share in self.misses.items() if self._uniform(example, response, part) < share]
        seen = replace(gold, **{part: 1.0 for part in missed if gold.parts[part] is not None and gold.task > 0})
        u = self._uniform(example, response)
        return seen.weighted(self.weights) + self.noise * math.log(u / (1 - u))

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        """Ranks in the order of `responses`: 1 = best, equal = tied."""
        steps = [round(self.quality(example, response) / self.grid) for response in responses]
        return [1 + sum(other > step for other in steps) for step in steps]

    def _uniform(self, example: Prompt, response: Response, purpose: str = "") -> float:
        """In (0, 1), always the same for the same labeler, prompt, response and purpose."""
        judged = "\x00".join(
            [self.name, purpose, *(m["content"] for m in example["prompt"]), response.text, str(response.ended)]
        )
        return (int.from_bytes(hashlib.blake2b(judged.encode(), digest_size=8).digest()) + 0.5) / 2**64


def _labelers(group: str) -> list[SimulatedLabeler]:
    settings = load().labelers
    return [
        SimulatedLabeler(name, one["weights"], one["misses"], settings["noise"], settings["grid"])
        for name, one in settings[group].items()
    ]


def training_labelers() -> list[SimulatedLabeler]:
    """The labelers whose rankings train the reward model."""
    return _labelers("training")


def heldout_labelers() -> list[SimulatedLabeler]:
    """The labelers whose rankings train nothing; they are for evaluation only."""
    return _labelers("held_out")


def gold_labeler() -> list[SimulatedLabeler]:
    """The gold score as a labeler: gold's weights, no noise, ties only between equal scores."""
    return [SimulatedLabeler("gold", WEIGHTS, misses={}, noise=0.0, grid=1e-6)]
