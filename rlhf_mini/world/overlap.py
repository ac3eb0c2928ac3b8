"""Counts the test prompts that occur word for word in the base model's corpus. Takes a minute.

    python -m rlhf_mini.world.overlap

It draws the corpus again, as `rlhf_mini.world.base` did, and looks up each line among the single-turn test prompts.
"""

from collections.abc import Iterator
from itertools import islice

from transformers import AutoTokenizer

from rlhf_mini.core.checkpoints import Checkpoint, load_checkpoint
from rlhf_mini.core.console import console, run, track
from rlhf_mini.core.examples import read_prompts
from rlhf_mini.world.corpus import documents
from rlhf_mini.world.knowledge import DATA

BATCH_SIZE = 2000  # documents


def corpus(base: Checkpoint) -> Iterator[list[str]]:
    """The documents that the base was trained on, in batches."""
    tokenizer, left = AutoTokenizer.from_pretrained(base.path), base.info["options"]["corpus_tokens"]
    drawn = documents(base.info["seed"])
    while left > 0:
        texts = list(islice(drawn, BATCH_SIZE))
        left -= sum(len(ids) + 1 for ids in tokenizer(texts)["input_ids"])  # 1 for the eos of each document
        yield texts


def main() -> None:
    examples = read_prompts(DATA / "prompts" / "test.jsonl")
    prompts = {example["prompt"][0]["content"] for example in examples if len(example["prompt"]) == 1}
    found: set[str] = set()
    for texts in track(corpus(load_checkpoint(DATA / "base", "base")), "overlap: reading the corpus"):
        lines = (line.strip() for text in texts for line in text.split("\n"))
        found |= prompts.intersection(line.removeprefix("Question: ").removeprefix("Q: ") for line in lines)
    console.print(f"{len(found)} of {len(prompts)} single-turn test prompts occur word for word in the base's corpus")


if __name__ == "__main__":
    run(main)
