"""Lessons are read, translated, solved and executed; and all lessons have what a lesson has."""

import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from rlhf_mini.classroom import notebook
from rlhf_mini.classroom.notebook import tags, text_of
from rlhf_mini.core.console import UserError
from rlhf_mini.core.translation import digest

NUMBERS = list(notebook.sources())
# A number with a fraction, or a share: something that was measured.
FIGURE = re.compile(r"\d+\.\d+|\d+ ?%")


def written(folder: Path, source: str, solutions: str = "", ko: str = "") -> Path:
    """A lesson made for a test."""
    for name in ("solutions", "ko"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "9_toy.py").write_text(source, encoding="utf-8")
    (folder / "solutions" / "9_toy.py").write_text(solutions, encoding="utf-8")
    (folder / "ko" / "9_toy.md").write_text(ko, encoding="utf-8")
    return folder / "9_toy.py"


TOY = """# %% [markdown] id="title"
# # A toy

# %% id="half" tags=["exercise"]
half = ...

# %% id="check-half" tags=["check"]
"right" if half == 2 else "not done"
"""


def code(source: str) -> NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata={"kernelspec": notebook.KERNEL})


# --- reading ---------------------------------------------------------------------------------------------------------


def test_cells_keep_their_ids_and_tags(tmp_path: Path) -> None:
    made = notebook.read(written(tmp_path, TOY))
    assert [cell.id for cell in made.cells] == ["title", "half", "check-half"]
    assert [tags(cell) for cell in made.cells] == [[], ["exercise"], ["check"]]
    assert notebook.title(made) == "A toy"
    nbformat.validate(made)


@pytest.mark.parametrize("second", ['# %% id="title"', "# %%"])
def test_a_cell_without_an_id_of_its_own_is_named(tmp_path: Path, second: str) -> None:
    with pytest.raises(UserError, match="cell 2 needs an id"):
        notebook.read(written(tmp_path, f'# %% [markdown] id="title"\n# # A toy\n\n{second}\n1 + 1\n'))


def test_there_is_no_lesson_9() -> None:
    with pytest.raises(UserError, match="there is no lesson 9"):
        notebook.source_of(9)


# --- translation -----------------------------------------------------------------------------------------------------


def test_prose_is_replaced_and_code_is_not(tmp_path: Path) -> None:
    path = written(tmp_path, TOY, ko=f"<!-- english: title {digest('# A toy')} -->\n# 장난감\n")
    made = notebook.translated(notebook.read(path), path, "ko")
    assert [cell.source for cell in made.cells][:2] == ["# 장난감", "half = ..."]


# --- solutions and execution -----------------------------------------------------------------------------------------


def test_each_check_sees_the_stub_and_then_the_solution(tmp_path: Path) -> None:
    path = written(tmp_path, TOY, '# %% id="half"\nhalf = 2\n')
    made = notebook.execute(notebook.with_solutions(notebook.read(path), path), {})
    assert [cell.id for cell in made.cells][2:] == ["check-half", "check-half-solution", "check-half-solved"]
    assert [text_of(made.cells[index]) for index in (2, 4)] == ["'not done'", "'right'"]


def test_an_exercise_without_a_solution_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, TOY, '# %% id="other"\nhalf = 2\n')
    with pytest.raises(UserError, match="no solution with the id 'half'"):
        notebook.with_solutions(notebook.read(path), path)


def test_a_cell_that_fails_is_named_and_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRESET", raising=False)
    failing = code("import os\nraise ValueError(os.environ['PRESET'])")
    failing.cells[0]["id"] = "faulty"
    with pytest.raises(UserError, match="cell faulty stopped with ValueError: nano"):
        notebook.execute(failing, {"PRESET": "nano"})
    assert "PRESET" not in __import__("os").environ


