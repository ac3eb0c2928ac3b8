"""The maths of PPO, against numbers worked out by hand and against naive second implementations."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.ppo.losses import (
    adapt_kl_coef,
    approx_kl,
    compute_rewards,
    explained_variance,
    gae,
    kl_k1,
    kl_k2,
    kl_k3,
    masked_mean,
    masked_var,
    masked_whiten,
    penalize_missing_eos,
    policy_loss,
    value_loss,
)

T, F = True, False
JUNK = 7777.0  # stands in masked positions, where nothing may read it


def close(actual: Tensor, expected: object) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), atol=1e-6, rtol=1e-6)


def test_masked_mean_and_variance() -> None:
    x, mask = torch.tensor([[1.0, 2.0, JUNK], [6.0, JUNK, JUNK]]), torch.tensor([[T, T, F], [T, F, F]])
    close(masked_mean(x, mask), 3.0)
    close(masked_var(x, mask), (4 + 1 + 9) / 2)
    close(masked_var(x, torch.tensor([[T, F, F], [F, F, F]])), 0.0)


def test_whitening_by_hand() -> None:
    x, mask = torch.tensor([[1.0, 2.0, JUNK], [6.0, JUNK, JUNK]]), torch.tensor([[T, T, F], [T, F, F]])
    deviation = math.sqrt(7)
    close(masked_whiten(x, mask), [[-2 / deviation, -1 / deviation, 0], [3 / deviation, 0, 0]])
    unshifted = [[3 - 2 / deviation, 3 - 1 / deviation, 0], [3 + 3 / deviation, 0, 0]]
    close(masked_whiten(x, mask, shift_mean=False), unshifted)


def test_kl_estimators() -> None:
    logprobs, ref_logprobs = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    close(kl_k1(logprobs, ref_logprobs), [[0.5, -1.0]])  # positive where the policy likes the token better
    close(kl_k2(logprobs, ref_logprobs), [[0.5**2 / 2, 1 / 2]])
    close(kl_k3(logprobs, ref_logprobs), [[math.exp(-0.5) - 1 + 0.5, math.exp(1) - 1 - 1]])


def test_both_kl_estimators_are_unbiased() -> None:
    p, q = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    exact = (p * (p / q).log()).sum()
    for estimator in (kl_k1, kl_k3):
        torch.testing.assert_close((p * estimator(p.log(), q.log())).sum(), exact)


def test_the_penalty_for_a_missing_eos_is_subtracted() -> None:
    scores, ended = torch.tensor([2.0, 2.0, -1.0]), torch.tensor([T, F, F])
    close(penalize_missing_eos(scores, ended, 0.5), [2.0, 1.5, -1.5])


def test_rewards_by_hand() -> None:
    """-0.1 a nat at each token, the score once, on the last real token: the eos, not one past it."""
    kl = torch.tensor([[0.5, -1.0, JUNK], [2.0, JUNK, JUNK], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[T, T, F], [T, F, F], [T, T, T]])
    rewards = compute_rewards(torch.tensor([3.0, -1.0, 0.0]), kl, mask, kl_coef=0.1)
    close(rewards, [[-0.05, 0.1 + 3.0, 0.0], [-0.2 - 1.0, 0.0, 0.0], [-0.1, -0.1, -0.1]])


def test_gae_by_hand() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0, JUNK], [0.5, JUNK, JUNK, JUNK]])
    values = torch.tensor([[0.5, 0.4, 0.3, JUNK], [0.2, JUNK, JUNK, JUNK]])
    mask = torch.tensor([[T, T, T, F], [T, F, F, F]])
    # deltas with gamma 1: 0.4 - 0.5, 0.3 - 0.4, 1 - 0.3; the value after the end is 0
    # advantages with lambda 0.95: 0.7, -0.1 + 0.95 * 0.7 = 0.565, -0.1 + 0.95 * 0.565 = 0.43675
    advantages, returns = gae(rewards, values, mask, gamma=1.0, gae_lambda=0.95)
    close(advantages, [[0.43675, 0.565, 0.7, 0.0], [0.3, 0.0, 0.0, 0.0]])
    close(returns, [[0.93675, 0.965, 1.0, 0.0], [0.5, 0.0, 0.0, 0.0]])


def test_gae_at_both_ends_of_lambda() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.1, 0.2, 0.3]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    close(gae(rewards, values, mask, 0.5, 0.0)[0], [[1 + 0.1 - 0.1, 2 + 0.15 - 0.2, 3 - 0.3]])  # one step ahead
    close(gae(rewards, values, mask, 0.5, 1.0)[1], [[1 + 1 + 0.75, 2 + 1.5, 3]])  # returns are the discounted sums


finite = st.floats(-10, 10, width=32)
row = st.lists(st.tuples(finite, finite), min_size=1, max_size=6)
episodes = st.lists(row, min_size=1, max_size=4)


def pad(rows: list[list[float]]) -> Tensor:
    width = max(map(len, rows)) + 1  # one column is padding everywhere
    return torch.tensor([row + [JUNK] * (width - len(row)) for row in rows], dtype=torch.float64)


def mask_of(rows: list[list[float]]) -> Tensor:
    width = max(map(len, rows)) + 1
    return torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])


@given(episodes, st.floats(0, 1), st.floats(0, 1))
def test_gae_against_its_definition(batch: list[list[tuple[float, float]]], gamma: float, gae_lambda: float) -> None:
    """A_t = sum over l of (gamma * lambda)^l * delta_(t+l), each sum written out, each row by itself."""
    rewards, values = [[r for r, _ in row] for row in batch], [[v for _, v in row] for row in batch]
    mask = mask_of(rewards)
    advantages, returns = gae(pad(rewards), pad(values), mask, gamma, gae_lambda)
    for index, (r, v) in enumerate(zip(rewards, values, strict=True)):
        length = len(r)
        after = [*v[1:], 0.0]
        delta = [r[t] + gamma * after[t] - v[t] for t in range(length)]
        for t in range(length):
            naive = sum((gamma * gae_lambda) ** (later - t) * delta[later] for later in range(t, length))
            assert advantages[index, t].item() == pytest.approx(naive, abs=1e-9)
            assert returns[index, t].item() == pytest.approx(naive + v[t], abs=1e-9)
        assert advantages[index, length:].abs().sum() == 0
        assert returns[index, length:].abs().sum() == 0


@given(st.lists(st.lists(finite, min_size=1, max_size=6), min_size=2, max_size=4), st.booleans())
def test_whitening_against_the_statistics_module(batch: list[list[float]], shift_mean: bool) -> None:
    whitened = masked_whiten(pad(batch), mask_of(batch), shift_mean)
    flat = [x for row in batch for x in row]
    mean, variance = statistics.fmean(flat), statistics.variance(flat)
    for index, row in enumerate(batch):
        for t, x in enumerate(row):
            expected = (x - mean) / math.sqrt(variance + 1e-8) + (0 if shift_mean else mean)
            assert whitened[index, t].item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert whitened[index, len(row) :].abs().sum() == 0


def test_policy_loss_by_hand() -> None:
    """The four corners: a gain is capped, a loss is not, whichever way the ratio went."""
    ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5, JUNK]])
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0, JUNK]])
    mask = torch.tensor([[T, T, T, T, F]])
    loss, clip_fraction = policy_loss(ratio.log(), torch.zeros(1, 5), advantages, mask, clip_range=0.2)
    # -1 * 1.2 (capped), -1 * 0.5, +1 * 1.5, +1 * 0.8 (capped)
    close(loss, (-1.2 - 0.5 + 1.5 + 0.8) / 4)
    close(clip_fraction, 0.5)


def test_policy_loss_survives_what_masked_positions_hold() -> None:
    """An infinite ratio in a masked position would make the sum nan: 0 * inf."""
    new_logprobs = torch.tensor([[0.0, JUNK]], requires_grad=True)
    loss, _ = policy_loss(new_logprobs, torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[T, F]]), 0.2)
    loss.backward()
    close(loss.detach(), -1.0)
    assert new_logprobs.grad is not None
    close(new_logprobs.grad, [[-1.0, 0.0]])


def test_value_loss_by_hand() -> None:
    values = torch.zeros(1, 4)
    new_values = torch.tensor([[0.1, 1.0, 1.0, JUNK]])
    returns = torch.tensor([[0.5, 1.0, -1.0, JUNK]])
    mask = torch.tensor([[T, T, T, F]])
    # within the clip: (0.1 - 0.5)^2 = 0.16; beyond it and right: held back at 0.2, (0.2 - 1)^2 = 0.64;
    # beyond it and wrong: (1 + 1)^2 = 4 counts, not (0.2 + 1)^2
    loss, clip_fraction = value_loss(new_values, values, returns, mask, clip_range_value=0.2)
    close(loss, 0.5 * (0.16 + 0.64 + 4) / 3)
    close(clip_fraction, 1 / 3)


def test_gradients_against_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs, advantages, values, returns = torch.randn(4, 3, 5, dtype=torch.float64, generator=generator)
    mask = torch.rand(3, 5, generator=generator) < 0.7
    new_logprobs = (logprobs + 0.3 * torch.randn(3, 5, dtype=torch.float64, generator=generator)).requires_grad_()
    new_values = (values + 0.3 * torch.randn(3, 5, dtype=torch.float64, generator=generator)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, logprobs, advantages, mask, 0.2)[0], new_logprobs)
    assert torch.autograd.gradcheck(lambda x: value_loss(x, values, returns, mask, 0.2)[0], new_values)


def test_approx_kl_and_explained_variance() -> None:
    mask = torch.tensor([[T, T, F]])
    close(approx_kl(torch.tensor([[0.2, -0.4, JUNK]]), torch.zeros(1, 3), mask), 0.5 * (0.04 + 0.16) / 2)
    returns = torch.tensor([[1.0, 3.0, JUNK]])
    close(explained_variance(returns, returns, mask), 1.0)
    close(explained_variance(torch.full((1, 3), 2.0), returns, mask), 0.0)
    close(explained_variance(torch.tensor([[1.5, 2.5, JUNK]]), returns, mask), 0.75)


def test_the_kl_controller_by_hand() -> None:
    # 6 nats where 5 are wanted: an error of 0.2, at most; 64 of 1280 episodes of the horizon: by a hundredth
    assert adapt_kl_coef(0.1, 6.0, 5.0, 1280, 64) == pytest.approx(0.101)
    assert adapt_kl_coef(0.1, 600.0, 5.0, 1280, 64) == pytest.approx(0.101)
    assert adapt_kl_coef(0.1, 0.0, 5.0, 1280, 64) == pytest.approx(0.099)
    assert adapt_kl_coef(0.1, 5.0, 5.0, 1280, 64) == pytest.approx(0.1)


def test_the_controller_reaches_its_target() -> None:
    """A policy whose KL is 1 / beta: the controller finds beta = 1 / 4."""
    kl_coef = 1.0
    for _ in range(300):
        kl_coef = adapt_kl_coef(kl_coef, 1 / kl_coef, 4.0, 640, 64)
    assert 1 / kl_coef == pytest.approx(4.0, rel=0.02)
