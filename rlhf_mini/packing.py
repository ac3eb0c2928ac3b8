"""Forward passes over real tokens only: rows of different lengths laid end to end instead of padded to the longest.

    rows = Rows(lengths)                                             # of B sequences, N = lengths.sum() tokens
    with packed(model):
        model(ids, position_ids=rows.position_ids, rows=rows)        # ids (1, N)

Everything in a transformer but attention works token by token, so what lies beside a row does not matter. Attention
alone needs its rows back. `attention` below is registered with transformers; a causal model of any architecture that
has its attention interface hands over queries, keys and values, and the argument `rows`. They are padded, each row
attends within itself, and the result is laid end to end again. `Cache` does the same for decoding, one token a row.

Shapes: B rows, T the longest of them, N tokens in all, C tokens a cache has room for, H heads, D width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

NAME = "rlhf_mini_packed"


class Rows:
    """Where the tokens of B rows lie when these are laid end to end."""

    def __init__(self, lengths: Tensor, cache: "Cache | None" = None) -> None:
        """`lengths` (B,), each at least 1. A `cache` is filled with the keys and values on the way."""
        self.shape = len(lengths), int(lengths.max())  # B, T
        self.cache = cache
        real = torch.arange(self.shape[1], device=lengths.device) < lengths.unsqueeze(1)  # (B, T)
        self.index = real.flatten().nonzero().squeeze(1)  # (N,): the place of each token in the padded rows
        self.position_ids = (self.index % self.shape[1]).unsqueeze(0)  # (1, N)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, T or more, ...), padded on the right -> (1, N, ...)."""
        return padded[:, : self.shape[1]].flatten(0, 1)[self.index].unsqueeze(0)

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, N, ...) -> (B, T, ...), 0 on padding."""
        rows, width = self.shape
        padded = packed.new_zeros(rows * width, *packed.shape[2:]).index_copy(0, self.index, packed[0])
        return padded.unflatten(0, self.shape)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        """(1, H, N, D) each -> (1, N, H, D). Padding comes last in a row, so causality hides it."""
        # (B, H, T, D) each
        query, key, value = (self.unpack(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value))
        if self.cache is not None:
            self.cache.fill(layer, key, value)
        return self.pack(F.scaled_dot_product_attention(query, key, value, is_causal=True, **how).transpose(1, 2))


class Cache:
    """Keys and values of rows that grow by one token at a time; given as `rows` with their last tokens (1, B)."""

    def __init__(self, lengths: Tensor, room: int) -> None:
        """`lengths` (B,) tokens at first; each row may grow by `room`."""
        self.lengths, self.room, self.longest = lengths, room, int(lengths.max())
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values, (B, H, C, D) each

    def fill(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Takes the keys and values (B, H, T, D) of the rows' first tokens."""
        self.layers[layer] = F.pad(key, (0, 0, 0, self.room)), F.pad(value, (0, 0, 0, self.room))

    def grow(self) -> Tensor:
        """Makes each row one token longer. Returns the position_ids (1, B) of these tokens."""
        place = self.lengths
        # Where the new token of each row lies in keys and values, and what it may look at: the same in every layer.
        self.last = torch.arange(len(place), device=place.device), slice(None), place
        self.lengths = place + 1
        self.longest = int(self.lengths.max())
        real = torch.arange(self.longest, device=place.device) < self.lengths.unsqueeze(1)  # (B, longest)
        self.mask = real[:, None, None]
        return place.unsqueeze(0)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        """(1, H, B, D) each, of the last token of each row -> (1, B, H, D)."""
        keys, values = self.layers[layer]
        keys[self.last], values[self.last] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        attended = F.scaled_dot_product_attention(
            query[0].transpose(0, 1).unsqueeze(2),  # (B, H, 1, D)
            keys[:, :, : self.longest],
            values[:, :, : self.longest],
            attn_mask=self.mask,
            **how,
        )  # (B, H, 1, D)
        return attended.squeeze(2).unsqueeze(0)

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        for both in self.layers.values():
            for kept in both:
                kept[: len(rows), :, : self.longest] = kept[rows, :, : self.longest]
        self.layers = {layer: (keys[: len(rows)], values[: len(rows)]) for layer, (keys, values) in self.layers.items()}
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
    return rows.attend(module.layer_idx, query, key, value, **how), None


# No mask is registered with it, so transformers makes none: `rows` says it all.
AttentionInterface.register(NAME, attention)


@contextmanager
def packed(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model takes packed tokens, and only those. It is a setting of its config object."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
