"""Step 1, supervised fine-tuning (Ouyang et al. 2022, section 3.5 "Supervised fine-tuning (SFT)" and appendix C.1).

    python -m stages.sft                        # data/base + data/demonstrations.jsonl -> runs/default/sft
    python -m stages.sft --dropout 0.2 --num_train_epochs 16 --run long

The base model learns to answer as the demonstrations do: the loss is the negative log-likelihood of the completion's
tokens given the prompt, the prompt's own tokens do not count. What to inspect: validation_loss before and after
(stage.json), and the sampled response on the console, which turns from continuing the text to answering.

As in the paper: batches of 32, cosine to 10 % without warmup, Adam with betas (0.9, 0.95).
Departures:
- 2 epochs instead of 16. The paper's validation loss rose after one epoch, and it trained on and selected the
  checkpoint by the reward model's score on validation prompts; we have none yet, so we stop early and keep the last.
- no dropout unless asked for: on a CPU it costs time, and 2 epochs hardly overfit. The paper used residual dropout 0.2.
- the learning rate is low for a model of this size. In a trial 2e-3 gave the same gold on validation prompts, but of
  the facts that the base knows, the SFT model stated 10 points fewer rightly.
- batches hold demonstrations of like length, which saves most of the padding.

TRL's SFTTrainer does the chat template, the masking of prompts, the padding, the optimizer and the loop. Its fused
language-model head is made for GPUs: on a CPU it computes the vocabulary of every position, the prompt's and the
padding's too, and again for the backward pass. Writing the loss out below took SFT from 21 to 13 seconds an epoch.
"""

import random
import time
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import SFTConfig, SFTTrainer

from rlhf_mini.core.checkpoints import finish, load_checkpoint, writing
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Demonstration, read_demonstrations
from rlhf_mini.core.resume import Resume, command_of
from rlhf_mini.models.packing import Rows, packed
from rlhf_mini.models.sampling import context_length, excerpt, respond
from rlhf_mini.training.trainer import Progress, StageTrainer, train, trainer_settings
from stages.sft.options import SFTOptions


class CompletionTrainer(StageTrainer, SFTTrainer):
    """TRL's SFTTrainer, its loss written out: -sum over the completion's tokens of log p(token | what is before)."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        rows = Rows(inputs["attention_mask"].sum(-1))
        labels = rows.pack(inputs["labels"])  # (N,); -100 = no loss, as on every row's first token
        targets = (labels != -100).nonzero().squeeze(-1)  # (n,): the completions' tokens
        with packed(model) as read:  # each is predicted one position before it
            logits = read(rows.pack(inputs["input_ids"]), rows, keep=targets - 1)  # (n, V)
        loss = F.cross_entropy(logits, labels[targets], reduction="sum")
        return loss / (len(logits) if num_items_in_batch is None else num_items_in_batch)


def train_sft(options: SFTOptions) -> None:
    started = time.time()
    disable_progress_bars()
    demonstrations = read_demonstrations(options.demonstrations)
    base = load_checkpoint(options.base, "base")
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    model = AutoModelForCausalLM.from_pretrained(base.path)
    set_residual_dropout(model, options.dropout)
    training, validation = split(demonstrations, options.validation_share, options.seed)
    shown = validation[0]["prompt"]

    def sampled() -> str:
        responses = respond(model, tokenizer, [shown], max_new_tokens=options.max_new_tokens, seed=options.seed)
        return excerpt(shown, responses[0])

    command = command_of(options, files=[options.demonstrations], parents=[base])
    with (
        Resume(options.run_dir, "sft", command, started) as resume,
        writing(options.run_dir, "sft") as folder,
        Progress(folder, "sft", show=sampled, show_every=options.show_every) as progress,
    ):
        trainer = CompletionTrainer(
            model=model,
            args=SFTConfig(**trainer_settings(options, folder), completion_only_loss=True),
            train_dataset=to_dataset(training),
            eval_dataset=to_dataset(validation),
            processing_class=tokenizer,
            callbacks=[progress],
        )
        check_lengths(trainer, training, validation, options.demonstrations)
        saved = resume.load(folder)
        started = resume.started  # earlier, if it goes on
        metrics: dict[str, Any] = {"demonstrations": len(training), "validation_demonstrations": len(validation)}
        what: dict[str, Any] = dict(
            tokenizer=tokenizer, options=options, seed=options.seed, started=started, parents=[base], metrics=metrics
        )

        metrics["validation_loss_before"] = (
            saved.state["metrics"]["validation_loss_before"] if saved else trainer.evaluate()["eval_loss"]
        )
        train(trainer, resume, saved, **what)
        metrics["validation_loss"] = trainer.evaluate()["eval_loss"]
        finish(folder, stage="sft", model=model, **what)

    console.print(
        f"sft: loss on {len(validation)} demonstrations kept aside {metrics['validation_loss_before']:.2f} -> "
        f"{metrics['validation_loss']:.2f}; {options.run_dir / 'sft'} written after {time.time() - started:.0f} s",
        soft_wrap=True,
    )


def split(
    demonstrations: list[Demonstration], share: float, seed: int
) -> tuple[list[Demonstration], list[Demonstration]]:
    """The demonstrations to train on and those kept aside, both shuffled. UserError if there are too few for both."""
    if len(demonstrations) < 2:
        raise UserError("one demonstration is too few: one is kept aside to measure the validation loss; add some")
    shuffled = random.Random(seed).sample(demonstrations, len(demonstrations))
    aside = max(1, round(share * len(shuffled)))
    return shuffled[aside:], shuffled[:aside]


def to_dataset(demonstrations: list[Demonstration]) -> Dataset:
    """TRL's conversational prompt-completion form, without the records' further keys."""
    return Dataset.from_list([{key: record[key] for key in ("prompt", "completion")} for record in demonstrations])


def check_lengths(
    trainer: SFTTrainer, training: list[Demonstration], validation: list[Demonstration], path: str
) -> None:
    """UserError if a demonstration is longer than the model's context; TRL would cut it, and so its end, in silence."""
    positions = context_length(trainer.model)
    for dataset, records in ((trainer.train_dataset, training), (trainer.eval_dataset, validation)):
        for ids, record in zip(dataset["input_ids"], records, strict=True):
            if positions is not None and len(ids) > positions:
                beginning = record["prompt"][-1]["content"][:60]
                raise UserError(
                    f"{path}: the demonstration that begins {beginning!r} has {len(ids)} tokens, "
                    f"but the model's context has {positions}: shorten it"
                )


def set_residual_dropout(model: PreTrainedModel, probability: float) -> None:
    """Sets the dropout at the end of a GPT-2's attention and MLP blocks, for training only (not in config.json)."""
    blocks = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Dropout) and name.endswith(("attn.resid_dropout", "mlp.dropout"))
    ]
    if probability > 0 and not blocks:
        raise UserError("--dropout: this model has no residual dropout like GPT-2's to set; leave it at 0")
    for module in blocks:
        module.p = probability
