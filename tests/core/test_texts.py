"""Fixed texts by language: filled in, escaped, and checked against their English sources."""

from pathlib import Path

import pytest
from markupsafe import Markup

from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.texts import load_texts, read_texts, read_translated, review, stamp_texts, text_problems
from rlhf_mini.core.translation import Piece, digest

ENGLISH = 'title: "Run {run}"\nplace: "{at} of {number} <b>"\nkind.story_end: a story\n'
KOREAN = f"""title:
  english: "{digest("Run {run}")}"
  text: "실행 {{run}}"
place:
  english: "?"
  text: >-
    {{number}}개 중
    {{at}}번째
kind.story_end:
  english: "{digest("a story")}"
  text: 이야기
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "en.yaml").write_text(ENGLISH, encoding="utf-8")
    (tmp_path / "ko.yaml").write_text(KOREAN, encoding="utf-8")
    return tmp_path


def test_texts_are_filled_in(folder: Path) -> None:
    english, korean = load_texts(folder, "en"), load_texts(folder, "ko")
    assert english("title", run="{a}") == "Run {a}"
    assert korean("place", at=3, number=5) == "5개 중 3번째"
    assert korean.starting("kind.", "none.") == {"kind.story_end": "이야기"}


def test_html_escapes_texts_and_values_but_not_markup(folder: Path) -> None:
    english = load_texts(folder, "en")
    assert english.html("place", at="<i>", number=Markup("<u>5</u>")) == "&lt;i&gt; of <u>5</u> &lt;b&gt;"
    assert isinstance(english.html("title", run="&"), Markup)


def test_names_and_texts_from_elsewhere(folder: Path) -> None:
    english, korean = load_texts(folder, "en"), load_texts(folder, "ko")
    assert korean.named("kind", "story_end") == "이야기" and korean.named("kind", "of_mine") == "of mine"
    assert korean.of("kind.story_end", "a story") == "이야기" and english.of("kind.story_end", "a story") == "a story"
    assert korean.of("kind.story_end", "a changed story") == "a changed story"


def test_problems_include_other_words_in_braces() -> None:
    english = {"a": "{x} of {y}", "b": "{x}", "c": "c"}
    translated = {
        "a": Piece("{y}/{x}", digest("{x} of {y}")),
        "b": Piece("{z}", digest("{x}")),
        "d": Piece("d", digest("d")),
    }
    found = text_problems(english, translated)
    assert sorted(sentence.split()[0] for sentence in found) == ["b", "c", "d"]
    assert any(sentence.startswith("b has {words in braces}") for sentence in found)


def test_reviewing_stamps_what_is_named_and_says_what_is_left(folder: Path) -> None:
    path, english = folder / "ko.yaml", read_texts(folder / "en.yaml") | {"title": "The run {run}"}
    with console.capture() as said, pytest.raises(UserError, match="translate or review these texts"):
        review(english, path, ["place"])
    assert "title is stale" in said.get() and "place" not in said.get()
    assert read_translated(path)["place"] == Piece("{number}개 중 {at}번째", digest(english["place"]))
    with console.capture() as said:
        review(english, path, ["title"])
    assert "3 texts are translated" in said.get()


@pytest.mark.parametrize(("key", "message"), [("none", "no English text none"), ("new", "has no text new")])
def test_what_cannot_be_stamped_is_one_sentence(folder: Path, key: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        stamp_texts(folder / "ko.yaml", {"new": "New"}, [key])
    assert (folder / "ko.yaml").read_text(encoding="utf-8") == KOREAN
