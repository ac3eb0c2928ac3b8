"""The K-wise loss against values by hand and against the double loop that equation 1 describes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.rm.loss import k_wise_loss


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def naive(scores: list[list[float]], ranks: list[list[int]]) -> float:
    """Equation 1 as it is written: a loop over prompts, a loop over pairs."""
    losses = []
    for row, order in zip(scores, ranks, strict=True):
        total = 0.0
        for w in range(len(row)):
            for loser in range(len(row)):
                if order[w] < order[loser]:
                    total += log_sigmoid(row[w] - row[loser])
        losses.append(-total / math.comb(len(row), 2))
    return sum(losses) / len(losses)


def full(ranks: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    tensor = torch.tensor(ranks)
    return tensor, torch.ones_like(tensor, dtype=torch.bool)


def test_two_responses_by_hand():
    # margin ln 3: sigmoid = 3/4, so the loss is -ln(3/4) one way round and -ln(1/4) the other
    scores = torch.tensor([[math.log(3), 0.0]])
    assert k_wise_loss(scores, *full([[1, 2]])).item() == pytest.approx(-math.log(0.75), rel=1e-6)
    assert k_wise_loss(scores, *full([[2, 1]])).item() == pytest.approx(-math.log(0.25), rel=1e-6)


def test_equal_scores_cost_ln_2_a_pair_whatever_k():
    for k in (2, 4, 9):
        assert k_wise_loss(torch.zeros(1, k), *full([list(range(1, k + 1))])).item() == pytest.approx(math.log(2))


def test_ties_are_dropped_from_the_sum_but_not_from_c_k_2():
    # 3 pairs, of which (0,1) is tied: two pairs at ln 2, divided by C(3,2) = 3
    assert k_wise_loss(torch.zeros(1, 3), *full([[1, 1, 2]])).item() == pytest.approx(2 / 3 * math.log(2))
    scores = torch.tensor([[5.0, -3.0]], requires_grad=True)
    loss = k_wise_loss(scores, *full([[1, 1]]))
    loss.backward()
    assert loss.item() == 0 and scores.grad is not None and scores.grad.abs().sum() == 0


def test_the_gradient_pushes_winners_up_and_losers_down():
    scores = torch.zeros(1, 3, requires_grad=True)
    k_wise_loss(scores, *full([[2, 1, 3]])).backward()
    assert scores.grad is not None
    # d/dr of -log sigmoid(0) is -1/2 for the winner, +1/2 for the loser: one of each, two wins, two losses; by 3
    torch.testing.assert_close(scores.grad, torch.tensor([[0.0, -1 / 3, 1 / 3]]))


def test_large_margins_stay_finite():
    scores = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    loss = k_wise_loss(scores, *full([[1, 2]]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4) and scores.grad is not None and torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("junk", [0.0, 1e6, math.nan, math.inf])
def test_what_is_masked_has_no_influence(junk):
    ranks = torch.tensor([[1, 2, 0, 9], [3, 1, 2, 4]])
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    scores = torch.tensor([[0.3, -0.2, junk, junk], [0.1, 0.4, -0.5, 1.0]], requires_grad=True)
    loss = k_wise_loss(scores, ranks, mask)
    loss.backward()
    expected = naive([[0.3, -0.2], [0.1, 0.4, -0.5, 1.0]], [[1, 2], [3, 1, 2, 4]])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert scores.grad is not None and torch.isfinite(scores.grad).all()
    assert scores.grad[0, 2:].tolist() == [0, 0]


responses = st.integers(2, 9).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(-20, 20), min_size=k, max_size=k), st.lists(st.integers(1, 9), min_size=k, max_size=k)
    )
)


@settings(deadline=None)
@given(st.lists(responses, min_size=1, max_size=5))
def test_equals_the_double_loop(prompts):
    width = max(len(scores) for scores, _ in prompts)
    scores = torch.zeros(len(prompts), width, dtype=torch.float64)
    ranks = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, (values, order) in enumerate(prompts):
        scores[row, : len(values)] = torch.tensor(values, dtype=torch.float64)
        ranks[row, : len(values)] = torch.tensor(order)
        mask[row, : len(values)] = True
    expected = naive([values for values, _ in prompts], [order for _, order in prompts])
    assert k_wise_loss(scores, ranks, mask).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
