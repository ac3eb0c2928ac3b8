"""Files: written as a whole or not at all, and read back as JSON."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rlhf_mini.core.console import UserError


@contextmanager
def replacing(path: str | Path) -> Iterator[TextIO]:
    """A text file that takes the place of `path` when the block ends without an error."""
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
    """Writes `value` for people to read, all or nothing."""
    with replacing(path) as file:
        file.write(json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")


def write_jsonl(path: str | Path, items: Iterable[Any]) -> None:
    """Writes one JSON object a line, all or nothing: until the last one is on disk, `path` stays what it was."""
    with replacing(path) as file:
        for item in items:
            file.write(json.dumps(item, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, {} if there is no such file. UserError if it is damaged."""
    return parse_object(path.read_text(encoding="utf-8"), path) if path.is_file() else {}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file that this project wrote, [] if there is no such file. UserError if it is damaged."""
    if not path.is_file():
        return []
    return [parse_object(line, path) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def parse_object(text: str, path: Path) -> dict[str, Any]:
    """The JSON object that `text`, read from `path`, holds. UserError if it holds none."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged, or not written by this project: make it again")
    return value


def plain(value: Any) -> Any:
    """`value` as strict JSON can hold it: one-element tensors and arrays as numbers, NaN and infinities as null."""
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
    """Appends one JSON object a line to `path`, written out at once so that `tail -f` shows a stage at work."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, **metrics: Any) -> None:
        """Appends {"step": step, **metrics}; pass names with a slash as `**{"objective/kl": kl}`."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **plain(metrics)}) + "\n")


def sha256(path: Path) -> str:
    """The checksum of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
