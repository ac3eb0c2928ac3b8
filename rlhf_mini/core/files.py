"""Files: written completely or not at all, and read back as JSON."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

from pydantic import BeforeValidator

from rlhf_mini.core.console import UserError

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float that may be NaN, which JSON has as null: `plain` writes it so, pydantic reads it back."""


@contextmanager
def replacing(path: str | Path) -> Iterator[TextIO]:
    """Yields a UTF-8 text file that replaces `path` when the block ends without an error.

    Until then it is `path` + ".partial". Whatever interrupts the block, `path` is either the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes `value`, made `plain`, as indented JSON, all or nothing."""
    with replacing(path) as file:
        file.write(json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")


def write_jsonl(path: str | Path, items: Iterable[Any]) -> None:
    """Writes one JSON object per line, all or nothing."""
    with replacing(path) as file:
        for item in items:
            file.write(json.dumps(item, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if there is no such file. Raises UserError if it is damaged."""
    return parse_object(read_text(path), path) if path.is_file() else {}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects in a JSONL file; [] if there is no such file. Raises UserError if it is damaged.

    For files that this project wrote; core/examples.py reads those that people write.
    """
    if not path.is_file():
        return []
    return [parse_object(line, path) for line in read_text(path).split("\n") if line.strip()]


def read_text(path: Path) -> str:
    """The text of a file that this project wrote. UserError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise _damaged(path) from None


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged, or was not written by this project: make it again")


def parse_object(text: str, path: Path) -> dict[str, Any]:
    """Parses a JSON object that was read from `path`. Raises UserError if `text` is anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise _damaged(path)
    return value


def plain(value: Any) -> Any:
    """Converts `value` to what strict JSON can hold.

    Dataclasses become dictionaries, one-element tensors and arrays numbers, NaN and infinities None, and unknown
    objects their `str`.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):  # torch and numpy scalars
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


class MetricsLog:
    """Appends one JSON object per line to `path` and flushes it, so that `tail -f` can follow a stage."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, **metrics: Any) -> None:
        """Appends {"step": step, **metrics}. Pass names that contain a slash as `**{"objective/kl": kl}`."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **plain(metrics)}) + "\n")


def sha256(path: Path) -> str:
    """The SHA-256 checksum of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
