"""Examples for the stages, from a file or data set in any of the formats: what fits is used, what does not is counted.

    demonstrations = load("sft", "alpaca_data.json", "demonstrations")
    # sft: alpaca_data.json is in the format alpaca: 52,002 demonstrations

A record is used, or it is rejected with its place and the reason. Examples that would take up much memory are on the
disk instead, in a file that vanishes with them.
"""

import json
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from rlhf_mini.core.console import UserError, console, track
from rlhf_mini.core.examples import Demonstration, Prompt, Ranking
from rlhf_mini.data.formats import FORMATS, Format, Item, Outcome, Placed, Text, Unusable, recognised
from rlhf_mini.data.records import Broken, Record, read_records

T = TypeVar("T")
Kind = Literal["demonstrations", "rankings", "prompts", "texts"]
LOOKED_AT = 100  # records by which a format is recognised
IN_MEMORY = 64_000_000  # characters of JSON; examples beyond that are on the disk
OWN = {"prompt-completion", "ranking", "prompt", "text"}  # formats of which nobody needs to be told


class Rejected(NamedTuple):
    """A record that is not used."""

    place: str
    reason: str


@dataclass
class Report:
    """What became of the records of a source: records = used + len(rejected)."""

    source: str
    format: str = ""
    records: int = 0
    used: int = 0
    rejected: list[Rejected] = field(default_factory=list)


@overload
def load(stage: str, source: str, kind: Literal["demonstrations"], strict: bool = False) -> Sequence[Demonstration]: ...
@overload
def load(stage: str, source: str, kind: Literal["rankings"], strict: bool = False) -> Sequence[Ranking]: ...
@overload
def load(stage: str, source: str, kind: Literal["prompts"], strict: bool = False) -> Sequence[Prompt]: ...
@overload
def load(stage: str, source: str, kind: Literal["texts"], strict: bool = False) -> Sequence[str]: ...
def load(stage: str, source: str, kind: Kind, strict: bool = False) -> Sequence[Any]:
    """The examples of `source`, as the stage reads them.

    Args:
        stage: begins the line that says what was recognised and left out.
        source: as in `read_records`; "hh-rlhf:FILE" names the format, which is recognised otherwise.
        strict: raise at the first record that cannot be used.

    Raises:
        UserError: it cannot be read, or not one record can be used; with `strict`, if one cannot.
    """
    report = Report(source)
    examples = collected(examples_of(source, kind, report, strict))
    first = report.rejected[0] if report.rejected else None
    if not examples:
        why = f"{first.place} is rejected, {first.reason}" if first else "it is empty"
        raise UserError(f"{report.source}, as {report.format or 'data'}, has no {kind}: {why}")
    if report.format not in OWN or first:
        line = f"{stage}: {report.source} is in the format {report.format}: {len(examples):,} {kind}"
        if first:
            left_out = f"{len(report.rejected):,} of {report.records:,} records are left out"
            line += f"; {left_out}, the first is {first.place}: {first.reason}"
        console.print(line, soft_wrap=True)
    return examples


# --- reading ---------------------------------------------------------------------------------------------------------


def examples_of(source: str, kind: Kind, report: Report, strict: bool = False) -> Iterator[Any]:
    """The examples of one kind, one by one. A record of which nothing becomes an example is rejected, too."""
    for found in outcomes(source, report):
        made, reason = made_of(found, MAKE[kind])
        if made:
            report.used += len(found.places)
        elif strict:
            raise UserError(f"{report.source}, {found.places[0]}: {reason}")
        else:
            report.rejected += [Rejected(place, reason) for place in found.places]
        yield from made


def made_of(found: Outcome, make: Callable[[Item | Text], Any]) -> tuple[list[Any], str]:
    """The examples among the items, and the first reason why an item is none."""
    made, reasons = [], [found.reason] if found.reason else []
    for item in found.items:
        try:
            made.append(make(item))
        except Unusable as fault:
            reasons.append(str(fault))
    return made, next(iter(reasons), "it says nothing")


def outcomes(source: str, report: Report) -> Iterator[Outcome]:
    """What became of every record; `report` gets its source, its format and the number of records.

    Raises:
        UserError: the source cannot be read, or looks like no format.
    """
    given, report.source = named(source)
    places = read_records(report.source)
    looked_at = list(islice(places, LOOKED_AT))
    form = given or recognised(record for _, record in looked_at if not isinstance(record, Broken))
    if form is None:
        raise UserError(f"{report.source} holds nothing that looks like a known format: {first_of(looked_at)}")
    report.format = form.name
    unfit: list[Outcome] = []
    for found in form.outcomes(fitting(form, counted(chain(looked_at, places), report), unfit)):
        yield from unfit
        unfit.clear()
        yield found
    yield from unfit


