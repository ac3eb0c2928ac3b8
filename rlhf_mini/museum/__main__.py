"""Twelve classic bugs of RLHF code, each switched on from outside and shown beside the healthy run.

    python -m rlhf_mini.museum                            # the list
    python -m rlhf_mini.museum kl_sign                    # one bug
    python -m rlhf_mini.museum mystery --seed 3           # which one is it? --reveal tells
    python -m rlhf_mini.museum all                        # the table of docs/museum.md

A bug is trained in runs/museum/<bug>, and the healthy run of the same length and seed in runs/museum/healthy-<stage>,
unless they are there. A bug in PPO takes SFT and reward model from RUN; one in an earlier stage trains a short version
of that stage, and of those after it, with the bug and without.

What to inspect: the curves of both runs on one scale, the doctor's findings that differ, and a few responses. Try the
mystery first: it is what debugging is like.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.console import UserError, console, run
from rlhf_mini.core.examples import Prompt, read_prompts
from rlhf_mini.core.files import write_json
from rlhf_mini.core.options import check_run_name, command_line, parse_seed

if TYPE_CHECKING:  # imports torch, for which --help should not wait
    from rlhf_mini.museum.bugs import Bug

MYSTERY, ALL = "mystery", "all"
# What is shown of a mystery, whichever bug it is.
CLUES = (
    ("sft", "eval_loss"), ("rm", "accuracy"), ("ppo", "objective/scores"), ("ppo", "objective/kl"),
    ("ppo", "objective/kl_coef"), ("ppo", "policy/first_ratio_error"), ("ppo", "value/explained_variance"),
    ("ppo", "response/eos_rate"), ("ppo", "response/length"),
)  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_mini.museum", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("bug", nargs="?", default="", help=f"a bug of the list, or {MYSTERY}, or {ALL}; without one, the list")
    add("--run", default="default", help="finished run to take SFT and reward model from (default: %(default)s)")
    add("--runs_dir", type=Path, default=Path("runs"), help="folder of all runs (default: %(default)s)")
    add("--seed", type=parse_seed, default=0, help="picks the mystery; trainings take the seed of RUN (default: 0)")
    add("--reveal", action="store_true", help="tell which bug the mystery is")
    add("--prompts", default="data/prompts/validation.jsonl", help="to measure on (default: %(default)s)")
    add("--num_prompts", type=int, default=200, help="use only the first NUM_PROMPTS of them (default: %(default)s)")
    add("--show", type=int, default=3, help="prompts to show both responses to (default: %(default)s)")
    add("--out", type=Path, help="with all: JSON file for the results, such as docs/museum.json")
    options = parser.parse_args()
    try:
        check_run_name(options.run)
    except ValueError as fault:
        parser.error(f"--run {fault}")
    options.folder = options.runs_dir / ("museum" if options.run == "default" else f"museum-{options.run}")
    return options


def main() -> None:
    options = arguments()
    from rlhf_mini.museum import show
    from rlhf_mini.museum.bugs import BUGS

    if not options.bug:
        show.listing()
        return
    if options.bug not in (MYSTERY, ALL, *BUGS):
        raise UserError(f"there is no bug {options.bug!r}: choose one of {', '.join(BUGS)}, or {MYSTERY}, or {ALL}")
    examples = [example for example in read_prompts(options.prompts) if "check" in example][: options.num_prompts]
    if options.bug == ALL:
        visit_all(options, examples)
    elif options.bug == MYSTERY:
        visit_mystery(options, examples)
    else:
        visit(BUGS[options.bug], options, examples)


def trained(bug: "Bug", name: str, options: argparse.Namespace) -> dict[str, Path]:
    """The folders of the healthy run and of the buggy one, by the names to show; trained if they are not there."""
    from rlhf_mini.museum.bugs import PPO, RM, SFT
    from rlhf_mini.museum.runs import SHORT, make, together

    source = options.runs_dir / options.run
    healthy, buggy = options.folder / bug.healthy, options.folder / name
    settings = together(SHORT, bug.settings)
    whole = next(stages for stages in (SFT, RM, PPO) if stages[0] == bug.trained[0])
    make(healthy, source, whole, settings)
    make(buggy, source, bug.trained, together(settings, bug.own_settings), bug)
    return {"healthy": healthy, name: buggy}


def visit(bug: "Bug", options: argparse.Namespace, examples: Sequence[Prompt]) -> None:
    """Shows a bug with its label."""
    from rlhf_mini.museum import show
    from rlhf_mini.museum.runs import measure

    runs = trained(bug, bug.name, options)
    measured = {name: measure(folder, examples) for name, folder in runs.items()}
    show.rule(f"{bug.name}: {bug.title}")
    show.curves(runs, bug.figures)
    picture = options.folder / bug.name / "curves.svg"
    show.plot(picture, runs, bug.figures)
    console.print(f"the same as a plot: {picture}", style="dim", soft_wrap=True)
    show.rule(f"Measured by healthy code on {len(examples)} validation prompts")
    show.measures(measured)
    show.rule("What the doctor says")
    show.doctor(runs)
    if not bug.checks:
        console.print("No check of the doctor can find this bug: see below what to look at.")
    show.rule("Responses")
    show.responses(examples, measured, options.show)
    show.rule("What it is")
    show.label(bug)


def visit_mystery(options: argparse.Namespace, examples: Sequence[Prompt]) -> None:
    """Shows a bug that the seed picks, without its name and label, unless --reveal is given."""
    from rlhf_mini.museum import show
    from rlhf_mini.museum.bugs import BUGS
    from rlhf_mini.museum.runs import measure

    bug = BUGS[random.Random(options.seed).choice(sorted(BUGS))]
    name = f"{MYSTERY}-{options.seed}"
    runs = trained(bug, name, options)
    measured = {each: measure(folder, examples) for each, folder in runs.items()}
    show.rule(f"{name}: one of the twelve bugs. Which one is it?")
    show.curves(runs, CLUES)
    show.rule("What the doctor says")
    show.doctor(runs)
    show.rule("Responses")
    show.responses(examples, measured, options.show)
    if options.reveal:
        show.rule(f"It is {bug.name}: {bug.title}")
        show.label(bug)
    else:
        console.print(f"`make museum` lists the candidates. {runs[name]} has the logs of every stage.", soft_wrap=True)
        console.print(f"The answer: make museum BUG={MYSTERY} SEED={options.seed} ARGS=--reveal")


def visit_all(options: argparse.Namespace, examples: Sequence[Prompt]) -> None:
    """Trains and measures every bug, and prints the table of docs/museum.md."""
    from rlhf_mini.museum import show
    from rlhf_mini.museum.bugs import BUGS

    found = {
        "command": command_line("python -m rlhf_mini.museum"),
        "prompts": len(examples),
        "bugs": {name: result(bug, options, examples) for name, bug in BUGS.items()},
    }
    if options.out:
        write_json(options.out, found)
    for line in show.page_table(found):
        console.print(line, soft_wrap=True)


def result(bug: "Bug", options: argparse.Namespace, examples: Sequence[Prompt]) -> dict[str, Any]:
    """What docs/museum.json has of a bug."""
    from rlhf_mini.museum import show
    from rlhf_mini.museum.runs import measure, series

    runs = trained(bug, bug.name, options)
    names = dict(zip(("healthy", "buggy"), runs, strict=True))
    stages = {stage: load_checkpoint(runs[bug.name] / stage, stage).info["seconds"] for stage in bug.trained}
    return {
        "seconds": stages,
        "figures": {
            " ".join(figure): {one: show.finite(series(runs[name], figure)) for one, name in names.items()}
            for figure in bug.figures
        },
        **{one: asdict(measure(runs[name], examples)) for one, name in names.items()},
        "doctor": [
            {"stage": stage, "check": check, "healthy": level(pair[0]), "buggy": level(pair[1])}
            for (stage, check), pair in show.differing(runs).items()
        ],
    }


def level(finding: Any) -> str | None:
    return finding and finding.level


if __name__ == "__main__":
    run(main)
