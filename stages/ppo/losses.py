"""The maths of PPO for language models, as pure functions.

Shapes: B responses, n tokens of all responses, laid end to end without padding; `rows` says where each response's
tokens are (rlhf_mini/models/rows.py). There are no masks, and a mean over tokens is a mean.

Sources: PPO (Schulman et al. 2017, arXiv 1707.06347), GAE (Schulman et al. 2015, arXiv 1506.02438), the KL-penalised
reward (Ziegler et al. 2019, arXiv 1909.08593, equation 2; InstructGPT, arXiv 2203.02155, equation 2), the KL estimators
(Schulman 2020, "Approximating KL divergence").
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_mini.models.rows import Rows

# --- rewards ---------------------------------------------------------------------------------------------------------


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL per sampled token, estimator k1: unbiased, but a single one may be negative. (n,), in nats."""
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL per sampled token, estimator k2 = d^2 / 2 with d = k1: biased, never negative. (n,), in nats."""
    return 0.5 * (logprobs - ref_logprobs).square()


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL per sampled token, estimator k3 = exp(-d) - 1 + d with d = k1: unbiased, never negative. (n,), in nats."""
    difference = logprobs - ref_logprobs
    return torch.expm1(-difference) + difference


def penalize_missing_eos(scores: Tensor, ended: Tensor, penalty: float) -> Tensor:
    """Scores (B,) with `penalty` subtracted where the response was truncated (`ended` (B,) is False)."""
    return scores - penalty * ~ended


def compute_rewards(scores: Tensor, kl: Tensor, rows: Rows, kl_coef: float) -> Tensor:
    """Per-token rewards (n,) from scores (B,) and kl (n,).

    r_t = -kl_coef * kl_t, plus the score once, at the last token of the response.
    """
    rewards = -kl_coef * kl
    return rewards.index_add(0, rows.last, scores)


def adapt_kl_coef(kl_coef: float, kl: float, kl_target: float, kl_horizon: int, episodes: int) -> float:
    """The KL coefficient for the next iteration (Ziegler et al. 2019, section 2.2): a proportional controller.

    beta <- beta * (1 + clip(KL / target - 1, -0.2, 0.2) * episodes / horizon)

    `kl` is summed over each response and averaged over responses, in nats, as is `kl_target`: fed with a mean over
    tokens instead, beta would fall to nothing. `kl_horizon` is in episodes. Like Ziegler et al.'s code, this clips the
    error alone, so beta stays above 0 only while episodes < 5 * horizon; PPOOptions checks that.
    """
    error = max(-0.2, min(0.2, kl / kl_target - 1))
    return kl_coef * (1 + error * episodes / kl_horizon)


# --- advantages ------------------------------------------------------------------------------------------------------


class Advantages(NamedTuple):
    """What GAE gives for each token."""

    advantages: Tensor  # (n,), not whitened
    returns: Tensor  # (n,), advantages + values


def gae(rewards: Tensor, values: Tensor, rows: Rows, gamma: float, gae_lambda: float) -> Advantages:
    """Generalised advantage estimation (arXiv 1506.02438, equation 16), and the targets of the values.

    delta_t = r_t + gamma * V_{t+1} - V_t          with V = 0 after the end
    A_t     = delta_t + gamma * lambda * A_{t+1}   with A = 0 after the end

    Args:
        rewards, values: (n,).
    """
    next_values = values.roll(-1).index_fill(0, rows.last, 0.0)  # (n,)
    deltas = rewards + gamma * next_values - values  # (n,)
    advantages = deltas.clone()
    first = rows.first
    for t in reversed(range(rows.shape[1] - 1)):  # backwards through time, all responses with a token t + 1 together
        here = first[rows.lengths > t + 1] + t
        advantages[here] = deltas[here] + gamma * gae_lambda * advantages[here + 1]
    return Advantages(advantages=advantages, returns=advantages + values)


def whiten(x: Tensor, shift_mean: bool = True) -> Tensor:
    """x (n,) scaled to variance 1, and shifted to mean 0 if `shift_mean`."""
    variance, mean = torch.var_mean(x, correction=min(1, len(x) - 1))
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    return whitened if shift_mean else whitened + mean


# --- losses ----------------------------------------------------------------------------------------------------------


class Clipped(NamedTuple):
    """A clipped loss."""

    loss: Tensor  # scalar
    clip_fraction: Tensor  # scalar: share of tokens for which the clipped term is the larger one


def policy_loss(new_logprobs: Tensor, logprobs: Tensor, advantages: Tensor, clip_range: float) -> Clipped:
    """PPO's clipped objective (arXiv 1707.06347, equation 7), negated to be minimised. Arguments (n,).

    L = mean_t max(-A_t * ratio_t, -A_t * clip(ratio_t, 1 - eps, 1 + eps)),  ratio_t = exp(new_logprob_t - logprob_t)
    """
    ratio = torch.exp(new_logprobs - logprobs)  # (n,)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return Clipped(torch.maximum(unclipped, clipped).mean(), (clipped > unclipped).float().mean())


def value_loss(new_values: Tensor, values: Tensor, returns: Tensor, clip_range_value: float) -> Clipped:
    """Squared error of the values, clipped around those at rollout (OpenAI baselines' ppo2; arXiv 2005.12729).

    L = mean_t 0.5 * max((V_t - G_t)^2, (V_old_t + clip(V_t - V_old_t, -eps, eps) - G_t)^2)
    """
    near = values + (new_values - values).clamp(-clip_range_value, clip_range_value)
    unclipped = (new_values - returns).square()
    clipped = (near - returns).square()
    return Clipped(0.5 * torch.maximum(unclipped, clipped).mean(), (clipped > unclipped).float().mean())


# --- metrics ---------------------------------------------------------------------------------------------------------


def approx_kl(new_logprobs: Tensor, logprobs: Tensor) -> Tensor:
    """How far the update has moved the policy: mean_t 0.5 * (new_logprob_t - logprob_t)^2 (k2), a scalar in nats."""
    return 0.5 * (new_logprobs - logprobs).square().mean()


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """1 - var(returns - values) / var(returns): 1 for perfect values, 0 for a constant. A scalar."""
    return 1 - (returns - values).var() / (returns.var() + 1e-8)
