"""The order of training examples: batches of similar length, and endless batches of texts and prompts."""

import random
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from typing import TypeVar

import torch

T = TypeVar("T")

POOL = 16  # batches sorted by length together: enough to save most of the padding, few enough to stay random


def length_bucketed_batches(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """The batches of a whole training run, as indices of examples. It passes over all examples until it has enough.

    Attention pads the rows of a batch, so lengths that are alike save time. A longer run with the same seed begins with
    the same batches.

    Args:
        lengths: tokens of each example.
        steps: the number of batches.
    """
    generator = torch.Generator().manual_seed(seed)

    def passes() -> Iterator[list[int]]:
        while True:
            yield from one_pass(lengths, batch_size, generator)

    return list(islice(passes(), steps))


def one_pass(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Batches that hold each example once. They are in random order; one that is not full comes last."""
    order = torch.randperm(len(lengths), generator=generator)  # a tensor: lists of millions of ints fill the memory
    for pool in order.split(POOL * batch_size):
        pool[:] = torch.tensor(sorted(pool.tolist(), key=lambda index: lengths[index]))
    full = len(order) // batch_size
    for index in [*torch.randperm(full, generator=generator).tolist(), full]:
        if batch := order[index * batch_size : (index + 1) * batch_size].tolist():
            yield batch


def endless_batches(items: Sequence[T], size: int, seed: int, skip: int) -> Iterator[list[T]]:
    """Batches after the first `skip`: pass after pass over all items, each pass in a new order."""
    rng = random.Random(seed)
    endless = chain.from_iterable(rng.sample(range(len(items)), len(items)) for _ in count())
    for number in count():
        batch = list(islice(endless, size))
        if number >= skip:
            yield [items[index] for index in batch]
