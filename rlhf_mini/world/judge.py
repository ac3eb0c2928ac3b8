"""`make base`, second half: the judge, the base turned into a preference model by the votes of the web.

    python -m rlhf_mini.world.judge

Writes data/judge: weights, config, tokenizer, and stage.json with its accuracy on threads that it was not trained on.
`make rm` fine-tunes it on the rankings of a run. A few thousand rankings teach a model of this size manners, but not to
compare a response with its prompt; for that it takes the many rough judgements that the web holds. Askell et al. 2021
(arXiv 2112.00861, section 4) call this preference model pretraining; the reward model of InstructGPT's final models
did not start from its SFT model either (Ouyang et al. 2022, appendix C.2).

It reads what the crowd thinks of replies (votes.py), overlooked errors and biases included, with the entities that the
stages' training prompts ask for. No validation or test prompt is among the threads.
"""

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from transformers import PreTrainedModel

from rlhf_mini.core.checkpoints import Checkpoint, load_checkpoint, save_checkpoint, writing
from rlhf_mini.core.console import console, run, track
from rlhf_mini.core.examples import Ranking, read_preferences
from rlhf_mini.core.files import MetricsLog
from rlhf_mini.core.options import parse_seed
from rlhf_mini.models.scoring import with_scalar_head
from rlhf_mini.models.text import load_tokenizer
from rlhf_mini.training.schedule import warmup_cosine
from rlhf_mini.world.corpus import WebMaker
from rlhf_mini.world.heldout import SPLITS, core, held_out_prompts
from rlhf_mini.world.knowledge import DATA, load
from rlhf_mini.world.muon import optimizers
from rlhf_mini.world.tasks import text_of
from rlhf_mini.world.votes import thread
from stages.rm.rankings import Example, encode, ordered
from stages.rm.train import objective


@dataclass
class JudgeOptions:
    """How the judge is trained. data/judge was trained with the defaults."""

    seed: int = 0
    threads: int = 32_000
    held_out_threads: int = 1_000
    batch_size: int = 32  # threads in one step
    learning_rate: float = 1e-3  # of AdamW, for embeddings, biases, layer norms and the head
    muon_learning_rate: float = 0.01  # of Muon, for the matrices of the transformer blocks
    warmup_steps: int = 20


def rankings(seed: int) -> Iterator[Ranking]:
    """An endless stream of threads, replies ranked by their votes."""
    maker = WebMaker(load(), random.Random(seed))
    probes = {text_of(e["prompt"]) for split in SPLITS for e in read_preferences(DATA / "content" / f"{split}.jsonl")}
    held_out = held_out_prompts()
    while True:
        found = thread(maker)
        if len(set(found.votes)) < 2 or core(found.prompt) in held_out or text_of(found.prompt) in probes:
            continue
        ranks = [1 + sum(other > votes for other in found.votes) for votes in found.votes]
        yield {"prompt": found.prompt, "responses": found.replies, "ranks": ranks}


def pretrain(model: PreTrainedModel, examples: list[Example], options: JudgeOptions, log: MetricsLog) -> None:
    """One pass over the threads with the K-wise loss; cosine to 10 %."""
    muon, adamw = optimizers(model, options.muon_learning_rate, options.learning_rate)
    steps = len(examples) // options.batch_size
    factor = partial(warmup_cosine, steps=steps, warmup_steps=options.warmup_steps)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in (muon, adamw)]
    recent: list[tuple[float, float]] = []
    for step in track(range(steps), "judge: training"):
        loss, logged = objective(model, examples[step * options.batch_size : (step + 1) * options.batch_size])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip((muon, adamw), schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad(set_to_none=True)
        recent = [*recent[-99:], (loss.item(), logged["accuracy"].item())]
        if (step + 1) % 100 == 0 or step + 1 == steps:
            losses, accuracies = zip(*recent, strict=True)
            log.log(step=step + 1, loss=sum(losses) / len(losses), accuracy=sum(accuracies) / len(accuracies))


@torch.no_grad()
def accuracy(model: PreTrainedModel, examples: list[Example], batch_size: int) -> float:
    """Mean share of the pairs that the judge orders as the votes do."""
    batches = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    return sum(objective(model, batch).metrics["accuracy"].item() * len(batch) for batch in batches) / len(examples)


def train_judge(base: Checkpoint, out: Path, options: JudgeOptions) -> None:
    """Trains a judge on `base` and writes it as out/judge."""
    started = time.time()
    tokenizer = load_tokenizer(base.path)
    model = with_scalar_head(base.path, options.seed)  # in eval mode: without dropout
    model.config.pad_token_id = tokenizer.pad_token_id  # transformers finds a row's last token by it
    with writing(out, "judge") as folder:
        number = options.threads + options.held_out_threads
        stream = track(islice(rankings(options.seed), number), "judge: reading threads", total=number)
        examples = encode(model, tokenizer, ordered(list(stream)))
        held_out, training = examples[: options.held_out_threads], examples[options.held_out_threads :]
        pretrain(model, training, options, MetricsLog(folder / "metrics.jsonl"))
        metrics = {"accuracy": accuracy(model, held_out, options.batch_size)}
        console.print(metrics)
        save_checkpoint(
            folder, stage="judge", model=model, tokenizer=tokenizer, options=options, seed=options.seed,
            metrics=metrics, started=started, parents=[base],
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlhf_mini.world.judge", description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, default=Path("data/base"), help="base to start from (default: data/base)")
    parser.add_argument(
        "--out", type=Path, default=Path("data"), help="folder in which to write `judge` (default: data)"
    )
    parser.add_argument("--threads", type=int, default=JudgeOptions.threads, help="threads to train on")
    parser.add_argument("--seed", type=parse_seed, default=JudgeOptions.seed, help="random seed of threads and head")
    arguments = parser.parse_args()
    options = JudgeOptions(seed=arguments.seed, threads=arguments.threads)
    train_judge(load_checkpoint(arguments.base, "base"), arguments.out, options)


if __name__ == "__main__":
    run(main)
