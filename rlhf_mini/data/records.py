"""The records of a file or data set, one at a time: each with its place, or with the reason why it is none.

    for place, record in read_records("hh.jsonl.gz"):
        ...                                         # record: a dict, or Broken

JSON and CSV are read here, line by line, because one broken line must not cost the others: the readers of `datasets`
give up a whole file at the first. Parquet and data sets of the Hub are read by `datasets`.

Files are UTF-8 or UTF-16, with or without a byte order mark, with any line ends, and may be compressed with gzip.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rlhf_mini.core.console import UserError
from rlhf_mini.core.validation import is_utf8

MAX_RECORD = 16_000_000  # characters: what is longer is no example, and would fill the memory
BEGINNING = 1_000_000  # characters that tell JSON lines from other JSON
CSV_SUFFIXES = {".csv": ",", ".tsv": "\t"}
DATASET = re.compile(r"[\w.-]+/[\w.-]+(@[\w.\[\]:%-]+)?")  # owner/name, and perhaps @split

NO_TEXT = (
    "rlhf_mini.no_text"  # how the decoders treat bytes that are no text: half a surrogate pair, which no text holds
)
codecs.register_error(NO_TEXT, lambda fault: ("\udc80", fault.end if isinstance(fault, UnicodeDecodeError) else 0))

Record = dict[str, Any]


class Broken(NamedTuple):
    """What stands where a record should be."""

    reason: str


Places = Iterator[tuple[str, Record | Broken]]


def read_records(source: str | Path) -> Places:
    """All records of `source`, in order, with their places ("line 3", or "record 3" where there are no lines).

    Args:
        source: a file whose name ends in .json, .jsonl, .csv, .tsv or .parquet, perhaps with .gz; any other ending is
            read as JSON. Or a data set, as owner/name or owner/name@split (default: train), from the local cache of
            `datasets`, or from the network where HF_HUB_OFFLINE=0 says so.

    Raises:
        UserError: it cannot be read at all.
    """
    path = Path(source)
    if not path.exists() and DATASET.fullmatch(str(source)):
        return from_dataset(str(source))
    if not path.is_file():
        raise UserError(f"{source} cannot be read ({'a folder' if path.is_dir() else 'no such file'}): check its name")
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() == ".parquet":
        return from_parquet(path)
    if suffix.lower() in (".bin", ".pt", ".pth", ".pkl", ".pickle", ".joblib", ".npy"):
        raise UserError(f"{source} may hold a pickle, which can run code when it is read: convert it to JSON lines")
    return from_text(path, CSV_SUFFIXES.get(suffix.lower()))


# --- text ------------------------------------------------------------------------------------------------------------


def from_text(path: Path, delimiter: str | None) -> Places:
    """Of JSON, or of CSV with this delimiter."""
    try:
        with path.open("rb") as stored, UntilFault(gzip.open(stored) if path.suffix == ".gz" else stored) as content:
            file = as_text(content)
            yield from from_csv(file, delimiter) if delimiter else from_json(file)
            if content.fault:
                yield "the end", Broken(f"the compressed file breaks off or is damaged ({content.fault})")
    except OSError as fault:
        raise UserError(f"{path} cannot be read ({fault.strerror or fault}): check the file") from None


class UntilFault(io.RawIOBase):
    """A file that ends where its compressed content is damaged."""

    def __init__(self, file: Any) -> None:
        self.file, self.fault = file, ""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self.file.seek(offset, whence))

    def readinto(self, buffer: Any, /) -> int:
        try:
            data = self.file.read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as fault:
            self.fault = str(fault)
            return 0
        buffer[: len(data)] = data
        return len(data)


def as_text(content: io.RawIOBase) -> TextIO:
    """What is no text becomes half surrogate pairs, by which `checked` and `from_csv` know it."""
    binary = io.BufferedReader(content)
    beginning = binary.peek(4)[:4]
    encoding = "utf-8-sig"
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in beginning:  # an ASCII character in UTF-16 without a byte order mark
        encoding = "utf-16-be" if beginning[:1] == b"\0" else "utf-16-le"
    return io.TextIOWrapper(binary, encoding, NO_TEXT, newline="")  # a text may hold U+2028, which is no line end here


def lines_of(file: TextIO) -> Iterator[tuple[int, str | None]]:
    """Numbered lines; None for one that is longer than MAX_RECORD."""
    number = 0
    while line := file.readline(MAX_RECORD):
        number += 1
        if len(line) < MAX_RECORD or line.endswith("\n"):
            yield number, line
            continue
        while (rest := file.readline(MAX_RECORD)) and not rest.endswith("\n"):
            pass
        yield number, None


def from_json(file: TextIO) -> Places:
    """JSON lines, or JSON values one after another, on any number of lines, perhaps in an array or under one key."""
    beginning = file.read(BEGINNING)
    file.seek(0)
    stripped = beginning.lstrip()
    first_line = stripped.split("\n", 1)[0]
    if stripped.startswith("[") or (stripped.startswith("{") and not is_json(first_line) and spreads(stripped)):
        yield from from_json_values(file)
        return
    for number, line in lines_of(file):
        if line is None:
            yield f"line {number}", Broken(f"longer than {MAX_RECORD:,} characters")
        elif line.strip():
            yield f"line {number}", parsed(line)


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def spreads(text: str) -> bool:
    """Whether the first object of `text` is spread over several lines, rather than broken."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as fault:
        return fault.pos >= len(text) - 1 and text.find("\n") < fault.pos  # it goes on after the beginning
    except (ValueError, RecursionError):
        return False
    return "\n" in text[:end]


