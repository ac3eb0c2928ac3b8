"""The learning-rate schedule of every training loop here."""

import math


def warmup_cosine(step: int, steps: int, warmup_steps: int) -> float:
    """The share of its peak that the learning rate has at `step`, counted from 0.

    Linear warmup times a cosine from 1 to 0.1, which it reaches at `steps`.
    """
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    return warmup * (0.55 + 0.45 * math.cos(math.pi * step / max(1, steps)))
