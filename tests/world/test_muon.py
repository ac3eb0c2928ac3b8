"""Muon in float32 takes torch's steps, which are in bfloat16, when those are made float32, too."""

import pytest
import torch
from torch import Tensor

from rlhf_mini.world.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(6, 16), (16, 6), (8, 8)])
def test_the_steps_are_those_of_torch(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "bfloat16", lambda self: self.clone())
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = Muon([ours], lr=0.02, weight_decay=0.01), torch.optim.Muon([theirs], lr=0.02, weight_decay=0.01)
    for step in range(5):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1 + step))
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert (ours - start).abs().max() > 1e-3


def test_singular_values_end_close_to_1() -> None:
    matrix = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrix))
    assert values.dtype == torch.float32 and values.min() > 0.5 and values.max() < 1.5
