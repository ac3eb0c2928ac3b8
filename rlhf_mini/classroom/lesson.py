"""What a lesson calls besides the project's own functions.

lesson = Lesson(3)                           # the run that the lesson looks at: runs/default, or RUN=...
lesson.predict(guess)                        # goes on only if a guess was written
updates = lesson.size(full=30, nano=3)       # nano: seconds, to see that a lesson runs
ppo = lesson.train("ppo", "greedy", kl_coef=0.0)     # a stage with other options, beside the run; once
lesson.record(kl=4.2)                        # a figure that `make check-lesson N=3` compares
lesson.finish()

Settings come from the environment, because a notebook has no command line: RUN, RUNS_DIR, PRESET=nano, and PAGES=1
while pages are built, where nobody is there to guess.
"""

import importlib
import os
import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import yaml
from IPython import get_ipython
from matplotlib_inline.backend_inline import set_matplotlib_formats

from rlhf_mini.core.checkpoints import Checkpoint, how_to_make, load_checkpoint
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.files import read_json, write_json
from rlhf_mini.core.inputs import ROOT, changes
from rlhf_mini.core.options import check_run_name
from rlhf_mini.evaluation.responses import Stage, load_stage

T = TypeVar("T")
BUDGET = 20  # minutes of computing a lesson may take on two cores
RECORDS = "lessons.json"
STAGES = ("sft", "rm", "ppo")


class Lesson:
    """A lesson at work on a run."""

    def __init__(self, number: int) -> None:
        """Finds the run. UserError if one of its stages is missing."""
        os.chdir(ROOT)  # a notebook starts in its own folder; paths in options begin at the project's
        self.number, self.started = number, time.monotonic()
        self.nano = os.environ.get("PRESET") == "nano"
        self.building = bool(os.environ.get("PAGES"))
        self.runs_dir = Path(os.environ.get("RUNS_DIR", "runs"))
        self.run = check_run_name(os.environ.get("RUN", "nano" if self.nano else "default"))
        self.figures: dict[str, float] = {}
        if get_ipython() is not None:
            set_matplotlib_formats("svg")
        for stage in STAGES:
            if not (self.run_dir / stage / "stage.json").is_file():
                raise UserError(f"{self.run_dir / stage} is missing: {how_to_make(self.run_dir / stage, stage)}")
        self.seed: int = self.checkpoint("sft").info["seed"]
        console.print(f"Lesson {number} looks at {self.run_dir}{', in small steps' if self.nano else ''}.")

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.run

    @property
    def folder(self) -> Path:
        """Where this lesson trains what it needs beside the run."""
        return self.run_dir / f"lesson{self.number}"

    def size(self, full: T, nano: T) -> T:
        """How much of something: `full` in class, `nano` for a test that takes seconds."""
        return nano if self.nano else full

    # --- models ------------------------------------------------------------------------------------------------------

    def checkpoint(self, stage: str) -> Checkpoint:
        """A stage of the run, verified."""
        return load_checkpoint(self.run_dir / stage, stage)

    def load(self, stage: str) -> Stage:
        """Model and tokenizer of `base`, or of a stage of the run; `rm` comes with its whole score."""
        path = Path("data/base") if stage == "base" else self.checkpoint(stage).path
        return load_stage(path, stage)

    def train(self, stage: str, name: str, *, after: tuple[str, ...] | None = None, **options: Any) -> Path:
        """Trains a stage with some options changed, in runs/<run>/lesson<n>/<name>/<stage>, unless it is there.

        Args:
            stage: sft, rm or ppo.
            name: of the variant.
            after: the stages of this run that it builds on (default: all before it). A stage that is already in the
                variant's folder stays: so a chain of variants is trained by calling this for one stage after another.
            options: what differs from the stage's defaults (at nano size, from its nano preset); the seed is the run's.

        Returns:
            The folder of the trained stage.
        """
        module = importlib.import_module(f"stages.{stage}.options")
        options_of = getattr(module, f"{stage.upper()}Options")
        preset = yaml.safe_load((ROOT / "stages" / stage / "nano.yaml").read_text("utf-8")) if self.nano else {}
        settings = options_of(**preset | {"seed": self.seed} | options | {"run": name, "runs_dir": str(self.folder)})
        for parent in STAGES[: STAGES.index(stage)] if after is None else after:
            if not (settings.run_dir / parent).exists():
                shutil.copytree(self.run_dir / parent, settings.run_dir / parent)
        folder = Path(settings.run_dir / stage)
        if (folder / "stage.json").is_file():
            made = load_checkpoint(folder, stage).info["options"]
            if {key: made.get(key) for key in asdict(settings)} == asdict(settings) and not changes(folder):
                console.print(f"{folder} is there already.")
                return folder
        getattr(importlib.import_module(f"stages.{stage}.train"), f"train_{stage}")(settings)
        return folder

    # --- what the reader does ----------------------------------------------------------------------------------------

    def predict(self, guess: str) -> None:
        """Goes on only if a guess was written, so that what follows can surprise."""
        if not self.building and not re.search(r"\w", guess):
            raise GuessFirst("write your guess between the quotes above, run that cell, then this one")

    def record(self, **figures: float) -> None:
        """Keeps figures by which `make check-lesson` compares this run with others."""
        self.figures |= {name: float(value) for name, value in figures.items()}

    def finish(self) -> None:
        """Writes the recorded figures into runs/<run>/lessons.json, and prints the time."""
        minutes = (time.monotonic() - self.started) / 60
        path = self.run_dir / RECORDS
        records = read_json(path) if path.is_file() else {}
        records[str(self.number)] = {"preset": "nano" if self.nano else "full", "minutes": minutes} | {
            "figures": self.figures
        }
        write_json(path, dict(sorted(records.items())))
        console.print(
            f"This lesson ran for {minutes:.1f} of at most {BUDGET} minutes, with your reading. "
            f"`make check-lesson N={self.number}{'' if self.run == 'default' else f' RUN={self.run}'}` compares its "
            "figures with other runs'.",
            soft_wrap=True,
        )


class GuessFirst(UserError):
    """The reader has not guessed yet."""
