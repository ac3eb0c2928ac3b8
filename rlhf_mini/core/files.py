"""Files: written completely or not at all, and read back as JSON."""

import dataclasses
import fcntl
import glob
import hashlib
import json
import math
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated, Any, TextIO, TypeGuard

from pydantic import BeforeValidator

from rlhf_mini.core.console import RANK, UserError
from rlhf_mini.core.validation import is_utf8

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float that may be NaN, which JSON has as null: `plain` writes it so, pydantic reads it back."""


@contextmanager
def replacing(path: str | Path) -> Iterator[TextIO]:
    """Yields a UTF-8 text file that replaces `path` when the block ends without an error.

    Until then it has a name of its own, `path` + ".<random>.partial". Whatever interrupts the block, and whoever else
    replaces the same file, `path` is one whole file: the old one or a new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_orphans(path)
    with _new_file_beside(path) as file:
        partial = Path(file.name)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _new_file_beside(path: Path) -> TextIO:
    """Opens a new file, and locks it for as long as it is open: a lock says that the writer lives."""
    while True:
        file = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial").open("x", encoding="utf-8", newline="\n")
        try:
            _lock(file)
        except BlockingIOError:  # another process takes it for an orphan
            file.close()
            continue
        except OSError:  # a file system without locks, where orphans stay
            return file
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # it was removed before it was locked


def remove(path: Path) -> None:
    """Removes a file that nobody else writes, if there is one, with all that killed processes left of it."""
    for each in (path, *_partials(path)):
        each.unlink(missing_ok=True)


def _partials(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{glob.escape(path.name)}.????????.partial"))


def _remove_orphans(path: Path) -> None:
    """Removes what killed processes left of this file: their locks have ended with them."""
    for orphan in _partials(path):
        with suppress(OSError), orphan.open("rb") as file:
            _lock(file)
            orphan.unlink()


def _lock(file: IO[Any]) -> None:
    """BlockingIOError if another process has locked it; another OSError if the file system cannot lock."""
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
        raise damaged(path) from None


def damaged(path: Path) -> UserError:
    """The error to raise at a file that does not hold what this project writes there."""
    return UserError(f"{path} is damaged, or was not written by this project: make it again")


def parse_object(text: str, path: Path) -> dict[str, Any]:
    """Parses a JSON object that was read from `path`. Raises UserError if `text` is anything else."""
    try:
        value = json.loads(text)
        if "\\u" in text and not is_utf8(json.dumps(value, ensure_ascii=False)):  # which no terminal or file takes
            value = None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise damaged(path)
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


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number, and one that a float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


class MetricsLog:
    """Appends one JSON object per line to `path` and flushes it, so that `tail -f` can follow a stage.

    Of several processes, only the first one does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, **metrics: Any) -> None:
        """Appends {"step": step, **metrics}. Pass names that contain a slash as `**{"objective/kl": kl}`."""
        if RANK > 0:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **plain(metrics)}) + "\n")


def sha256(path: Path) -> str:
    """The SHA-256 checksum of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
