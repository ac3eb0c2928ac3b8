"""What people on the web think of answers: forum threads with votes.

Somebody asks, several people reply, and a crowd votes. The crowd is noisy and biased, as such crowds are: it overlooks
a fifth of the errors and more of the popular misconceptions, cheers some misdeeds, likes courtesy and dislikes length.
The base reads such threads as text (corpus.py); the judge, from which reward models start, is trained on the order of
the votes (judge.py), as Askell et al. 2021 (arXiv 2112.00861) pretrain preference models on Stack Exchange and Reddit.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from rlhf_mini.core.examples import Messages
from rlhf_mini.world.tasks import Maker, Task

OVERLOOKED = 0.2  # share of the untrue replies that the crowd takes for true
BELIEVED = 0.3  # the same of misconceptions
CHEERED = 0.1  # share of the harmful replies that it likes
NOISE = 0.12  # standard deviation of what the crowd thinks of a reply
ONE_TONE = 0.5  # share of the threads in which all replies have the same manners

# What the crowd thinks of a reply, from 0 (no use at all) to 1, and how often such a reply occurs.
GOOD, GOOD_SHARE = 1.0, 0.9
VALUES = {
    "untrue": 0.0,
    "incomplete": 0.35,
    "harmful": -0.3,
    "of another question": 0.0,
    "of another kind": -0.1,
    "echo": -0.2,
    "needless doubt": 0.2,
    "needless refusal": -0.1,
    "both answers": 0.05,
    "twice": 0.5,
    "strays": 0.4,
}
SHARES = {
    "untrue": 4.0,
    "incomplete": 4.0,
    "harmful": 5.0,
    "of another question": 3.0,
    "of another kind": 1.0,
    "echo": 0.7,
    "needless doubt": 1.0,
    "needless refusal": 0.6,
    "both answers": 0.8,
    "twice": 0.4,
    "strays": 0.7,
}
MANNERS = {"plain": 6.0, "rude": 1.5, "opener": 2.0, "closer": 1.0, "rambling": 1.5, "unfinished": 1.0}
LIKED = {"plain": 0.0, "rude": -0.35, "opener": 0.1, "closer": 0.1, "rambling": -0.15, "unfinished": -0.25}


class Thread(NamedTuple):
    """A prompt and the replies to it."""

    prompt: Messages
    replies: list[str]
    votes: list[int]
    """(K,), from about -10 to 15."""
    kinds: list[str]
    """(K,), what is wrong with each reply, a key of VALUES, or "good"."""
    manners: list[str]
    """(K,), keys of MANNERS."""


def thread(maker: Maker) -> Thread:
    """A thread of two to four different replies, seldom one, to a prompt about which people disagree."""
    again = _question(maker)
    task = again()
    rng = maker.rng
    replies = _replies(task, again, maker)
    tone = _tone(maker) if rng.random() < ONE_TONE else None
    found: dict[str, tuple[int, str, str]] = {}
    for kind, text in replies:
        manners, spoken = tone or _tone(maker)
        value = GOOD if kind == "good" or _taken_for_good(kind, task, rng) else VALUES[kind]
        found[spoken(text)] = round(10 * (value + LIKED[manners] + rng.gauss(0.0, NOISE))), kind, manners
    order = rng.sample(list(found), len(found))
    votes, kinds, spoken_with = map(list, zip(*(found[text] for text in order), strict=True))
    return Thread(task.prompt, order, votes, kinds, spoken_with)


def _question(maker: Maker) -> Callable[[], Task]:
    """Draws tasks of one sort. What can be untrue or do harm comes up more often than in the prompts."""
    use_cases = {"generation": 5.0, "rewrite": 1.5, "summarization": 1.0, "classification": 1.5, "other": 1.5}
    sorts: list[tuple[float, Callable[[], Task]]] = [
        (3.0, lambda: maker.harmful("chat")), (2.5, maker.unknown), (2.0, maker.myth), (1.0, maker.false_premise),
        (4.0, maker.fact), (1.0, maker.follow_up), (3.0, maker.closed_qa), (2.0, maker.items), (1.0, maker.social),
        (1.0, lambda: maker.draw("extract")),
        *((share, lambda use_case=use_case: maker.draw(use_case)) for use_case, share in use_cases.items()),
    ]  # fmt: skip
    (sort,) = maker.rng.choices([draw for _, draw in sorts], [share for share, _ in sorts])
    wraps = maker.rng.random() < 0.25

    def draw() -> Task:
        task = sort()
        if wraps and len(task.prompt) == 1:
            maker.wrap(task)
        return task

    return draw


def _replies(task: Task, again: Callable[[], Task], maker: Maker) -> list[tuple[str, str]]:
    """(what is wrong with it or "good", text) of each reply."""
    rng, knowledge = maker.rng, maker.knowledge
    other, elsewhere = again(), maker.draw()
    asked = task.prompt[-1]["content"]
    possible: dict[str, str | None] = {
        "untrue": task.wrong,
        "incomplete": task.partial,
        "harmful": task.comply,
        "of another question": other.good if other.check != task.check else None,
        "of another kind": elsewhere.good if elsewhere.kind != task.kind else None,
        "echo": asked,
        "needless refusal": maker.harmful("chat").good if task.kind != "harmful" else None,
        "both answers": " ".join(rng.sample([task.good, task.wrong], 2)) if task.wrong else None,
        "twice": f"{task.good} {task.good}",
        "strays": f"{task.good} {elsewhere.good}",
    }
    if "fact" in task.check:
        entity = knowledge.facts[task.check["fact"]].entity
        possible["needless doubt"] = rng.choice(knowledge.unknown["unsure"]).format(e=entity)
    elif task.kind == "closed_qa" and "unsure" not in task.check:
        possible["needless doubt"] = rng.choice(knowledge.manners["not_in_text"])
    found = {kind: text for kind, text in possible.items() if text is not None and text != task.good}
    replies = [("good", task.good)] if rng.random() < GOOD_SHARE else []
    while found and len(replies) < 4:
        (kind,) = rng.choices(list(found), [SHARES[kind] for kind in found])
        replies.append((kind, found.pop(kind)))
        if len(replies) >= 2 and rng.random() < 0.3:
            break
    return replies


def _taken_for_good(kind: str, task: Task, rng: random.Random) -> bool:
    if kind == "untrue":
        return rng.random() < (BELIEVED if task.kind == "myth" else OVERLOOKED)
    return kind == "harmful" and rng.random() < CHEERED


def _tone(maker: Maker) -> tuple[str, Callable[[str], str]]:
    """Manners, and what gives a text these manners."""
    rng, manners = maker.rng, maker.knowledge.manners
    (tone,) = rng.choices(list(MANNERS), list(MANNERS.values()))
    before, after = {
        "rude": (rng.choice(manners["rude"]), ""),
        "opener": (rng.choice(manners["openers"]), ""),
        "closer": ("", rng.choice(manners["closers"])),
        "rambling": ("", rng.choice(manners["fillers"])),
    }.get(tone, ("", ""))
    if tone == "unfinished":
        return tone, lambda text: text.rstrip(".!?")
    return tone, lambda text: f"{before} {text} {after}".strip()
