"""What the documents say of the code is looked up in the code."""

import ast
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


def test_readme_repeats_the_first_sentence_of_each_folder() -> None:
    rows = re.findall(
        r"^\| \[([\w/]+)\]\(\1\) \| (.+) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    folders = {path.parent.relative_to(ROOT).as_posix() for p in ("rlhf_mini/*", "stages/*", "benchmarks")
               for path in ROOT.glob(f"{p}/__init__.py")}  # fmt: skip
    assert dict(rows).keys() == folders
    for folder, sentence in rows:
        docstring = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8"))) or ""
        assert " ".join(docstring.split("\n\n")[0].split()).startswith(sentence), folder


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data" / "README.md"], ids=lambda path: path.name
)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")], ids=lambda p: p.name
)
def test_modules_that_are_run_exist(path: Path) -> None:
    for module in re.findall(
        r"python -m ((?:rlhf_mini|stages|benchmarks)(?:\.\w+)+)", path.read_text(encoding="utf-8")
    ):
        file = ROOT / module.replace(".", "/")
        assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), module
