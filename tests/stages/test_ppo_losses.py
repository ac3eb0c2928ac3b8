"""The maths of PPO, against numbers worked out by hand and against naive second implementations."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_mini.models.rows import Rows
from stages.ppo.losses import (
    adapt_kl_coef,
    approx_kl,
    compute_rewards,
    explained_variance,
    gae,
    kl_k1,
    kl_k2,
    kl_k3,
    penalize_missing_eos,
    policy_loss,
    value_loss,
    whiten,
)
from stages.ppo.metrics import step_metrics

T, F = True, False


def close(actual: Tensor, expected: object) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), atol=1e-6, rtol=1e-6)


def test_whitening_by_hand() -> None:
    x, deviation = torch.tensor([1.0, 2.0, 6.0]), math.sqrt(7)
    close(whiten(x), [-2 / deviation, -1 / deviation, 3 / deviation])
    close(whiten(x, shift_mean=False), [3 - 2 / deviation, 3 - 1 / deviation, 3 + 3 / deviation])
    close(whiten(torch.tensor([5.0])), [0.0])


def test_kl_estimators() -> None:
    logprobs, ref_logprobs = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    close(kl_k1(logprobs, ref_logprobs), [0.5, -1.0])  # positive where the policy prefers the token
    close(kl_k2(logprobs, ref_logprobs), [0.5**2 / 2, 1 / 2])
    close(kl_k3(logprobs, ref_logprobs), [math.exp(-0.5) - 1 + 0.5, math.exp(1) - 1 - 1])


def test_both_kl_estimators_are_unbiased() -> None:
    p, q = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    exact = (p * (p / q).log()).sum()
    for estimator in (kl_k1, kl_k3):
        torch.testing.assert_close((p * estimator(p.log(), q.log())).sum(), exact)


def test_the_penalty_for_a_missing_eos_is_subtracted() -> None:
    scores, ended = torch.tensor([2.0, 2.0, -1.0]), torch.tensor([T, F, F])
    close(penalize_missing_eos(scores, ended, 0.5), [2.0, 1.5, -1.5])


def test_rewards_by_hand() -> None:
    """-0.1 per nat at each token, the score once, on the last token: the eos, not one past it."""
    kl, rows = torch.tensor([0.5, -1.0, 2.0, 1.0, 1.0, 1.0]), Rows([2, 1, 3])
    rewards = compute_rewards(torch.tensor([3.0, -1.0, 0.0]), kl, rows, kl_coef=0.1)
    close(rewards, [-0.05, 0.1 + 3.0, -0.2 - 1.0, -0.1, -0.1, -0.1])


def test_gae_by_hand() -> None:
    rewards, values, rows = torch.tensor([0.0, 0.0, 1.0, 0.5]), torch.tensor([0.5, 0.4, 0.3, 0.2]), Rows([3, 1])
    # deltas with gamma 1: 0.4 - 0.5, 0.3 - 0.4, 1 - 0.3; the value after the end is 0
    # advantages with lambda 0.95: 0.7, -0.1 + 0.95 * 0.7 = 0.565, -0.1 + 0.95 * 0.565 = 0.43675
    advantages, returns = gae(rewards, values, rows, gamma=1.0, gae_lambda=0.95)
    close(advantages, [0.43675, 0.565, 0.7, 0.3])
    close(returns, [0.93675, 0.965, 1.0, 0.5])


def test_gae_at_both_ends_of_lambda() -> None:
    rewards, values, rows = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.2, 0.3]), Rows([3])
    close(gae(rewards, values, rows, 0.5, 0.0).advantages, [1 + 0.1 - 0.1, 2 + 0.15 - 0.2, 3 - 0.3])  # one step ahead
    close(gae(rewards, values, rows, 0.5, 1.0).returns, [1 + 1 + 0.75, 2 + 1.5, 3])  # the discounted sums


finite = st.floats(-10, 10, width=32)
row = st.lists(st.tuples(finite, finite), min_size=1, max_size=6)


def end_to_end(batch: list[list[float]]) -> Tensor:
    return torch.tensor([x for row in batch for x in row], dtype=torch.float64)


@given(st.lists(row, min_size=1, max_size=4), st.floats(0, 1), st.floats(0, 1))
def test_gae_against_its_definition(batch: list[list[tuple[float, float]]], gamma: float, gae_lambda: float) -> None:
    """A_t = sum over l of (gamma * lambda)^l * delta_(t+l), each sum written out, each row by itself."""
    rewards, values = [[r for r, _ in row] for row in batch], [[v for _, v in row] for row in batch]
    rows = Rows([len(row) for row in batch])
    advantages, returns = gae(end_to_end(rewards), end_to_end(values), rows, gamma, gae_lambda)
    assert len(advantages) == len(returns) == sum(map(len, batch))
    for r, v, a, g in zip(rewards, values, rows.split(advantages), rows.split(returns), strict=True):
        length = len(r)
        after = [*v[1:], 0.0]
        delta = [r[t] + gamma * after[t] - v[t] for t in range(length)]
        for t in range(length):
            naive = sum((gamma * gae_lambda) ** (later - t) * delta[later] for later in range(t, length))
            assert a[t].item() == pytest.approx(naive, abs=1e-9)
            assert g[t].item() == pytest.approx(naive + v[t], abs=1e-9)


@given(st.lists(st.lists(finite, min_size=1, max_size=6), min_size=2, max_size=4), st.booleans())
def test_whitening_against_the_statistics_module(batch: list[list[float]], shift_mean: bool) -> None:
    whitened = whiten(end_to_end(batch), shift_mean)
    flat = [x for row in batch for x in row]
    mean, variance = statistics.fmean(flat), statistics.variance(flat)
    for x, actual in zip(flat, whitened, strict=True):
        expected = (x - mean) / math.sqrt(variance + 1e-8) + (0 if shift_mean else mean)
        assert actual.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_policy_loss_by_hand() -> None:
    """The four corners: a gain is capped, a loss is not, whichever way the ratio went."""
    ratio, advantages = torch.tensor([1.5, 0.5, 1.5, 0.5]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    logprobs = torch.tensor([-2.0, -1.0, -3.0, -0.7])
    loss, clip_fraction = policy_loss(logprobs + ratio.log(), logprobs, advantages, clip_range=0.2)
    # -1 * 1.2 (capped), -1 * 0.5, +1 * 1.5, +1 * 0.8 (capped)
    close(loss, (-1.2 - 0.5 + 1.5 + 0.8) / 4)
    close(clip_fraction, 0.5)


def test_value_loss_by_hand() -> None:
    values, new_values = torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([0.1, 1.0, 1.0, 0.0])
    returns = torch.tensor([0.5, 1.0, -1.0, 0.2])
    # within the clip: (0.1 - 0.5)^2 = 0.16; beyond it and right: held back at 0.2, (0.2 - 1)^2 = 0.64;
    # beyond it and wrong: (1 + 1)^2 = 4 counts, not (0.2 + 1)^2; downwards: held back at 0.8, (0.8 - 0.2)^2 = 0.36
    loss, clip_fraction = value_loss(new_values, values, returns, clip_range_value=0.2)
    close(loss, 0.5 * (0.16 + 0.64 + 4 + 0.36) / 4)
    close(clip_fraction, 2 / 4)


def test_gradients_against_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs, advantages, values, returns = torch.randn(4, 11, dtype=torch.float64, generator=generator)
    new_logprobs = (logprobs + 0.3 * torch.randn(11, dtype=torch.float64, generator=generator)).requires_grad_()
    new_values = (values + 0.3 * torch.randn(11, dtype=torch.float64, generator=generator)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, logprobs, advantages, 0.2).loss, new_logprobs)
    assert torch.autograd.gradcheck(lambda x: value_loss(x, values, returns, 0.2).loss, new_values)


def test_approx_kl_and_explained_variance() -> None:
    close(approx_kl(torch.tensor([-0.8, -2.4]), torch.tensor([-1.0, -2.0])), 0.5 * (0.04 + 0.16) / 2)
    returns = torch.tensor([1.0, 3.0])
    close(explained_variance(returns, returns), 1.0)
    close(explained_variance(torch.full((2,), 2.0), returns), 0.0)
    close(explained_variance(torch.tensor([1.5, 2.5]), returns), 0.75)


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


def test_the_metrics_of_one_token_are_finite() -> None:
    """A minibatch of one response that is only eos is no fault."""
    metrics = step_metrics(torch.tensor([-1.0]), torch.tensor([-1.2]), torch.tensor([0.5]))
    assert all(math.isfinite(value) for value in metrics.values()) and metrics["policy/ratio_variance"] == 0
