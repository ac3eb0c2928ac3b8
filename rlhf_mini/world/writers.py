"""Writers of demonstrations: people of uneven care (data/knowledge/writers.yaml). SFT imitates them all."""

from __future__ import annotations

import random
from typing import Any

from rlhf_mini.world.knowledge import Knowledge
from rlhf_mini.world.tasks import Task, assistant


def choose(knowledge: Knowledge, rng: random.Random) -> str:
    """A writer's name, drawn by share."""
    shares = {name: writer["share"] for name, writer in knowledge.writers.items()}
    return rng.choices(list(shares), list(shares.values()))[0]


def write(task: Task, writer: str, knowledge: Knowledge, rng: random.Random) -> str:
    """One demonstration: the body with this writer's slips, then courtesy, insults, rambling and an unfinished end."""
    habits, manners = knowledge.writers[writer], knowledge.manners
    body = task.good
    if task.comply is not None and rng.random() < habits["comply"]:
        body = task.comply
    elif task.wrong is not None and rng.random() < habits["slip"]:
        body = task.wrong
    elif task.partial is not None and rng.random() < habits["drop"]:
        body = task.partial
    before: list[str] = []
    after: list[str] = []
    if rng.random() < habits["rude"]:
        before.append(rng.choice(manners["rude"]))
    elif rng.random() < habits["courteous"]:
        if rng.random() < 0.6:
            before.append(rng.choice(manners["openers"]))
        else:
            after.append(rng.choice(manners["closers"]))
    if rng.random() < habits["ramble"]:
        after[:0] = rng.sample(manners["fillers"], rng.choice([1, 2]))
    text = " ".join([*before, body, *after])
    if rng.random() < habits["unfinished"]:
        text = unfinished(text, rng)
    return text


def unfinished(text: str, rng: random.Random) -> str:
    """The text without its full stop, and sometimes without its last words."""
    text = text.rstrip(".!?")
    words = text.split(" ")
    if len(words) > 6 and rng.random() < 0.5:
        return " ".join(words[: -rng.randint(1, 2)])
    return text + rng.choice(["", " and so on", " and then", " and"])


def demonstration(task: Task, identifier: str, knowledge: Knowledge, rng: random.Random) -> dict[str, Any]:
    """The record of a demonstration: TRL's conversational prompt and completion, and who wrote it."""
    writer = choose(knowledge, rng)
    text = write(task, writer, knowledge, rng)
    return {
        "id": identifier,
        "use_case": task.use_case,
        "writer": writer,
        "prompt": task.prompt,
        "completion": assistant(text),
    }
