"""What SFT and the reward model add to TRL's trainers: length buckets, progress, saves to resume from, a stop at NaN.

class KWiseTrainer(StageTrainer, RewardTrainer): ...

with Progress(...) as progress:
    trainer = KWiseTrainer(model, RewardConfig(**trainer_settings(...)), callbacks=[progress], ...)
    train(trainer, resume, saved, tokenizer=tokenizer, options=options, ...)
"""

import dataclasses
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Protocol

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from rlhf_mini.core.checkpoints import save_last_good
from rlhf_mini.core.console import UserError, console, track
from rlhf_mini.core.files import MetricsLog
from rlhf_mini.core.resume import Resume, State, Tensors, load_optimizer, optimizer_tensors
from rlhf_mini.training.schedule import copy_weights

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
    save_steps: int


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
        save_strategy="steps" if options.save_steps else "no",  # StageTrainer says what is saved
        save_steps=max(1, options.save_steps),
        report_to="none",
        disable_tqdm=True,  # Progress below shows a bar
        logging_steps=1,
        logging_nan_inf_filter=False,  # or a NaN loss would be logged as the last finite one
    )


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
    """`bucketed_order` anew in every epoch; seed and epoch alone decide it, so that training can go on in any epoch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epoch + 1):  # each order follows from the one before
            order = bucketed_order(self.lengths, self.batch_size, generator)
        return iter(order)


# --- trainer ---------------------------------------------------------------------------------------------------------


class _NotFinite(Exception):
    """The loss of this step is NaN or infinite."""

    def __init__(self, step: int) -> None:
        self.step = step


class StageTrainer(Trainer):
    """Mixed into a trainer of TRL, before it: batches of like length, saves, a stop at the first loss not finite."""

    resume: Resume  # `train` sets these three
    saved: State
    stage_metrics: dict[str, Any]

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

    # Trainer saves into folders, with pickles. Its methods that write and read them are replaced; that it skips the
    # batches of the steps that are done stays.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Called every save_steps steps, once the step is logged, and after the last step."""
        if self.state.global_step == self.state.max_steps:
            return  # `train` saves when Trainer has logged its summary too
        tensors = {
            "model": self.model.state_dict(),
            "last_good": self.last_good,
            "optimizer": optimizer_tensors(self.optimizer),
            "rng": {"torch": torch.get_rng_state()},  # dropout draws from it; Python's and numpy's are not used
        }
        self.save(tensors, {"scheduler": self.lr_scheduler.state_dict()})

    def save(self, tensors: Tensors, state: dict[str, Any]) -> None:
        """With what both `_save_checkpoint` and `train` have to keep."""
        own = dataclasses.asdict(self.state) | {"log_history": []}  # metrics.jsonl has it
        state = {**state, "trainer": own, "metrics": self.stage_metrics}
        self.resume.save(Path(self.args.output_dir), self.state.global_step, tensors, state)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.model.load_state_dict(self.saved.tensors["model"])
        self.last_good = self.saved.tensors["last_good"]

    def _load_optimizer_and_scheduler(self, *args: Any) -> None:
        load_optimizer(self.optimizer, self.saved.tensors["optimizer"])
        self.lr_scheduler.load_state_dict(self.saved.state["scheduler"])

    def _load_rng_state(self, *args: Any) -> None:
        torch.set_rng_state(self.saved.tensors["rng"]["torch"])


def train(trainer: StageTrainer, resume: Resume, saved: State | None, *, metrics: dict[str, Any], **what: Any) -> None:
    """Trains, from the start or from what `resume.load` gave.

    If the loss stops being finite, saves the last good weights and raises a UserError: what to try. `metrics` and
    `what` (tokenizer, options, seed, started, parents) go into that checkpoint's stage.json.
    """
    trainer.resume, trainer.stage_metrics = resume, metrics
    try:
        if saved is None or "model" not in saved.tensors:
            trainer.train()
        elif "optimizer" in saved.tensors:
            trainer.saved = saved
            with TemporaryDirectory() as folder:  # the one thing that Trainer reads itself, and from a file
                Path(folder, TRAINER_STATE_NAME).write_text(json.dumps(saved.state["trainer"]), encoding="utf-8")
                trainer.train(resume_from_checkpoint=folder)
        else:  # training was over
            trainer.model.load_state_dict(saved.tensors["model"])
            trainer.state = TrainerState(**saved.state["trainer"])
            return
    except _NotFinite as fault:
        resume.remove()  # the same command would come to the same end
        trainer.model.load_state_dict(trainer.last_good)
        reason = f"the loss was not a finite number at step {fault.step}"
        last_good = dict(reason=reason, model=trainer.model, metrics=metrics, **what)
        kept = save_last_good(resume.run_dir, resume.stage, **last_good)
        raise UserError(
            f"{reason}: try a lower --learning_rate (it was {trainer.args.learning_rate:g}); "
            f"the weights from before are in {kept}"
        ) from None
    if trainer.args.save_strategy != "no":
        trainer.save({"model": trainer.model.state_dict()}, {})


# --- progress --------------------------------------------------------------------------------------------------------


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
        steps = range(state.global_step, state.max_steps)
        self.bar = track(steps, self.description, total=state.max_steps, done=state.global_step)
        next(self.bar, None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        next(self.bar, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        self.log.log(state.global_step, **logs)
        if self.show is not None and self.show_every and "loss" in logs and state.global_step % self.show_every == 0:
            console.print(f"{self.description}: step {state.global_step}/{state.max_steps}, loss {logs['loss']:.3f}")
            console.print(self.show(), style="dim", soft_wrap=True)
