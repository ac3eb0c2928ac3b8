"""TRL's trainers as the oracle for SFT and the reward model: from the same examples they must make the same weights.

The weights are float64. In float32, rounding would decide some of Adam's steps: the bias of the keys, for example, has
no gradient, because softmax ignores it, and Adam scales up the rounding errors in its place.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedModel

from rlhf_mini.core.files import read_jsonl
from rlhf_mini.core.resume import Resume
from rlhf_mini.training.batches import length_bucketed_batches
from rlhf_mini.training.loop import HasLength, Objective, TrainingOptions, train


def trl_settings(options: TrainingOptions, folder: Path) -> dict[str, Any]:
    """What `train` does, in the words of TRL's configs: one pass over a dataset that is in the order of the steps."""
    warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")  # every TRL config sets it
    return dict(
        output_dir=str(folder / "trl"),
        seed=options.seed,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        weight_decay=options.weight_decay,
        adam_beta1=options.adam_beta1,
        adam_beta2=options.adam_beta2,
        use_cpu=True,
        dataloader_pin_memory=False,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
    )


def assert_trains_like_trl(
    make_trainer: Callable[[PreTrainedModel, dict[str, Any], Dataset], Any],
    model: PreTrainedModel,
    rows: Sequence[dict[str, Any]],
    examples: Sequence[HasLength],
    objective: Callable[[PreTrainedModel, Any], Objective],
    options: TrainingOptions,
    folder: Path,
) -> None:
    """Trains two copies of `model` and compares weights, losses, gradient norms and learning rates.

    Args:
        make_trainer: makes TRL's trainer of (model, settings, train_dataset).
        rows: the examples as TRL takes them.
        examples, objective: the same for `train`.
    """
    ours = deepcopy(model)
    resume = Resume(folder, "oracle", {}, time.time())
    steps = train(
        ours, examples, lambda batch: objective(ours, batch), options, resume=resume, saved=None, folder=folder,
        metrics={}, provenance={},
    )  # fmt: skip
    log = read_jsonl(folder / "metrics.jsonl")

    batches = length_bucketed_batches([each.length for each in examples], options.batch_size, steps, options.seed)
    assert {len(batch) for batch in batches} == {options.batch_size}  # or TRL would make others of this order
    dataset = Dataset.from_list([rows[index] for batch in batches for index in batch])
    trainer = make_trainer(deepcopy(model), trl_settings(options, folder), dataset)
    trainer.train()
    their_log = [line for line in trainer.state.log_history if "loss" in line]

    assert [line["step"] for line in log] == [line["step"] for line in their_log] == list(range(1, steps + 1))
    for key in ("loss", "grad_norm", "learning_rate"):
        assert [line[key] for line in log] == pytest.approx([line[key] for line in their_log], rel=1e-6), key
    theirs, before = trainer.model.state_dict(), model.state_dict()
    assert max((theirs[name] - before[name]).abs().max() for name in before) > options.learning_rate
    for name, weights in ours.state_dict().items():
        assert (weights - theirs[name]).abs().max() < 1e-6, name
