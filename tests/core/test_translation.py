"""Translations: pieces, digests, what is said when they do not fit; and every translated document of the project."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from rlhf_mini.core.console import UserError
from rlhf_mini.core.translation import Piece, digest, lines_of, problems, read_pieces, sections, slug_of, stamp

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = """# Title

Before.

## Set up & run

```
## no heading
~~~
```

~~~~
## nor this
~~~
~~~~

### part of it

## The end
## Set up & run
Again.
"""


def test_digest_ignores_line_endings_and_outer_whitespace() -> None:
    assert digest("a\nb") == hashlib.sha256(b"a\nb").hexdigest()[:8]
    assert digest("\n a\r\nb\n\n") == digest("a\nb")
    assert digest("a\n b") != digest("a\nb")


def test_sections_go_from_heading_to_heading() -> None:
    found = sections(DOCUMENT)
    assert list(found) == ["top", "set-up--run", "the-end", "set-up--run-1"]
    assert found["top"] == "# Title\n\nBefore."
    assert found["set-up--run"].startswith("## Set up & run\n\n```\n## no heading")
    assert found["set-up--run"].endswith("~~~~\n\n### part of it")
    assert found["set-up--run-1"] == "## Set up & run\nAgain."
    assert list(sections("## Only\ntext")) == ["only"]


@pytest.mark.parametrize(
    ("heading", "slug"),
    [
        ("What else you can do", "what-else-you-can-do"),
        ("3. Open the report", "3-open-the-report"),
        ("`make chat`: [a chat](x.md#y)", "make-chat-a-chat"),
        ("설치 (install)", "설치-install"),
        ("a_b - c", "a_b---c"),
    ],
)
def test_slugs_are_those_of_github(heading: str, slug: str) -> None:
    assert slug_of(heading) == slug


def test_pieces_are_read_with_their_digests(tmp_path: Path) -> None:
    path = tmp_path / "a.ko.md"
    path.write_text(
        "\n<!-- english: top 11111111 -->\n제목\n\n<!-- english: end ? -->\n## 끝\n```\n<!-- english: no 2 -->\n```\n",
        encoding="utf-8",
    )
    assert read_pieces(path) == {
        "top": Piece("제목", "11111111"),
        "end": Piece("## 끝\n```\n<!-- english: no 2 -->\n```", "?"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("제목\n<!-- english: top 1 -->\n", "line 1: this text needs a line"),
        ("<!-- english: top 1 -->\n<!-- english: top 2 -->\n", "line 2: top appears twice"),
    ],
)
def test_a_malformed_document_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.ko.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_pieces(path)


def test_problems_name_missing_stale_and_superfluous_pieces() -> None:
    english = {"a": "one", "b": "two", "c": "three"}
    translated = {"b": Piece("둘", digest("zwei")), "c": Piece("셋", digest("three\n")), "d": Piece("넷", "44444444")}
    found = problems(english, translated)
    assert [sentence.split()[0] for sentence in found] == ["a", "b", "d"]
    assert "not translated" in found[0] and "stale" in found[1] and "does not exist" in found[2]
    assert problems({"c": "three"}, {"c": translated["c"]}) == []


def test_stamping_marks_the_named_pieces_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.ko.md"
    path.write_text("<!-- english: top ? -->\n제목\n<!-- english: top-2 ? -->\n둘\n", encoding="utf-8")
    english = {"top": "Title", "top-2": "Two", "new": "New"}
    stamp(path, english, ["top"])
    assert read_pieces(path) == {"top": Piece("제목", digest("Title")), "top-2": Piece("둘", "?")}
    for key, message in (("new", "has no piece new"), ("old", "no English text old")):
        with pytest.raises(UserError, match=message):
            stamp(path, english, [key])


def test_the_command_lists_and_stamps(tmp_path: Path) -> None:
    english, translated = tmp_path / "a.md", tmp_path / "a.ko.md"
    english.write_text("# Title\n## Two\n", encoding="utf-8")
    translated.write_text("<!-- english: top ? -->\n# 제목\n<!-- english: two ? -->\n## 둘\n", encoding="utf-8")

    def command(*more: str) -> subprocess.CompletedProcess[str]:
        module = [sys.executable, "-m", "rlhf_mini.core.translation", str(english), str(translated)]
        return subprocess.run([*module, *more], cwd=ROOT, capture_output=True, text=True, check=False)

    before = command("--stamp", "top")
    assert before.returncode == 1 and "two is stale" in before.stdout and "top" not in before.stdout
    after = command("--stamp", "two")
    assert after.returncode == 0 and "2 sections" in after.stdout


# --- the documents of the project ------------------------------------------------------------------------------------

FOLDERS = [each for each in ROOT.iterdir() if each.is_dir() and each.name != "runs" and not each.name.startswith(".")]
TRANSLATED = [*ROOT.glob("*.ko.md"), *(path for folder in FOLDERS for path in folder.rglob("*.ko.md"))]


LESSONS = [*(ROOT / "lessons" / "ko").glob("*.md")]


@pytest.mark.parametrize("path", [*TRANSLATED, *LESSONS], ids=lambda path: path.name)
def test_emphasis_ends_where_it_is_meant_to(path: Path) -> None:
    """In CommonMark, ** does not close between a bracket and a letter: **단어(word)**는 shows its asterisks."""
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for block in MarkdownIt("commonmark").enable("table").parse(text):
        assert not [one.content for one in block.children or [] if one.type == "text" and "*" in one.content]


def english_of(path: Path) -> dict[str, str]:
    return sections(path.with_name(path.name.replace(".ko.md", ".md")).read_text(encoding="utf-8"))


def code_of(section: str) -> list[str]:
    """The lines in fences, without comments, which are translated."""
    return [re.sub(r"(^|\s+)# .*", "", line) for line, in_code in lines_of(section) if in_code]


def links_of(section: str) -> set[str]:
    """Where links lead outside the document; whether to a translation does not matter."""
    targets = re.findall(r"""\]\(([^)#]+)|(?:href|src)="([^"#]+)""", section)
    return {(a or b).replace(".ko.md", ".md") for a, b in targets}


def test_readme_is_translated() -> None:
    assert ROOT / "README.ko.md" in TRANSLATED


@pytest.mark.parametrize("path", TRANSLATED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_translation_is_missing_or_stale(path: Path) -> None:
    assert problems(english_of(path), read_pieces(path)) == []


@pytest.mark.parametrize("path", TRANSLATED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_translation_has_the_same_commands_outputs_and_links_in_the_same_order(path: Path) -> None:
    english, korean = english_of(path), read_pieces(path)
    assert list(english) == list(korean)
    for key, piece in korean.items():
        assert code_of(piece.text) == code_of(english[key]), key
        assert links_of(piece.text) == links_of(english[key]), key
        assert piece.text.count("\n## ") + piece.text.startswith("## ") == (key != "top"), key
