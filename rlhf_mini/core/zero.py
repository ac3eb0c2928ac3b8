"""ZeRO by DeepSpeed: each process keeps a part of the optimizer's states and, from stage 2 on, of the gradients.

The loops of the stages stay what they are; DeepSpeed's engine is hidden behind the optimizer that they step. Only what
`accelerate launch` says about DeepSpeed is used (configs/accelerate/deepspeed.yaml), and none of its checkpoints, which
are pickles (Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models").
"""

import os
from typing import Any

import torch
from accelerate.utils import gather, is_deepspeed_available
from torch import Tensor

from rlhf_mini.core.console import RANK, WORLD_SIZE, UserError

BUCKET = 50_000_000  # gradients that are summed at once; DeepSpeed's own 500 million are 2 GB


def check() -> None:
    """UserError if DeepSpeed is missing, or set up for what is not supported here."""
    if not is_deepspeed_available():
        raise UserError("DeepSpeed is not installed: run `pip install 'rlhf-mini[deepspeed]'`")
    if _stage() not in (1, 2):
        raise UserError(
            f"ZeRO stage {_stage()} is not supported, stages 1 and 2 are: configs/accelerate/fsdp.yaml divides the "
            "weights, too"
        )


def _stage() -> int:
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))


class ZeroOptimizer:
    """What the loops use of a torch.optim.Optimizer. Gradients are summed over the processes, not averaged."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        os.environ.setdefault("DS_ACCELERATOR", model.device.type)  # a GPU that --device does not want is left alone
        import deepspeed

        self.base = optimizer
        where = os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
        self.engine, self.zero, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,  # required, and used for its own statistics only
                "zero_optimization": {
                    "stage": _stage(),
                    "reduce_bucket_size": BUCKET,
                    "allgather_bucket_size": BUCKET,
                    "offload_optimizer": {"device": where},
                },
                "zero_allow_untested_optimizer": True,  # torch's Adam
                "zero_force_ds_cpu_optimizer": False,
            },
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """With learning rates. Parameters are in one piece for each group, of which each process has its part."""
        groups: list[dict[str, Any]] = self.base.param_groups
        return groups

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * WORLD_SIZE)  # it averages

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """The norm before clipping, a scalar; NaN if it is not finite. The step clips."""
        self.zero.clip_grad = max_norm
        norm = torch.as_tensor(self.zero.scaled_global_norm())
        return torch.where(norm < 0, torch.nan, norm)

    def step(self) -> None:
        self.engine.step()

    def zero_grad(self) -> None:
        """`step` has done so."""

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's; tensors have a row for each process. All processes have to ask."""
        saved = self.base.state_dict()
        saved["state"] = {
            group: {key: gather(value[None]) if value.dim() else value for key, value in of_one.items()}
            for group, of_one in saved["state"].items()
        }
        return saved

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Of as many processes as saved it. The model's weights must have been loaded before."""
        self.zero.refresh_fp32_params()  # the copy that it steps
        state = {
            group: {key: value[RANK] if value.dim() else value for key, value in of_one.items()}
            for group, of_one in saved["state"].items()
        }
        self.base.load_state_dict(saved | {"state": state})
