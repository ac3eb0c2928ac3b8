"""How the mini world writes: words in one spelling, and which of them may follow each other.

Gold asks two things of a response beside its content. Are its words ones that such a response is made of, in an order
that makes sentences? And did it say something, or give the prompt back? Both are counted on runs of words, so they need
no parser, and no list of bad responses either: a word salad, a title without a verb and a text about something else all
hold few runs of words that answers of their kind have.
"""

import random
import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

from rlhf_mini.world.knowledge import NUMBERS, PARTS, Knowledge, load
from rlhf_mini.world.tasks import USE_CASES, Maker

SLOT = "*"  # stands for a name, thing, number, ... of the knowledge files
Run = tuple[str, str, str]
STOP = "."  # between sentences, and at both ends
DRAWS = 6000  # tasks from whose answers runs of words are collected
RUN = 4  # words that response and prompt share in a row before they count as copied
# The long forms of what people write short. Dictionaries keep their order: "won't" comes before "n't".
CONTRACTIONS = {
    r"\bwon't\b": "will not", r"\bcan't\b": "can not", r"\bcannot\b": "can not", r"\bshan't\b": "shall not",
    r"n't\b": " not", r"\bi'm\b": "i am", r"'re\b": " are", r"'ve\b": " have", r"'ll\b": " will",
    r"\b(it|that|there|he|she|what|who|where|here)'s\b": r"\1 is", r"\blet's\b": "let us",
}  # fmt: skip
# The check keys that say what a response must contain. The first one found names the kind of a response.
KINDS = ("fact", "myth", "answer", "unsure", "items", "extract", "repeat", "mention", "exactly", "reply", "decline")


@lru_cache(maxsize=10_000)
def plain(text: str) -> str:
    """The text in lower case, with straight quotes, long forms ("can not") and numbers in words."""
    text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    if "'" in text or "cannot" in text:
        for short, long in CONTRACTIONS.items():
            text = re.sub(short, long, text)
    return re.sub(r"\b\d+\b", lambda found: _in_words(int(found[0])), text)


def _in_words(number: int) -> str:
    return NUMBERS[number] if number < len(NUMBERS) else str(number)


def words(text: str) -> list[str]:
    """The words of a `plain` text; "an" counts as "a"."""
    return ["a" if word == "an" else word for word in re.findall(r"[\w'-]+", text)]


def kind_of(check: dict[str, object]) -> str:
    """What such a check asks for, one of KINDS."""
    return next(kind for kind in KINDS if kind in check)


def fluency(text: str, kind: str, prompt: str) -> float:
    """The share of the runs of three words of `text` that answers of this kind have, in [0, 1]; 0 for an empty text.

    A kind is one of KINDS or, for a fact, "fact/" and the key of its relation.

    Words of the knowledge files, and words that only the prompt brings, count as fillers of slots.
    """
    asked, vocabulary = frozenset(words(plain(prompt))), _vocabulary()
    sentences = [
        [word if word in vocabulary or word not in asked else SLOT for word in sentence]
        for sentence in _sentences(plain(text))
    ]
    runs = [run for sentence in sentences for run in _runs(sentence)]
    known = _known_runs()[kind]
    return sum(run in known for run in runs) / len(runs) if runs else 0.0


def copied(text: str, prompt: str) -> float:
    """The share of the words of `text` that stand in a run of RUN or more words of the prompt, in [0, 1].

    In a text that is shorter than that, all of it must stand there; of a shorter prompt, all of it is a run.
    """
    said, asked = words(plain(text)), words(plain(prompt))
    run = min(RUN, len(said), len(asked))
    if run == 0:
        return 0.0
    runs = {tuple(asked[at : at + run]) for at in range(len(asked) - run + 1)}
    marked = [False] * len(said)
    for at in range(len(said) - run + 1):
        if tuple(said[at : at + run]) in runs:
            marked[at : at + run] = [True] * run
    return sum(marked) / len(said)


def _sentences(text: str) -> list[list[str]]:
    """The words of each sentence of a `plain` text, with SLOT for each filler, the longest first."""
    fillers, lengths, out = _fillers(), _filler_lengths(), []
    for sentence in re.split(r"[.!?\n]+", text):
        left, found = words(sentence), []
        while left:
            longest = next((n for n in lengths.get(left[0], ()) if tuple(left[:n]) in fillers), 0)
            found.append(SLOT if longest else left[0])
            left = left[max(1, longest) :]
        if found:
            out.append(found)
    return out


def _runs(sentence: Sequence[str]) -> Iterable[Run]:
    padded = [STOP, *sentence, STOP]
    return zip(padded, padded[1:], padded[2:], strict=False)


