"""What each stage of a run cost: seconds and memory as measured, FLOPs and watt-hours as estimated.

FLOPs are 2 x parameters x tokens for a forward pass and 6 x for a training step (Kaplan et al. 2020, arXiv 2001.08361,
section 2.1), parameters without the embeddings and with the output head. Tokens are counted from what the stages
recorded, or from their data and options; evaluations along the way are left out.
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import read_demonstrations, read_prompts, read_rankings, read_texts

TITLES = {"base": "base", "sft": "SFT", "rm": "RM", "ppo": "PPO"}
COUNTED = 300  # records whose mean length in tokens stands for all


@dataclass(frozen=True)
class Work:
    """Some tokens that went through a model."""

    what: str
    per_parameter: int
    """FLOPs for each parameter and token: 2 forward, 6 forward and backward (arXiv 2001.08361, section 2.1)."""
    parameters: int
    tokens: float

    @property
    def flops(self) -> float:
        return self.per_parameter * self.parameters * self.tokens


@dataclass(frozen=True)
class Cost:
    """What a stage took."""

    stage: str
    seconds: float
    memory: float
    """Its peak, in MB."""
    flops: float | None
    """Estimated; None if its data or options do not say."""
    watt_hours: float
    works: list[Work]


def costs(checkpoints: dict[str, Checkpoint], updates: Sequence[dict[str, Any]], watts: float) -> list[Cost]:
    """Of each stage, and last of SFT, RM and PPO together."""
    stages = []
    for name, checkpoint in checkpoints.items():
        try:
            works = work(name, checkpoints, updates)
        except (UserError, KeyError):  # its data are gone, or it has options of its own
            works = []
        seconds, memory = (float(checkpoint.info.get(key) or 0) for key in ("seconds", "peak_memory_mb"))
        flops = sum(part.flops for part in works) if works else None
        stages.append(Cost(TITLES[name], seconds, memory, flops, watt_hours(seconds, watts), works))
    three = stages[1:]
    flops = None if any(cost.flops is None for cost in three) else sum(cost.flops or 0.0 for cost in three)
    seconds, memory = sum(cost.seconds for cost in three), max(cost.memory for cost in three)
    return [*stages, Cost("SFT + RM + PPO", seconds, memory, flops, watt_hours(seconds, watts), [])]


def watt_hours(seconds: float, watts: float) -> float:
    return seconds * watts / 3600


def work(stage: str, checkpoints: dict[str, Checkpoint], updates: Sequence[dict[str, Any]]) -> list[Work]:
    """What a stage computed, without its evaluations. UserError or KeyError if its data or options do not say."""
    checkpoint = checkpoints[stage]
    options, metrics = checkpoint.info["options"], checkpoint.info["metrics"]
    scalar, language = (parameters(checkpoints["sft"].path, head) for head in (False, True))
    if stage == "base":
        return [Work("training", 6, language, options["corpus_tokens"])]
    from transformers import AutoTokenizer

    from rlhf_mini.models.sampling import encode_prompts, encode_response

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)

    def prompt_length(record: dict[str, Any]) -> int:
        return len(encode_prompts(tokenizer, [record["prompt"]])[0])

    def response_length(text: str) -> int:
        return len(encode_response(tokenizer, text))

    if stage == "sft":
        length = mean_of_some(
            prompt_length(record) + response_length(record["completion"][0]["content"])
            for record in some(read_demonstrations(options["demonstrations"]))
        )
        return [Work("training", 6, language, metrics["demonstrations"] * options["num_train_epochs"] * length)]
    if stage == "rm":
        length = mean_of_some(
            sum(prompt_length(record) + response_length(text) for text in record["responses"])
            for record in some(read_rankings(checkpoint.path / "rankings.jsonl"))
        )
        trained = Work("training", 6, scalar, metrics["rankings"] * options["num_train_epochs"] * length)
        sampled = Work("sampling", 2, language, (metrics["rankings"] + metrics["rankings_kept_aside"]) * length)
        return [trained] if options["rankings"] else [sampled, trained]
    prompt = mean_of_some(prompt_length(record) for record in some(read_prompts(options["prompts"])))
    tokens = sum(options["episodes"] * (prompt + update["response/length"]) for update in updates)
    mixed_in = []
    if options["ptx_coef"] > 0:
        texts = options["ptx_batch_size"] * len(updates) * options["num_ppo_epochs"] * options["num_minibatches"]
        length = mean_of_some(len(tokenizer(text)["input_ids"]) + 2 for text in some(read_texts(options["ptx_texts"])))
        mixed_in = [Work("PPO-ptx", 6, language, texts * length)]
    rewarded = [] if ":" in options["reward"] else [Work("reward model", 2, scalar, tokens)]
    return [
        Work("rollout", 2, language, tokens),
        Work("SFT's log-probabilities", 2, language, tokens),
        Work("values", 2, scalar, tokens),
        *rewarded,
        Work("training the policy", 6, language, tokens * options["num_ppo_epochs"]),
        Work("training the value model", 6, scalar, tokens * options["num_ppo_epochs"]),
        *mixed_in,
    ]


def parameters(folder: Path, head: bool) -> int:
    """Parameters that multiply: without the embeddings, with the output head (tied to them in GPT-2) if asked for."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="np") as weights:
        sizes = {name: math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    embeddings = {name: size for name, size in sizes.items() if any(e in name for e in ("wte", "wpe", "embed"))}
    body = sum(size for name, size in sizes.items() if name not in embeddings and "lm_head" not in name)
    return body + (max(embeddings.values(), default=0) if head else 0)


def some(records: list[Any]) -> list[Any]:
    return random.Random(0).sample(records, min(COUNTED, len(records)))


def mean_of_some(lengths: Iterable[int]) -> float:
    counted = list(lengths)
    return sum(counted) / len(counted)
