"""`python -m stages STAGE [options]`: trains a stage as `python -m stages.STAGE` does, unless it is up to date.

This is what `make sft rm ppo` calls. A checkpoint that is up to date stays if no options are given, or its own seed
alone. One that is not is trained again with the options that it was made with, and the command says why.
"""

import argparse
import dataclasses
import importlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from rlhf_mini.core.checkpoints import read_stage_json
from rlhf_mini.core.console import console, run
from rlhf_mini.core.inputs import changes, in_words, note_changes

STAGES = ("sft", "rm", "ppo")
DESCRIPTION = "Trains a stage, unless it is up to date. Further options are those of `python -m stages.STAGE`."


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--run", default="default", help="name of the run (default: default)")
    parser.add_argument("--runs_dir", default="runs", help="folder of all runs (default: runs)")
    parser.add_argument("--seed", help="seed of a new checkpoint (default: 0)")
    given, others = parser.parse_known_args()
    folder = Path(given.runs_dir, given.run, given.stage)
    before = STAGES[: STAGES.index(given.stage)]
    options = ([] if given.seed is None else ["--seed", given.seed]) + others
    if not others and (folder / "stage.json").is_file():
        found = changes(folder)
        info = read_stage_json(folder)
        if given.seed in (None, str(info["seed"])):
            if not found:
                console.print(f"{folder} is up to date")
                return
            console.print(f"{folder} is not up to date: {in_words(found)}", soft_wrap=True)
            options = recorded(given.stage, info["options"])
    note_changes([path for path in map(folder.with_name, before) if (path / "stage.json").is_file()])
    where = ["--run", given.run, *([] if given.runs_dir == "runs" else ["--runs_dir", given.runs_dir])]
    command = ["-m", f"stages.{given.stage}", *where, *options]
    console.print(shlex.join(["python", *command]), soft_wrap=True)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *command])


def recorded(stage: str, options: dict[str, Any]) -> list[str]:
    """The recorded options that are no defaults, as arguments, without where the run is."""
    defaults = importlib.import_module(f"stages.{stage}.options")
    fields = dataclasses.fields(getattr(defaults, f"{stage.upper()}Options"))
    changed = [
        (field.name, options[field.name])
        for field in fields
        if field.name not in ("run", "runs_dir") and options.get(field.name, field.default) != field.default
    ]
    return [text for name, value in changed for text in (f"--{name}", str(value))]


if __name__ == "__main__":
    run(main)
