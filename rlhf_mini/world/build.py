"""`make data`: writes the *.jsonl files of data, data/prompts and data/content from data/knowledge.

python -m rlhf_mini.world.build
"""

import argparse
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rlhf_mini.core.console import UserError, console, run
from rlhf_mini.core.examples import PlainText, Preference, Prompt
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.world.content import preferences
from rlhf_mini.world.corpus import documents
from rlhf_mini.world.heldout import SPLITS, Core, core, without
from rlhf_mini.world.knowledge import DATA, load
from rlhf_mini.world.tasks import USE_CASES, Maker, Task, text_of
from rlhf_mini.world.writers import demonstration

SEED = 20241204
TEXTS = 4000  # in data/pretraining.jsonl
SIZES = {"sft": 6000, "rm": 2400, "ppo": 2560, "validation": 600, "test": 1200}
ALWAYS_SEEN = {"myth", "social", "past", "negative", "polite", "sentiment", "sum"}  # kinds without held-out entities
NOVEL = {"none": 0.52, "entity": 0.16, "phrasing": 0.16, "both": 0.16}  # shares of the validation and test prompts


def splits(seed: int = SEED) -> dict[str, list[Prompt]]:
    """The examples of each split: demonstrations in "sft", prompts in the others.

    No prompt text occurs twice, and no validation or test prompt occurs in another split, not in other wrapping either.
    """
    knowledge, rng = load(), random.Random(seed)
    taken: set[str] = set()
    cores: dict[str, set[Core]] = {}

    def fresh(maker: Maker, use_case: str, split: str) -> Task:
        for _ in range(1000):
            task = maker.draw(use_case)
            new_entity = maker.entity == "seen" or task.kind not in ALWAYS_SEEN
            own = cores.setdefault(split, set())
            elsewhere = any(core(task.prompt) in cores[other] for other in SPLITS if other in cores and other != split)
            if new_entity and text_of(task.prompt) not in taken and not elsewhere:
                taken.add(text_of(task.prompt))
                own.add(core(task.prompt))
                return task
        raise UserError("the knowledge files are too small for so many different prompts: add facts or phrasings")

    out: dict[str, list[Prompt]] = {}
    # Test and validation come first: where prompts of a kind run out, the training splits get fewer of them.
    for split in ("test", "validation", "sft", "rm", "ppo"):
        out[split] = []
        tasks: list[Task] = []
        has_novel = split in ("validation", "test")
        for number in range(SIZES[split]):
            use_case = rng.choices(list(USE_CASES), list(USE_CASES.values()))[0]
            novel = rng.choices(list(NOVEL), list(NOVEL.values()))[0] if has_novel else "none"
            if use_case == "rewrite" and novel != "none":  # has no entities to hold out
                novel = "phrasing"
            entity, phrasing = (split if novel in (what, "both") else "seen" for what in ("entity", "phrasing"))
            maker = Maker(knowledge, rng, entity=entity, phrasing=phrasing)
            if has_novel:  # there are few harmful requests: what validation and test ask for, training never does
                maker.requests = Maker(knowledge, rng, entity=split).requests
            task = fresh(maker, use_case, split)
            if task.kind == "harmful" and has_novel and entity == "seen":
                novel = {"none": "entity", "phrasing": "both"}[novel]
            identifier = f"{split}-{number:05d}"
            if split == "sft":
                out[split].append(demonstration(task, identifier, knowledge, rng))
            else:
                out[split].append(task.example(identifier, novel))
                tasks.append(task)
        if has_novel:
            out[split] = [with_references(*each, tasks) for each in zip(out[split], tasks, strict=True)]
    return out


def with_references(example: Prompt, task: Task, others: Sequence[Task]) -> Prompt:
    """The prompt with good and bad responses, for a judge that compares (rlhf_mini.world.references).

    One of the bad ones is good for another prompt of the same kind. It is drawn by a seed of its own, so that the
    prompts do not depend on it.
    """
    strange = [other.good for other in others if other.kind == task.kind and other.check != task.check]
    mistakes = [*task.mistakes, *random.Random(example["id"]).sample(strange, min(1, len(strange)))]
    mistakes = [mistake for mistake in dict.fromkeys(mistakes) if mistake not in task.references]
    return {**example, "references": task.references, "mistakes": mistakes}


def content(examples: dict[str, list[Prompt]], seed: int = SEED) -> dict[str, list[Preference]]:
    """The pairs of test and validation with the same manners and different content, on prompts that no split has."""
    rng = random.Random(seed + 1)  # not that of the splits, which would come out differently
    taken = {text_of(example["prompt"]) for split in examples.values() for example in split}
    return {split: preferences(load(), rng, split, taken) for split in ("test", "validation")}


def files(data: Path = DATA) -> dict[Path, Sequence[Prompt | PlainText]]:
    """The content of each file."""
    examples = splits()
    pairs = content(examples)
    prompts = {data / "prompts" / f"{split}.jsonl": examples[split] for split in ("rm", "ppo", "validation", "test")}
    # From the distribution that the base was trained on, but another seed: only very short texts may occur in both.
    held_out = frozenset(core(example["prompt"]) for split in SPLITS for example in examples[split])
    texts: list[PlainText] = [{"text": text} for text in islice(without(documents(SEED), held_out), TEXTS)]
    return {
        data / "demonstrations.jsonl": examples["sft"],
        **prompts,
        **{data / "content" / f"{split}.jsonl": pairs[split] for split in ("validation", "test")},
        data / "pretraining.jsonl": texts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlhf_mini.world.build", description=__doc__.split("\n")[0])
    parser.parse_args()
    for path, examples in files().items():
        write_jsonl(path, examples)
        console.print(f"{len(examples):5d} examples in {path.relative_to(DATA.parent)}")


if __name__ == "__main__":
    run(main)