def named(source: str) -> tuple[Format | None, str]:
    """The format that "FORMAT:FILE" names, and the file."""
    name, colon, rest = source.partition(":")
    return (FORMATS[name], rest) if colon and name in FORMATS else (None, source)


def files_among(sources: Iterable[str]) -> list[str]:
    """The files that these sources are read from, and no data sets; "" is none."""
    return [file for source in sources if Path(file := named(source)[1]).is_file()]


def first_of(looked_at: Sequence[tuple[str, Record | Broken]]) -> str:
    if not looked_at:
        return "it is empty"
    place, record = looked_at[0]
    return f"{place} is {record.reason}" if isinstance(record, Broken) else f"{place} has {keys_of(record)}"


def keys_of(record: Record) -> str:
    return f"the keys {', '.join(map(repr, list(record)[:8]))[:200]}" if record else "no keys"


def counted(places: Iterable[tuple[str, Record | Broken]], report: Report) -> Iterator[tuple[str, Record | Broken]]:
    for place in places:
        report.records += 1
        yield place


def fitting(form: Format, places: Iterable[tuple[str, Record | Broken]], unfit: list[Outcome]) -> Iterator[Placed]:
    """The records that look like the format; the others become outcomes in `unfit`."""
    for place, record in places:
        if isinstance(record, Broken):
            unfit.append(Outcome([place], [], record.reason))
        elif not form.fits(record):
            unfit.append(Outcome([place], [], f"not in the format {form.name}: it has {keys_of(record)}"))
        else:
            yield place, record


# --- as what the stages read -----------------------------------------------------------------------------------------


def as_demonstration(item: Item | Text) -> Demonstration:
    """The prompt with its best response."""
    if isinstance(item, Text) or not item.responses:
        raise Unusable("it has no response to a prompt, as a demonstration would")
    best = item.responses[item.ranks.index(min(item.ranks)) if item.ranks else 0]
    if not best.strip():
        raise Unusable("the response is blank")
    completion = [{"role": "assistant", "content": best}]
    return cast(Demonstration, {"prompt": item.prompt, "completion": completion, **item.more})


def as_ranking(item: Item | Text) -> Ranking:
    if isinstance(item, Text) or item.ranks is None:
        raise Unusable("it has no two responses that somebody compared, as a ranking would")
    if len(set(item.responses)) < len(item.responses) and "ended" not in item.more:
        raise Unusable("a response stands there twice")
    return cast(Ranking, {"prompt": item.prompt, "responses": item.responses, "ranks": item.ranks, **item.more})


def as_prompt(item: Item | Text) -> Prompt:
    if isinstance(item, Text):
        raise Unusable("it is a text without a prompt")
    return cast(Prompt, {"prompt": item.prompt, **item.more})


def as_text(item: Item | Text) -> str:
    if isinstance(item, Item):
        raise Unusable("it is no plain text")
    return item.text


MAKE: dict[Kind, Callable[[Item | Text], Any]] = {
    "demonstrations": as_demonstration,
    "rankings": as_ranking,
    "prompts": as_prompt,
    "texts": as_text,
}


# --- keeping ---------------------------------------------------------------------------------------------------------


def collected(examples: Iterable[T], make: Callable[..., T] | None = None) -> Sequence[T]:
    """The examples as a list or, if they are many, as `OnDisk`.

    Args:
        make: the type of named tuples, which the disk would turn into lists.
    """
    kept: list[T] = []
    size = 0
    rest = iter(examples)
    for example in rest:
        kept.append(example)
        size += len(json.dumps(example))
        if size > IN_MEMORY:
            return OnDisk(chain(kept, rest), make)
    return kept


class OnDisk(Sequence[T]):
    """Examples as JSON in a file, and in memory where each begins: reading one takes 20 microseconds.

    The file is not mapped into memory, where all of it would count as the process's after one pass over the examples.
    """

    def __init__(self, examples: Iterable[T], make: Callable[..., T] | None = None) -> None:
        self._file = tempfile.TemporaryFile(prefix="rlhf_mini-")  # noqa: SIM115 (removed with this object)
        self._starts, self._make = array("q", [0]), make
        for example in track(examples, "reading a large file"):
            line = json.dumps(example, ensure_ascii=False).encode()
            self._file.write(line)
            self._starts.append(self._starts[-1] + len(line))
        self._file.flush()  # a full disk is noticed here

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> Any:
        where = range(len(self))[index]
        if isinstance(where, range):
            return [self[each] for each in where]
        start, end = self._starts[where : where + 2]
        self._file.seek(start)
        example = json.loads(self._file.read(end - start))
        return self._make(*example) if self._make else example


class Selected(Sequence[T]):
    """The examples at some indices of a sequence."""

    def __init__(self, examples: Sequence[T], indices: Sequence[int] | NDArray[np.int64]) -> None:
        self._examples, self._indices = examples, np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return Selected(self._examples, self._indices[index])
        return self._examples[int(self._indices[index])]
