"""How the museum shows two runs: curves, the doctor's findings, responses; and the table of docs/museum.md."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhf_mini.core.console import console, printable
from rlhf_mini.core.examples import Prompt
from rlhf_mini.core.files import replacing
from rlhf_mini.doctor.checks import Finding
from rlhf_mini.museum.bugs import ALL, Bug
from rlhf_mini.museum.runs import Measured, findings, series

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 30  # columns of a sparkline
Figure = tuple[str, str]  # a stage and a name in its metrics.jsonl


def rule(title: str) -> None:
    console.print(Text(f"\n{title}", style="bold"))


def listing() -> None:
    """All bugs, with the stage each is in."""
    table = Table.grid(padding=(0, 2))
    for bug in ALL:
        table.add_row(Text(bug.name, style="bold"), bug.trained[0], Text(bug.title))
    console.print(table)
    console.print(
        "\nmake museum BUG=kl_sign           trains it, unless it is there, and shows it beside the healthy run\n"
        "make museum BUG=mystery SEED=3    one of them without its name; ARGS=--reveal tells it",
        soft_wrap=True,
    )


# --- curves ----------------------------------------------------------------------------------------------------------


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """At most WIDTH bars, each the mean of its share of the values, from `low` to `high`."""
    number = min(WIDTH, len(values))
    edges = [round(index * len(values) / number) for index in range(number + 1)]
    means = [mean(values[start:end]) for start, end in pairwise(edges)]
    span = (high - low) or 1.0
    return "".join(BARS[min(len(BARS) - 1, int((each - low) / span * len(BARS)))] for each in means)


def decimal(value: float) -> str:
    """Three digits, whatever the size."""
    return f"{value:.0e}" if 0 < abs(value) < 0.001 else f"{value:.3g}"


def curves(runs: Mapping[str, Path], figures: Sequence[Figure]) -> None:
    """Each figure of both runs, on a common scale."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "", "first", "", "last"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for figure in figures:
        found = {name: series(folder, figure) for name, folder in runs.items()}
        both = [value for values in found.values() for value in values]
        for index, (name, values) in enumerate(found.items()):
            row = [decimal(values[0]), sparkline(values, min(both), max(both)), decimal(values[-1])] if values else []
            table.add_row("" if index else " ".join(figure), name, *row)
    console.print(table)


def plot(path: Path, runs: Mapping[str, Path], figures: Sequence[Figure]) -> None:
    """The figures of both runs as an SVG. The same numbers give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "rlhf_mini", "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        drawing = Drawing(figsize=(4.5 * len(figures), 3), layout="constrained")
        axes = drawing.subplots(1, len(figures), squeeze=False)[0]
        for ax, figure in zip(axes, figures, strict=True):
            for (name, folder), line in zip(runs.items(), ("-o", "--s"), strict=True):
                values = series(folder, figure)
                ax.plot(range(1, len(values) + 1), values, line, markersize=3, label=name)
            ax.set_title(" ".join(figure))
            ax.set_xlabel("iteration" if figure[0] == "ppo" else "logged step")
        axes[0].legend(frameon=False)
        with replacing(path) as file:
            drawing.savefig(file, format="svg", metadata={"Date": None})


# --- the doctor ------------------------------------------------------------------------------------------------------


def differing(runs: Mapping[str, Path]) -> dict[Figure, tuple[Finding | None, Finding | None]]:
    """The doctor's findings that are not `pass` in both runs: the healthy one's and the other's, by stage and check."""
    healthy, other = (findings(folder) for folder in runs.values())
    both = {
        key: (healthy.get(key), other.get(key)) for key in [*healthy, *(key for key in other if key not in healthy)]
    }
    return {key: pair for key, pair in both.items() if any(one and one.level != "pass" for one in pair)}


def doctor(runs: Mapping[str, Path]) -> None:
    """What the doctor says of both runs, where it does not say the same."""
    found = differing(runs)
    same = [" ".join(key) for key, (one, other) in found.items() if one and other and one.level == other.level]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "", *runs):
        table.add_column(heading)
    for (stage, check), pair in found.items():
        if f"{stage} {check}" not in same:
            table.add_row(stage, check, *(f"{one.level}: {one.text}" if one else "-" for one in pair))
    console.print(table if table.rows else "Nothing that it does not say of both.")
    if same:
        console.print(f"Of both, it finds fault with: {', '.join(same)}.", soft_wrap=True)


# --- responses -------------------------------------------------------------------------------------------------------

MEASURES = ("gold", "sft_gold", "kl", "length", "ended")


def measures(measured: Mapping[str, Measured]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "gold", "gold of its SFT", "KL to its SFT", "length", "with an end"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, of in measured.items():
        table.add_row(
            name, f"{of.gold:.2f}", f"{of.sft_gold:.2f}", f"{of.kl:.2f}", f"{of.length:.1f}", f"{of.ended:.0%}"
        )
    console.print(table)


def responses(examples: Sequence[Prompt], measured: Mapping[str, Measured], number: int) -> None:
    for index, example in enumerate(examples[:number]):
        table = Table.grid(padding=(0, 2))
        table.add_row("user", Text(printable(example["prompt"][-1]["content"]), style="bold"))
        for name, of in measured.items():
            table.add_row(name, Text(printable(of.responses[index])))
        console.print(table)
        console.print()


def label(bug: Bug) -> None:
    """What the bug is, where it was seen, and the exercise."""
    for paragraph in bug.paragraphs[1:]:
        console.print(f"\n{paragraph}", width=min(console.width, 100))


# --- the page --------------------------------------------------------------------------------------------------------


def page_table(found: Mapping[str, Any]) -> Iterator[str]:
    """The table of docs/museum.md, from docs/museum.json."""
    yield "| bug | figure | healthy | buggy | gold, healthy and buggy | what the doctor says |"
    yield "|---|---|---|---|---|---|"
    for name, of in found["bugs"].items():
        figure, values = next(iter(of["figures"].items()))
        gold = f"{of['healthy']['gold']:.2f}, {of['buggy']['gold']:.2f}"
        said = [f"{each['buggy']}: {each['check']}" for each in of["doctor"] if each["buggy"] in ("warn", "fail")]
        cells = (
            f"`{name}`",
            figure,
            ends(values["healthy"]),
            ends(values["buggy"]),
            gold,
            "; ".join(said) or "nothing",
        )
        yield f"| {' | '.join(cells)} |"


def ends(values: Sequence[float]) -> str:
    """A curve's first and last value."""
    return f"{decimal(values[0])} to {decimal(values[-1])}" if values else "not logged"


def finite(values: Sequence[float]) -> list[float]:
    """Rounded to what a page needs."""
    return [float(f"{value:.4g}") for value in values if math.isfinite(value)]
