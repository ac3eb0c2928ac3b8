"""What runs beside the server when the teacher presses a button: a training on the class's rankings, or a new round.

beside.py starts it in a process of its own; the page shows the last line that it prints.
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
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Messages, Ranking, contents, read_prompts
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.core.rankings import Count, accuracy, pairs
from rlhf_mini.workshop.beside import lock_of
from rlhf_mini.workshop.figures import share
from rlhf_mini.workshop.store import Store

STARTS = ("fresh", "own")  # what a reward model starts from: data/judge, or that of the run
MIN_RANKINGS, MIN_PROMPTS = 20, 5
RM_STEPS = 40  # at least, by up to four epochs if there are few rankings
DUELS = 20
FOLDS = 5


def do(store: Store, options: argparse.Namespace, number: int) -> None:
    """options.command, "train" or "round", while nothing else is at work; the store says how it ended."""
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
                    console.print(f"class: {options.runs_dir / name} written", soft_wrap=True)
                store.set("work", json.dumps(record | {"status": "done"}))
            except BaseException:
                store.set("work", json.dumps(record | {"status": "failed"}))
                raise
    except Timeout:
        raise UserError("a training or a new round is at work already: wait for it") from None


def class_run(options: argparse.Namespace, number: int) -> str:
    """The run that a round's rankings train."""
    return f"{options.run}-{options.name}-{number}"


def train(store: Store, options: argparse.Namespace, name: str, number: int) -> dict[str, Any]:
    """Reward model, PPO, duels with the default policy, and how well the others predict each student.

    All of it is made in a folder beside runs/NAME, which it replaces at the end.
    """
    from stages.ppo.options import PPOOptions
    from stages.ppo.train import train_ppo
    from stages.rm.options import RMOptions
    from stages.rm.train import train_rm

    names = {nickname: str(student) for student, nickname in reversed(store.nicknames().items())}
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
    own: dict[str, Any] = {"init": str(default / "rm")} if options.start == "own" else {}
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
    if others:  # by number: a nickname may be hidden at any time
        others["each"] = {names[nickname]: found for nickname, found in others["each"].items()}
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

    Students are divided into FOLDS groups; None with fewer than two students. "before" is what the judge that all of
    these reward models start from gets right.
    """
    from transformers import AutoModelForSequenceClassification

    from rlhf_mini.classroom.reward import fit, scores_of
    from rlhf_mini.models.adapters import load_model
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
    examples = encode(load_model(AutoModelForSequenceClassification, judge), tokenizer, rankings)
    untrained = load_model(AutoModelForSequenceClassification, judge)
    before: dict[str, Count] = defaultdict(lambda: Count(0, 0))  # by prompt, whose rankings rise and fall together
    after: dict[str, Count] = defaultdict(lambda: Count(0, 0))
    each: dict[str, dict[str, Count]] = defaultdict(lambda: defaultdict(lambda: Count(0, 0)))  # by student and prompt
    for fold in folds:
        left_out = [index for student in fold for index in of_student[student]]
        others = [example for index, example in enumerate(examples) if index not in set(left_out)]
        steps = max(20, math.ceil(len(others) / 16))
        fresh = load_model(AutoModelForSequenceClassification, judge)
        model = fit(fresh, others, others[:1], steps=steps, learning_rate=3e-4, sample=1).model
        theirs = [examples[index] for index in left_out]
        for index, old, new in zip(left_out, scores_of(untrained, theirs), scores_of(model, theirs), strict=True):
            ranks, prompt = rankings[index]["ranks"], contents(rankings[index]["prompt"])
            before[prompt] += accuracy(old, ranks)
            after[prompt] += accuracy(new, ranks)
            each[str(rankings[index]["labeler"])][prompt] += accuracy(new, ranks)
    return {
        "before": share(list(before.values())),
        "all": share(list(after.values())),
        "each": {student: share(list(counts.values())) for student, counts in each.items()},
    }
