"""Step 1, supervised fine-tuning (Ouyang et al. 2022, section 3.5 "Supervised fine-tuning (SFT)" and appendix C.1).

    python -m stages.sft                        # data/base + data/demonstrations.jsonl -> runs/default/sft
    python -m stages.sft --dropout 0.2 --num_train_epochs 16 --run long
    python -m stages.sft --ptx_coef 0           # demonstrations alone: forgets more of what the base knows

The base model learns to answer as the demonstrations do. The loss is the negative log-likelihood of the completion's
tokens given the prompt; the prompt's own tokens do not count. What to inspect: validation_loss before and after
(stage.json), and the sampled response on the console, which turns from continuing the text to answering.

As in the paper: batches of 32, cosine to 10 % without warmup, Adam with betas (0.9, 0.95), and pretraining texts mixed
in, as before PPO (appendix C.4).
Departures:
- 2 epochs instead of 16. The paper's validation loss rose after one epoch, and it trained on and selected the
  checkpoint by the reward model's score on validation prompts. There is no reward model yet here, so training stops
  early and the last checkpoint is kept.
- no dropout unless asked for: on a CPU it costs time, and 2 epochs hardly overfit. The paper used residual dropout 0.2.
- the learning rate is low for a model of this size. In a trial, 2e-3 gave the same gold score on validation prompts,
  but the SFT model then answered 10 percentage points fewer of the facts that the base knows.
- batches hold demonstrations of similar length, which saves most of the padding in attention.
- the logits are computed at completion tokens only, not at those of the prompts.

Shapes: N tokens of a batch of demonstrations, end to end without padding, n of them in completions, V vocabulary.
"""

import random
import time
from collections.abc import Sequence
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_mini.core import processes
from rlhf_mini.core.checkpoints import save_checkpoint, writing
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Demonstration, contents
from rlhf_mini.core.files import MetricsLog
from rlhf_mini.core.inputs import inputs_of
from rlhf_mini.core.resume import Resume, command_of
from rlhf_mini.data.load import Selected, collected, files_among, load
from rlhf_mini.models.adapters import add_adapter
from rlhf_mini.models.base import load_base, new_tokens
from rlhf_mini.models.forward import forward_pass
from rlhf_mini.models.sampling import respond
from rlhf_mini.models.scoring import lay_out, text_loss
from rlhf_mini.models.text import (
    EncodedPrompt,
    Fitting,
    context_length,
    encode_demonstrations,
    encode_prompts,
    encode_texts,
    excerpt,
    split_texts,
)
from rlhf_mini.training.batches import endless_batches
from rlhf_mini.training.loop import Objective, train
from stages.sft.options import SFTOptions


