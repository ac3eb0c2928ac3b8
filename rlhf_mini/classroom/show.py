"""Tables and plots of the lessons, all in one style."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from rich.table import Table

from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.console import console, printable

# Okabe and Ito's, which people with colour blindness can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def table(columns: Mapping[str, Sequence[Any]], digits: int = 2) -> None:
    """Prints columns side by side, by their headings: numbers with `digits` after the point, an estimate's interval."""
    made = Table()
    for name, values in columns.items():
        numbers = all(isinstance(value, (int, float, Estimate)) for value in values)
        made.add_column(name, justify="right" if numbers else "left")
    for row in zip(*columns.values(), strict=True):
        made.add_row(*(text(value, digits) for value in row))
    console.print(made)


def text(value: Any, digits: int) -> str:
    if isinstance(value, Estimate):
        return f"{value.mean:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"
    return f"{value:.{digits}f}" if isinstance(value, float) else printable(str(value))


def axes(xlabel: str, ylabel: str, panels: int = 1) -> Any:
    """An empty plot, or several beside each other, with labels on the axes: what `plt.subplots` gives, styled."""
    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=COLOURS)
    plt.rcParams["svg.hashsalt"] = "lesson"  # the same plot is the same file
    _, made = plt.subplots(1, panels, figsize=(5.2 * panels if panels > 1 else 6.4, 3.6), layout="constrained")
    for one in [made] if panels == 1 else made:
        style(one, xlabel, ylabel)
    return made


def style(one: Axes, xlabel: str, ylabel: str) -> None:
    one.set_xlabel(xlabel)
    one.set_ylabel(ylabel)
    one.spines[["top", "right"]].set_visible(False)
    one.grid(alpha=0.25)
