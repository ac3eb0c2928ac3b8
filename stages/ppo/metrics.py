"""What PPO logs, shows and measures. Nothing here changes what is learned."""

import random
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from rlhf_mini.core import processes
from rlhf_mini.core.console import UserError, console
from rlhf_mini.data.load import load
from rlhf_mini.models.sampling import respond
from rlhf_mini.models.scoring import sequence_logprobs, text_loss
from rlhf_mini.models.text import Fitting, encode_fitting_prompts, excerpt
from stages.ppo import losses
from stages.ppo.models import Batch, Models
from stages.ppo.options import PPOOptions

SPARSE_EVERY = 5  # iterations between two console lines where there is no terminal


def rollout_metrics(batch: Batch, options: PPOOptions, kl_coef: float) -> dict[str, float]:
    """Metrics of a rollout. KL, entropy and reward are per response: summed over tokens, averaged over responses."""
    both = batch.logprobs, batch.ref_logprobs  # (n,) each
    kl = batch.rows.sum(losses.kl_k1(*both))  # (B,)
    penalized = losses.penalize_missing_eos(batch.scores, batch.ended, options.missing_eos_penalty)  # (B,)
    tensors = {
        "objective/scores": batch.scores.mean(),
        "objective/scores_std": batch.scores.std(),
        "objective/kl": kl.mean(),
        "objective/kl_k2": batch.rows.sum(losses.kl_k2(*both)).mean(),
        "objective/kl_k3": batch.rows.sum(losses.kl_k3(*both)).mean(),
        "objective/entropy": -batch.rows.sum(batch.logprobs).mean(),
        "objective/rlhf_reward": (penalized - kl_coef * kl).mean(),
        "response/eos_rate": batch.ended.float().mean(),
        "response/length": batch.rows.lengths.float().mean(),
        "value/explained_variance": losses.explained_variance(batch.values, batch.returns),
    }
    return {name: value.item() for name, value in tensors.items()} | {"objective/kl_coef": kl_coef}


@torch.no_grad()
def step_metrics(new_logprobs: Tensor, logprobs: Tensor, entropy: Tensor) -> dict[str, Tensor]:
    """How far the policy of one optimizer step is from the one that sampled. Arguments (n,), results scalars.

    Where processes share the step, each takes its own tokens, and what is logged is the mean of their results.
    """
    ratio = torch.exp(new_logprobs - logprobs)  # (n,)
    return {
        "policy/entropy": entropy.mean(),
        "policy/approx_kl": losses.approx_kl(new_logprobs, logprobs),
        "policy/ratio_mean": ratio.mean(),
        "policy/ratio_variance": ratio.var(correction=min(1, len(ratio) - 1)),  # of a single token 0, not NaN
        "policy/first_ratio_error": (ratio - 1).abs().max(),
    }


def update_metrics(steps: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """The mean of each metric over the optimizer steps of one iteration.

    policy/first_ratio_error is that of the first step: no step came before it, so the log-probabilities kept from the
    rollout and those computed for the update must agree up to rounding, or the two passes saw different inputs.
    """
    metrics = {name: mean([step[name].item() for step in steps]) for name in steps[0]}
    return metrics | {"policy/first_ratio_error": steps[0]["policy/first_ratio_error"].item()}


def show(update: int, metrics: dict[str, float], options: PPOOptions, batch: Batch) -> None:
    """One console line per iteration (without a terminal, every fifth), and a sampled response now and then."""
    sampled = update % options.sample_every == 0
    last = update == options.updates
    if console.is_terminal or sampled or last or update % SPARSE_EVERY == 0 or update == 1:
        console.print(
            f"ppo: update {update:>{len(str(options.updates))}}/{options.updates}  "
            f"score {metrics['objective/scores']:+.2f}  kl {metrics['objective/kl']:z.2f}  "
            f"length {metrics['response/length']:.1f}  eos {metrics['response/eos_rate']:.0%}  "
            f"{metrics['episodes_per_second']:.0f} episodes/s"
        )
    if sampled:
        console.print(excerpt(batch.prompts[0].messages, batch.responses[0]), style="dim", soft_wrap=True)
        console.print(f"    score: {float(batch.scores[0]):+.2f}", style="dim")


class Validation:
    """Policy and SFT model on prompts and texts that neither was trained on."""

    def __init__(self, models: Models, options: PPOOptions, texts: list[list[int]]) -> None:
        """Draws the prompts, the same for any seed. UserError, before any work, if all of them are too long."""
        examples = load("ppo", options.validation_prompts, "prompts", options.strict)
        drawn = random.Random(0).sample(examples, min(options.evaluation_prompts, len(examples)))
        fitting = Fitting(models.policy, options.too_long)
        encoded = encode_fitting_prompts(models.tokenizer, drawn, fitting, options.max_new_tokens)
        self.prompts = [prompt for _, prompt in encoded]
        self.models, self.options, self.texts = models, options, texts
        fitting.report("ppo", "validation prompts")
        if not self.prompts:
            raise UserError(f"{options.validation_prompts}: no prompt leaves room for a response: use shorter ones")

    def __call__(self) -> dict[str, float]:
        """Score, length, eos rate and, if there are texts, LM loss of both, and the policy's KL to the SFT model.

        KL is in nats, summed over each response and averaged over the policy's responses.
        """
        models, options = self.models, self.options
        metrics: dict[str, float] = {}
        scores = {}
        for name, model in (("ppo", models.policy), ("sft", models.ref_policy)):
            responses = respond(
                model, models.tokenizer, self.prompts, max_new_tokens=options.max_new_tokens,
                temperature=options.temperature, seed=options.seed,
            )  # fmt: skip
            scores[name] = processes.of_first(partial(models.reward, self.prompts, responses))
            metrics[f"validation/{name}_score"] = mean(scores[name])
            metrics[f"validation/{name}_length"] = mean([len(response.ids) for response in responses])
            metrics[f"validation/{name}_eos_rate"] = mean([response.ended for response in responses])
            if self.texts:
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
        return metrics

    def show(self, metrics: dict[str, float]) -> None:
        """The metrics of SFT and PPO in one line."""
        before_and_after = ", ".join(
            f"{what} {metrics[f'validation/sft_{key}']:{form}} -> {metrics[f'validation/ppo_{key}']:{form}}"
            for what, key, form in (
                ("score", "score", "+.2f"), ("length", "length", ".1f"), ("eos", "eos_rate", ".0%"),
                ("LM loss", "text_loss", ".2f"),
            )
            if f"validation/sft_{key}" in metrics
        )  # fmt: skip
        console.print(
            f"ppo: on {len(self.prompts)} validation prompts {before_and_after}, kl {metrics['validation/kl']:z.2f}",
            soft_wrap=True,
        )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
