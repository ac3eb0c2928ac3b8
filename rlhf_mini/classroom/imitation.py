"""Lesson 1: how well a model has learned demonstrations, and which parts of the gold score that brings."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoModelForCausalLM

from rlhf_mini.classroom.continuation import estimate
from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.examples import Demonstration, Prompt, Response
from rlhf_mini.evaluation.responses import gold_of
from rlhf_mini.models.adapters import load_model
from rlhf_mini.models.text import encode_demonstrations, load_tokenizer
from rlhf_mini.world.gold import WEIGHTS
from stages.sft.train import Example, mean_loss


def demonstration_loss(checkpoint: Path, demonstrations: Sequence[Demonstration]) -> Estimate:
    """The mean over demonstrations of the loss per token of their completions, in nats."""
    model, tokenizer = load_model(AutoModelForCausalLM, checkpoint).eval(), load_tokenizer(checkpoint)
    encoded = encode_demonstrations(model, tokenizer, demonstrations)
    return estimate(mean_loss(model, [Example(*ids)], batch_size=1) for ids in encoded)


def gold_parts(examples: Sequence[Prompt], responses: Sequence[Response]) -> dict[str, Estimate]:
    """The mean of each part of the gold score, over the prompts to which it applies."""
    golds = [gold_of(example, response) for example, response in zip(examples, responses, strict=True)]
    return {part: estimate(gold.parts[part] if gold else None for gold in golds) for part in WEIGHTS}
