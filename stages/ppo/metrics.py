"""What PPO logs, shows and measures. Nothing here changes what is learned."""

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_mini.core.console import console
from rlhf_mini.core.examples import Messages, Response, read_prompts
from rlhf_mini.models.sampling import check_prompt_lengths, encode_prompts, excerpt, respond
from rlhf_mini.models.scoring import sequence_logprobs, text_loss
from stages.ppo import losses
from stages.ppo.faults import Fault
from stages.ppo.models import Episodes, Models
from stages.ppo.options import PPOOptions

SPARSE_EVERY = 5  # updates between two console lines where there is no terminal


def of_rollout(episodes: Episodes, options: PPOOptions, kl_coef: float) -> dict[str, float]:
    """Metrics of a rollout. KL, entropy and reward are of whole responses: summed over tokens, averaged over responses.

    Fault if the policy's log-probabilities, the values or the rewards are not finite.
    """
    mask = episodes.response_mask  # (B, R)
    both = episodes.logprobs, episodes.ref_logprobs  # (B, R) each
    kl = losses.kl_k1(*both).sum(-1)  # (B,)
    penalized = losses.penalize_missing_eos(episodes.scores, episodes.ended, options.missing_eos_penalty)  # (B,)
    tensors = {
        "objective/scores": episodes.scores.mean(),
        "objective/scores_std": episodes.scores.std(),
        "objective/kl": kl.mean(),
        "objective/kl_k2": losses.kl_k2(*both).sum(-1).mean(),
        "objective/kl_k3": losses.kl_k3(*both).sum(-1).mean(),
        "objective/entropy": -episodes.logprobs.sum(-1).mean(),
        "objective/rlhf_reward": (penalized - kl_coef * kl).mean(),
        "response/eos_rate": episodes.ended.float().mean(),
        "response/length": mask.sum(-1).float().mean(),
        "value/explained_variance": losses.explained_variance(episodes.values, episodes.returns, mask),
    }
    metrics = {name: value.item() for name, value in tensors.items()}
    if not all(math.isfinite(value) for value in metrics.values()):
        raise Fault("the log-probabilities, values or scores of the responses were not finite numbers")
    return metrics | {"objective/kl_coef": kl_coef}


@torch.no_grad()
def of_step(new_logprobs: Tensor, logprobs: Tensor, entropy: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """How far the policy of one optimizer step is from the one that sampled. Arguments (B, R), results scalars."""
    ratio = torch.exp((new_logprobs - logprobs) * mask)  # (B, R)
    return {
        "policy/entropy": losses.masked_mean(entropy, mask),
        "policy/approx_kl": losses.approx_kl(new_logprobs, logprobs, mask),
        "policy/ratio_mean": losses.masked_mean(ratio, mask),
        "policy/ratio_variance": losses.masked_var(ratio, mask),
        "policy/first_ratio_error": (ratio - 1).abs().max(),
    }


def of_update(steps: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """The mean of each metric over the steps of an update.

    policy/first_ratio_error is the first step's: no step was taken before it, so the log-probabilities kept from the
    rollout and those computed for the update must agree (to rounding), or the two passes saw different inputs.
    """
    metrics = {name: sum(step[name].item() for step in steps) / len(steps) for name in steps[0]}
    return metrics | {"policy/first_ratio_error": steps[0]["policy/first_ratio_error"].item()}


def show(
    update: int,
    metrics: dict[str, float],
    options: PPOOptions,
    prompt: Messages,
    episodes: Episodes,
    tokenizer: Any,
) -> None:
    """One console line an update (on a terminal, else every fifth), and a sampled response now and then."""
    sampled = update % options.sample_every == 0
    last = update == options.updates
    if console.is_terminal or sampled or last or update % SPARSE_EVERY == 0 or update == 1:
        console.print(
            f"ppo: update {update:>{len(str(options.updates))}}/{options.updates}  "
            f"score {metrics['objective/scores']:+.2f}  kl {metrics['objective/kl']:.2f}  "
            f"length {metrics['response/length']:.1f}  eos {metrics['response/eos_rate']:.0%}  "
            f"{metrics['episodes_per_second']:.0f} episodes/s"
        )
    if sampled:
        length = int(episodes.response_mask[0].sum())
        ids = episodes.input_ids[0, : int(episodes.attention_mask[0].sum())][-length:].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=True)
        console.print(excerpt(prompt, Response(text, bool(episodes.ended[0]))), style="dim")
        console.print(f"    score: {float(episodes.scores[0]):+.2f}", style="dim")


def split_texts(texts: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Those to train on, and a tenth to measure on."""
    aside = -(-len(texts) // 10)
    return texts[aside:], texts[:aside]


class Evaluation:
    """Policy and SFT model on prompts and texts that neither was trained on."""

    def __init__(self, models: Models, options: PPOOptions, texts: list[list[int]]) -> None:
        """Draws the prompts, the same for any seed. UserError, before any work, if one of them is too long."""
        prompts = [record["prompt"] for record in read_prompts(options.validation_prompts)]
        self.prompts = random.Random(0).sample(prompts, min(options.evaluation_prompts, len(prompts)))
        self.models, self.options, self.texts = models, options, texts
        encoded = encode_prompts(models.tokenizer, self.prompts)
        check_prompt_lengths(models.policy, encoded, options.max_new_tokens)

    def __call__(self) -> dict[str, float]:
        """Score, length, eos rate and text loss of both, and the policy's KL to the SFT model.

        KL is in nats, summed over each response and averaged over the policy's responses.
        """
        models, options = self.models, self.options
        metrics: dict[str, float] = {}
        scores = {}
        for name, model in (("ppo", models.policy), ("sft", models.ref_policy)):
            responses = respond(
                model,
                models.tokenizer,
                self.prompts,
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                seed=options.seed,
            )
            scores[name] = models.reward(self.prompts, responses)
            metrics[f"validation/{name}_score"] = mean(scores[name])
            metrics[f"validation/{name}_length"] = mean([len(response.ids) for response in responses])
            metrics[f"validation/{name}_eos_rate"] = mean([response.ended for response in responses])
            with torch.no_grad():
                metrics[f"validation/{name}_text_loss"] = text_loss(model, self.texts).item()
            if name == "ppo":
                new, old = (
                    sequence_logprobs(m, models.tokenizer, self.prompts, responses, options.temperature)
                    for m in (models.policy, models.ref_policy)
                )
                metrics["validation/kl"] = mean(new) - mean(old)
        wins = [(ppo > sft) + 0.5 * (ppo == sft) for ppo, sft in zip(scores["ppo"], scores["sft"], strict=True)]
        metrics["validation/wins_by_reward"] = mean(wins)
        before_and_after = ", ".join(
            f"{what} {metrics[f'validation/sft_{key}']:{form}} -> {metrics[f'validation/ppo_{key}']:{form}}"
            for what, key, form in (
                ("score", "score", "+.2f"), ("length", "length", ".1f"), ("eos", "eos_rate", ".0%"),
                ("loss on texts", "text_loss", ".2f"),
            )
        )  # fmt: skip
        console.print(
            f"ppo: on {len(self.prompts)} validation prompts {before_and_after}, kl {metrics['validation/kl']:.2f}",
            soft_wrap=True,
        )
        return metrics


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