def parsed(text: str) -> Record | Broken:
    try:
        return checked(json.loads(text))
    except json.JSONDecodeError as fault:
        return Broken(f"not valid JSON ({fault.msg} at column {fault.colno})")
    except RecursionError:
        return Broken("nested too deeply")
    except ValueError as fault:  # a number of thousands of digits
        return Broken(f"not valid JSON ({fault})")


def checked(value: Any) -> Record | Broken:
    if not isinstance(value, dict):
        return Broken(f"not a JSON object but {json.dumps(value)[:40]}")
    if not is_utf8(json.dumps(value, ensure_ascii=False, default=str)):
        return Broken("not UTF-8 text, or half of a surrogate pair, which is no character")
    return value


def from_json_values(file: TextIO) -> Places:
    """The objects in an array, or one after another, while little more than one is in memory.

    From a syntax error on, nothing tells where the next object begins, so the rest is one broken record.
    """
    decoder = json.JSONDecoder()
    text, number, at_the_end = "", 0, False
    while True:
        text = text.lstrip("[, \t\r\n" if number == 0 else "], \t\r\n")
        if not text and at_the_end:
            return
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError) as fault:  # perhaps only because the rest has not been read yet
            if isinstance(fault, RecursionError) or at_the_end or len(text) > MAX_RECORD:
                what = fault.msg if isinstance(fault, json.JSONDecodeError) else "too long or nested too deeply"
                yield f"record {number + 1}", Broken(f"not valid JSON ({what}); the rest cannot be read")
                return
            more = file.read(max(BEGINNING, len(text)))
            text, at_the_end = text + more, not more
            continue
        text = text[end:]
        for record in under_one_key(value) if number == 0 else [value]:
            number += 1
            yield f"record {number}", checked(record)


def under_one_key(value: Any) -> list[Any]:
    """{"data": [{...}, ...]} is that list; any other value is a record of its own."""
    found = value.get("data") if isinstance(value, dict) else None
    return found if isinstance(found, list) else [value]


def from_csv(file: TextIO, delimiter: str) -> Places:
    """Rows as {column: text}; an empty field counts as absent."""
    csv.field_size_limit(MAX_RECORD)
    reader = csv.reader((line.replace("\0", "\N{REPLACEMENT CHARACTER}") for line in file), delimiter=delimiter)
    columns: list[str] = []
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as fault:
            yield place, Broken(f"not valid CSV ({fault})")
            continue
        if not any(row):
            continue
        if not columns:
            columns = [name.strip() for name in row]
            continue
        if len(row) != len(columns):
            yield place, Broken(f"{len(row)} fields, where the first line names {len(columns)} columns")
        elif not is_utf8("".join(row)):
            yield place, Broken("not UTF-8 text")
        else:
            yield place, {name: field for name, field in zip(columns, row, strict=True) if field}


# --- datasets --------------------------------------------------------------------------------------------------------


def from_parquet(path: Path) -> Places:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        yield from of_rows(rows)
    except (DatasetGenerationError, OSError, ValueError) as fault:
        raise UserError(
            f"{path} is not a Parquet file that can be read ({' '.join(str(fault).split())[:100]})"
        ) from None


def from_dataset(source: str) -> Places:
    """From the cache of `datasets`. Nothing of the data set's own is run: `datasets` no longer does that."""
    from datasets import load_dataset

    name, _, split = source.partition("@")
    try:
        rows = load_dataset(name, split=split or "train")
    except Exception as fault:  # it has many ways to say that something is not there
        reason = " ".join(str(fault).split())[:160]
        raise UserError(
            f"{name} is neither a file nor a data set in the local cache ({reason}): check the name, or allow the "
            "network with HF_HUB_OFFLINE=0"
        ) from None
    yield from of_rows(rows)


def of_rows(rows: Any) -> Places:
    for number, row in enumerate(rows, start=1):
        present = {name: value for name, value in row.items() if value is not None}
        yield f"record {number}", checked(present)
