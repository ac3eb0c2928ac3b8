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
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from rlhf_mini.core import processes
from rlhf_mini.core.console import UserError
from rlhf_mini.models import gpt2
from rlhf_mini.models.rows import Cache, Rows

NAME = "rlhf_mini_rows"
# What an architecture may ask of its attention that `attention` would leave out, and nobody would notice.
NOT_SUPPORTED = {
    "sliding_window": "attends within a sliding window",
    "softcap": "caps its attention logits",
    "s_aux": "has attention sinks",
}
CHOOSE = "choose a base with full attention, such as GPT-2, Llama or Qwen 2"


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: Rows | Cache,
    layers: set[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer. query (1, H, N, D); key and value have H heads or a divisor of it.

    `layers` takes the number of the layer.
    """
    for argument, what in NOT_SUPPORTED.items():
        if more.get(argument) is not None:
            raise UserError(f"the architecture {module.config.model_type} {what}, which is not supported: {CHOOSE}")
    layers.add(module.layer_idx)
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
        with processes.autocast(model.device):
            yield gpt2.GPT2Forward(model)
        return

    def forward(ids: Tensor, rows: Rows | Cache, keep: Tensor | None = None) -> Tensor:
        layers: set[int] = set()
        inputs: dict[str, Any] = dict(
            position_ids=rows.position_ids.unsqueeze(0), rows=rows, layers=layers, use_cache=False
        )
        logits: Tensor
        if hasattr(model, "score"):  # its own forward reads each row at the last token only
            logits = processes.call(model, scalars, ids, keep, inputs)
        else:
            logits = model(ids.unsqueeze(0), **inputs, logits_to_keep=0 if keep is None else keep).logits[0]
        config = model.config.get_text_config()
        if len(layers) < config.num_hidden_layers:  # a state-space model, or its own attention: rows have run together
            raise UserError(
                f"the architecture {config.model_type} does not take its attention from transformers' attention "
                f"interface in every layer, so it is not supported: {CHOOSE}"
            )
        return logits

    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        with processes.autocast(model.device), nullcontext() if torch.is_grad_enabled() else processes.whole(model):
            yield forward
    finally:
        model.set_attn_implementation(before)


def scalars(model: Any, ids: Tensor, keep: Tensor | None, inputs: dict[str, Any]) -> Tensor:
    """What the scalar head makes of the hidden states at `keep`: (n, labels)."""
    hidden = model.base_model(ids.unsqueeze(0), **inputs).last_hidden_state[0]  # (N, d)
    scores: Tensor = model.score(hidden if keep is None else hidden[keep])
    return scores
