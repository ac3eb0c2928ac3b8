"""Fixed texts of pages: one YAML file per language, keys and the texts they stand for.

    texts = load_texts(Path("rlhf_mini/report/texts"), "ko")
    texts("script.place", at=3, number=1200)

`en.yaml` maps each key to a text, in which {words in braces} are filled in. The file of another language maps it to a
text and the digest of its English source, as rlhf_mini.core.translation explains:

    script.place:
      english: "1a2b3c4d"
      text: 프롬프트 {at}/{number}

A new text has "?" for a digest until somebody has reviewed it.
"""

import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from markupsafe import Markup, escape

from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.files import plain, replacing
from rlhf_mini.core.translation import Piece, digest, problems

Language = Literal["en", "ko"]
LANGUAGES: tuple[Language, ...] = get_args(Language)


@dataclass(frozen=True)
class Texts:
    """The texts of one language."""

    language: Language
    texts: Mapping[str, str]
    sources: Mapping[str, str]
    """Digests of the English texts that they translate; empty in English."""

    def __call__(self, key: str, **values: Any) -> str:
        """The text, filled in."""
        return self.texts[key].format(**values)

    def html(self, key: str, **values: Any) -> Markup:
        """The text as HTML: it is escaped, and so are the values that are not `Markup`."""
        return Markup(escape(self.texts[key])).format(**values)

    def of(self, key: str, english: str) -> str:
        """The translation of an English text that was read or computed; the text itself if there is none."""
        return self.texts[key] if self.sources.get(key) == digest(english) else english

    def named(self, key: str, name: str) -> str:
        """What a name in the data is called; without its underscores, if there is nothing else to call it."""
        return self.texts.get(f"{key}.{name}", name.replace("_", " "))

    def starting(self, *prefixes: str) -> dict[str, str]:
        """All texts whose keys start so, not filled in."""
        return {key: text for key, text in self.texts.items() if key.startswith(prefixes)}


def load_texts(folder: Path, language: Language) -> Texts:
    """The texts of a language in a folder that has one file for each."""
    if language == "en":
        return Texts("en", read_texts(folder / "en.yaml"), {})
    pieces = read_translated(folder / f"{language}.yaml")
    return Texts(
        language,
        {key: piece.text for key, piece in pieces.items()},
        {key: piece.english for key, piece in pieces.items()},
    )


def read_texts(path: Path) -> dict[str, str]:
    """The texts of a file in English."""
    texts: dict[str, str] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return texts


def read_translated(path: Path) -> dict[str, Piece]:
    """The texts of a file in another language."""
    texts = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {key: Piece(text=entry["text"], english=entry["english"]) for key, entry in texts.items()}


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a <script> element: plain ASCII without <, > and &."""
    text = json.dumps(plain(value), separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


# --- reviewing -------------------------------------------------------------------------------------------------------


def text_problems(english: Mapping[str, str], translated: Mapping[str, Piece]) -> list[str]:
    """A sentence for each text that is missing, stale, superfluous, or filled in with other words than its source."""
    return problems(english, translated) + [
        f"{key} has {{words in braces}} that are not those of its English text"
        for key, piece in translated.items()
        if key in english and placeholders(piece.text) != placeholders(english[key])
    ]


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def review(english: Mapping[str, str], path: Path, stamped: Sequence[str]) -> None:
    """Stamps the texts that were reviewed and prints what is left to do. UserError if something is."""
    if stamped:
        stamp_texts(path, english, stamped)
    found = text_problems(english, read_translated(path))
    for sentence in found:
        console.print(f"{path}: {sentence}", soft_wrap=True)
    if found:
        raise UserError(f"translate or review these texts in {path}, then give their keys to --stamp")
    console.print(f"{path}: {len(english)} texts are translated and up to date", soft_wrap=True)


def stamp_texts(path: Path, english: Mapping[str, str], keys: Sequence[str]) -> None:
    """Writes the digests of the present English texts beside these keys."""
    content = path.read_text(encoding="utf-8")
    for key in keys:
        if key not in english:
            raise UserError(f"there is no English text {key}")
        entry = re.compile(rf'^({re.escape(key)}:\n  english: )"[^"]*"$', re.MULTILINE)
        content, number = entry.subn(rf'\g<1>"{digest(english[key])}"', content)
        if not number:
            raise UserError(f'{path} has no text {key}, or no line english: "?" after it')
    with replacing(path) as file:
        file.write(content)
