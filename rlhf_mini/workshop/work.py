"""What runs beside the server when the teacher presses a button: a training on the class's rankings, or a new round.

    python -m rlhf_mini.workshop.work train --round 1 --start fresh

The app starts this in a process of its own and shows the last line that it prints.
"""

import argparse
import math
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.console import UserError, console, run
from rlhf_mini.core.examples import Messages, Ranking, read_prompts
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.core.rankings import Count, accuracy, pairs
from rlhf_mini.workshop.figures import share
from rlhf_mini.workshop.store import Store

MIN_RANKINGS = 20
RM_STEPS = 40  # at least, by further epochs if there are few rankings
PPO_UPDATES = 25
DUELS = 20
FOLDS = 5


def main() -> None:
    options = arguments()
    store = Store(options.runs_dir / options.run / "class.sqlite")
    if options.command == "round":
        from rlhf_mini.workshop.sampling import new_round

        new_round(store, options, options.round)
        return
    name = f"{options.name}-{options.round}"
    try:
        store.set_training(options.round, name, options.start, "running", {})
        found = train(store, options, name)
        store.set_training(options.round, name, options.start, "done", found)
        console.print(f"done: {options.runs_dir / name}", soft_wrap=True)
    except BaseException:
        store.set_training(options.round, name, options.start, "failed", {})
        raise


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rlhf_mini.workshop.work", description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("train", "round"))
    parser.add_argument("--round", type=int, required=True)
    parser.add_argument(
        "--start", choices=("fresh", "own"), default="fresh", help="of the reward model: data/judge, or the run's"
    )
    parser.add_argument("--run", default="default")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"))
    parser.add_argument("--name", default="ours")
    for name in ("prompts", "common", "responses"):
        parser.add_argument(f"--{name}", type=int, default=0)
    return parser.parse_args()


def train(store: Store, options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Reward model, PPO, duels with the default policy, and how well the others predict each student."""
    from stages.ppo.options import PPOOptions
    from stages.ppo.train import train_ppo
    from stages.rm.options import RMOptions
    from stages.rm.train import train_rm

    rankings = [one for one in store.rankings(options.round) if pairs(one["ranks"])]
    if len(rankings) < MIN_RANKINGS:
        raise UserError(
            f"{len(rankings)} rankings order a pair, and training needs {MIN_RANKINGS}: rank some more first"
        )
    folder, default = options.runs_dir / name, options.runs_dir / options.run
    if folder.exists():  # an earlier training on fewer rankings of the same round
        shutil.rmtree(folder)
    shutil.copytree(default / "sft", folder / "sft")
    write_jsonl(folder / "rankings.jsonl", rankings)
    batch = 4 if len(rankings) < 200 else 16
    shared: dict[str, Any] = {"run": name, "runs_dir": str(options.runs_dir), "save_steps": 0}
    epochs = max(1.0, math.ceil(RM_STEPS * batch / len(rankings)))
    train_rm(
        RMOptions(
            **shared, rankings=str(folder / "rankings.jsonl"), batch_size=batch, num_train_epochs=min(4.0, epochs),
            init="data/judge" if options.start == "fresh" else str(default / "rm"), num_validation_prompts=40,
            normalization_size=100, content="",
        )
    )  # fmt: skip
    train_ppo(PPOOptions(**shared, updates=PPO_UPDATES, warmup_updates=5, sample_every=PPO_UPDATES))
    console.print("duels: sampling")
    store.add_duels(options.round, duels(default, folder))
    console.print("students: how well do the others predict you?")
    return {"rankings": len(rankings), "others": predictions(default / "sft", rankings)}


def duels(default: Path, ours: Path) -> list[tuple[Messages, str, str]]:
    """Test prompts that the two policies answer differently."""
    from rlhf_mini.evaluation.responses import load_stage
    from rlhf_mini.models.sampling import respond

    examples = read_prompts("data/prompts/test.jsonl")[: 5 * DUELS]
    said = {}
    for name, run_dir in (("ours", ours), ("theirs", default)):
        stage = load_stage(load_checkpoint(run_dir / "ppo", "ppo").path, "ppo")
        prompts = stage.encode([example["prompt"] for example in examples])
        said[name] = respond(stage.model, stage.tokenizer, prompts, max_new_tokens=48, temperature=0.7, seed=0)
    both = zip(examples, said["ours"], said["theirs"], strict=True)
    different = [
        (example["prompt"], one.text, other.text)
        for example, one, other in both
        if one.text.lower() != other.text.lower() and one.ended and other.ended
    ]
    return different[:DUELS]


def predictions(sft: Path, rankings: Sequence[Ranking]) -> dict[str, Any] | None:
    """Cross-validation over students: the share of a student's pairs that a reward model of the others gets right.

    Students are divided into FOLDS groups; None with fewer than two students.
    """
    from transformers import AutoModelForSequenceClassification

    from rlhf_mini.classroom.reward import fit, scores_of
    from rlhf_mini.models.text import load_tokenizer
    from stages.rm.rankings import encode

    of_student: dict[str, list[int]] = defaultdict(list)
    for index, ranking in enumerate(rankings):
        of_student[str(ranking["labeler"])].append(index)
    students = sorted(of_student)
    folds = [students[start::FOLDS] for start in range(min(FOLDS, len(students)))]
    if len(folds) < 2:
        return None
    tokenizer = load_tokenizer(sft)
    judge = "data/judge"
    examples = encode(AutoModelForSequenceClassification.from_pretrained(judge), tokenizer, rankings)
    counts: dict[str, list[Count]] = defaultdict(list)
    for fold in folds:
        left_out = {index for student in fold for index in of_student[student]}
        others = [example for index, example in enumerate(examples) if index not in left_out]
        if not others:
            continue
        model = AutoModelForSequenceClassification.from_pretrained(judge)
        steps = max(20, math.ceil(len(others) / 16))
        model = fit(model, others, others[:1], steps=steps, learning_rate=3e-4, sample=1).model
        for student in fold:
            scores = scores_of(model, [examples[index] for index in of_student[student]])
            counts[student] += [
                accuracy(score, rankings[index]["ranks"])
                for score, index in zip(scores, of_student[student], strict=True)
            ]
    everybody = share([count for of_one in counts.values() for count in of_one])
    each = {student: share(of_one) for student, of_one in counts.items()}
    return {"all": everybody, "each": each}


if __name__ == "__main__":
    run(main)
