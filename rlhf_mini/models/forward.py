"""Forward passes over real tokens only, for any causal model.

    rows = Rows(lengths)                                             # of B sequences, N = lengths.sum() tokens
    with forward_pass(model) as forward:
        logits = forward(ids, rows)                                  # ids (N,) -> (N, V)

`attention` below is registered with transformers. A model of any architecture that has its attention interface passes
it queries, keys and values, and the argument `rows`. They are padded, each row attends within itself, and the result
is laid end to end again. A GPT-2 takes a shorter path to the same result (gpt2.py).

Shapes: N tokens of the rows, n positions asked for, V vocabulary, H heads, T the longest row, D width of a head.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import AttentionInterface

from rlhf_mini.models import gpt2
from rlhf_mini.models.rows import Cache, Rows

NAME = "rlhf_mini_rows"


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: Rows | Cache,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer. query (1, H, N, D); key and value have H heads or a divisor of it."""
    if sliding_window is not None:
        raise ValueError("rows attend to all earlier tokens, but this model has a sliding window")
    how = dict(scale=scaling, dropout_p=dropout, enable_gqa=key.shape[1] != query.shape[1])
    query, key, value = (rows.unpack(x[0].transpose(0, 1)).transpose(1, 2) for x in (query, key, value))
    attended = rows.attend(module.layer_idx, query, key, value, **how)  # (B, H, T, D)
    return rows.pack(attended.transpose(1, 2)).unsqueeze(0), None  # (1, N, H, D)


Forward = Callable[..., Tensor]

# No mask is registered with it, so transformers builds none: `rows` already says which tokens belong together.
AttentionInterface.register(NAME, attention)


@contextmanager
def forward_pass(model: Any) -> Iterator[Forward]:
    """Gives the model's forward pass as a function: forward(ids, rows, keep) -> logits.

    Args of `forward`:
        ids: (N,), the tokens of `rows`.
        rows: Rows, or a Cache that has grown.
        keep: (n,), the positions whose logits are wanted; all N by default.

    Returns of `forward`:
        (n, V), or (n, labels) of a ...ForSequenceClassification model.

    Within the block, the model itself takes rows only: its attention is a setting of its config object.
    """
    if gpt2.fits(model):
        yield gpt2.GPT2Forward(model)
        return

    def forward(ids: Tensor, rows: Rows | Cache, keep: Tensor | None = None) -> Tensor:
        inputs: dict[str, Any] = dict(position_ids=rows.position_ids.unsqueeze(0), rows=rows, use_cache=False)
        logits: Tensor
        if hasattr(model, "score"):  # its own forward reads each row at the last token only
            hidden = model.base_model(ids.unsqueeze(0), **inputs).last_hidden_state[0]  # (N, d)
            logits = model.score(hidden if keep is None else hidden[keep])
        else:
            logits = model(ids.unsqueeze(0), **inputs, logits_to_keep=0 if keep is None else keep).logits[0]
        return logits

    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield forward
    finally:
        model.set_attn_implementation(before)
