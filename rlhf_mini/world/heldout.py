"""Validation and test prompts, and whether a text of the base's corpus gives one of them away.

Two prompts are the same if they differ only in case or in the words around a request ("Hello! ... Thank you!"), and a
prompt occurs in a text wherever it is the rest of a line, whatever stands before it ("anna: ", "Question: ").
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache

from rlhf_mini.core.examples import Messages, read_prompts
from rlhf_mini.world.knowledge import DATA, load

SPLITS = ("validation", "test")
Core = tuple[str, ...]
"""What the user says in each turn, without the words around it."""


def core(prompt: Messages) -> Core:
    """What tells two prompts apart."""
    return tuple(bare(message["content"]) for message in prompt if message["role"] == "user")


def bare(text: str) -> str:
    """A request in lower case, without the words that prompts.yaml puts around requests."""
    text = text.lower().strip()
    before, after = _wrapping()
    while True:
        shorter = text
        for words in before:
            shorter = shorter.removeprefix(words)
        for words in after:
            shorter = shorter.removesuffix(words)
        if shorter == text or not shorter:
            return text
        text = shorter


@cache
def _wrapping() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words before and after {x}."""
    prompts = load().prompts
    phrasings = [p.lower() for kind in ("wrappers", "harmful") for part in prompts[kind].values() for p in part]
    parts = [phrasing.partition("{x}") for phrasing in phrasings]
    return tuple({before for before, _, _ in parts if before}), tuple({after for _, _, after in parts if after})


@cache
def held_out_prompts() -> frozenset[Core]:
    """Of all validation and test prompts in data/prompts."""
    return frozenset(
        core(example["prompt"]) for split in SPLITS for example in read_prompts(DATA / "prompts" / f"{split}.jsonl")
    )


def occurring(text: str, prompts: frozenset[Core]) -> set[Core]:
    """Those of `prompts` that occur in the text."""
    lines = [list(_rests(line)) for line in text.split("\n")]
    found: set[Core] = {(rest,) for rests in lines for rest in rests if (rest,) in prompts}
    for first, second in zip(lines, lines[2:], strict=False):  # a line between them answers the first
        found |= {(one, two) for one in first for two in second if (one, two) in prompts}
    return found


def _rests(line: str) -> Iterator[str]:
    """The line from each place on where a request may begin, without the words around it."""
    yield bare(line)
    for start in re.finditer(r"[:.!?] ", line):
        yield bare(line[start.end() :])


def without(texts: Iterable[str], prompts: frozenset[Core]) -> Iterator[str]:
    """The texts in which none of `prompts` occurs."""
    return (text for text in texts if not occurring(text, prompts))
