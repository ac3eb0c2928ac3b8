"""Weak-to-strong generalisation (Burns et al. 2023, arXiv 2312.09390), with reward models.

Who supervises a model that is better than its supervisor? The analogy: a small reward model learns from labelers and
then labels other responses; a larger one, which knows more from pretraining, learns from these weak labels. If it only
imitated, it would be as weak. What it gains over its supervisor, as a share of what it would gain from the labelers'
own rankings, is the performance gap recovered (equation 1 there):

    PGR = (weak-to-strong - weak) / (strong ceiling - weak)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from rlhf_mini.classroom.measure import MAX_NEW_TOKENS
from rlhf_mini.core.bootstrap import Estimate, divide, interval, resampled_ratios
from rlhf_mini.core.console import track
from rlhf_mini.core.examples import Prompt, Ranking, Response
from rlhf_mini.core.rankings import Count, Labeler, accuracy
from rlhf_mini.evaluation.responses import Stage
from rlhf_mini.models.sampling import respond
from rlhf_mini.models.scoring import with_scalar_head
from rlhf_mini.models.text import EncodedPrompt, encode_prompts
from rlhf_mini.training.batches import length_bucketed_batches
from rlhf_mini.training.loop import MAX_GRAD_NORM, adamw
from rlhf_mini.training.schedule import warmup_cosine
from stages.rm.agreement import rank_with_all, score_groups
from stages.rm.options import RMOptions
from stages.rm.rankings import as_responses, encode
from stages.rm.sources import distinct
from stages.rm.train import objective

MODELS = ("weak", "weak-to-strong", "strong ceiling")


def first_layers(path: Path, layers: int, seed: int) -> PreTrainedModel:
    """A GPT-2's checkpoint with a scalar head on its first `layers` layers: the fewer, the less it understands."""
    model = with_scalar_head(path, seed).eval()
    model.transformer.h = model.transformer.h[:layers]
    model.config.n_layer = layers
    return model


def fit(model: PreTrainedModel, tokenizer: Tokenizer, rankings: Sequence[Ranking], options: RMOptions) -> None:
    """Trains on the rankings, in place, with the loss and the optimizer of stages/rm."""
    examples = encode(model, tokenizer, rankings)
    steps = math.ceil(options.num_train_epochs * len(examples) / options.batch_size)
    batches = length_bucketed_batches([each.length for each in examples], options.batch_size, steps, options.seed)
    optimizer = adamw(model, options)
    for step in track(range(steps), "weak-to-strong: training", total=steps):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * warmup_cosine(step, steps, warmup_steps=0)
        objective(model, [examples[index] for index in batches[step]]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()


def labelled(model: PreTrainedModel, tokenizer: Tokenizer, rankings: Sequence[Ranking]) -> list[Ranking]:
    """The same responses in the order of the model's scores: its weak labels."""
    prompts = encode_prompts(tokenizer, [ranking["prompt"] for ranking in rankings])
    scores = score_groups(model, tokenizer, prompts, [as_responses(ranking) for ranking in rankings])
    return [
        ranking | {"ranks": [1 + sum(other > own for other in of) for own in of]}
        for ranking, of in zip(rankings, scores, strict=True)
    ]


@dataclass(frozen=True)
class Exam:
    """Responses to prompts that trained nothing, and how labelers rank them."""

    prompts: Sequence[EncodedPrompt]
    groups: Sequence[Sequence[Response]]
    ranks: Sequence[Sequence[Sequence[int]]]
    """Of each prompt, by each labeler."""

    def counts(self, model: PreTrainedModel, tokenizer: Tokenizer) -> list[Count]:
        """For each prompt, the pairs that the model orders as the labelers do."""
        scores = score_groups(model, tokenizer, self.prompts, self.groups)
        return [
            sum((accuracy(of_group, ranking) for ranking in rankings), Count(0, 0))
            for of_group, rankings in zip(scores, self.ranks, strict=True)
        ]


def exam(sft: Stage, examples: Sequence[Prompt], labelers: Sequence[Labeler], seed: int, number: int = 4) -> Exam:
    """`number` responses of the SFT model to each prompt, without those that are alike, ranked by all labelers."""
    prompts = sft.encode([example["prompt"] for example in examples])
    sampled = respond(
        sft.model, sft.tokenizer, [prompt for prompt in prompts for _ in range(number)], max_new_tokens=MAX_NEW_TOKENS,
        temperature=0.7, seed=seed,
    )  # fmt: skip
    groups = [distinct(sampled[start : start + number]) for start in range(0, len(sampled), number)]
    ranks = [rank_with_all(labelers, example, group) for example, group in zip(examples, groups, strict=True)]
    return Exam(prompts, groups, ranks)


def gap_recovered(counts: Mapping[str, Sequence[Count]]) -> dict[str, Estimate]:
    """The accuracy of each of MODELS and, as "PGR", the performance gap recovered, with intervals over prompts.

    A PGR divides by the gap: where that is hardly larger than its own error, the interval says so.
    """
    right = np.array([[count.right for count in counts[name]] for name in MODELS]).T  # (n, 3)
    total = np.array([[count.pairs for count in counts[name]] for name in MODELS], dtype=float).T  # (n, 3)
    rows = np.vstack([divide(right.sum(0), total.sum(0)), resampled_ratios(right, total)])  # (1 + S, 3)
    weak, student, ceiling = rows.T
    gap = np.where(ceiling == weak, np.nan, ceiling - weak)  # (1 + S,)
    every = np.column_stack([rows, (student - weak) / gap])  # (1 + S, 4)
    low, high = interval(every[1:])
    names = (*MODELS, "PGR")
    return {
        name: Estimate(float(m), float(a), float(b)) for name, m, a, b in zip(names, every[0], low, high, strict=True)
    }
