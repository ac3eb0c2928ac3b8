"""The training loop of SFT and the reward model: an optimizer step per batch, resumable, with a stop at NaN.

The optimizer is that of TRL's trainers: AdamW without weight decay on biases and layer norms, gradients clipped to a
norm of 1. The learning rate follows a cosine to 10 % without warmup (Ouyang et al. 2022, appendix C).
"""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_mini.core import processes
from rlhf_mini.core.checkpoints import save_last_good
from rlhf_mini.core.console import UserError, console, track
from rlhf_mini.core.files import MetricsLog
from rlhf_mini.core.resume import Resume, State, load_optimizer, optimizer_tensors
from rlhf_mini.models.adapters import trained
from rlhf_mini.training.batches import length_bucketed_batches
from rlhf_mini.training.schedule import warmup_cosine

KEEP_EVERY = 10  # steps between two copies of the weights that are kept in case of a NaN
MAX_GRAD_NORM = 1.0


class TrainingOptions(Protocol):
    """Options that both stages have."""

    seed: int
    num_train_epochs: float
    batch_size: int
    learning_rate: float
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    save_steps: int


class HasLength(Protocol):
    @property
    def length(self) -> int:
        """Tokens, by which examples are put into batches."""
        ...


Example = TypeVar("Example", bound=HasLength)


class Objective(NamedTuple):
    """The loss of a batch, a scalar, and scalars to log beside it. Of several processes, each has its part of them."""

    loss: Tensor
    metrics: dict[str, Tensor] = {}  # noqa: RUF012 (never changed)


def train(
    model: PreTrainedModel,
    examples: Sequence[Example],
    objective: Callable[[Sequence[Example]], Objective],
    options: TrainingOptions,
    *,
    resume: Resume,
    saved: State | None,
    folder: Path,
    metrics: dict[str, Any],
    provenance: dict[str, Any],
    show: Callable[[], str] | None = None,
    show_every: int = 0,
) -> int:
    """Trains `model` on batches of `examples`. Logs every step in `folder`/metrics.jsonl.

    Args:
        model: in train mode for dropout, in eval mode without.
        objective: computes the loss of a batch.
        resume: of this stage; `folder` is where the stage writes its files.
        saved: what `resume.load` returned; None starts from the beginning.
        metrics: those known before training, for the saves (`saved.state`) and for the last good checkpoint.
        provenance: the other arguments of `save_last_good`.
        show: returns a text to print every `show_every` steps (0: never).

    Returns:
        The number of steps.

    Raises:
        UserError: the loss was NaN or infinite. The last good weights are saved.
    """
    steps_per_epoch = math.ceil(len(examples) / options.batch_size)
    steps = math.ceil(options.num_train_epochs * steps_per_epoch)
    batches = length_bucketed_batches([each.length for each in examples], options.batch_size, steps, options.seed)
    optimizer = processes.prepare(model, partial(adamw, options=options))
    parameters = trained(model)
    log = MetricsLog(folder / "metrics.jsonl")
    torch.manual_seed(options.seed + processes.index())  # for dropout

    done, last_good = 0, deepcopy(model.state_dict())
    if saved is not None and saved.tensors:
        done, last_good = saved.step, saved.tensors["last_good"]
        processes.load_weights(model, saved.tensors["model"])
        load_optimizer(optimizer, saved.tensors["optimizer"])
        torch.set_rng_state(saved.tensors["rng"][f"torch{processes.index()}"])

    for step in track(range(done + 1, steps + 1), f"{resume.stage}: training", total=steps, done=done):
        learning_rate = options.learning_rate * warmup_cosine(step - 1, steps, warmup_steps=0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        part, logged = objective([examples[index] for index in batches[step - 1]])
        logged = processes.total({"loss": part} | logged)
        loss = logged["loss"]
        if not torch.isfinite(loss):
            resume.remove()  # the same command would come to the same end
            processes.load_weights(model, last_good)
            reason = f"the loss was not a finite number at step {step}"
            kept = save_last_good(
                resume.run_dir, resume.stage, reason=reason, model=model, metrics=metrics, **provenance
            )
            raise UserError(
                f"{reason}: try a lower --learning_rate (it was {options.learning_rate:g}); "
                f"the weights from before are in {kept}"
            )
        if (step - 1) % KEEP_EVERY == 0:
            last_good = deepcopy(model.state_dict())  # they gave a finite loss

        processes.backward(part, optimizer)
        grad_norm = processes.clip_grad_norm_(parameters, MAX_GRAD_NORM, optimizer)
        optimizer.step()
        optimizer.zero_grad()

        log.log(step, **logged, grad_norm=grad_norm, learning_rate=learning_rate, epoch=step / steps_per_epoch)
        if show is not None and show_every and step % show_every == 0:
            console.print(f"{resume.stage}: step {step}/{steps}, loss {loss:.3f}")
            console.print(show(), style="dim", soft_wrap=True)  # all processes sample
        if options.save_steps and (step % options.save_steps == 0 or step == steps):
            states = processes.gather(processes.share(range(processes.number())), [torch.get_rng_state()])
            tensors = {
                "model": model.state_dict(),
                "last_good": last_good,
                "optimizer": optimizer_tensors(optimizer),
                "rng": {f"torch{index}": state for index, state in enumerate(states)},
            }
            resume.save(folder, step, tensors, metrics)
    return steps


def adamw(model: PreTrainedModel, options: TrainingOptions) -> torch.optim.Optimizer:
    """AdamW. Weight decay applies to matrices only, not to biases and layer norms."""
    parameters = trained(model)
    groups = [
        {"params": [each for each in parameters if each.dim() >= 2], "weight_decay": options.weight_decay},
        {"params": [each for each in parameters if each.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (options.adam_beta1, options.adam_beta2)
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=betas, eps=1e-8, fused=True)
