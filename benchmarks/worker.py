"""What both workers share with bench.py: the case they run, and a line to stdin for each update they are to do.

A worker starts, loads, says {"ready": ...} and blocks on stdin, which costs nothing while the other one works. A line
asks it for one update; its answer is a line of JSON. The end of stdin ends it.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from rlhf_mini.core.checkpoints import peak_memory_mb
from rlhf_mini.core.examples import Messages

# What TRL's PPOConfig needs to train on a CPU, and nothing else: no evaluation, no saving, no tables.
TRL_ON_A_CPU: dict[str, Any] = dict(
    use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True,
    num_sample_generations=0,
)  # fmt: skip


T = TypeVar("T")


@dataclass
class Case:
    """One thing to measure. Both sides take the prompts in this order, `episodes` at a time and round and round."""

    sft: str
    rm: str
    prompts: list[Messages]
    episodes: int = 64
    minibatch_size: int = 16
    max_new_tokens: int = 48
    temperature: float = 0.7
    # So low that the policy stays the checkpoint it is: an update costs the same, but the lengths do not drift.
    learning_rate: float = 1e-7
    value_learning_rate: float = 1e-7  # here; TRL has one rate for both models
    num_ppo_epochs: int = 1
    kl_coef: float = 0.02
    gae_lambda: float = 0.95
    # Here; TRL's PPOTrainer mixes no texts in and averages no weights.
    ptx_coef: float = 0.0
    ptx_batch_size: int = 6
    ema_decay: float = 0.0
    updates: int = 0  # after which learning rates have fallen, as each side lets them fall; 0: they are constant
    seed: int = 0
    local_rollout_forward_batch_size: int = 0  # TRL's; 0: all episodes at once, its fastest on a CPU

    def batches(self, prompts: Sequence[T]) -> Iterator[list[T]]:
        """The prompts, as a side has encoded them, `episodes` at a time."""
        at = 0
        while True:
            yield [prompts[(at + row) % len(prompts)] for row in range(self.episodes)]
            at += self.episodes

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


class Line:
    """The worker's end of the line to bench.py. Whatever else prints goes to stderr."""

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.case = Case(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

    def wait(self) -> str:
        """Blocks until asked; what for."""
        request = sys.stdin.readline().strip()
        if not request:
            raise SystemExit
        return request

    def answer(self, **values: Any) -> None:
        print(json.dumps(values | {"peak_memory_mb": peak_memory_mb()}), file=self.answers, flush=True)

    def ready(self) -> None:
        self.answer(ready=True, threads=torch.get_num_threads())
