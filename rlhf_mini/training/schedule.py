"""What every training loop here uses, TRL's and our own: the course of the learning rate, and copies of the weights."""

import math

import torch


def warmup_cosine(step: int, steps: int, warmup_steps: int) -> float:
    """Share of its peak that a learning rate has at `step`, from 0: linear warmup times a cosine to 10 % at `steps`."""
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    return warmup * (0.55 + 0.45 * math.cos(math.pi * step / max(1, steps)))


def copy_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights as they are now, for `load_state_dict`."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
