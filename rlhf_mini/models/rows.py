"""Rows of tokens without padding: sequences of different lengths laid end to end.

    rows = Rows(lengths=[2, 3])            # tokens a0 a1 b0 b1 b2: N = 5
    rows.position_ids                      # 0 1 0 1 2
    rows.sum(x)                            # x (N,) -> (2,)

Everything in a transformer except attention works token by token, so the token beside it in memory does not matter.
Only for attention are rows padded: `unpack`, `attend`, `pack`. `Cache` does the same for decoding, a token per row.

Shapes: B rows, T the longest of them, N tokens in all, C tokens a cache has room for, H heads, D width of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Rows:
    """Where the tokens of B rows are when the rows lie end to end."""

    def __init__(self, lengths: Tensor | Sequence[int], cache: "Cache | None" = None, device: Any = None) -> None:
        """`lengths` (B,), each at least 1; a row of 0 tokens has no `first` and `last`, but `sum` and `unpack` know it.

        A forward pass fills `cache` with the keys and values of these tokens.
        """
        self.lengths = torch.as_tensor(lengths, device=device)  # (B,)
        self.cache = cache
        self.shape = len(self.lengths), int(self.lengths.max())  # B, T
        real = torch.arange(self.shape[1], device=self.lengths.device) < self.lengths.unsqueeze(1)  # (B, T)
        self.index = real.flatten().nonzero().squeeze(1)  # (N,): the place of each token in the padded rows
        self.position_ids = self.index % self.shape[1]  # (N,)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def first(self) -> Tensor:
        """(B,): the place of each row's first token."""
        return self.lengths.cumsum(0) - self.lengths

    @property
    def last(self) -> Tensor:
        """(B,): the place of each row's last token."""
        return self.lengths.cumsum(0) - 1

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, ...) -> B tensors, one per row."""
        return x.split(self.lengths.tolist())

    def take(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """(N, ...) -> the tokens of the rows at these indices, end to end."""
        parts = self.split(x)
        return torch.cat([parts[row] for row in rows])

    def sum(self, x: Tensor) -> Tensor:
        """(N,) -> (B,): the sum over each row."""
        return self.unpack(x).sum(-1)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, T, ...), padded on the right -> (N, ...)."""
        return padded.flatten(0, 1)[self.index]

    def unpack(self, packed: Tensor) -> Tensor:
        """(N, ...) -> (B, T, ...), 0 on padding."""
        rows, width = self.shape
        padded = packed.new_zeros(rows * width, *packed.shape[1:]).index_copy(0, self.index, packed)
        return padded.unflatten(0, self.shape)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        """(B, H, T, D) each -> (B, H, T, D). Padding comes last in a row, so the causal mask hides it."""
        if self.cache is not None:
            self.cache.fill(layer, key, value)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, **how)


class Cache:
    """Keys and values of rows that grow by one token at a time; takes the place of `Rows` for their last tokens."""

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
        # Where the new token of each row lies in keys and values, and what it may attend to: the same in every layer.
        self.last = torch.arange(len(self.lengths), device=self.lengths.device), slice(None), self.lengths
        self.lengths = self.lengths + 1
        self.longest = int(self.lengths.max())
        hidden = torch.arange(self.longest, device=self.lengths.device) >= self.lengths.unsqueeze(1)  # (B, longest)
        # An additive mask: attention would convert a boolean one in every layer.
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