class Example(NamedTuple):
    """A demonstration in tokens."""

    prompt_ids: list[int]
    completion_ids: list[int]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def train_sft(options: SFTOptions) -> None:
    started = time.time()
    demonstrations = load("sft", options.demonstrations, "demonstrations", options.strict)
    base, model, tokenizer = load_base(options.base)
    if options.lora_rank:
        add_adapter(model, options.lora_rank, Path(options.base), options.seed, new_tokens(base, tokenizer))
    model.to(processes.begin(options.device, options.precision))
    set_residual_dropout(model, options.dropout)

    # 1. Demonstrations to train on and held-out ones, in tokens.
    fitting = Fitting(model, options.too_long)
    training, held_out = split(demonstrations, options.validation_share, options.seed)
    examples, validation = (
        collected(starmap(Example, encode_demonstrations(model, tokenizer, part, fitting)), Example)
        for part in (training, held_out)
    )
    fitting.report("sft", "demonstrations")
    if not examples or not validation:
        raise UserError(
            f"{options.demonstrations}: too few demonstrations fit the model's context of {fitting.positions} tokens: "
            "shorten them"
        )
    positions = context_length(model) or 10**9
    (shown,) = encode_prompts(tokenizer, [held_out[0]["prompt"]])  # the one to show a response to
    shown = EncodedPrompt(shown.messages, shown.ids[1 - positions :])
    texts = pretraining_texts(model, tokenizer, options) if options.ptx_coef else []

    def sampled() -> str:
        length = min(options.max_new_tokens, positions - len(shown.ids))
        responses = respond(model, tokenizer, [shown], max_new_tokens=length, seed=options.seed)
        return excerpt(shown.messages, responses[0])

    sources = [options.demonstrations, *([options.ptx_texts] if options.ptx_coef else [])]
    made_from = inputs_of("sft", options, files_among(sources))
    command = command_of(options, made_from, parents=[base])
    with Resume(options.run_dir, "sft", command, started) as resume, writing(options.run_dir, "sft") as folder:
        saved = resume.load(folder)
        log = MetricsLog(folder / "metrics.jsonl")
        provenance: dict[str, Any] = dict(
            tokenizer=tokenizer, options=options, seed=options.seed, started=resume.started, parents=[base],
            made_from=made_from,
        )  # fmt: skip

        # 2. The base model's loss on the held-out demonstrations.
        if saved is None:
            loss_before = mean_loss(model, validation, options.batch_size)
            log.log(0, eval_loss=loss_before, epoch=0)
        else:
            loss_before = saved.state["validation_loss_before"]
        metrics = {
            "demonstrations": len(examples),
            "validation_demonstrations": len(validation),
            "validation_loss_before": loss_before,
        }

        # 3. Gradient steps on the completions, and on pretraining texts if they are mixed in.
        text_batches = endless_batches(texts, options.ptx_batch_size, options.seed, skip=saved.step if saved else 0)

        def objective(batch: Sequence[Example]) -> Objective:
            mine = processes.share(batch)
            loss = completion_loss(model, mine.items) * mine.weight(lambda each: len(each.completion_ids))
            if not options.ptx_coef:
                return Objective(loss, {"loss/demonstrations": loss})
            mixed_in = processes.share(next(text_batches))
            ptx = text_loss(model, mixed_in.items) * mixed_in.weight(lambda text: len(text) - 1)
            return Objective(loss + options.ptx_coef * ptx, {"loss/demonstrations": loss, "loss/ptx": ptx})

        model.train()  # dropout
        steps = train(
            model, examples, objective, options, resume=resume, saved=saved, folder=folder, metrics=metrics,
            provenance=provenance, show=sampled, show_every=options.show_every,
        )  # fmt: skip

        # 4. The loss on the held-out demonstrations again, and the checkpoint.
        loss = mean_loss(model, validation, options.batch_size)
        log.log(steps, eval_loss=loss, epoch=options.num_train_epochs)
        metrics = {**metrics, "validation_loss": loss}
        save_checkpoint(folder, stage="sft", model=model, metrics=metrics, **provenance)

    console.print(
        f"sft: loss on {len(validation)} held-out demonstrations {loss_before:.2f} -> {loss:.2f}; "
        f"{options.run_dir / 'sft'} written after {time.time() - resume.started:.0f} s",
        soft_wrap=True,
    )


def completion_loss(model: PreTrainedModel, batch: Sequence[Example]) -> Tensor:
    """-log p(token | all tokens before it), averaged over the completion tokens of a batch: a scalar, in nats."""
    prompts, completions = [each.prompt_ids for each in batch], [each.completion_ids for each in batch]
    ids, rows, completion = lay_out(prompts, completions, model.device)  # (N,), Rows, (n,)
    with forward_pass(model) as forward:
        logits = forward(ids, rows, keep=completion - 1)  # (n, V): a token is predicted one position before it
    return F.cross_entropy(logits.float(), ids[completion])


@torch.no_grad()
def mean_loss(model: PreTrainedModel, examples: Sequence[Example], batch_size: int) -> float:
    """The mean of `completion_loss` over batches, each weighted by its number of examples."""
    model.eval()
    batches = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    return sum(len(batch) * completion_loss(model, batch).item() for batch in batches) / len(examples)


# --- data ------------------------------------------------------------------------------------------------------------


def split(
    demonstrations: Sequence[Demonstration], share: float, seed: int
) -> tuple[Sequence[Demonstration], Sequence[Demonstration]]:
    """Shuffles the demonstrations. Returns those to train on and the held-out ones, of `share` of the prompts.

    All demonstrations of one prompt are on the same side: otherwise the validation loss would measure memory.

    Raises:
        UserError: there is only one prompt.
    """
    number = len(demonstrations)
    order = np.array(random.Random(seed).sample(range(number), number))
    hashes = np.fromiter((hash(contents(each["prompt"])) for each in demonstrations), np.int64, number)[order]
    prompts = hashes[np.sort(np.unique(hashes, return_index=True)[1])]  # each where it stands first
    if len(prompts) < 2:
        raise UserError(
            "the demonstrations are all of one prompt: add some of another, one prompt is held out to measure the "
            "validation loss"
        )
    held_out = np.isin(hashes, prompts[: min(max(1, round(share * len(prompts))), len(prompts) - 1)])
    return Selected(demonstrations, order[~held_out]), Selected(demonstrations, order[held_out])


def pretraining_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: SFTOptions
) -> list[list[int]]:
    """The texts to mix in; the tenth on which PPO measures what was forgotten is left out.

    Raises:
        UserError: there is no other text.
    """
    texts, _ = split_texts(encode_texts(model, tokenizer, load("sft", options.ptx_texts, "texts", options.strict)))
    if not texts:
        raise UserError(f"{options.ptx_texts} has one text, which is held out: --ptx_coef needs more")
    return texts


# --- dropout ---------------------------------------------------------------------------------------------------------


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
