"""Counts the validation and test prompts that the base or another split has read. Takes a minute.

    python -m rlhf_mini.world.overlap

It draws the base model's corpus again, as `rlhf_mini.world.base` did, and looks for the prompts in it and in the other
splits, without regard to the words around a request ("Hello! ...").
"""

from collections.abc import Iterator
from itertools import islice

from transformers import AutoTokenizer

from rlhf_mini.core.checkpoints import Checkpoint, load_checkpoint
from rlhf_mini.core.console import console, run, track
from rlhf_mini.core.examples import read_demonstrations, read_prompts
from rlhf_mini.world.corpus import documents
from rlhf_mini.world.heldout import SPLITS, Core, core, held_out_prompts, occurring, without
from rlhf_mini.world.knowledge import DATA

BATCH_SIZE = 2000  # documents


def corpus(base: Checkpoint) -> Iterator[list[str]]:
    """The documents that the base was trained on, in batches."""
    tokenizer, left = AutoTokenizer.from_pretrained(base.path), base.info["options"]["corpus_tokens"]
    drawn = without(documents(base.info["seed"]), held_out_prompts())
    while left > 0:
        texts = list(islice(drawn, BATCH_SIZE))
        left -= sum(len(ids) + 1 for ids in tokenizer(texts)["input_ids"])  # 1 for the eos of each document
        yield texts


def of_split(split: str) -> set[Core]:
    """The prompts of a split."""
    examples = (
        read_demonstrations(DATA / "demonstrations.jsonl")
        if split == "sft"
        else read_prompts(DATA / "prompts" / f"{split}.jsonl")
    )
    return {core(example["prompt"]) for example in examples}


def main() -> None:
    prompts = {split: of_split(split) for split in ("sft", "rm", "ppo", *SPLITS)}
    found: set[Core] = set()
    for texts in track(corpus(load_checkpoint(DATA / "base", "base")), "overlap: reading the corpus"):
        found |= {prompt for text in texts for prompt in occurring(text, held_out_prompts())}
    for split in SPLITS:
        others = {name: len(prompts[split] & prompts[name]) for name in prompts if name != split}
        shared = ", ".join(f"{number} in {name}" for name, number in others.items())
        console.print(
            f"{split}: of {len(prompts[split])} prompts, {len(prompts[split] & found)} occur in the base's corpus, "
            f"{shared}"
        )


if __name__ == "__main__":
    run(main)
