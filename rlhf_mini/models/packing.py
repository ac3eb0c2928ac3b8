"""Forward passes over real tokens only: rows of different lengths laid end to end instead of padded to the longest.

    rows = Rows(lengths)                                             # of B sequences, N = lengths.sum() tokens
    with packed(model) as read:
        logits = read(ids, rows)                                     # ids (N,) -> (N, V)

Everything in a transformer but attention works token by token, so what lies beside a row does not matter. Attention
alone needs its rows back. `attention` below is registered with transformers; a causal model of any architecture that
has its attention interface hands over queries, keys and values, and the argument `rows`. They are padded, each row
attends within itself, and the result is laid end to end again. `Cache` does the same for decoding, one token a row.
A GPT-2 takes a shorter way through the same (gpt2.py).

Shapes: B rows, T the longest of them, N tokens in all, C tokens a cache has room for, H heads, D width of a head.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from rlhf_mini.models import gpt2

NAME = "rlhf_mini_packed"


class Rows:
    """Where the tokens of B rows lie when these are laid end to end."""

    def __init__(self, lengths: Tensor, cache: "Cache | None" = None) -> None:
        """`lengths` (B,), each at least 1. A `cache` is filled with the keys and values on the way."""
        self.shape = len(lengths), int(lengths.max())  # B, T
        self.cache = cache
        real = torch.arange(self.shape[1], device=lengths.device) < lengths.unsqueeze(1)  # (B, T)
        self.index = real.flatten().nonzero().squeeze(1)  # (N,): the place of each token in the padded rows
        self.position_ids = self.index % self.shape[1]  # (N,)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, T or more, ...), padded on the right -> (N, ...)."""
        return padded[:, : self.shape[1]].flatten(0, 1)[self.index]

    def unpack(self, packed: Tensor) -> Tensor:
        """(N, ...) -> (B, T, ...), 0 on padding."""
        rows, width = self.shape
        padded = packed.new_zeros(rows * width, *packed.shape[1:]).index_copy(0, self.index, packed)
        return padded.unflatten(0, self.shape)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        """(B, H, T, D) each -> (B, H, T, D). Padding comes last in a row, so causality hides it."""
        if self.cache is not None:
            self.cache.fill(layer, key, value)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, **how)


class Cache:
    """Keys and values of rows that grow by one token at a time; given as `rows` with their last tokens (B,)."""

    def __init__(self, lengths: Tensor, room: int) -> None:
        """`lengths` (B,) tokens at first; each row may grow by `room`."""
        self.lengths, self.room = lengths, room
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values, (B, H, C, D) each

    def fill(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Takes the keys and values (B, H, T, D) of the rows' first tokens."""
        self.layers[layer] = F.pad(key, (0, 0, 0, self.room)), F.pad(value, (0, 0, 0, self.room))

    def grow(self) -> None:
        """Makes each row one token longer: the next pass reads the tokens at `position_ids` (B,)."""
        self.position_ids = self.lengths
        # Where the new token of each row lies in keys and values, and what it may look at: the same in every layer.
        self.last = torch.arange(len(self.lengths), device=self.lengths.device), slice(None), self.lengths
        self.lengths = self.lengths + 1
        self.longest = int(self.lengths.max())
        hidden = torch.arange(self.longest, device=self.lengths.device) >= self.lengths.unsqueeze(1)  # (B, longest)
        # A number to add, which attention would make of a mask of truth values in every layer anew.
        bias = torch.zeros(hidden.shape, dtype=self.layers[0][0].dtype, device=hidden.device)
        self.mask = bias.masked_fill_(hidden, -torch.inf)[:, None, None]  # (B, 1, 1, longest)

    def pack(self, rows: Tensor) -> Tensor:
        """(B, 1, ...) -> (B, ...)."""
        return rows.squeeze(1)

    def unpack(self, packed: Tensor) -> Tensor:
        """(B, ...) -> (B, 1, ...)."""
        return packed.unsqueeze(1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        """(B, H, 1, D) each, of the last token of each row -> (B, H, 1, D)."""
        keys, values = self.layers[layer]
        keys[self.last], values[self.last] = key.squeeze(2), value.squeeze(2)
        keys, values = keys[:, :, : self.longest], values[:, :, : self.longest]
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=self.mask, **how)

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        self.layers = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self.layers.items()}
        self.lengths = self.lengths[rows]


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
        raise ValueError("packed rows attend to all that is before them, but this model has a sliding window")
    how = dict(scale=scaling, dropout_p=dropout, enable_gqa=key.shape[1] != query.shape[1])
    query, key, value = (rows.unpack(x[0].transpose(0, 1)).transpose(1, 2) for x in (query, key, value))
    attended = rows.attend(module.layer_idx, query, key, value, **how)  # (B, H, T, D)
    return rows.pack(attended.transpose(1, 2)).unsqueeze(0), None  # (1, N, H, D)


Read = Callable[..., Tensor]

# No mask is registered with it, so transformers makes none: `rows` says it all.
AttentionInterface.register(NAME, attention)


@contextmanager
def packed(model: Any) -> Iterator[Read]:
    """Gives what reads packed rows with this model: read(ids, rows, keep) -> logits.

    Args of `read`:
        ids: (N,), the tokens of `rows`.
        rows: Rows, or a Cache that has grown.
        keep: (n,), the tokens after which to say something; all N by default.

    Returns of `read`:
        (n, V), or (n, labels) of a ...ForSequenceClassification model.

    Within the block, the model itself takes packed rows only. It is a setting of its config object.
    """
    if gpt2.fits(model):
        yield gpt2.reader(model)
        return

    def read(ids: Tensor, rows: Rows | Cache, keep: Tensor | None = None) -> Tensor:
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
        yield read
    finally:
        model.set_attn_implementation(before)
