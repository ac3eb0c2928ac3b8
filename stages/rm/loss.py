"""The reward model's loss."""

import torch
import torch.nn.functional as F


def k_wise_loss(scores: torch.Tensor, ranks: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """InstructGPT's loss over all pairs of K ranked responses to a prompt (Ouyang et al. 2022, equation 1):

        loss = -1 / C(K, 2) * E [ log sigmoid(r(x, y_w) - r(x, y_l)) summed over the pairs of a prompt x ]

    All pairs of a prompt are one element of the batch: each response is scored once, and its K - 1 comparisons do not
    count as so many independent examples, which would overfit within one epoch. A tied pair orders nothing and is
    dropped from the sum; C(K, 2) stays, so that every comparison of a ranking weighs the same, however many are tied.

    Args:
        scores: (B, K), r(x, y).
        ranks: (B, K) integers, 1 = best, equal = tied.
        mask: (B, K) bool, True on real responses; a prompt may have fewer than K.

    Returns:
        Scalar, the mean over the B prompts. Values at masked positions have no effect.
    """
    scores = scores.masked_fill(~mask, 0.0)  # (B, K): whatever stands there, NaN too, gets no gradient
    better = better_pairs(ranks, mask)  # (B, K, K)
    margins = scores[:, :, None] - scores[:, None, :]  # (B, K, K): r(x, y_w) - r(x, y_l)
    sums = (F.logsigmoid(margins) * better).sum((1, 2))  # (B,)
    responses = mask.sum(1)  # (B,), K of each prompt
    couples = (responses * (responses - 1) / 2).clamp(min=1)  # (B,), C(K, 2)
    return -(sums / couples).mean()


def better_pairs(ranks: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[b, w, l] is True where response w of prompt b is ranked above response l, and both are real: (B, K, K) bool."""
    both_real = mask[:, :, None] & mask[:, None, :]  # (B, K, K)
    return (ranks[:, :, None] < ranks[:, None, :]) & both_real
