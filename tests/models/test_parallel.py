"""Tasks at the same time: in order, each with its threads, as exact as one after the other."""

import threading
from functools import partial

import pytest
import torch

from rlhf_mini.models.parallel import in_parallel


def test_they_run_at_the_same_time_and_share_the_threads(four_threads: None) -> None:
    meeting = threading.Barrier(2, timeout=10)

    def task(name: str) -> tuple[str, int, bool]:
        meeting.wait()  # goes on only if the other one is there, too
        return name, torch.get_num_threads(), torch.is_grad_enabled()

    assert in_parallel(partial(task, "a"), partial(task, "b")) == [("a", 2, True), ("b", 2, True)]
    with torch.no_grad():
        assert in_parallel(partial(task, "a"), partial(task, "b")) == [("a", 2, False), ("b", 2, False)]
    assert torch.get_num_threads() == 4
    assert len(in_parallel(*[torch.get_num_threads] * 9)) == 9


def test_one_thread_does_one_after_the_other(one_thread: None) -> None:
    here = threading.get_ident()
    assert in_parallel(threading.get_ident, threading.get_ident) == [here, here]


def test_a_fault_in_a_task_is_raised(four_threads: None) -> None:
    def fault() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        in_parallel(fault, fault)
    assert torch.get_num_threads() == 4


def test_gradients_are_those_of_one_after_the_other(four_threads: None) -> None:
    torch.manual_seed(0)
    networks = [torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)) for _ in range(2)]
    x = torch.randn(16, 32)

    def backward(network: torch.nn.Module) -> torch.Tensor:
        loss: torch.Tensor = network(x).square().mean()
        loss.backward()
        return loss.detach()

    gradients = []
    for together in (True, False):
        tasks = [partial(backward, network) for network in networks]
        found = in_parallel(*tasks) if together else [task() for task in tasks]
        gradients.append([*found, *(p.grad.clone() for n in networks for p in n.parameters() if p.grad is not None)])
        for network in networks:
            network.zero_grad()
    assert len(gradients[0]) == len(gradients[1]) == 10
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
