"""Translations that know which English text they translate.

    python -m rlhf_mini.core.translation README.md README.ko.md                   # lists what is missing or stale
    python -m rlhf_mini.core.translation README.md README.ko.md --stamp install   # after that section was reviewed

A translated document consists of pieces. A line introduces each with the id and the digest of its English source:

    <!-- english: install 1a2b3c4d -->
    ## 설치

If the English text changes, its digest does too, and `problems` names the piece until somebody has reviewed and stamped
it. A new piece has ? for a digest until then.
"""

import argparse
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_mini.core.console import UserError, console, run
from rlhf_mini.core.files import replacing

MARK = re.compile(r"<!-- english: (?P<id>\S+) (?P<digest>\S+) -->")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


@dataclass(frozen=True)
class Piece:
    """A translated text."""

    text: str
    english: str
    """Digest of the English text that it translates."""


def digest(text: str) -> str:
    """The first 8 hexadecimal digits of the SHA-256 of a text; line endings and whitespace around it do not count."""
    return hashlib.sha256("\n".join(text.strip().splitlines()).encode()).hexdigest()[:8]


def problems(english: Mapping[str, str], translated: Mapping[str, Piece]) -> list[str]:
    """A sentence for each piece that is missing, stale or superfluous."""
    return [
        *(f"{key} is not translated" for key in english if key not in translated),
        *(
            f"{key} is stale: its English text has changed, or its translation was never reviewed"
            for key, piece in translated.items()
            if key in english and piece.english != digest(english[key])
        ),
        *(f"{key} translates a text that does not exist" for key in translated if key not in english),
    ]


# --- documents -------------------------------------------------------------------------------------------------------


def sections(markdown: str) -> dict[str, str]:
    """The sections of a document, from one `## ` heading to the next, by the anchor that GitHub gives the heading.

    What comes before the first heading has the id "top".
    """
    found: dict[str, list[str]] = {"top": []}
    for line, in_code in lines_of(markdown):
        if line.startswith("## ") and not in_code:
            slug = slug_of(line[3:])
            number = sum(key == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", key) is not None for key in found)
            found[f"{slug}-{number}" if slug in found else slug] = []
        found[next(reversed(found))].append(line)
    return {key: text for key, lines in found.items() if (text := "\n".join(lines).strip())}


def slug_of(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def read_pieces(path: str | Path) -> dict[str, Piece]:
    """The pieces of a translated document. UserError if text stands before the first, or an id appears twice."""
    found: dict[str, tuple[str, list[str]]] = {}
    for number, (line, in_code) in enumerate(lines_of(Path(path).read_text(encoding="utf-8")), 1):
        mark = None if in_code else MARK.fullmatch(line.strip())
        if mark and mark["id"] in found:
            raise UserError(f"{path}, line {number}: {mark['id']} appears twice")
        if mark:
            found[mark["id"]] = (mark["digest"], [])
        elif found:
            found[next(reversed(found))][1].append(line)
        elif line.strip():
            raise UserError(f"{path}, line {number}: this text needs a line <!-- english: ID ? --> before it")
    return {key: Piece("\n".join(lines).strip(), english) for key, (english, lines) in found.items()}


def lines_of(markdown: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is part of a fenced block of code."""
    fence = ""
    for line in markdown.splitlines():
        mark = FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
            yield line, True
            continue
        yield line, bool(fence)
        if mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]):
            fence = ""


# --- reviewing -------------------------------------------------------------------------------------------------------


def stamp(path: str | Path, english: Mapping[str, str], ids: Sequence[str]) -> None:
    """Writes the digests of the present English texts into these pieces of a translated document."""
    text = Path(path).read_text(encoding="utf-8")
    for key in ids:
        if key not in english:
            raise UserError(f"there is no English text {key}")
        mark = re.compile(rf"^(\s*<!-- english: {re.escape(key)}) \S+ -->", re.MULTILINE)
        text, number = mark.subn(rf"\1 {digest(english[key])} -->", text)
        if not number:
            raise UserError(f"{path} has no piece {key}")
    with replacing(path) as file:
        file.write(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_mini.core.translation",
        description="Lists the sections of a document whose translation is missing or stale.",
    )
    parser.add_argument("english", type=Path, help="the English document, such as README.md")
    parser.add_argument("translated", type=Path, help="its translation, such as README.ko.md")
    parser.add_argument("--stamp", nargs="+", default=[], metavar="ID", help="sections whose translation was reviewed")
    given = parser.parse_args()
    english = sections(given.english.read_text(encoding="utf-8"))
    if given.stamp:
        stamp(given.translated, english, given.stamp)
    found = problems(english, read_pieces(given.translated))
    for sentence in found:
        console.print(f"{given.translated}: {sentence}", soft_wrap=True)
    if found:
        raise UserError(f"translate or review these sections of {given.translated}, then give their names to --stamp")
    console.print(f"{given.translated}: {len(english)} sections are translated and up to date", soft_wrap=True)


if __name__ == "__main__":
    run(main)
