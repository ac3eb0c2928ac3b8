"""Several processes that train one model together, as `accelerate launch` starts them. Usually there is one.

Every process runs the same code, with the same data, order and random numbers. What can be split is shared out, and
what comes of it is put together again, so that N processes do what one would do, up to rounding:

    mine = share(batch)                                            # every N-th item of the batch
    loss = mean_loss(mine.items) * mine.weight(size)               # these add up to the mean over the whole batch
    backward(loss, optimizer)                                      # gradients are summed over the processes
    responses = gather(mine, [respond(prompt) for prompt in mine.items])     # those of the whole batch

Only the first process prints and writes (console.py, checkpoints.py). With FSDP (configs/accelerate/fsdp.yaml), each
process keeps a part of the weights, gradients and optimizer states of what is trained; `full` puts a weight together.
With DeepSpeed (zero.py), weights stay whole.
"""

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import FullyShardedDataParallelPlugin, broadcast_object_list, gather_object, reduce
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from rlhf_mini.core import zero
from rlhf_mini.core.console import RANK, WORLD_SIZE, UserError

T = TypeVar("T")
Precision = Literal["no", "bf16"]

_device = torch.device("cpu")
_precision: Precision = "no"


def begin(device: Literal["cpu", "auto"], precision: Precision = "no") -> torch.device:
    """Joins the other processes, if there are any. Returns the device to train on.

    Args:
        device: cpu, or auto for the best that is available, of which each process takes its own.
        precision: of the matrix products in the models' forward and backward passes; weights stay in float32.

    Raises:
        UserError: the launcher is set up for what is not supported here.
    """
    global _precision, _device
    if with_deepspeed():
        zero.check()
    if in_parts() and os.environ.get("FSDP_VERSION", "1") != "2":  # 1 is accelerate's default
        raise UserError("FSDP 1 is not supported: use configs/accelerate/fsdp.yaml, which has `fsdp_version: 2`")
    launchers = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launchers not in ("no", precision):
        raise UserError(f"--mixed_precision {launchers} has no effect: give the stage --precision bf16 instead")
    _precision = precision
    if WORLD_SIZE == 1:
        accelerator = torch.accelerator.current_accelerator(check_available=True) if device == "auto" else None
        _device = accelerator or torch.device("cpu")
        return _device
    if not PartialState._shared_state:
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # else transformers loads weights in one process only
        atexit.register(lambda: torch.distributed.destroy_process_group())
    _device = PartialState(cpu=device == "cpu").device
    return _device


def may_thread() -> bool:
    """Whether several threads may run models at once: on the CPU, if there are no processes to keep in step with.

    Not with bf16: autocast is a state of the thread.
    """
    return WORLD_SIZE == 1 and _device.type == "cpu" and _precision == "no"


def number() -> int:
    """How many processes there are."""
    return WORLD_SIZE


def index() -> int:
    """Which of them this one is, from 0."""
    return RANK


def in_parts() -> bool:
    """Whether the launcher is set up for FSDP."""
    return WORLD_SIZE > 1 and os.environ.get("ACCELERATE_USE_FSDP") == "true"


def with_deepspeed() -> bool:
    """Whether the launcher is set up for DeepSpeed."""
    return WORLD_SIZE > 1 and os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def is_first() -> bool:
    """Whether this process prints and writes."""
    return RANK == 0


def wait() -> None:
    """Until all processes have come here."""
    if WORLD_SIZE > 1:
        PartialState().wait_for_everyone()


# --- shares ----------------------------------------------------------------------------------------------------------


class Share(NamedTuple, Generic[T]):
    """What one process does of a batch."""

    items: Sequence[T]
    """Never empty: if there are too few, the first one of the batch stands in, and `idle` is True."""
    whole: Sequence[T]
    idle: bool

    def weight(self, size: Callable[[T], float] = lambda _: 1) -> float:
        """How much a mean over `items` counts in the mean over `whole`, where items weigh as much as `size` says."""
        if self.items is self.whole:  # of one process: every step asks
            return 1.0
        return 0.0 if self.idle else sum(map(size, self.items)) / sum(map(size, self.whole))


def share(items: Sequence[T]) -> Share[T]:
    """Every N-th item, beginning with the process's own number."""
    if WORLD_SIZE == 1:
        return Share(items, items, False)
    mine = items[RANK::WORLD_SIZE]
    return Share(mine or items[:1], items, not mine)


