"""Every lesson runs from its first cell to its last, at the nano preset."""

from pathlib import Path

import pytest
from filelock import FileLock

from rlhf_mini.classroom import notebook
from rlhf_mini.classroom.lesson import RECORDS
from rlhf_mini.classroom.notebook import tags, text_of
from rlhf_mini.core.files import read_json

pytestmark = pytest.mark.lessons


@pytest.mark.parametrize("number", notebook.sources())
def test_a_lesson_runs_with_stubs_and_with_solutions(number: int, trained: Path) -> None:
    """Each check first sees the stub and says what to do, then the solution, and finds it right."""
    path = notebook.source_of(number)
    executed = notebook.with_solutions(notebook.read(path), path)
    records = trained / "nano" / RECORDS
    with FileLock(trained / f"{number}.lock"):
        notebook.execute(executed, {"RUNS_DIR": str(trained), "RUN": "nano", "PRESET": "nano", "PAGES": "1"})
    for cell in executed.cells:
        if "check" in tags(cell):
            assert ("✓ Right" if cell.id.endswith("-solved") else "○ Not done yet") in text_of(cell), cell.id
        if "answer" in tags(cell):
            assert cell.outputs, f"{cell.id} shows nothing"
    assert len([cell for cell in executed.cells if cell.id.endswith("-solved")]) in (2, 3)
    record = read_json(records)[str(number)]
    assert record["figures"] and record["preset"] == "nano"
