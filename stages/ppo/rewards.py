"""What PPO maximises: a reward model's checkpoint, or any function of prompts and responses.

    python -m stages.ppo                                            # the run's own reward model, runs/default/rm
    python -m stages.ppo --reward runs/other/rm
    python -m stages.ppo --reward stages.ppo.rewards:short

A function takes a list of prompts (each a list of messages) and a list of responses (texts), and returns a number for
each of them. The two below are worked examples, and so is `rlhf_mini.world.gold:reward`, the gold score. `short` shows
in a minute what a careless reward does to a model.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Messages, Response
from rlhf_mini.core.options import code_of_the_user
from rlhf_mini.models.scoring import score_texts
from rlhf_mini.models.text import EncodedPrompt

Reward = Callable[[Sequence[EncodedPrompt], Sequence[Response]], list[float]]


def of_model(reward_model: Any, tokenizer: Any) -> Reward:
    """The score that a reward model gives at the last token of each response."""
    return lambda prompts, responses: score_texts(reward_model, tokenizer, prompts, responses)


def of_function(function: Callable[[list[Messages], list[str]], Sequence[float]], name: str) -> Reward:
    """A user's function as a reward. UserError if it does not return a finite number for each response."""

    def reward(prompts: Sequence[EncodedPrompt], responses: Sequence[Response]) -> list[float]:
        texts = [response.text for response in responses]
        with code_of_the_user(f"--reward {name}"):
            returned = function([prompt.messages for prompt in prompts], texts)
            scores = as_numbers(returned)
        if scores is None:
            raise UserError(
                f"--reward {name} must return a list of {len(responses)} numbers, one for each response, "
                f"not {shown(returned)}"
            )
        if len(scores) != len(responses):
            raise UserError(f"--reward {name} returned {len(scores)} numbers for {len(responses)} responses")
        if not all(math.isfinite(score) for score in scores):
            raise UserError(f"--reward {name} returned a number that is not finite: check what it divides by")
        return scores

    return reward


def as_numbers(returned: Any) -> list[float] | None:
    """The numbers in a list, an array or a tensor of one dimension. None for anything else."""
    if not isinstance(returned, Iterable) or isinstance(returned, (str, bytes, Mapping, Set)):
        return None
    if getattr(returned, "ndim", 1) != 1:
        return None
    numbers = []
    for one in returned:
        if isinstance(one, (str, bytes)) or getattr(one, "ndim", 0) != 0:
            return None
        try:
            numbers.append(float(one))
        except OverflowError:  # a whole number beyond any float
            numbers.append(math.inf)
        except (TypeError, ValueError):
            return None
    return numbers


def shown(value: Any) -> str:
    """What a reward returned, in a few words."""
    if hasattr(value, "shape"):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- examples --------------------------------------------------------------------------------------------------------


def short(prompts: list[Messages], responses: list[str]) -> list[float]:
    """1 for an empty response, 0 for 20 words: the shortest lesson in getting what one asked for."""
    return [1 - len(response.split()) / 20 for response in responses]


def please(prompts: list[Messages], responses: list[str]) -> list[float]:
    """1 for a response that contains the word "happy"."""
    return [float("happy" in response.lower()) for response in responses]
