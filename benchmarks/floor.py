"""The floor under an update: the matrix products that it cannot do without, at the rate this machine multiplies."""

import time
from collections.abc import Sequence
from typing import Any

import torch


def forward_flops(config: Any, tokens: int, predicted: int) -> int:
    """Of a GPT-2 that reads a sequence of `tokens` and gives `predicted` of its positions a distribution over words.

    A matrix product of m x k by k x n is 2 m k n. Attention reads what is before, so position t has t + 1 keys. Whether
    the tokens come all at once or one by one through a cache makes no difference.
    """
    width, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    weights = config.n_layer * (4 * width * width + 2 * width * inner)  # query, key, value, output; in and out
    keys = tokens * (tokens + 1) // 2
    attention = config.n_layer * 2 * width * keys  # products with the keys, and with the values
    return 2 * (weights * tokens + attention + width * config.vocab_size * predicted)


def update_flops(config: Any, prompt_lengths: Sequence[int], response_lengths: Sequence[int], epochs: int = 1) -> int:
    """What one update needs: nobody reads padding, and nothing after the last token is predicted or valued.

    Policy, reference and value model read all but the last token, the reward model reads that, too. The rollout is one
    forward pass through the policy, and learning from an episode is three of policy and value model: the backward pass
    multiplies twice as much as the forward pass. The heads of value and reward model, one row each, are left out.
    """
    total = 0
    for prompt, response in zip(prompt_lengths, response_lengths, strict=True):
        read = prompt + response - 1
        language_model, value_model = forward_flops(config, read, response), forward_flops(config, read, 0)
        rollout = 2 * language_model + value_model + forward_flops(config, read + 1, 0)
        total += rollout + epochs * 3 * (language_model + value_model)
    return total


def matmul_rate(rows: int, inner: int, columns: int, seconds: float = 0.5) -> float:
    """Float32 operations a second in a product of rows x inner by inner x columns: the best of many."""
    a, b, out = torch.rand(rows, inner), torch.rand(inner, columns), torch.empty(rows, columns)
    best, until = float("inf"), time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - started)
    return 2 * rows * inner * columns / best
