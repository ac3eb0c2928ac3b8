"""What each stage of a run cost: seconds and memory as measured, FLOPs and watt-hours as estimated.

FLOPs are 2 x parameters x tokens for a forward pass and 6 x parameters x tokens for a training step (Kaplan et al.
2020, arXiv 2001.08361, section 2.1), where parameters exclude the embeddings and include the output head. Tokens are
counted from what the stages recorded, or from their data and options; evaluation during training is not counted.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Prompt, read_demonstrations, read_prompts, read_rankings, read_texts
from stages.ppo.options import names_function

E = TypeVar("E")

STAGE_TITLES = {"base": "base", "sft": "SFT", "rm": "RM", "ppo": "PPO"}
COUNTED = 300  # examples drawn to estimate the mean length in tokens


@dataclass(frozen=True)
class Work:
    """Tokens that went through one model for one purpose."""

    what: str
    """Its key among the report's texts, after "work."."""
    per_parameter: int
    """FLOPs for each parameter and token: 2 forward, 6 forward and backward (arXiv 2001.08361, section 2.1)."""
    parameters: int
    tokens: float

    @property
    def flops(self) -> float:
        return self.per_parameter * self.parameters * self.tokens


@dataclass(frozen=True)
class Cost:
    """What one stage cost."""

    stage: str
    seconds: float
    memory: float
    """Peak, in MB."""
    flops: float | None
    """Estimated; None if the stage's data or options do not tell."""
    watt_hours: float
    works: list[Work]


def costs(checkpoints: Mapping[str, Checkpoint], iterations: Sequence[dict[str, Any]], watts: float) -> list[Cost]:
    """One item for each stage, and a last one for SFT, RM and PPO together.

    Args:
        iterations: the lines of PPO's metrics.jsonl.
        watts: the assumed power draw.
    """
    stages = []
    for name, checkpoint in checkpoints.items():
        try:
            works = work(name, checkpoints, iterations)
        except (UserError, KeyError, TypeError, ValueError, ArithmeticError):
            works = []  # its data are gone, or a stage of the user's own has other options
        seconds, memory = (float(checkpoint.info.get(key) or 0) for key in ("seconds", "peak_memory_mb"))
        flops = sum(part.flops for part in works) if works else None
        stages.append(Cost(STAGE_TITLES[name], seconds, memory, flops, watt_hours(seconds, watts), works))
    trained = stages[1:]
    total = None if any(cost.flops is None for cost in trained) else sum(cost.flops or 0.0 for cost in trained)
    seconds, memory = sum(cost.seconds for cost in trained), max(cost.memory for cost in trained)
    return [*stages, Cost("SFT + RM + PPO", seconds, memory, total, watt_hours(seconds, watts), [])]


def watt_hours(seconds: float, watts: float) -> float:
    return seconds * watts / 3600


def work(stage: str, checkpoints: Mapping[str, Checkpoint], iterations: Sequence[dict[str, Any]]) -> list[Work]:
    """What a stage computed, without evaluation. UserError or KeyError if its data or options do not tell."""
    checkpoint = checkpoints[stage]
    options, metrics = checkpoint.info["options"], checkpoint.info["metrics"]
    scalar_model, language_model = (parameters(checkpoints["sft"].path, head) for head in (False, True))
    if stage == "base":
        return [Work("training", 6, language_model, options["corpus_tokens"])]
    from rlhf_mini.models.text import encode_plain, encode_prompts, encode_response, load_tokenizer

    tokenizer = load_tokenizer(checkpoint.path)

    def prompt_length(example: Prompt) -> int:
        return len(encode_prompts(tokenizer, [example["prompt"]])[0].ids)

    def response_length(text: str) -> int:
        return len(encode_response(tokenizer, text))

    def text_length(path: str) -> float:
        return mean(len(ids) + 2 for ids in encode_plain(tokenizer, drawn(read_texts(path))))

    if stage == "sft":
        length = mean(
            prompt_length(example) + response_length(example["completion"][0]["content"])
            for example in drawn(read_demonstrations(options["demonstrations"]))
        )
        passes = metrics["demonstrations"] * options["num_train_epochs"]
        training = Work("training", 6, language_model, passes * length)
        if not options.get("ptx_coef"):
            return [training]
        texts = options["ptx_batch_size"] * passes / options["batch_size"]
        return [training, Work("pretraining_texts", 6, language_model, texts * text_length(options["ptx_texts"]))]
    if stage == "rm":
        some = drawn(read_rankings(checkpoint.path / "rankings.jsonl"))
        ranked = mean(len(example["responses"]) for example in some)
        length = mean(
            sum(prompt_length(example) + response_length(text) for text in example["responses"]) for example in some
        )
        training = Work("training", 6, scalar_model, metrics["rankings"] * options["num_train_epochs"] * length)
        read = [Work("likelihood", 2, language_model, metrics["rankings"] * length)] if options["likelihood"] else []
        rankings = metrics["rankings"] + metrics["rankings_held_out"]
        # All samples are as long as those that were ranked, more or less.
        samples = options["num_samples"] + bool(options["base"]) if "num_samples" in options else None
        share = samples / ranked if samples else 1.0
        sampling = Work("sampling", 2, language_model, rankings * length * share)
        return [*([] if options["rankings"] else [sampling]), *read, training]
    prompt = mean(prompt_length(example) for example in drawn(read_prompts(options["prompts"])))
    tokens = sum(options["episodes"] * (prompt + iteration["response/length"]) for iteration in iterations)
    ptx = []
    if options["ptx_coef"] > 0:
        texts = options["ptx_batch_size"] * len(iterations) * options["num_ppo_epochs"] * options["num_minibatches"]
        ptx = [Work("ptx", 6, language_model, texts * text_length(options["ptx_texts"]))]
    reward = [] if names_function(options["reward"]) else [Work("reward_model", 2, scalar_model, tokens)]
    return [
        Work("rollout", 2, language_model, tokens),
        Work("sft_logprobs", 2, language_model, tokens),
        Work("values", 2, scalar_model, tokens),
        *reward,
        Work("policy", 6, language_model, tokens * options["num_ppo_epochs"]),
        Work("value_model", 6, scalar_model, tokens * options["num_ppo_epochs"]),
        *ptx,
    ]


def parameters(folder: Path, head: bool) -> int:
    """Parameters that multiply each token: all but the embeddings; with `head`, the output head too (tied in GPT-2)."""
    from safetensors import safe_open

    from rlhf_mini.models.adapters import CONFIG, base_of

    while (folder / CONFIG).is_file():
        folder = base_of(folder)  # an adapter is merged into it
    with safe_open(folder / "model.safetensors", framework="np") as weights:
        sizes = {name: math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    embeddings = {name: size for name, size in sizes.items() if any(e in name for e in ("wte", "wpe", "embed"))}
    body = sum(size for name, size in sizes.items() if name not in embeddings and "lm_head" not in name)
    return body + (max(embeddings.values(), default=0) if head else 0)


def drawn(examples: list[E]) -> list[E]:
    return random.Random(0).sample(examples, min(COUNTED, len(examples)))


def mean(lengths: Iterable[int]) -> float:
    counted = list(lengths)
    return sum(counted) / len(counted)
