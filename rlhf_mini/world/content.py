"""Pairs of responses with the same manners and different content: they show whether a reward model reads what is said.

Both responses of a pair have the same opener or closer or neither, no insult and no filler; both are short enough, and
the answer in both ends with a full stop. So gold prefers the chosen one for its content alone, and nothing else can
tell the two apart. `rlhf_mini.world.build` writes the files.
"""

import random
from collections.abc import Callable

from rlhf_mini.core.examples import Preference
from rlhf_mini.world.gold import judge
from rlhf_mini.world.knowledge import Knowledge, has_any
from rlhf_mini.world.tasks import Maker, Task, assistant, stated, text_of

SEEN, NEW = 80, 40  # pairs of a kind, if there are so many
TRIES = 3000  # for one pair; then the kind has no more


# --- kinds: a task, whose good response is chosen, and what is rejected; None if the draw has nothing to reject -------

Draw = Callable[[Maker], tuple[Task, str | None]]


def refusal(maker: Maker) -> tuple[Task, str | None]:
    task = maker.harmful("chat")
    maker.wrap(task)  # as they stand, the training splits have used up nearly all
    return task, task.comply


def admission(maker: Maker) -> tuple[Task, str | None]:
    """Not knowing an invented name, or what a text does not say; rejected is an invention."""
    task = maker.draw(maker.rng.choices(["open_qa", "closed_qa"], [4, 1])[0])  # gives as many of the one as the other
    return task, task.wrong if "unsure" in task.check else None


def myth(maker: Maker) -> tuple[Task, str | None]:
    task = maker.draw("open_qa")
    return task, task.wrong if task.kind == "myth" else None


def fact(maker: Maker) -> tuple[Task, str | None]:
    """True and false in the same words."""
    task = maker.draw("open_qa")
    if task.kind != "fact":
        return task, None
    asked = maker.knowledge.facts[task.check["fact"]]
    statement = next(each for each in asked.relation.statements if stated(each, asked, asked.accepted[0]) == task.good)
    return task, stated(statement, asked, maker.wrong_answer(asked))


def constraints(maker: Maker) -> tuple[Task, str | None]:
    task = maker.draw()
    return task, task.partial


def own_answer(maker: Maker) -> tuple[Task, str | None]:
    """Rejected is a good response to another prompt of the same kind."""
    task = maker.draw()
    other = maker.draw(task.use_case)
    return task, other.good if other.kind == task.kind else None


def other_kind(maker: Maker) -> tuple[Task, str | None]:
    """Rejected is a good response to a prompt of another kind."""
    task, other = maker.draw(), maker.draw()
    return task, other.good if other.kind != task.kind else None


# Where prompts run out, the kinds that have few of them come first.
KINDS: dict[str, Draw] = {
    "refusal": refusal,
    "admission": admission,
    "myth": myth,
    "fact": fact,
    "constraints": constraints,
    "own_answer": own_answer,
    "other_kind": other_kind,
}


# --- pairs -----------------------------------------------------------------------------------------------------------


def preferences(knowledge: Knowledge, rng: random.Random, split: str, taken: set[str]) -> list[Preference]:
    """The pairs of a split, "validation" or "test": of each kind those on what every split asks for, then new ones.

    Args:
        taken: `text_of` of the prompts that must not occur; those that are used are added.
    """
    seen, new = Maker(knowledge, rng), Maker(knowledge, rng, entity=split)
    # No misconception is held out, but ways to ask about it are.
    reworded = Maker(knowledge, rng, phrasing=split)
    pairs: list[Preference] = []
    for kind, draw in KINDS.items():
        parts = [(SEEN, "none", seen), (NEW, "phrasing", reworded) if kind == "myth" else (NEW, "entity", new)]
        for number, novel, maker in parts:
            for _ in range(number):
                found = pair(draw, maker, taken)
                if found is None:
                    break
                identifier = f"content-{split}-{len(pairs):04d}"
                pairs.append({"id": identifier, "kind": kind, "novel": novel, **found})
    return pairs


def pair(draw: Draw, maker: Maker, taken: set[str]) -> Preference | None:
    """A pair on a prompt that is not `taken`; None if none turns up."""
    for _ in range(TRIES):
        task, bad = draw(maker)
        if bad is None or text_of(task.prompt) in taken:
            continue
        chosen, rejected = with_manners(task.good, bad, maker)
        if task.good.endswith(".") and bad.endswith(".") and differ_in_content(task, chosen, rejected, maker.knowledge):
            taken.add(text_of(task.prompt))
            return {"prompt": task.prompt, "chosen": assistant(chosen), "rejected": assistant(rejected)}
    return None


def with_manners(good: str, bad: str, maker: Maker) -> list[str]:
    """Both with the same opener or closer, or without."""
    manners, rng = maker.knowledge.manners, maker.rng
    form = rng.choice(["{x}", f"{rng.choice(manners['openers'])} {{x}}", f"{{x}} {rng.choice(manners['closers'])}"])
    return [form.format(x=answer) for answer in (good, bad)]


def differ_in_content(task: Task, chosen: str, rejected: str, knowledge: Knowledge) -> bool:
    """Whether gold prefers the chosen response for its content alone.

    An answer can bring manners of its own: "Sorry, I do not know the name" is courteous, some misdeeds are told with an
    insult, and a response to another prompt may be too long for this one.
    """
    check = task.example("", "")["check"]
    good, bad = (judge(check, task.prompt, text) for text in (chosen, rejected))
    insulting = has_any(f"{chosen} {rejected}", knowledge.manners["rude_words"])
    alike = (good.courteous, good.concise, good.ends) == (bad.courteous, bad.concise, bad.ends)
    return good.score > bad.score and alike and not insulting
