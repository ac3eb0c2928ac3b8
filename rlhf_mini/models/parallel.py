"""Several computations at once, each with its share of the threads.

torch spreads one operation over all threads, which wait for each other at its end. With matrices as small as here, the
waiting is a good part of the time. Computations that do not need each other wait for each other once, at the end.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

from rlhf_mini.core import processes

T = TypeVar("T")


def in_parallel(*tasks: Callable[[], T]) -> list[T]:
    """The results of the tasks, in their order. One after the other if torch has one thread.

    The numbers do not depend on which task finishes first; their last digits depend on the number of threads.
    """
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    workers = min(len(tasks), threads) if processes.may_thread() else 1
    if workers <= 1:
        return [task() for task in tasks]

    def run(task: Callable[[], T]) -> T:
        torch.set_num_threads(threads // workers)
        with torch.set_grad_enabled(gradients):  # torch keeps this by thread
            return task()

    try:
        futures = [_pool(workers).submit(run, task) for task in tasks]
        wait(futures)  # for all of them, also if one fails: no task is still running when this returns
        return [future.result() for future in futures]
    finally:
        torch.set_num_threads(threads)


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Cached: a new thread would have to allocate its memory again."""
    return ThreadPoolExecutor(workers)
