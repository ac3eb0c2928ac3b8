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


def one_pass(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Batches that hold each example once. They are in random order; one that is not full comes last."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches: list[list[int]] = []
    for start in range(0, len(order), POOL * batch_size):
        pool = sorted(order[start : start + POOL * batch_size], key=lambda index: lengths[index])
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    last = [batches.pop()] if len(batches[-1]) < batch_size else []
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()] + last


def endless_batches(items: Sequence[T], size: int, seed: int, skip: int) -> Iterator[list[T]]:
    """Batches after the first `skip`: pass after pass over all items, each pass in a new order."""
    rng = random.Random(seed)
    endless = chain.from_iterable(rng.sample(range(len(items)), len(items)) for _ in count())
    for number in count():
        batch = list(islice(endless, size))
        if number >= skip:
            yield [items[index] for index in batch]
