"""What figures to expect from a lesson: bands over runs of several seeds, and where another run lies in them.

docs/bands.json, by lesson and figure: the figure of each run, and the 95 % prediction interval for one more run (both
in words in docs/bands.md),

    mean +- t(0.975, n - 1) * s * sqrt(1 + 1 / n)

of n runs with standard deviation s, as if figures of different seeds were normally distributed.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t

from rlhf_mini.classroom.lesson import RECORDS
from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import read_json, replacing, write_json
from rlhf_mini.core.inputs import ROOT
from rlhf_mini.core.options import command_line

BANDS = ROOT / "docs" / "bands.json"
MIN_RUNS = 3
INTRODUCTION = """# What figures to expect

What the [lessons](../lessons/README.md) recorded of runs that differ in the seed alone: the mean, and where one more
run will lie in 95 of 100 cases (the prediction interval of normally distributed figures, so it may exceed what is
possible). Written by `make bands`; `make check-lesson N=3` compares a run of your own.
"""


def prediction_interval(values: Sequence[float]) -> tuple[float, float]:
    """In which one more value lies with a probability of 95 %: (low, high), from at least two."""
    n = len(values)
    half = float(t.ppf(0.975, n - 1)) * stdev(values) * math.sqrt(1 + 1 / n)
    return mean(values) - half, mean(values) + half


def records_of(run_dir: Path, number: int) -> dict[str, Any] | None:
    """What a lesson recorded of a run at full size, None if nothing."""
    path = run_dir / RECORDS
    found = read_json(path).get(str(number)) if path.is_file() else None
    return found if found and found["preset"] == "full" else None


def is_recorded(run_dir: Path, number: int) -> bool:
    return records_of(run_dir, number) is not None


def write(out: Path, run_dirs: Sequence[Path], numbers: Sequence[int]) -> None:
    """Writes the bands of these lessons, and the page; those of other lessons in the file stay.

    Raises:
        UserError: too few runs.
    """
    lessons = read_json(out)["lessons"] if out.is_file() else {}
    for number in numbers:
        found = {run_dir.name: records_of(run_dir, number) for run_dir in run_dirs}
        records = {name: record for name, record in found.items() if record is not None}
        if len(records) < MIN_RUNS:
            raise UserError(f"bands need lesson {number} of at least {MIN_RUNS} runs, and {len(records)} have it")
        complete = list(records.values())
        names = list(complete[0]["figures"])
        values = {name: [record["figures"][name] for record in complete] for name in names}
        lessons[str(number)] = {
            "runs": list(records),
            "minutes": [round(record["minutes"], 1) for record in complete],
            "figures": {
                name: dict(zip(("low", "high"), prediction_interval(of_runs), strict=True)) | {"values": of_runs}
                for name, of_runs in values.items()
            },
        }
    command = command_line("python -m rlhf_mini.classroom")
    lessons = dict(sorted(lessons.items()))
    write_json(out, {"command": command, "lessons": lessons})
    with replacing(out.with_suffix(".md")) as file:
        file.write(to_markdown(lessons))


def to_markdown(lessons: dict[str, Any]) -> str:
    """The bands as a page, a table a lesson."""
    parts = [INTRODUCTION]
    for number, of_lesson in lessons.items():
        minutes = of_lesson["minutes"]
        parts.append(
            f"## Lesson {number}\n\n{len(minutes)} runs, {min(minutes):.1f} to {max(minutes):.1f} minutes each.\n\n"
            "| figure | mean | one more run |\n|---|---|---|\n"
            + "".join(
                f"| {in_words(name)} | {mean(band['values']):.3g} | {band['low']:.3g} to {band['high']:.3g} |\n"
                for name, band in of_lesson["figures"].items()
            )
        )
    return "\n".join(parts)


def compare(number: int, run_dir: Path, bands: Path = BANDS) -> Iterator[str]:
    """A sentence for each figure that the lesson recorded of this run. UserError if there is nothing to compare."""
    if not bands.is_file():
        raise UserError(f"{bands} is missing: `make bands` makes it")
    expected = read_json(bands)["lessons"].get(str(number))
    path = run_dir / RECORDS
    record = read_json(path).get(str(number)) if path.is_file() else None
    if record is None:
        raise UserError(f"{run_dir} has no figures of lesson {number}: run the lesson to its last cell first")
    if expected is None:
        raise UserError(f"there are no bands for lesson {number}: `make bands` measures them")
    if record["preset"] == "nano":
        yield "This was a nano run, made to see that everything works: its figures need not lie in the bands."
    outside = 0
    for name, value in record["figures"].items():
        band = expected["figures"].get(name)
        if band is None:
            yield f"{in_words(name)}: {value:.3g}; no other run has recorded it"
            continue
        low, high = band["low"], band["high"]
        where = (
            "as expected" if low <= value <= high else "lower than expected" if value < low else "higher than expected"
        )
        outside += not low <= value <= high
        yield f"{in_words(name)}: {value:.3g}, {where} ({len(band['values'])} other runs: {low:.3g} to {high:.3g})"
    if outside:
        yield (
            f"{outside} of {len(record['figures'])} lie outside. One in twenty does by chance; otherwise ask what is "
            "different: another seed, other options, a changed file (`make doctor` names it)?"
        )
    else:
        yield "All lie where those of other runs lie."


def in_words(name: str) -> str:
    """A figure's name as text: kl_of_ppo -> kl of ppo."""
    return name.replace("_", " ")