def test_a_problem_that_the_reader_can_fix_is_one_sentence_not_a_traceback() -> None:
    failing = code("from rlhf_mini.core.console import UserError\nraise UserError('write your guess')")
    with pytest.raises(UserError, match="UserError: write your guess"):
        notebook.execute(failing, {})
    assert failing.cells[0].outputs[0].traceback == ["error: write your guess"]


# --- what every lesson has -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
def test_a_lesson_has_what_a_lesson_has(number: int) -> None:
    path = notebook.source_of(number)
    made = notebook.read(path)
    nbformat.validate(made)
    prose = notebook.prose(made)
    assert made.cells[0].id == "title" and made.cells[0].source.startswith("# ")
    assert "**The question.**" in prose["title"]
    assert any("**Predict first.**" in text for text in prose.values())
    for part in ("**What to look for.**", "## Quiz", "## Pitfalls", "## What is simplified"):
        assert any(part in text for text in prose.values()), part
    code_cells = [cell for cell in made.cells if cell.cell_type == "code"]
    assert len([cell for cell in code_cells if "exercise" in tags(cell)]) in (2, 3)
    for cell, after in pairwise(code_cells):
        if "exercise" in tags(cell):
            assert "..." in cell.source and "check" in tags(after), cell.id
        if "guess" in tags(cell):
            assert cell.source == 'guess = ""' and "lesson.predict(guess)" in after.source, cell.id
    exercises = re.findall(r"^### Exercise \d.*$", "\n".join(prose.values()), re.MULTILINE)
    assert len(exercises) in (2, 3)
    assert all(re.search(r"\([●○]{3}, \d+ minutes\)$", heading) for heading in exercises)
    assert code_cells[-1].source == "lesson.finish()"
    assert "lesson.record(" in "".join(cell.source for cell in code_cells)


@pytest.mark.parametrize("number", NUMBERS)
def test_its_quiz_has_three_questions_whose_options_explain_themselves(number: int) -> None:
    quiz = notebook.prose(notebook.read(notebook.source_of(number)))["quiz"]
    questions = re.split(r"^\*\*\d\. ", quiz.partition("## Pitfalls")[0], flags=re.MULTILINE)[1:]
    assert len(questions) == 3
    for question in questions:
        explained = re.findall(r"<details><summary>.+?</summary>\s*(\w+)", question, re.DOTALL)
        assert len(explained) == 3 and explained.count("Right") == 1, question


@pytest.mark.parametrize("number", NUMBERS)
def test_its_figures_are_printed_by_cells(number: int) -> None:
    """The prose quotes papers, with their names, and what stands in the code; what was measured is in the outputs.

    A question of the quiz may invent a figure.
    """
    made = notebook.read(notebook.source_of(number))
    code_text = "".join(cell.source for cell in made.cells if cell.cell_type == "code")
    for key, text in notebook.prose(made).items():
        for paragraph in (
            [] if key == "quiz" else re.split(r"\n\s*\n", re.sub(r"\$[^$]*\$|`[^`]*`|https?://\S+", "", text))
        ):
            if re.search(r"et al\.|InstructGPT|OpenAI|arXiv|\(\d{4}\)", paragraph):
                continue
            unknown = [found for found in FIGURE.findall(paragraph) if found not in code_text]
            assert not unknown, (key, unknown)


@pytest.mark.parametrize("number", NUMBERS)
def test_it_is_translated(number: int) -> None:
    path = notebook.source_of(number)
    for language in notebook.LANGUAGES[1:]:
        made = notebook.translated(notebook.read(path), path, language)  # raises if a piece is missing or stale
        for text in notebook.prose(made).values():
            assert re.search(r"[가-힣]", text)


@pytest.mark.parametrize("number", NUMBERS)
def test_each_solution_is_of_an_exercise(number: int) -> None:
    path = notebook.source_of(number)
    exercises = {cell.id for cell in notebook.read(path).cells if "exercise" in tags(cell)}
    solutions = notebook.read(path.parent / "solutions" / path.name)
    assert {cell.id for cell in solutions.cells if cell.cell_type == "code"} == exercises
