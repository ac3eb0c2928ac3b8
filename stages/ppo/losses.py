"""The maths of PPO for language models, as pure functions.

Shapes: B episodes, R response tokens. `mask` (B, R) is True on the tokens of a response, through its end of text.
Every reduction is over the True entries only, so what stands in the False ones never matters (as long as it is finite).

Sources: PPO (Schulman et al. 2017, arXiv 1707.06347), GAE (Schulman et al. 2015, arXiv 1506.02438), the KL-penalised
reward (Ziegler et al. 2019, arXiv 1909.08593, equation 2; InstructGPT, arXiv 2203.02155, equation 2), the KL estimators
(Schulman 2020, "Approximating KL divergence").
"""

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the True entries: a scalar. At least one must be True."""
    return (x * mask).sum() / mask.sum()


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance over the True entries: a scalar, 0 when there is only one."""
    squares = (x - masked_mean(x, mask)).square() * mask
    return squares.sum() / (mask.sum() - 1).clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """x (B, R) scaled to variance 1 over the True entries, and shifted to mean 0 if `shift_mean`; 0 elsewhere."""
    mean = masked_mean(x, mask)
    whitened = (x - mean) * torch.rsqrt(masked_var(x, mask) + 1e-8)
    return (whitened if shift_mean else whitened + mean) * mask


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL per sampled token, estimator k1: unbiased, any one of them may be negative. (B, R), in nats."""
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL per sampled token, estimator k2 = d^2 / 2 with d = k1: biased, never negative. (B, R), in nats."""
    return 0.5 * (logprobs - ref_logprobs).square()


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL per sampled token, estimator k3 = exp(-d) - 1 + d with d = k1: unbiased, never negative. (B, R), in nats."""
    difference = logprobs - ref_logprobs
    return torch.expm1(-difference) + difference


def adapt_kl_coef(kl_coef: float, kl: float, kl_target: float, kl_horizon: int, episodes: int) -> float:
    """The KL coefficient for the next update (Ziegler et al. 2019, section 2.2): a proportional controller.

    beta <- beta * (1 + clip(KL / target - 1, -0.2, 0.2) * episodes / horizon)

    `kl` is summed over each response and averaged over them, in nats, as `kl_target` is: fed with a mean over tokens
    instead, beta would fall to nothing. `kl_horizon` is in episodes.
    """
    error = max(-0.2, min(0.2, kl / kl_target - 1))
    return kl_coef * (1 + error * episodes / kl_horizon)


def penalize_missing_eos(scores: Tensor, ended: Tensor, penalty: float) -> Tensor:
    """Scores (B,) with `penalty` subtracted where the response was cut instead of ending (`ended` (B,) is False)."""
    return scores - penalty * ~ended


def compute_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Per-token rewards (B, R) from scores (B,) and kl (B, R).

    r_t = -kl_coef * kl_t, plus the score once, at the last token of the response. 0 where masked.
    """
    rewards = -kl_coef * kl * mask
    last = (mask.sum(-1, keepdim=True) - 1).clamp(min=0)  # (B, 1)
    return rewards.scatter_add(1, last, scores.unsqueeze(1))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, equation 16), and what the values should have been.

    delta_t = r_t + gamma * V_{t+1} - V_t          with V = 0 after the end
    A_t     = delta_t + gamma * lambda * A_{t+1}   with A = 0 after the end

    Args:
        rewards, values: (B, R).

    Returns:
        advantages (B, R), not whitened, and returns = advantages + values (B, R); both 0 where masked.
    """
    values = values * mask
    rewards = rewards * mask
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)  # (B, R)
    deltas = rewards + gamma * next_values - values  # (B, R)
    advantage = torch.zeros_like(values[:, 0])  # (B,)
    reversed_advantages = []
    for t in reversed(range(values.shape[1])):
        advantage = deltas[:, t] + gamma * gae_lambda * advantage
        reversed_advantages.append(advantage)
    advantages = torch.stack(reversed_advantages[::-1], dim=1)  # (B, R); 0 after the end, where every delta is 0
    return advantages, advantages + values


def policy_loss(
    new_logprobs: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """PPO's clipped objective (arXiv 1707.06347, equation 7), negated to be minimised.

    L = mean_t max(-A_t * ratio_t, -A_t * clip(ratio_t, 1 - eps, 1 + eps)),  ratio_t = exp(new_logprob_t - logprob_t)

    Returns:
        The loss, and the share of tokens whose gain is cut off by the clip; both scalars.
    """
    ratio = torch.exp((new_logprobs - logprobs) * mask)  # (B, R)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return masked_mean(torch.maximum(unclipped, clipped), mask), masked_mean((clipped > unclipped).float(), mask)


def value_loss(
    new_values: Tensor, values: Tensor, returns: Tensor, mask: Tensor, clip_range_value: float
) -> tuple[Tensor, Tensor]:
    """Squared error of the values, clipped around those at rollout (OpenAI baselines' ppo2; arXiv 2005.12729).

    L = mean_t 0.5 * max((V_t - G_t)^2, (V_old_t + clip(V_t - V_old_t, -eps, eps) - G_t)^2)

    Returns:
        The loss, and the share of tokens whose error is held by the clip; both scalars.
    """
    near = values + (new_values - values).clamp(-clip_range_value, clip_range_value)
    unclipped = (new_values - returns).square()
    clipped = (near - returns).square()
    return 0.5 * masked_mean(torch.maximum(unclipped, clipped), mask), masked_mean((clipped > unclipped).float(), mask)


def approx_kl(new_logprobs: Tensor, logprobs: Tensor, mask: Tensor) -> Tensor:
    """How far this update has moved the policy: mean_t 0.5 * (new_logprob_t - logprob_t)^2 (k2), a scalar in nats."""
    return 0.5 * masked_mean((new_logprobs - logprobs).square(), mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - var(returns - values) / var(returns): 1 for perfect values, 0 for a constant. A scalar."""
    return 1 - masked_var(returns - values, mask) / (masked_var(returns, mask) + 1e-8)
