"""What PPO logs, shows and measures. Nothing here changes what is learned."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_mini.console import console
from rlhf_mini.sampling import Messages, Response, respond
from rlhf_mini.scoring import score_texts, sequence_logprobs
from rlhf_mini.training import excerpt
from stages.ppo import losses
from stages.ppo.models import Episodes, Models
from stages.ppo.options import PPOOptions

SPARSE_EVERY = 5  # updates between two console lines where there is no terminal


def of_rollout(episodes: Episodes, options: PPOOptions) -> dict[str, float]:
    """Metrics of a rollout. KL and reward are summed over each response, then averaged over the responses.

    FloatingPointError if the policy's log-probabilities, the values or the rewards are not finite.
    """
    mask = episodes.response_mask  # (B, R)
    kl = losses.kl_k1(episodes.logprobs, episodes.ref_logprobs)  # (B, R)
    kl_k3 = losses.kl_k3(episodes.logprobs, episodes.ref_logprobs)  # (B, R)
    penalized = losses.penalize_missing_eos(episodes.scores, episodes.ended, options.missing_eos_penalty)  # (B,)
    tensors = {
        "objective/scores": episodes.scores.mean(),
        "objective/scores_std": episodes.scores.std(),
        "objective/kl": kl.sum(-1).mean(),
        "objective/kl_k3": kl_k3.sum(-1).mean(),
        "objective/rlhf_reward": (penalized - options.kl_coef * kl.sum(-1)).mean(),
        "response/eos_rate": episodes.ended.float().mean(),
        "response/length": mask.sum(-1).float().mean(),
        "value/explained_variance": losses.explained_variance(episodes.values, episodes.returns, mask),
    }
    metrics = {name: value.item() for name, value in tensors.items()}
    if not all(math.isfinite(value) for value in metrics.values()):
        raise FloatingPointError("the log-probabilities, values or scores of the responses were not finite numbers")
    return metrics


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


def evaluate(models: Models, prompts: Sequence[Messages], options: PPOOptions) -> dict[str, float]:
    """Policy and SFT model on prompts that neither was trained on: the reward model's score, length, eos rate, and KL.

    KL is the policy's to the SFT model, in nats, summed over each response and averaged over the policy's responses.
    """
    policy, ref_policy, tokenizer = models.actor.policy, models.ref_policy, models.tokenizer
    metrics: dict[str, float] = {}
    scores = {}
    for name, model in (("ppo", policy), ("sft", ref_policy)):
        responses = respond(
            model,
            tokenizer,
            prompts,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
        )
        scores[name] = score_texts(models.reward_model, tokenizer, prompts, responses)
        metrics[f"validation/{name}_score"] = mean(scores[name])
        metrics[f"validation/{name}_length"] = mean([len(response.ids) for response in responses])
        metrics[f"validation/{name}_eos_rate"] = mean([response.ended for response in responses])
        if name == "ppo":
            new, old = (
                sequence_logprobs(m, tokenizer, prompts, responses, options.temperature) for m in (policy, ref_policy)
            )
            metrics["validation/kl"] = mean(new) - mean(old)
    wins = [(ppo > sft) + 0.5 * (ppo == sft) for ppo, sft in zip(scores["ppo"], scores["sft"], strict=True)]
    metrics["validation/wins_by_reward_model"] = mean(wins)
    console.print(
        f"ppo: on {len(prompts)} validation prompts score {metrics['validation/sft_score']:+.2f} -> "
        f"{metrics['validation/ppo_score']:+.2f}, kl {metrics['validation/kl']:.2f}, "
        f"length {metrics['validation/sft_length']:.1f} -> {metrics['validation/ppo_length']:.1f}, "
        f"eos {metrics['validation/sft_eos_rate']:.0%} -> {metrics['validation/ppo_eos_rate']:.0%}"
    )
    return metrics


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
