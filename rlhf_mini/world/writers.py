"""Writers of demonstrations, some more careful than others (data/knowledge/writers.yaml). SFT imitates them all."""

import random

from rlhf_mini.core.examples import Demonstration
from rlhf_mini.world.knowledge import Knowledge
from rlhf_mini.world.tasks import Task, assistant


class WrittenDemonstration(Demonstration):
    """A demonstration of the mini world, which names its writer."""

    writer: str


def choose(knowledge: Knowledge, rng: random.Random) -> str:
    """A writer's name, drawn in proportion to the writers' shares."""
    shares = {name: writer["share"] for name, writer in knowledge.writers.items()}
    return rng.choices(list(shares), list(shares.values()))[0]


def write(task: Task, writer: str, knowledge: Knowledge, rng: random.Random) -> str:
    """A response with this writer's habits: mistakes in the answer, then rudeness or courtesy, rambling, no ending."""
    habits, manners = knowledge.writers[writer], knowledge.manners
    answer = task.good
    if task.comply is not None and rng.random() < habits["comply"]:
        answer = task.comply
    elif task.wrong is not None and rng.random() < habits["slip"]:
        answer = task.wrong
    elif task.partial is not None and rng.random() < habits["drop"]:
        answer = task.partial
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
    text = " ".join([*before, answer, *after])
    if rng.random() < habits["unfinished"]:
        text = unfinished(text, rng)
    return text


def unfinished(text: str, rng: random.Random) -> str:
    """The text without its period, and sometimes without its last words or with a dangling connective."""
    text = text.rstrip(".!?")
    words = text.split(" ")
    if len(words) > 6 and rng.random() < 0.5:
        return " ".join(words[: -rng.randint(1, 2)])
    return text + rng.choice(["", " and so on", " and then", " and"])


def demonstration(task: Task, identifier: str, knowledge: Knowledge, rng: random.Random) -> WrittenDemonstration:
    """A response by a writer who is drawn at random, in TRL's conversational prompt-completion form."""
    writer = choose(knowledge, rng)
    text = write(task, writer, knowledge, rng)
    return {
        "id": identifier,
        "use_case": task.use_case,
        "writer": writer,
        "prompt": task.prompt,
        "completion": assistant(text),
    }
