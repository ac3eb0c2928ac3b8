"""`make data`: writes data/demonstrations.jsonl, data/pretraining.jsonl and data/prompts/*.jsonl from data/knowledge.

python -m rlhf_mini.world.build
"""

from __future__ import annotations

import argparse
import random
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf_mini.core.console import UserError, console, run
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.world.corpus import documents
from rlhf_mini.world.knowledge import DATA, load
from rlhf_mini.world.tasks import USE_CASES, Maker, Task
from rlhf_mini.world.writers import demonstration

SEED = 20220304  # the day InstructGPT appeared on arXiv
TEXTS = 4000
SIZES = {"sft": 6000, "rm": 2400, "ppo": 2560, "validation": 600, "test": 1200}
NOVEL = {"none": 0.52, "entity": 0.16, "phrasing": 0.16, "both": 0.16}  # shares of validation and test


def splits(seed: int = SEED) -> dict[str, list[dict[str, Any]]]:
    """All records of all splits. Prompts are disjoint across splits (compared by their text)."""
    knowledge, rng = load(), random.Random(seed)
    taken: set[str] = set()

    def fresh(maker: Maker) -> Task:
        use_case = rng.choices(list(USE_CASES), list(USE_CASES.values()))[0]
        for _ in range(1000):
            task = maker.draw(use_case)
            text = "\n".join(message["content"].lower() for message in task.prompt)
            if text not in taken:
                taken.add(text)
                return task
        raise UserError("The knowledge files are too small for so many different prompts: add facts or phrasings.")

    out: dict[str, list[dict[str, Any]]] = {}
    # Test and validation first: where prompts of a kind are few, the stages that learn go short, not the judge.
    for split in ("test", "validation", "sft", "rm", "ppo"):
        out[split] = []
        for number in range(SIZES[split]):
            judged = split in ("validation", "test")
            novel = rng.choices(list(NOVEL), list(NOVEL.values()))[0] if judged else "none"
            entity, phrasing = (split if novel in (what, "both") else "seen" for what in ("entity", "phrasing"))
            task = fresh(Maker(knowledge, rng, entity=entity, phrasing=phrasing))
            identifier = f"{split}-{number:05d}"
            if split == "sft":
                out[split].append(demonstration(task, identifier, knowledge, rng))
            else:
                out[split].append(task.record(identifier, novel))
    return out


def files(data: Path = DATA) -> dict[Path, list[dict[str, Any]]]:
    """What belongs in each file."""
    records = splits()
    paths = {data / "prompts" / f"{split}.jsonl": records[split] for split in ("rm", "ppo", "validation", "test")}
    # Texts like the base model's, none of them one that it has read (but for the shortest): another seed drew those.
    texts = [{"text": text} for text in islice(documents(SEED), TEXTS)]
    return {data / "demonstrations.jsonl": records["sft"], **paths, data / "pretraining.jsonl": texts}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlhf_mini.world.build", description=__doc__.split("\n")[0])
    parser.parse_args()
    for path, records in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, records)
        console.print(f"{len(records):5d} records in {path.relative_to(DATA.parent)}")


if __name__ == "__main__":
    run(main)