def gather(mine: Share[Any], results: Sequence[T]) -> list[T]:
    """The results of all processes for their items, in the order of the whole batch."""
    if WORLD_SIZE == 1:
        return list(results)
    of_all: list[list[T]] = gather_object([[] if mine.idle else list(results)])
    return [of_all[index % WORLD_SIZE][index // WORLD_SIZE] for index in range(len(mine.whole))]


def of_first(make: Callable[[], T]) -> T:
    """What the first process makes, which alone calls `make`: the user's own code may say another thing each time."""
    if WORLD_SIZE == 1:
        return make()
    made: list[Any] = [make() if RANK == 0 else None]
    broadcast_object_list(made)
    result: T = made[0]
    return result


def total(scalars: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scalars summed over the processes, each name by itself."""
    if WORLD_SIZE == 1:
        return dict(scalars)
    sums = reduce(torch.stack([value.detach().float() for value in scalars.values()]), "sum")
    return dict(zip(scalars, sums, strict=True))


def most(number: int) -> int:
    """The greatest of the processes' numbers where weights are kept in parts; elsewhere the process's own.

    A forward pass puts weights together, so processes need as many passes as the one with the greatest share.
    """
    return max(gather_object([number])) if in_parts() else number


# --- gradients -------------------------------------------------------------------------------------------------------


def prepare(model: Any, make: Callable[[Any], Optimizer]) -> Optimizer:
    """The optimizer of a model that will be trained, `make(model)`. Shared out if the launcher says so.

    Under FSDP, each process is left its part of the model; with DeepSpeed, of the optimizer.
    """
    if in_parts():
        _shard(model)
    optimizer = make(model)
    return zero.ZeroOptimizer(model, optimizer) if with_deepspeed() else optimizer  # type: ignore[return-value]


def _shard(model: Any) -> None:
    plugin = FullyShardedDataParallelPlugin()  # what the configuration says
    how: dict[str, Any] = dict(
        mesh=init_device_mesh(model.device.type, (WORLD_SIZE,)),
        reshard_after_forward=plugin.reshard_after_forward,
        offload_policy=plugin.cpu_offload,
        ignored_params={each for each in model.parameters() if each.numel() == 1},  # which has no parts
    )
    for module in [each for each in model.modules() if type(each).__name__ in model._no_split_modules]:
        fully_shard(module, **how)
    fully_shard(model, **how)
    for module in _sharded(model):
        module.set_gradient_divide_factor(1.0)  # gradients are summed here, not averaged
        module.set_force_sum_reduction_for_comms(True)  # in the way that every backend knows


def backward(loss: Tensor, optimizer: Optimizer) -> None:
    """Gradients of the sum of all processes' losses."""
    if isinstance(optimizer, zero.ZeroOptimizer):
        return optimizer.backward(loss)
    loss.backward()
    if WORLD_SIZE == 1:
        return
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    _, gradients = _by_keeper(parameters)  # torch has summed those that are kept in parts
    if gradients:
        together = reduce(torch.cat([each.flatten() for each in gradients]), "sum")
        for gradient, summed in zip(gradients, together.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def clip_grad_norm_(parameters: Sequence[Tensor], max_norm: float, optimizer: Optimizer) -> Tensor:
    """torch's, of the optimizer's weights, which may be in parts: the norm before clipping, a scalar."""
    if isinstance(optimizer, zero.ZeroOptimizer):
        return optimizer.clip_grad_norm_(max_norm)
    norms = [full(torch.nn.utils.get_total_norm(gradients)) for gradients in _by_keeper(parameters) if gradients]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def _by_keeper(parameters: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of which each process keeps a part, and those that every process has."""
    gradients = [each.grad for each in parameters if each.grad is not None]
    return (
        [each for each in gradients if isinstance(each, DTensor)],
        [each for each in gradients if not isinstance(each, DTensor)],
    )


def autocast(device: torch.device) -> Any:
    """The context of a forward pass: with bf16, torch decides which of its operations are done in bfloat16."""
    if _precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


@contextmanager
def in_float32() -> Iterator[None]:
    """Forward passes within the block are in float32, whatever `begin` was told."""
    global _precision
    before, _precision = _precision, "no"
    try:
        yield
    finally:
        _precision = before


# --- weights in parts ------------------------------------------------------------------------------------------------


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which each process has a part; all processes have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, own: Tensor) -> Tensor:
    """`tensor` as this process keeps its own: the process's part of it."""
    if not isinstance(own, DTensor):
        return tensor
    whole = full(tensor).to(own.device)
    return distribute_tensor(whole, own.device_mesh, own.placements, src_data_rank=None)  # every process has it


def load_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    """`model.load_state_dict`, from whole weights."""
    own = model.state_dict()
    model.load_state_dict({name: like(tensor, own[name]) for name, tensor in weights.items()})


def call(model: Any, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """function(model, *arguments), a forward pass: torch puts weights together before a model's own methods only."""
    if not _is_sharded(model):
        return function(model, *arguments)
    name = f"fsdp_{function.__name__}"
    if not hasattr(model, name):
        setattr(model, name, MethodType(function, model))
        register_fsdp_forward_method(model, name)
    result: Tensor = getattr(model, name)(*arguments)
    return result


@contextmanager
def whole(model: Any) -> Iterator[None]:
    """Puts a model's weights together for passes without gradients, of which each process may do another number."""
    parts = _sharded(model)
    for module in parts:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in parts:
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()


def _sharded(model: Any) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)] if _is_sharded(model) else []


def _is_sharded(model: Any) -> bool:
    return isinstance(model, FSDPModule)