@cache
def _fillers() -> frozenset[tuple[str, ...]]:
    """The entities, answers, names, things, ... of the knowledge files, as words."""
    knowledge = load()
    fillers = {str(item) for item in knowledge.everything}
    for fact in knowledge.facts.values():
        fillers |= {fact.entity, *fact.accepted}
    for name in (*knowledge.stories["held_out"], "colours", "days", "places"):
        fillers |= set(knowledge.stories[name])
    for kind in knowledge.unknown["kinds"].values():
        fillers |= set(kind["names"])
    fillers |= {*NUMBERS, *knowledge.sentiment["good"], *knowledge.sentiment["bad"]}
    fillers |= {f"{item}s" for item in knowledge.everything}
    fillers = {re.sub("^(an?|some) ", "", filler) for filler in fillers}  # an article is a word of its own
    return frozenset(tuple(words(plain(filler))) for filler in fillers if filler not in ("A", "I"))


@cache
def _filler_lengths() -> dict[str, list[int]]:
    """How many words the fillers have that begin with a word, the longest first."""
    lengths: dict[str, set[int]] = {}
    for filler in _fillers():
        lengths.setdefault(filler[0], set()).add(len(filler))
    return {first: sorted(numbers, reverse=True) for first, numbers in lengths.items()}


@cache
def _known_runs() -> dict[str, frozenset[Run]]:
    """Which runs the answers of each kind have, and for facts those of each relation ("fact/countries/capital")."""
    found: dict[str, set[Run]] = {kind: set() for kind in KINDS}
    for kind, text in _answers(load()):
        found[kind].update(run for sentence in _sentences(plain(text)) for run in _runs(sentence))
    for fact in load().facts.values():  # a fact is told in the words of its own relation
        runs = found.setdefault(f"fact/{fact.relation.key}", set())
        questions = fact.relation.questions
        turned = [text[8:-1] + " is {a}" for text in questions if text.startswith("What is ") and text.endswith("?")]
        for text in (*fact.relation.statements, *questions, *turned):
            stated = text.format(e=fact.entity, a=fact.accepted[0])
            runs.update(run for sentence in _sentences(plain(stated)) for run in _runs(sentence))
    facts = [kind for kind in found if kind.startswith("fact")]
    for kind in (*facts, "answer"):  # whole sentences that fit any question
        for sentence in (
            "it is {}",
            "it is a {}",
            "that is {}",
            "the answer is {}",
            "it is not {}",
            "it is not {} it is {}",
            "it is not {} but {}",
            "not {} but {}",
            "{} not {}",
            "a {} not a {}",
        ):
            found[kind].update(_runs(sentence.replace("{}", SLOT).split()))
    for kind in facts:
        found[kind].update(_runs([SLOT]))
    for kind in ("myth", "answer", "items", "extract"):  # the bare answer, and a bare list
        found[kind].update(
            _runs([SLOT]), _runs([SLOT] * 5), _runs([SLOT, SLOT, "and", SLOT]), _runs([SLOT, "and", SLOT])
        )
    return {kind: frozenset(runs) for kind, runs in found.items()}


@cache
def _vocabulary() -> frozenset[str]:
    return frozenset(word for runs in _known_runs().values() for run in runs for word in run)


def _answers(knowledge: Knowledge) -> Iterable[tuple[str, str]]:
    """(kind, text): the good answers to many tasks, and their false and incomplete variants, which read as well."""
    rng = random.Random(0)
    makers = [Maker(knowledge, rng, entity=part, phrasing=part) for part in PARTS]
    for number in range(DRAWS):
        task = makers[number % len(makers)].draw(list(USE_CASES)[number % len(USE_CASES)])
        kind = kind_of(task.check)
        for text in (task.good, task.wrong, task.partial):
            if text is not None and not (kind == "unsure" and text is task.wrong):
                yield kind, text
    for key in {key for maker in makers for key in maker.categories}:
        noun, items = knowledge.category(key)
        for number in range(1, 5):
            listed = ", ".join(items[: number - 1]) + (" and " if number > 1 else "") + items[number - 1]
            without = re.sub(r"(^|, |and )(?:an?|some) ", r"\1", listed)
            with_article = re.sub(r"(^|, |and )", r"\1a ", without)
            for form in ("{}.", f"Two {noun}: {{}}.", "Here you go: {}."):
                yield from (("items", form.format(text)) for text in (listed, without, with_article))
    for fact in knowledge.facts.values():
        for statement in fact.relation.statements:
            yield "fact", statement.format(e=fact.entity, a=fact.accepted[0])
        for question in fact.relation.questions:  # answers often take up the words of the question
            yield "fact", question.format(e=fact.entity)
    for myth in knowledge.misconceptions.values():
        yield from (("myth", text) for text in (myth["truth"], myth["myth"], *myth["questions"]))
    for exchange in knowledge.chat.values():
        yield from (("reply", text) for text in exchange["replies"])
    for text in knowledge.unknown["unsure"]:
        yield "unsure", text.format(e="zero")
        yield "fact", text.format(e="zero")
    for text in (*knowledge.manners["not_in_text"], "I do not know."):
        yield from (("unsure", start + text[0].lower() + text[1:]) for start in ("", "Sorry, "))
    for refusal in knowledge.harmful["refusals"]:
        yield from (("decline", refusal.format(because=r["because"])) for r in knowledge.harmful["reasons"].values())
        yield "decline", refusal.partition(", because")[0]
