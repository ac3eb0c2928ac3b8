"""Reward models that a lesson fits beside the run: on few rankings or many, of few blocks or all, on single pairs.

Examples, loss, batches, optimizer and schedule are those of stages/rm. The likelihood part of the score is left out, so
that what is seen is the network alone.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from rlhf_mini.core.bootstrap import Estimate, divide, interval, resampled_ratios
from rlhf_mini.core.rankings import Count, accuracy, pairs
from rlhf_mini.models.parallel import in_parallel
from rlhf_mini.models.scoring import with_scalar_head
from rlhf_mini.training.batches import length_bucketed_batches
from rlhf_mini.training.loop import MAX_GRAD_NORM, adamw
from rlhf_mini.training.schedule import warmup_cosine
from stages.rm.loss import k_wise_loss
from stages.rm.options import RMOptions
from stages.rm.rankings import Example
from stages.rm.train import objective, score_responses

Name = TypeVar("Name")
ROWS_AT_ONCE = 16  # rankings scored in one forward pass
LEARNING_RATE = 1e-3  # what suits a start from the SFT model (stages/rm/train.py)


class Errors(NamedTuple):
    """How far a reward model is from rankings."""

    error: float
    """Share of the ordered pairs that the scores put the other way round; equal scores are half wrong."""
    loss: float
    """The K-wise loss, in nats."""


class Point(NamedTuple):
    """A fit on its way."""

    epochs: float
    training: Errors
    validation: Errors


@dataclass(frozen=True)
class Fit:
    """A fitted reward model."""

    model: PreTrainedModel
    points: list[Point]
    seconds: float
    """Of training alone, without the measurements."""
    scored: int
    """Responses that training scored."""

    @property
    def training(self) -> Errors:
        """At the end."""
        return self.points[-1].training

    @property
    def validation(self) -> Errors:
        return self.points[-1].validation


def new_model(sft: Path, seed: int, blocks: int = 0) -> PreTrainedModel:
    """The SFT model with a scalar head, as `stages.rm --init sft` starts; only its first `blocks` blocks (0: all)."""
    model = with_scalar_head(sft, seed)
    if blocks:
        model.transformer.h = model.transformer.h[:blocks]
        model.config.n_layer = len(model.transformer.h)
    return model


def fit(
    model: PreTrainedModel, training: Sequence[Example], validation: Sequence[Example], *, steps: int = 0,
    batch_size: int = 16, learning_rate: float = LEARNING_RATE, weight_decay: float = 0.0, seed: int = 0,
    measure: int = 1, sample: int = 200,
) -> Fit:  # fmt: skip
    """Trains `model`, in place, as stages/rm does.

    Args:
        training: rankings, or what `as_pairs` makes of them.
        steps: 0 for one epoch.
        measure: how often errors are measured, evenly; the last time is after the last step.
        sample: the training error is measured on the first so many of `training`.
    """
    options = RMOptions(learning_rate=learning_rate, weight_decay=weight_decay, batch_size=batch_size, seed=seed)
    steps = steps or math.ceil(len(training) / batch_size)
    batches = length_bucketed_batches([each.length for each in training], batch_size, steps, seed)
    optimizer = adamw(model, options)
    stops = {round(steps * (index + 1) / measure) for index in range(measure)}
    points: list[Point] = []
    seconds, scored, seen, started = 0.0, 0, 0, time.monotonic()
    for step, indices in enumerate(batches, start=1):
        batch = [training[index] for index in indices]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warmup_cosine(step - 1, steps, warmup_steps=0)
        objective(model, batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        seen += len(batch)
        scored += sum(len(example.ranks) for example in batch)
        if step in stops:
            seconds += time.monotonic() - started
            points.append(Point(seen / len(training), errors(model, training[:sample]), errors(model, validation)))
            started = time.monotonic()
    return Fit(model, points, seconds, scored)


def fit_all(fits: Mapping[Name, Callable[[], Fit]]) -> dict[Name, Fit]:
    """Several fits at once, as many as torch has threads."""
    return dict(zip(fits, in_parallel(*fits.values()), strict=True))


def as_pairs(examples: Sequence[Example]) -> list[Example]:
    """Each comparison of each ranking as an example of its own: two responses, the first of them the better one."""
    return [
        Example([example.input_ids[better], example.input_ids[worse]], [1, 2], example.prompt_length)
        for example in examples
        for better, worse in pairs(example.ranks)
    ]


# --- errors ----------------------------------------------------------------------------------------------------------


def scores_of(model: PreTrainedModel, examples: Sequence[Example]) -> list[list[float]]:
    """The score of each response of each ranking: (n, K)."""
    order = sorted(range(len(examples)), key=lambda index: examples[index].length)
    scores: list[list[float]] = [[] for _ in examples]
    for start in range(0, len(order), ROWS_AT_ONCE):
        batch = order[start : start + ROWS_AT_ONCE]
        with torch.no_grad():
            found = score_responses(model, [examples[index] for index in batch])  # (M,)
        for index, group in zip(batch, found.split([len(examples[index].ranks) for index in batch]), strict=True):
            scores[index] = group.tolist()
    return scores


def errors(model: PreTrainedModel, examples: Sequence[Example]) -> Errors:
    """Of a model on rankings."""
    scores, ranks = scores_of(model, examples), [example.ranks for example in examples]
    right = sum(map(accuracy, scores, ranks), Count(0, 0))
    losses = [
        k_wise_loss(torch.tensor([of_one]), torch.tensor([order]), torch.ones(1, len(order), dtype=torch.bool)).item()
        for of_one, order in zip(scores, ranks, strict=True)
    ]
    return Errors(1 - right.share, sum(losses) / len(losses))


def share(counts: Sequence[Count]) -> Estimate:
    """The share of right pairs with its 95 % interval, from one Count per prompt."""
    return difference(counts, [Count(0, 1)] * len(counts))


def difference(counts: Sequence[Count], others: Sequence[Count]) -> Estimate:
    """The share of right pairs minus another one on the same prompts, with the 95 % interval of the difference.

    Args:
        counts, others: one Count per prompt.
    """
    right = np.array([[one.right, other.right] for one, other in zip(counts, others, strict=True)], dtype=float)
    total = np.array([[one.pairs, other.pairs] for one, other in zip(counts, others, strict=True)], dtype=float)
    resampled = resampled_ratios(right, total)  # (S, 2)
    low, high = interval(resampled[:, :1] - resampled[:, 1:])  # (1,), (1,)
    first, second = divide(right.sum(0), total.sum(0))
    return Estimate(float(first - second), float(low[0]), float(high[0]))


def pool(of_models: Sequence[Sequence[Count]]) -> list[Count]:
    """One Count per prompt, from as many of each of several models."""
    return [sum(of_prompt, Count(0, 0)) for of_prompt in zip(*of_models, strict=True)]
