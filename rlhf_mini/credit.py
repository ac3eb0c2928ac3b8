"""Credit assignment: what each token of a response earned, and how much that was more than expected.

Shapes: B episodes, R response tokens. `mask` (B, R) is True on the tokens of a response, through its end of text.

Sources: the KL-penalised reward (Ziegler et al. 2019, arXiv 1909.08593, equation 2; InstructGPT, arXiv 2203.02155,
equation 2), GAE (Schulman et al. 2015, arXiv 1506.02438).
"""

import torch
from torch import Tensor


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
