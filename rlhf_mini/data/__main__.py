"""Looks at a file or data set before a stage reads it: what was recognised, how much of it, and what was left out.

    python -m rlhf_mini.data inspect hh.jsonl.gz
    python -m rlhf_mini.data inspect alpaca_data.json --base data/base     # lengths in tokens, and what is too long
    python -m rlhf_mini.data inspect messages.jsonl --strict               # fails if any record is rejected

rlhf_mini/data/formats.py lists the formats. "hh-rlhf:FILE" names one, which is recognised otherwise.
"""

import argparse
import json
from array import array
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
from rich.table import Table

from rlhf_mini.core.console import UserError, console, printable, run, track
from rlhf_mini.data.formats import FORMATS, Item, Text
from rlhf_mini.data.load import MAKE, Kind, Rejected, Report, made_of, outcomes

SHOWN = 300  # characters of a message


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_mini.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("inspect",), metavar="inspect")
    parser.add_argument("source", help=f"[FORMAT:]FILE or owner/name[@split]; formats: {', '.join(sorted(FORMATS))}")
    parser.add_argument("--base", help="a model, as for SFT: lengths are in its tokens, not in characters")
    parser.add_argument("--examples", type=int, default=3, help="examples to show (default: 3)")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if a record is rejected")
    options = parser.parse_args()
    inspect(options.source, options.base, options.examples, options.strict)


class Found:
    """The examples of one kind: what each says, as a hash, and how long its prompt and responses are."""

    def __init__(self) -> None:
        self.hashes = array("Q")  # the texts would fill the memory
        self.prompts, self.responses = array("I"), array("I")
        self.sizes: Counter[int] = Counter()
        """Of rankings: how many have K responses."""
        self.ties = 0

    def repetitions(self) -> int:
        """How many say the same as one before them."""
        ordered = np.sort(self.hashes)  # np.unique would take up six times as much memory
        return int(np.count_nonzero(ordered[1:] == ordered[:-1]))


def inspect(source: str, base: str | None, examples: int, strict: bool) -> None:
    """Prints all about `source`. UserError if it is no data, or, with `strict`, if a record is rejected."""
    measure = Lengths(base)
    report = Report(source)
    found: dict[Kind, Found] = {kind: Found() for kind in MAKE}
    shown: list[Item | Text] = []
    for one in track(outcomes(source, report), "reading"):
        made: dict[Kind, tuple[list[Any], str]] = {kind: made_of(one, make) for kind, make in MAKE.items()}
        if any(of_kind for of_kind, _ in made.values()):
            report.used += len(one.places)
            shown += one.items[: max(0, examples - len(shown))]
        else:
            reason = one.reason or next(reason for _, reason in made.values())
            report.rejected += [Rejected(place, reason) for place in one.places]
        for kind, (of_kind, _) in made.items():
            for example in of_kind:
                count(found[kind], example, measure)
    console.print(f"{report.source}: format {report.format or 'unknown'}", style="bold", soft_wrap=True)
    console.print(f"{report.records:,} records: {report.used:,} used, {len(report.rejected):,} rejected")
    console.print(table(found, measure))
    again = [f"{n:,} of {len(one.hashes):,} {kind}" for kind, one in found.items() if (n := one.repetitions())]
    if again:
        console.print(f"repetitions: {', '.join(again)}", soft_wrap=True)
    for item in shown:
        console.print(printable("\n".join(lines_of(item))), soft_wrap=True)
    for place, reason in report.rejected:
        console.print(f"rejected: {report.source}, {place}: {printable(reason)}", soft_wrap=True)
    if not report.used:
        raise UserError(f"{report.source}: no record can be used")
    if strict and report.rejected:
        raise UserError(f"{report.source}: {len(report.rejected):,} records are rejected")


class Lengths:
    """Lengths in characters or in a model's tokens."""

    def __init__(self, base: str | None) -> None:
        self.unit, self.context, self.tokenizer = "characters", None, None
        if base is not None:
            from rlhf_mini.models.base import base_tokenizer

            self.unit = "tokens"
            self.tokenizer, config = base_tokenizer(base)
            self.context = getattr(config.get_text_config(), "max_position_embeddings", None)

    def of_prompt(self, messages: Any) -> int:
        if self.tokenizer is None:
            return sum(len(message["content"]) for message in messages)
        from rlhf_mini.models.text import encode_prompts

        return len(encode_prompts(self.tokenizer, [messages])[0].ids)

    def of_text(self, text: str) -> int:
        return (
            len(text) if self.tokenizer is None else len(self.tokenizer(text, split_special_tokens=True)["input_ids"])
        )


def hash_of(example: Any) -> int:
    """Of its prompt, responses and ranks; other keys, such as an id or a labeler, do not count."""
    keys = ("prompt", "completion", "responses", "ranks")
    said = example if isinstance(example, str) else [example.get(key) for key in keys]
    return int.from_bytes(blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=8).digest(), "big")


def count(found: Found, example: Any, measure: Lengths) -> None:
    found.hashes.append(hash_of(example))
    if isinstance(example, str):
        found.responses.append(measure.of_text(example))
        return
    found.prompts.append(measure.of_prompt(example["prompt"]))
    responses = example.get("responses") or [message["content"] for message in example.get("completion", [])]
    found.responses.extend(map(measure.of_text, responses))
    if "ranks" in example:
        found.sizes[len(responses)] += 1
        found.ties += len(set(example["ranks"])) < len(responses)


def table(found: dict[Kind, Found], measure: Lengths) -> Table:
    out = Table("as", "examples", f"prompt, {measure.unit}", f"response, {measure.unit}", "of it")
    for column in out.columns[1:4]:
        column.justify = "right"
    for kind, one in found.items():
        if one.hashes:
            notes = [f"K = {size}: {number:,}" for size, number in sorted(one.sizes.items())]
            notes += [f"with ties: {one.ties:,}"] if one.ties else []
            if measure.context and one.prompts:
                room = sum(length > measure.context for length in one.prompts)
                notes += [f"prompts over the context of {measure.context:,}: {room:,}"]
            out.add_row(kind, f"{len(one.hashes):,}", spread(one.prompts), spread(one.responses), "\n".join(notes))
    return out


def spread(lengths: "array[int]") -> str:
    """Median, 95th percentile and maximum."""
    if not lengths:
        return ""
    return " / ".join(f"{each:,.0f}" for each in np.percentile(np.frombuffer(lengths, np.uintc), [50, 95, 100]))


def lines_of(item: Item | Text) -> Iterator[str]:
    def short(text: str) -> str:
        one_line = " ".join(text.split())
        return one_line if len(one_line) <= SHOWN else one_line[: SHOWN - 3] + "..."

    if isinstance(item, Text):
        yield f"  text: {short(item.text)}"
        return
    for message in item.prompt:
        yield f"  {message['role']}: {short(message['content'])}"
    for index, response in enumerate(item.responses):
        rank = f"rank {item.ranks[index]}" if item.ranks else "response"
        yield f"    {rank}: {short(response)}"


if __name__ == "__main__":
    run(main)
