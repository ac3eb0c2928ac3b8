"""The lessons as notebooks: read from their sources, paired with their translation, executed.

lessons/3_ppo.py             the source, jupytext's py:percent; every cell has an id
lessons/ko/3_ppo.md          its prose in Korean, by cell id, each with the hash of its English source
lessons/solutions/3_ppo.py   the solutions, by the id of the exercise's cell
"""

import copy
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from rlhf_mini.core.console import UserError
from rlhf_mini.core.inputs import ROOT
from rlhf_mini.core.translation import problems, read_pieces

LESSONS = ROOT / "lessons"
LANGUAGES = ("en", "ko")
CELL_TIMEOUT = 1800  # seconds; a cell that takes longer hangs
# A library looks for widgets that pages could not show.
# MPLBACKEND: plots belong into the notebook, whatever the shell says.
QUIET = {"PYTHONWARNINGS": "ignore:IProgress not found", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def sources() -> dict[int, Path]:
    """The source of each lesson by its number."""
    return {int(path.name.partition("_")[0]): path for path in sorted(LESSONS.glob("[0-9]_*.py"))}


def source_of(number: int) -> Path:
    """UserError if there is no such lesson."""
    found = sources()
    if number not in found:
        raise UserError(f"there is no lesson {number}: name one from {min(found)} to {max(found)}")
    return found[number]


def read(path: Path) -> NotebookNode:
    """A source as a notebook. UserError if a cell lacks an id or two have the same."""
    notebook = jupytext.read(path, fmt="py:percent")
    ids = [cell.metadata.get("id") for cell in notebook.cells]
    if None in ids or len(set(ids)) < len(ids):
        faulty = next(i for i, one in enumerate(ids) if one is None or one in ids[:i])
        raise UserError(f'{path.name}: cell {faulty + 1} needs an id="..." of its own')
    for cell in notebook.cells:
        cell["id"] = cell.metadata.pop("id")
        if "answer" in tags(cell):
            cell.metadata["jupyter"] = {"outputs_hidden": True}  # folded in Jupyter, so that one guesses first
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    return notebook


def tags(cell: NotebookNode) -> list[str]:
    """What a cell is: guess, answer, exercise or check; [] for any other."""
    return list(cell.metadata.get("tags", []))


def title(notebook: NotebookNode) -> str:
    """The first heading."""
    return str(notebook.cells[0].source).partition("\n")[0].removeprefix("# ")


# --- translation -----------------------------------------------------------------------------------------------------


def prose(notebook: NotebookNode) -> dict[str, str]:
    """The Markdown of each cell by its id."""
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "markdown"}


def translation_of(path: Path, language: str) -> Path:
    return path.parent / language / path.with_suffix(".md").name


def translated(notebook: NotebookNode, path: Path, language: str) -> NotebookNode:
    """The same notebook with its prose in another language. UserError if a translation is missing or stale."""
    if language == "en":
        return notebook
    pieces = read_pieces(translation_of(path, language))
    if found := problems(prose(notebook), pieces):
        raise UserError(f"{translation_of(path, language).relative_to(ROOT)}: {found[0]}")
    other = copy.deepcopy(notebook)
    for cell in other.cells:
        if cell.cell_type == "markdown":
            cell.source = pieces[cell.id].text
    return other


# --- execution -------------------------------------------------------------------------------------------------------


def with_solutions(notebook: NotebookNode, path: Path) -> NotebookNode:
    """The same notebook in which each exercise is solved after its check has seen the stub, and is checked again."""
    solutions = {cell.id: cell for cell in read(path.parent / "solutions" / path.name).cells}
    cells, exercise = [], ""
    for cell in notebook.cells:
        cells.append(cell)
        if "exercise" in tags(cell):
            exercise = cell.id
        if "check" in tags(cell):
            if exercise not in solutions:
                raise UserError(f"lessons/solutions/{path.name} has no solution with the id {exercise!r}")
            for solved in (solutions[exercise], cell):
                again = nbformat.v4.new_code_cell(solved.source, metadata=solved.metadata)
                again["id"] = f"{cell.id}-{'solved' if solved is cell else 'solution'}"
                cells.append(again)
    return NotebookNode(notebook | {"cells": cells})


def execute(
    notebook: NotebookNode, environment: dict[str, str], on_cell: Callable[[int, int], None] | None = None
) -> NotebookNode:
    """Runs all cells in a kernel of its own, in place.

    Args:
        environment: variables that the kernel gets besides this process's own.
        on_cell: called with the number of finished cells and of all.

    Raises:
        UserError: a cell stopped with an exception; says which cell and which exception.
    """
    client = NotebookClient(notebook, timeout=CELL_TIMEOUT, resources={"metadata": {"path": str(ROOT)}})
    before, running = dict(os.environ), ""
    os.environ |= environment | QUIET | {"PYTHONPATH": str(ROOT)}
    try:
        with tempfile.TemporaryDirectory() as sockets:  # files instead of ports that others on the machine could reach
            manager = client.create_kernel_manager()
            manager.transport, manager.ip = "ipc", f"{sockets}/kernel"
            with client.setup_kernel():
                for index, cell in enumerate(notebook.cells):
                    running = f"cell {cell.id}"
                    client.execute_cell(cell, index)
                    if on_cell:
                        on_cell(index + 1, len(notebook.cells))
    except CellExecutionError as fault:
        raise UserError(f"{running} stopped with {fault.ename}: {fault.evalue}") from fault
    finally:
        os.environ.clear()
        os.environ.update(before)
    return notebook


def told(fault: Exception) -> str:
    """An exception in a cell as the kernel tells it, any other one as it is."""
    return str(getattr(fault, "evalue", "") or fault)


def text_of(cell: NotebookNode) -> str:
    """The text that a cell printed or showed."""

    def of(output: Any) -> str:
        return str(output.get("text") or output.get("data", {}).get("text/plain", ""))

    return "".join(map(of, cell.get("outputs", [])))


def same_outputs(executed: NotebookNode, other: NotebookNode) -> NotebookNode:
    """`other`, with the outputs of `executed`, whose cells have the same ids."""
    of_id = {cell.id: cell for cell in executed.cells if cell.cell_type == "code"}
    for cell in other.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = of_id[cell.id].outputs, of_id[cell.id].execution_count
    return other
