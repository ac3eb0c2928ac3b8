"""Files with anything in them: no traceback, no record lost, and the counts always add up."""

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_formats import BROKEN, DEMONSTRATIONS, RANKINGS

from rlhf_mini.core.console import UserError
from rlhf_mini.data.load import MAKE, Report, examples_of

FAMILIES: dict[str, list[Any]] = defaultdict(list)  # records by format
for name, records, *_ in RANKINGS:
    FAMILIES[name] += records
for name, record, *_ in [*DEMONSTRATIONS, *BROKEN]:
    FAMILIES[name].append(record)
FAMILIES |= {"text": [{"text": "once"}], "prompt": [{"prompt": "Q"}]}
GOOD = [record for family in FAMILIES.values() for record in family]
KEYS = sorted({key for record in GOOD for key in record} | {"replies", "content", "role", "from", "value"})
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["user", "gpt"])
)
VALUES = st.recursive(
    SCALARS,
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.sampled_from(KEYS), each, max_size=4),
    max_leaves=8,
)
BYTES = st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b" ").replace(b"\r", b" "))
PER_FILE = 60


def damaged(record: Any, value: Any, chance: random.Random) -> Any:
    """The record with one value, at any depth, exchanged or left out."""
    copy = json.loads(json.dumps(record))
    place: Any = copy
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return copy
        key = chance.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.6:
            place = place[key]
        elif chance.random() < 0.3:
            del place[key]
            return copy
        else:
            place[key] = value
            return copy


@st.composite
def files(draw: st.DrawFn) -> list[bytes]:
    """Most lines are of one format, half of these damaged; some are of another format, or of none."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    family = FAMILIES[draw(st.sampled_from(sorted(FAMILIES)))]
    drawn = []
    for _ in range(PER_FILE):
        kind = chance.random()
        if kind < 0.05:
            drawn.append(draw(BYTES))
        elif kind < 0.1:
            drawn.append(json.dumps(draw(VALUES)).encode())
        else:
            record = chance.choice(family if kind < 0.9 else GOOD)
            record = damaged(record, draw(VALUES), chance) if kind < 0.5 else record
            text = json.dumps(record, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
            drawn.append(text[: chance.randrange(len(text))] if chance.random() < 0.05 else text)
    return drawn


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=files())
def test_counts_add_up_whatever_a_file_holds(tmp_path: Path, content: list[bytes]) -> None:
    """200 files of 60 lines are 12,000 records."""
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"\n".join(content))
    nonblank = sum(bool(line.decode("utf-8", "surrogateescape").strip()) for line in path.read_bytes().splitlines())
    for kind in MAKE:
        report = Report(str(path))
        try:
            found = list(examples_of(str(path), kind, report))
        except UserError as fault:
            assert "\n" not in str(fault)
            continue
        assert report.records == report.used + len(report.rejected)
        places = [place for place, _ in report.rejected]
        assert len(set(places)) == len(places) and all(reason for _, reason in report.rejected)
        if places and places[0].startswith("line"):
            assert report.records == nonblank
        assert bool(found) == bool(report.used)
        assert json.dumps(found, ensure_ascii=False).encode()  # all of it is text
