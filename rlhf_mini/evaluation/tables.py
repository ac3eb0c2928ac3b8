"""Tables of estimates for the console, and how a number is written in them."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from rich.table import Table

from rlhf_mini.core.bootstrap import Estimate

Form = Callable[[float | None], str]


def grid(title: str, *columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns are names and whose others are numbers."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", no_wrap=True)
    return table


def grid_of(table: Table, rows: Iterable[Iterable[Any]]) -> Table:
    """The table with these rows and an empty line below them."""
    for row in rows:
        table.add_row(*row)
    table.add_row()
    return table


def decimal(value: float | None, digits: int = 2) -> str:
    """A number, or "-" for None and NaN."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 0, unit: str = "%") -> str:
    """A share as a percentage, or "-" for None and NaN."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}{unit}"


def cells(estimate: Estimate, form: Form = decimal) -> tuple[str, str]:
    """Mean and interval as two cells."""
    low, high = form(estimate.low), form(estimate.high)
    return form(estimate.mean), "" if low == "-" else f"{low} to {high}" if low.startswith("-") else f"{low}-{high}"
