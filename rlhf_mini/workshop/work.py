"""What runs beside the server when the teacher presses a button: a training on the class's rankings, or a new round.

    python -m rlhf_mini.workshop.work train --round 1 --start fresh

The app starts this in a process of its own and shows the last line that it prints.
"""

import argparse
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import Timeout

from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.console import UserError, console, run
from rlhf_mini.core.examples import Messages, Ranking, contents, read_prompts
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.core.options import check_run_name
from rlhf_mini.core.rankings import Count, accuracy, pairs
from rlhf_mini.workshop.beside import lock_of
from rlhf_mini.workshop.figures import share
from rlhf_mini.workshop.store import Store

MIN_RANKINGS, MIN_PROMPTS = 20, 5
RM_STEPS = 40  # at least, by up to four epochs if there are few rankings
OWN_LEARNING_RATE = 1e-4  # of a reward model that goes on from the run's own: a third of the default
DUELS = 20
FOLDS = 5


def main() -> None:
    options = arguments()
    path = options.runs_dir / options.run / f"{options.name}.sqlite"
    if not path.is_file():
        raise UserError(f"there is no {path}: `make class` begins one")
    store = Store(path)
    number = options.round or int(store.setting("round", "1"))
    record = {"what": options.command, "round": number}
    try:
        with lock_of(store):
            store.set("work", json.dumps(record | {"status": "running"}))
            try:
                if options.command == "round":
                    from rlhf_mini.workshop.sampling import new_round

                    new_round(store, options, number)
                else:
                    name = class_run(options, number)
                    store.set_training(number, name, options.start, train(store, options, name, number))
                    console.print(f"done: {options.runs_dir / name}", soft_wrap=True)
                store.set("work", json.dumps(record | {"status": "done"}))
            except BaseException:
                store.set("work", json.dumps(record | {"status": "failed"}))
                raise
    except Timeout:
        raise UserError("a training or a new round is at work already: wait for it") from None


def class_run(options: argparse.Namespace, number: int) -> str:
    """The run that a round's rankings train."""
    return f"{options.run}-{options.name}-{number}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rlhf_mini.workshop.work", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("command", choices=("train", "round"), help="train on a round's rankings, or sample a new round")
    add("--round", type=int, default=0, help="number of the round (default: the present one)")
    text = "what the reward model starts from: fresh: data/judge; own: the reward model of RUN (default: fresh)"
    add("--start", choices=("fresh", "own"), default="fresh", help=text)
    add("--run", type=check_run_name, default="default", help="run that the class ranks (default: default)")
    add("--runs_dir", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    add("--name", type=check_run_name, default="ours", help="of the class (default: ours)")
    for name, number in (("prompts", 60), ("common", 5), ("responses", 4)):
        add(f"--{name}", type=int, default=number, help=f"of a new round (default: {number})")
    return parser.parse_args()


def train(store: Store, options: argparse.Namespace, name: str, number: int) -> dict[str, Any]:
    """Reward model, PPO, duels with the default policy, and how well the others predict each student.

    All of it is made in a folder beside runs/NAME, which it replaces at the end.
    """
    from stages.ppo.options import PPOOptions
    from stages.ppo.train import train_ppo
    from stages.rm.options import RMOptions
    from stages.rm.train import train_rm

    rankings = [one for one in store.rankings(number) if pairs(one["ranks"])]
    prompts = len({contents(one["prompt"]) for one in rankings})
    if len(rankings) < MIN_RANKINGS or prompts < MIN_PROMPTS:
        raise UserError(
            f"there are {len(rankings)} rankings of {prompts} prompts, and training needs {MIN_RANKINGS} of "
            f"{MIN_PROMPTS}: rank some more first"
        )
    default, folder, making = (options.runs_dir / one for one in (options.run, name, f"{name}.new"))
    if folder.exists() and (store.training(number) or {}).get("run") != name:
        raise UserError(f"{folder} is not this class's: rename it, or call the class another name with --name")
    shutil.rmtree(making, ignore_errors=True)  # of a training that was killed
    shutil.copytree(default / "sft", making / "sft")
    write_jsonl(making / "rankings.jsonl", rankings)
    batch = 4 if len(rankings) < 200 else 16
    shared: dict[str, Any] = {"run": making.name, "runs_dir": str(options.runs_dir), "save_steps": 0}
    own: dict[str, Any] = {}
    if options.start == "own":
        own = {"init": str(default / "rm"), "learning_rate": OWN_LEARNING_RATE}
    train_rm(
        RMOptions(
            **shared, **own, rankings=str(making / "rankings.jsonl"), batch_size=batch,
            num_train_epochs=min(4.0, max(1.0, RM_STEPS * batch / len(rankings))), num_validation_prompts=40,
            normalization_size=100, content="",
        )
    )  # fmt: skip
    train_ppo(PPOOptions(**shared))  # as the default policy was trained: only the rankings differ
    console.print("duels: sampling")
    both = duels(default, making)
    console.print("students: how well do the others predict each of you?")
    others = predictions(default / "sft", rankings)
    shutil.rmtree(folder, ignore_errors=True)
    making.rename(folder)
    store.add_duels(number, both)
    return {"rankings": len(rankings), "others": others}


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
    counts: dict[str, dict[str, Count]] = defaultdict(dict)  # by student and prompt
    for fold in folds:
        left_out = {index for student in fold for index in of_student[student]}
        others = [example for index, example in enumerate(examples) if index not in left_out]
        model = AutoModelForSequenceClassification.from_pretrained(judge)
        steps = max(20, math.ceil(len(others) / 16))
        model = fit(model, others, others[:1], steps=steps, learning_rate=3e-4, sample=1).model
        for student in fold:
            indices = of_student[student]
            for index, scores in zip(indices, scores_of(model, [examples[each] for each in indices]), strict=True):
                counts[student][contents(rankings[index]["prompt"])] = accuracy(scores, rankings[index]["ranks"])
    by_prompt: dict[str, Count] = defaultdict(lambda: Count(0, 0))  # one prompt's rankings rise and fall together
    for of_one in counts.values():
        for text, count in of_one.items():
            by_prompt[text] += count
    each = {student: share(list(of_one.values())) for student, of_one in counts.items()}
    return {"all": share(list(by_prompt.values())), "each": each}


if __name__ == "__main__":
    run(main)
