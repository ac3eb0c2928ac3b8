"""Does the policy become the class's? Classes with a taste of their own rank, train and vote, without phones.

    python -m benchmarks.classes --run default --out docs/classes.json      # 20 minutes

Two tastes: that of the simulated labelers, which the run's reward model knows already, and "the shorter the better",
which nobody has taught it. Of each, a small class (60 rankings) and a large one (600), and both starts of the reward
model. The columns: how many pairs the judge that "fresh" starts from orders as the class does, and how many a reward
model of the other students; the mean length of responses to validation prompts; and the blind vote, in which every
student votes by the same taste as before.
"""

import argparse
import json
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.console import console, run
from rlhf_mini.core.examples import Prompt, Response, contents, read_prompts
from rlhf_mini.core.files import write_json
from rlhf_mini.core.rankings import Labeler, competition
from rlhf_mini.workshop import figures, work
from rlhf_mini.workshop.sampling import new_round
from rlhf_mini.workshop.store import ALL_BAD, RANKED, Store
from rlhf_mini.world.labelers import heldout_labelers, training_labelers

CLASSES = {60: (12, 5), 600: (30, 20)}  # rankings: students, and prompts that each of them ranks


class Shorter:
    """A student for whom fewer words are better."""

    name = "shorter"

    def check(self, example: Prompt) -> None:
        """Can judge any prompt."""

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        return competition([len(response.text.split()) for response in responses])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.classes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", default="default", help="finished run (default: default)")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    options = parser.parse_args()
    tastes: dict[str, list[Labeler]] = {"labelers": [*training_labelers(), *heldout_labelers()], "shorter": [Shorter()]}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for stage in ("sft", "rm", "ppo"):
            checkpoint = load_checkpoint(options.runs_dir / options.run / stage, stage)
            shutil.copytree(checkpoint.path, Path(folder) / "default" / stage)
        for taste, labelers in tastes.items():
            for rankings in CLASSES:
                for start in work.STARTS:
                    found.append(session(Path(folder), taste, labelers, rankings, start))
                    command = f"python -m benchmarks.classes --run {options.run}"
                    write_json(options.out, {"command": command, "classes": found})
    console.print(table(found))


def session(runs_dir: Path, taste: str, students: Sequence[Labeler], rankings: int, start: str) -> dict[str, Any]:
    """A class from the first ranking to the last vote."""
    name = f"{taste}-{rankings}-{start}"
    store = Store(runs_dir / "default" / f"{name}.sqlite")
    options = argparse.Namespace(
        run="default", runs_dir=runs_dir, name=name, prompts=60, common=5, responses=4, start=start
    )
    new_round(store, options, 1)
    number, each = CLASSES[rankings]
    for index in range(number):
        rank(store, students[index % len(students)], each)
    trained = work.train(store, options, work.class_run(options, 1), 1)
    votes = [
        (index, duel.id, 0.5 if first == second else float(first < second))
        for duel in store.duels(1)
        for index in range(number)
        for first, second in [students[index % len(students)].rank(known(duel.prompt), both(duel.ours, duel.theirs))]
    ]
    return {
        "taste": taste,
        "rankings": len(store.labels(1)),
        "start": start,
        "before": trained["others"]["before"],
        "others": trained["others"]["all"],
        "default_length": length(runs_dir / "default"),
        "length": length(runs_dir / work.class_run(options, 1)),
        "votes": figures.verdict(votes),
    }


def rank(store: Store, labeler: Labeler, each: int) -> None:
    """A student joins and ranks some prompts."""
    token = secrets.token_hex(20)
    store.join("student", token)
    student = store.student(token)
    assert student is not None
    for _ in range(each):
        item = store.next_item(student.id, 1)
        assert item is not None
        responses = [Response(*one) for one in zip(item.responses, item.ended, strict=True)]
        ranks = competition(labeler.rank(item.example, responses))
        store.label(student.id, item.id, ALL_BAD if set(ranks) == {1} else RANKED, ranks)


def known(prompt: Any) -> Prompt:
    """The test prompt with what labelers need to judge it."""
    return next(one for one in read_prompts("data/prompts/test.jsonl") if contents(one["prompt"]) == contents(prompt))


def both(*texts: str) -> list[Response]:
    return [Response(text, True) for text in texts]


def length(run_dir: Path) -> float:
    """Tokens of a response of the policy, over validation prompts."""
    metrics = json.loads((run_dir / "ppo" / "stage.json").read_text(encoding="utf-8"))["metrics"]
    return float(metrics["validation/ppo_length"])


def table(found: Sequence[dict[str, Any]]) -> Table:
    """For the console and docs/class.md."""
    out = Table("taste", "rankings", "start", "judge", "others' RM", "tokens", "votes for the class's policy")
    for column in out.columns[3:]:
        column.justify = "right"
    for one in found:
        votes = one["votes"]
        out.add_row(
            one["taste"], str(one["rankings"]), one["start"],
            f"{one['before']['share']:.0%}", f"{one['others']['share']:.0%}",
            f"{one['default_length']:.0f} -> {one['length']:.0f}",
            f"{votes['share']:.0%} ({votes['low']:.0%} - {votes['high']:.0%})",
        )  # fmt: skip
    return out


if __name__ == "__main__":
    run(main)
