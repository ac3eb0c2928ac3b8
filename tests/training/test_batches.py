"""Batches of prompts and texts."""

from itertools import islice

from rlhf_mini.training.batches import endless_batches


def test_items_come_in_a_new_order_in_every_pass_and_can_be_skipped() -> None:
    order = list(islice(endless_batches(range(10), 5, seed=0, skip=0), 6))
    passes = [order[0] + order[1], order[2] + order[3], order[4] + order[5]]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert next(endless_batches(range(10), 5, seed=0, skip=3)) == order[3]
    assert next(endless_batches(range(10), 5, seed=1, skip=0)) != order[0]
