"""The knowledge of the mini world: the hand-written files in data/knowledge, parsed."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import sha256

# Entities and phrasings come in three parts: those that every split uses, and those held out for one split alone.
PARTS = ("seen", "validation", "test")
DATA = Path(__file__).resolve().parents[2] / "data"
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
NUMBERS += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"]


def has(text: str, phrase: str) -> bool:
    """Whether `text` contains `phrase` as whole words, ignoring case. The mini world matches nothing in another way."""
    return pattern(phrase).search(text) is not None


def has_any(text: str, phrases: Iterable[str]) -> bool:
    """Whether `text` contains at least one of `phrases`, as `has` matches them."""
    searched = tuple(phrases)
    return bool(searched) and pattern(*searched).search(text) is not None


@lru_cache(maxsize=20_000)
def pattern(*phrases: str) -> re.Pattern[str]:
    """Finds any of the phrases as whole words, ignoring case."""
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, phrases)) + r")(?!\w)", re.IGNORECASE)


def fix_articles(text: str) -> str:
    """'a owl' -> 'an owl', for templates with an article before a slot."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def portion(values: Sequence[Any], held_out: int, part: str) -> list[Any]:
    """The values that belong to this part. SFT, RM and PPO get no prompt with one of the last `held_out` values.

    Counted from the end, the held-out values belong to test and validation in turn: the last one to test.
    """
    seen, unseen = list(values[: len(values) - held_out]), list(values[len(values) - held_out :])
    return {"seen": seen, "validation": unseen[-2::-2], "test": unseen[-1::-2]}[part]


@dataclass(frozen=True)
class Relation:
    """One attribute of the entities of a domain, with phrasings that ask for it and that state it."""

    domain: str
    name: str
    questions: tuple[str, ...]  # the last two are held out, one each for validation and test
    statements: tuple[str, ...]
    lists: dict[str, str]  # answer -> "countries in Europe", for brainstorming
    answers: dict[str, tuple[str, ...]]  # entity -> accepted answers; texts that are generated use the first

    @property
    def key(self) -> str:
        return f"{self.domain}/{self.name}"

    @property
    def pool(self) -> tuple[str, ...]:
        """All answers of this relation. For each entity, the answers that are not accepted count as wrong."""
        return tuple(dict.fromkeys(answer for accepted in self.answers.values() for answer in accepted))


@dataclass(frozen=True)
class Fact:
    """The answer of one relation for one entity."""

    relation: Relation
    entity: str
    part: str  # one of PARTS: the splits whose prompts may ask for it

    @property
    def key(self) -> str:
        return f"{self.relation.domain}/{self.entity}/{self.relation.name}"

    @property
    def accepted(self) -> tuple[str, ...]:
        return self.relation.answers[self.entity]


@dataclass
class Knowledge:
    """All files, parsed. Except for facts and relations, the dictionaries have the structure of the YAML files."""

    relations: dict[str, Relation]
    facts: dict[str, Fact]
    misconceptions: dict[str, dict[str, Any]]
    harmful: dict[str, Any]
    unknown: dict[str, Any]
    lists: dict[str, dict[str, Any]]
    chat: dict[str, dict[str, Any]]
    grammar: dict[str, Any]
    sentiment: dict[str, Any]
    stories: dict[str, Any]
    prompts: dict[str, dict[str, list[str]]]
    manners: dict[str, list[str]]
    writers: dict[str, dict[str, float]]
    labelers: dict[str, Any]
    everything: set[str] = field(default_factory=set)  # the items of all lists

    def category(self, key: str) -> tuple[str, list[str]]:
        """A list by its key, as (noun, items): "lists/fruits" -> ("fruits", ["apple", ...]).

        The answers of a relation make lists, too: "countries/continent/Europe" -> ("countries in Europe", [...]).
        """
        if key.startswith("lists/"):
            entry = self.lists[key.removeprefix("lists/")]
            return entry["noun"], list(entry["items"])
        domain, relation_name, answer = key.split("/")
        relation = self.relations[f"{domain}/{relation_name}"]
        return relation.lists[answer], [e for e, accepted in relation.answers.items() if accepted[0] == answer]


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: restore it with `git checkout data`") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{where} is not valid YAML: correct it, or restore it with `git checkout data`"
        ) from None


def _facts(folder: Path) -> tuple[dict[str, Relation], dict[str, Fact]]:
    relations: dict[str, Relation] = {}
    facts: dict[str, Fact] = {}
    for path in sorted(folder.glob("*.yaml")):
        source = _read(path)
        domain = source["domain"]
        for name, spec in source["relations"].items():
            answers = {}
            for entity in source["entities"]:
                if name in entity:
                    value = entity[name]
                    answers[str(entity["name"])] = tuple(map(str, value)) if isinstance(value, list) else (str(value),)
            relation = Relation(
                domain, name, tuple(spec["questions"]), tuple(spec["statements"]), dict(spec.get("lists", {})), answers
            )
            relations[f"{domain}/{name}"] = relation
            for entity_name in answers:
                position = [str(e["name"]) for e in source["entities"]].index(entity_name)
                # Every sixth entity is held out: the base reads about it, but SFT, RM and PPO get no prompt about it.
                held_out = ("test", "validation")[position // 6 % 2]
                fact = Fact(relation, entity_name, part=held_out if position % 6 == 5 else "seen")
                facts[fact.key] = fact
    return relations, facts


def data_sha256() -> str:
    """Checksum of data/knowledge, on which gold scores, labelers and probes depend."""
    folder = DATA / "knowledge"
    sums = [f"{path.relative_to(folder).as_posix()} {sha256(path)}" for path in sorted(folder.rglob("*.yaml"))]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


@cache
def load(folder: Path = DATA / "knowledge") -> Knowledge:
    """All knowledge files, read once per process. UserError names a file that is missing or not valid YAML."""
    relations, facts = _facts(folder / "facts")
    knowledge = Knowledge(
        relations=relations,
        facts=facts,
        misconceptions={m["topic"]: m for m in _read(folder / "misconceptions.yaml")},
        harmful=_read(folder / "harmful.yaml"),
        unknown=_read(folder / "unknown.yaml"),
        lists=_read(folder / "lists.yaml"),
        chat={c["id"]: c for c in _read(folder / "chat.yaml")},
        grammar=_read(folder / "grammar.yaml"),
        sentiment=_read(folder / "sentiment.yaml"),
        stories=_read(folder / "stories.yaml"),
        prompts=_read(folder / "prompts.yaml"),
        manners=_read(folder / "manners.yaml"),
        writers=_read(folder / "writers.yaml"),
        labelers=_read(folder / "labelers.yaml"),
    )
    for entry in knowledge.lists.values():
        knowledge.everything.update(entry["items"])
    for relation in relations.values():
        if relation.lists:
            knowledge.everything.update(relation.answers)
    return knowledge
