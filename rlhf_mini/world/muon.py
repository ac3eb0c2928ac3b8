"""Muon in float32, for the matrices of the base model's transformer blocks.

torch.optim.Muon does the same in bfloat16, and a CPU without bfloat16 instructions then spends most of a training step
in these small products. tests/world/test_muon.py compares the two. Source: https://kellerjordan.github.io/posts/muon.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic whose iteration drives singular values towards 1
STEPS = 5


class Muon(Optimizer):
    """SGD with Nesterov momentum whose updates are made orthogonal (Jordan et al. 2024).

    Args:
        params: matrices.
        weight_decay: decoupled, as in AdamW.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step on all matrices that have a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                if matrix not in self.state:
                    self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
                average = self.state[matrix]["momentum_buffer"]
                average.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonalized(matrix.grad.lerp(average, group["momentum"]))
                rows, columns = matrix.shape
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.sub_(update, alpha=group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonalized(matrix: Tensor) -> Tensor:
    """The matrix with its singular values moved close to 1, by Newton-Schulz iterations."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix  # the products are smaller this way round
    x = x / x.norm().clamp(min=1e-7)  # no singular value is above 1
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def optimizers(
    model: torch.nn.Module, muon_learning_rate: float, learning_rate: float
) -> tuple[Muon, torch.optim.Optimizer]:
    """Muon for the matrices of a GPT-2's blocks, and AdamW for the rest: embeddings, biases, layer norms and heads."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if ".h." in name and p.dim() == 2]
    rest = [p for name, p in named if not (".h." in name and p.dim() == 2)]
    adamw = torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return Muon(matrices, lr=muon_learning_rate, weight_decay=0.01), adamw
