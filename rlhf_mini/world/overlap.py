"""Counts the test questions that the base model has read word for word: `python -m rlhf_mini.world.overlap`.

Its web is drawn again, as `rlhf_mini.world.base` drew it, and each line is looked up among the test prompts of one
turn. It takes a minute.
"""

from collections.abc import Iterator
from itertools import islice

from transformers import AutoTokenizer

from rlhf_mini.core.checkpoints import Checkpoint, load_checkpoint
from rlhf_mini.core.console import console, run, track
from rlhf_mini.core.examples import read_prompts
from rlhf_mini.world.corpus import documents
from rlhf_mini.world.knowledge import DATA

AT_ONCE = 2000  # documents


def web(base: Checkpoint) -> Iterator[list[str]]:
    """The documents that the base read, some at a time."""
    tokenizer, left = AutoTokenizer.from_pretrained(base.path), base.info["options"]["corpus_tokens"]
    drawn = documents(base.info["seed"])
    while left > 0:
        texts = list(islice(drawn, AT_ONCE))
        left -= sum(len(ids) + 1 for ids in tokenizer(texts)["input_ids"])  # and an end of text each
        yield texts


def main() -> None:
    records = read_prompts(DATA / "prompts" / "test.jsonl")
    asked = {record["prompt"][0]["content"] for record in records if len(record["prompt"]) == 1}
    read: set[str] = set()
    for texts in track(web(load_checkpoint(DATA / "base", "base")), "overlap: reading the web"):
        lines = (line.strip() for text in texts for line in text.split("\n"))
        read |= asked.intersection(line.removeprefix("Question: ").removeprefix("Q: ") for line in lines)
    console.print(f"{len(read)} of {len(asked)} test prompts of one turn stand in the base's web word for word")


if __name__ == "__main__":
    run(main)
