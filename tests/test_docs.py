"""What the documents say of the code is looked up in the code."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINES = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8").splitlines()
ROWS = [line.split(" | ") for line in LINES if re.match(r"\| \d+ \|", line) and line.count(" | ") == 4]
TESTS = {
    name for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
}  # fmt: skip


def test_every_item_is_there() -> None:
    assert [int(row[0].strip("| ")) for row in ROWS] == list(range(1, 26))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("| "))
def test_its_line_and_its_test_exist(row: list[str]) -> None:
    *_, line, tests = row
    path, code = re.findall(r"`([^`]+)`", line)
    assert code in (ROOT / path).read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", tests))
    assert named and named <= TESTS
