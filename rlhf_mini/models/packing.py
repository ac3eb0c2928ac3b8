"""Old names, until the call sites have moved."""

from rlhf_mini.models.forward import forward_pass as packed
from rlhf_mini.models.rows import Cache, Rows

__all__ = ["Cache", "Rows", "packed"]
