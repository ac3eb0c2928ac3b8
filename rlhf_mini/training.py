"""What SFT and the reward model add to TRL's trainers: length buckets, progress, and a stop with the last good weights.

class KWiseTrainer(StageTrainer, RewardTrainer): ...

with Progress(...) as progress:
    trainer = KWiseTrainer(model, RewardConfig(**trainer_settings(...)), callbacks=[progress], ...)
    train(trainer, run_dir, "rm", tokenizer=tokenizer, options=options, ...)
"""

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback

from rlhf_mini.checkpoints import save_last_good
from rlhf_mini.console import MetricsLog, UserError, console, printable, track
from rlhf_mini.sampling import Messages, Response

POOL = 16  # batches that are sorted by length together: enough to save most of the padding, few enough to stay random
KEEP_EVERY = 10  # steps between two copies of the weights kept against a NaN


class TrainingOptions(Protocol):
    """The options that the trainers of both stages have in common."""

    seed: int
    learning_rate: float
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    num_train_epochs: float
    batch_size: int


def trainer_settings(options: TrainingOptions, folder: Path) -> dict[str, Any]:
    """Settings of a TRL config that both stages use: on the CPU, cosine to 10 % without warmup (InstructGPT, C)."""
    # TRL sets gradient_checkpointing, which transformers has renamed, so every TRL config warns.
    warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
    return dict(
        output_dir=str(folder),
        seed=options.seed,
        num_train_epochs=options.num_train_epochs,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        weight_decay=options.weight_decay,
        adam_beta1=options.adam_beta1,
        adam_beta2=options.adam_beta2,
        use_cpu=True,
        dataloader_pin_memory=False,
        bf16=False,  # TRL's defaults suit large GPUs
        gradient_checkpointing=False,
        max_length=None,  # an over-long record is told to the user, not cut
        save_strategy="no",  # rlhf_mini.checkpoints saves
        report_to="none",
        disable_tqdm=True,  # Progress below shows a bar
        logging_steps=1,
        logging_nan_inf_filter=False,  # or a NaN loss would be logged as the last finite one
    )


def warmup_cosine(step: int, steps: int, warmup_steps: int) -> float:
    """Share of its peak that a learning rate has at `step`, from 0: linear warmup times a cosine to 10 % at `steps`."""
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    return warmup * (0.55 + 0.45 * math.cos(math.pi * step / max(1, steps)))


def copy_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights as they are now, for `load_state_dict`."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


# --- length buckets --------------------------------------------------------------------------------------------------


def bucketed_order(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[int]:
    """A random order of all examples in which every slice of `batch_size` holds examples of like length.

    The batches themselves come in random order (transformers' group_by_length goes from long to short, so that a model
    sees its shortest examples last). A batch that is not full comes last.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches: list[list[int]] = []
    for start in range(0, len(order), POOL * batch_size):
        pool = sorted(order[start : start + POOL * batch_size], key=lambda index: lengths[index])
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    last = batches.pop() if batches and len(batches[-1]) < batch_size else []
    shuffled = [batches[at] for at in torch.randperm(len(batches), generator=generator).tolist()]
    return [index for batch in [*shuffled, last] for index in batch]


class BucketSampler(torch.utils.data.Sampler[int]):
    """`bucketed_order` anew in every epoch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size = lengths, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(bucketed_order(self.lengths, self.batch_size, self.generator))


# --- trainer ---------------------------------------------------------------------------------------------------------


class _NotFinite(Exception):
    """The loss of this step is NaN or infinite."""

    def __init__(self, step: int) -> None:
        self.step = step


class StageTrainer(Trainer):
    """Mixed into a trainer of TRL, before it: batches of like length, a stop at the first loss that is not finite."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)
        self.last_good = copy_weights(self.model)

    def _lengths(self) -> list[int]:
        """Tokens of each training example."""
        return [len(ids) for ids in self.train_dataset["input_ids"]]

    def _get_train_sampler(self, train_dataset: Any = None) -> BucketSampler:
        return BucketSampler(self._lengths(), self.args.train_batch_size, self.args.seed)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise _NotFinite(self.state.global_step + 1)
        if self.state.global_step % KEEP_EVERY == 0:
            self.last_good = copy_weights(
                self.model
            )  # the weights that gave this finite loss; the optimizer has not stepped yet
        return loss


def train(trainer: StageTrainer, run_dir: Path, stage: str, *, metrics: dict[str, Any], **what: Any) -> None:
    """Trains. If the loss stops being finite, saves the last good weights and raises a UserError: what to try.

    `metrics` and `what` (tokenizer, options, seed, started, parents) go into that checkpoint's stage.json.
    """
    try:
        trainer.train()
    except _NotFinite as fault:
        trainer.model.load_state_dict(trainer.last_good)
        reason = f"the loss was not a finite number at step {fault.step}"
        kept = save_last_good(run_dir, stage, reason=reason, model=trainer.model, metrics=metrics, **what)
        raise UserError(
            f"{reason}: try a lower --learning_rate (it was {trainer.args.learning_rate:g}); "
            f"the weights from before are in {kept}"
        ) from None


# --- progress --------------------------------------------------------------------------------------------------------


def excerpt(prompt: Messages, response: Response | str, width: int = 100) -> str:
    """A prompt's last message and a response to it, each on one line and without control characters."""
    text = response if isinstance(response, str) else response.text + ("" if response.ended else " ...")
    lines = [printable(" ".join(part.split())) for part in (prompt[-1]["content"], text)]
    question, answer = [line if len(line) <= width else line[: width - 3] + "..." for line in lines]
    return f"    user: {question}\n    model: {answer}"


class Progress(TrainerCallback):
    """A progress bar, a sampled response now and then, and every logged figure in metrics.jsonl as it comes.

    Use it as a context, so that the bar goes away also when training stops half-way.
    """

    def __init__(
        self, folder: Path, description: str, show: Callable[[], str] | None = None, show_every: int = 0
    ) -> None:
        """`show` gives the text to print every `show_every` steps (0: never)."""
        self.log = MetricsLog(folder / "metrics.jsonl")
        self.description, self.show, self.show_every = description, show, show_every
        self.bar: Any = iter(())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self.bar, "close"):
            self.bar.close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = track(range(state.max_steps), self.description)
        next(self.bar, None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        next(self.bar, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        self.log.log(state.global_step, **logs)
        if self.show is not None and self.show_every and "loss" in logs and state.global_step % self.show_every == 0:
            console.print(f"{self.description}: step {state.global_step}/{state.max_steps}, loss {logs['loss']:.3f}")
            console.print(self.show(), style="dim", soft_wrap=True)
