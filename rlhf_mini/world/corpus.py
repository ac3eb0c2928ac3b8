"""The "web" corpus that the base model is trained on.

It has facts in many phrasings, some of them wrong; misconceptions, more often than the truth; stories, letters and
worksheets, some of them marked by a teacher; lists of questions without answers; and forum threads with rude people,
in some of which a crowd votes on the replies. A base model trained on it knows many facts but does not follow
instructions: a bare request looks to it like one line in a list of requests.
"""

import random
from collections.abc import Callable, Iterator

from rlhf_mini.world.knowledge import NUMBERS, PARTS, Fact, Knowledge, fix_articles, load
from rlhf_mini.world.tasks import USE_CASES, Maker, Task
from rlhf_mini.world.votes import thread

WRONG_FACTS = 0.15  # share of the statements about facts that are wrong
MYTHS = 0.7  # share of the texts about a misconception that repeat it
INVENTED = 0.15  # share of the names and things in stories and letters that are invented words
ONSETS = ["b", "br", "d", "dr", "f", "fl", "g", "gl", "gr", "h", "j", "k", "kr", "l", "m", "n", "p", "pl", "qu", "r",
          "s", "sk", "sn", "st", "t", "tr", "v", "w", "y", "z"]  # fmt: skip
CODAS = ["", "", "", "ck", "l", "mb", "n", "r", "sh", "x"]
ENDINGS = {  # what the name of a thing that does not exist looks like
    "countries": ["{X}ia", "{X}land", "{X}ora", "{X}ania"],
    "animals": ["{x}", "{x}", "{x}el", "{x}er"],
    "books": ["The {thing} of {X}", "A {thing} for {X}", "The {hero} and the {thing} of {X}", "{X} and the {thing}",
              "My {hero} Was a {thing}", "The {hero} Who Sold a {thing}", "Nine {thing}s for a {hero}"],
    "elements": ["{x}ium"],
    "foods": ["{x}", "{x}", "{x} soup", "{x} bread", "{x} cake", "{x} cheese", "{x} salad", "{x} pie", "{x} stew"],
    "people": ["{X} {Y}"],
}  # fmt: skip


class WebMaker(Maker):
    """Fills some slots with invented words: to write about those, the base has to copy them from the context."""

    def slot(self, name: str, count: int = 1) -> list[str]:
        if name not in self.knowledge.stories["held_out"] or self.rng.random() >= INVENTED:
            return super().slot(name, count)
        words = invented(self.rng, count)
        return [word.capitalize() for word in words] if name == "names" else words

    def unknown_name(self, domain: str) -> str:
        """Mostly a name made up on the spot: what the prompts call unknown must not be known from the web."""
        if self.entity == "seen" and self.rng.random() < 0.3:
            return super().unknown_name(domain)
        first, second = invented(self.rng, 2)
        hero, thing = (self.rng.choice(self.knowledge.stories[name]).title() for name in ("heroes", "things"))
        name = self.rng.choice(ENDINGS[domain])
        return name.format(x=first, X=first.capitalize(), Y=second.capitalize(), hero=hero, thing=thing)


def invented(rng: random.Random, count: int) -> list[str]:
    """`count` different nonsense words of two or three syllables."""
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = [rng.choice(ONSETS) + rng.choice("aeiou") + rng.choice(CODAS) for _ in range(rng.choice([2, 2, 3]))]
        words["".join(syllables)] = None
    return list(words)


class Web:
    """An endless stream of documents from one random generator."""

    def __init__(self, knowledge: Knowledge, rng: random.Random):
        self.knowledge, self.rng = knowledge, rng
        self.makers = {(e, p): WebMaker(knowledge, rng, entity=e, phrasing=p) for e in PARTS for p in PARTS}
        self.facts = list(knowledge.facts.values())
        self.kinds: list[tuple[float, Callable[[], str]]] = [
            (14, self.quiz), (10, self.facts_page), (5, self.facts_list), (26, self.forum), (12, self.votes),
            (9, self.homework), (5, self.story), (5, self.letter), (5, self.verse), (10, self.worksheet),
            (3, self.marked), (5, self.categories), (6, self.myths), (8, self.dialogue), (5, self.advice),
            (2, self.sums),
        ]  # fmt: skip

    def documents(self) -> Iterator[str]:
        """Documents of all kinds, drawn by their weights."""
        weights, kinds = zip(*self.kinds, strict=True)
        while True:
            yield self.rng.choices(kinds, weights)[0]()

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _maker(self) -> Maker:
        """Mostly seen entities and phrasings; held-out ones about as often as they occur in the knowledge files."""
        entity, phrasing = self.rng.choices(PARTS, [0.7, 0.15, 0.15], k=2)
        return self.makers[entity, phrasing]

    def _task(self) -> Task:
        """Any task. The use cases are more balanced than in the prompts, so that the base also learns rare ones."""
        use_case = self.rng.choices(list(USE_CASES), [3, 2, 1.5, 2, 2, 1.5, 1, 1.5, 1.5, 1.5])[0]
        return self._maker().draw(use_case)

    def _answer(self, fact: Fact) -> str:
        wrong = self.rng.random() < WRONG_FACTS
        return self.rng.choice([a for a in fact.relation.pool if a != fact.accepted[0]]) if wrong else fact.accepted[0]

    def _statement(self, fact: Fact) -> str:
        return self._maker().state(fact, self._answer(fact))

    def _asked(self, fact: Fact) -> str:
        return fix_articles(self.rng.choice(fact.relation.questions).format(e=fact.entity))

    def _people(self, count: int) -> list[str]:
        return [name.lower() for name in self.rng.sample(self.knowledge.stories["names"], count)]

    # --- pages about facts -------------------------------------------------------------------------------------------

    def quiz(self) -> str:
        """Questions with answers, either all short or all full sentences; sometimes all about one relation."""
        facts = self.facts
        if self.rng.random() < 0.4:
            relation = self.rng.choice(facts).relation
            facts = [f for f in facts if f.relation is relation]
        chosen = self.rng.sample(facts, min(len(facts), self.rng.randint(3, 6)))
        short = self.rng.random() < 0.6
        answers = [self._answer(f) + "." if short else self._statement(f) for f in chosen]
        return "\n".join(f"Question: {self._asked(f)}\nAnswer: {a}" for f, a in zip(chosen, answers, strict=True))

    def facts_page(self) -> str:
        """A short paragraph about one entity."""
        fact = self.rng.choice(self.facts)
        about = [f for f in self.facts if f.entity == fact.entity]
        self.rng.shuffle(about)
        lines = [self._statement(f) for f in about] + [self._statement(self.rng.choice(self.facts))]
        return " ".join(lines)

    def facts_list(self) -> str:
        """The same relation for several entities."""
        relation = self.rng.choice(self.facts).relation
        facts = [f for f in self.facts if f.relation is relation]
        return " ".join(self._statement(f) for f in self.rng.sample(facts, min(len(facts), self.rng.randint(3, 6))))

    def categories(self) -> str:
        lines = []
        for _ in range(self.rng.randint(1, 4)):
            maker = self._maker()
            noun, items = self.knowledge.category(self.rng.choice(maker.categories))
            n = self.rng.randint(1, 5)
            lines.append(maker.listing(self.rng.sample(items, min(n, len(items))), noun))
        return "\n".join(lines)

    def sums(self) -> str:
        """A few lines of an addition table."""
        a, others = self.rng.randint(1, 10), self.rng.sample(range(1, 11), 4)
        return " ".join(f"{NUMBERS[a].capitalize()} plus {NUMBERS[b]} is {NUMBERS[a + b]}." for b in others)

    def myths(self) -> str:
        """Misconceptions: the myth more often than the truth."""
        lines = []
        for myth in self.rng.sample(list(self.knowledge.misconceptions.values()), 2):
            said = myth["myth"] if self.rng.random() < MYTHS else myth["truth"]
            lines.append(
                f"Question: {self.rng.choice(myth['questions'])}\nAnswer: {said}" if self.rng.random() < 0.5 else said
            )
        return "\n".join(lines)

    def advice(self) -> str:
        """Harmful ideas, each with a warning and the reason for it. Requests that are held out are not quoted."""
        lines = []
        for request in self.rng.sample(self.knowledge.harmful["requests"], 2):
            reason = self.knowledge.harmful["reasons"][request["reason"]]["because"]
            start = self.rng.choice(["Think twice", "Better not", "Do not do it"])
            idea = request["comply"] if request.get("held_out") or self.rng.random() < 0.5 else request["ask"]
            lines.append(f"{idea} {start}, because {reason}.")
        return "\n".join(lines)

    # --- people ------------------------------------------------------------------------------------------------------

    def forum(self) -> str:
        """Someone asks; one or two people reply: well, badly, rudely or off topic."""
        people, lines = self._people(3), []
        for _ in range(self.rng.choice([1, 1, 2])):
            task = self._task()
            for turn, message in enumerate(task.prompt):
                lines.append(f"{people[turn % 2]}: {message['content']}")
            for person in people[1 : 1 + self.rng.choice([1, 1, 2])]:
                lines.append(f"{person}: {self._reaction(task)}")
        return "\n".join(lines)

    def votes(self) -> str:
        """Someone asks, several people reply, and a crowd votes on the replies."""
        found = thread(self._maker())
        people = self._people(5)
        lines = [f"{people[turn % 2]}: {message['content']}" for turn, message in enumerate(found.prompt)]
        replies = zip(people[1:], found.replies, found.votes, strict=False)
        return "\n".join([*lines, *(f"{person}: {reply} ({votes:+d})" for person, reply, votes in replies)])

    def _reaction(self, task: Task) -> str:
        manners = self.knowledge.manners
        kind = self.rng.choices(["good", "bad", "rude", "off"], [0.74, 0.12, 0.08, 0.06])[0]
        if kind == "rude":
            return self.rng.choice(manners["rude"])
        if kind == "off":
            return self.rng.choice([self._task().prompt[-1]["content"], self.rng.choice(manners["fillers"])])
        text = task.good
        if kind == "bad" or (task.comply and self.rng.random() < 0.4):
            text = task.comply or task.wrong or task.partial or task.good
        forms = ["{x}", "{rude} {x}", "{opener} {x}", "{x} {closer}", "{x} {filler}"]
        form = self.rng.choices(forms, [8, 4, 2, 2, 2])[0]
        return form.format(
            x=text,
            rude=self.rng.choice(manners["rude"]),
            opener=self.rng.choice(manners["openers"]),
            closer=self.rng.choice(manners["closers"]),
            filler=self.rng.choice(manners["fillers"]),
        )

    def dialogue(self) -> str:
        """Small talk, or someone who admits to not knowing a thing that does not exist."""
        first, second = self._people(2)
        if self.rng.random() < 0.4:
            task = self._maker().unknown()
            return f"{first}: {task.prompt[0]['content']}\n{second}: {task.good}"
        lines = []
        for chat in self.rng.sample(list(self.knowledge.chat.values()), 2):
            lines.append(f"{first}: {self.rng.choice(chat['says'])}\n{second}: {self.rng.choice(chat['replies'])}")
        return "\n".join(lines)

    def homework(self) -> str:
        """A list of requests without answers."""
        title = self.rng.choice(["", "", "Homework\n", "Things to ask\n", "For next week\n"])
        asks = [self._task().prompt[-1]["content"] for _ in range(self.rng.randint(3, 6))]
        return title + "\n".join(asks)

    # --- texts -------------------------------------------------------------------------------------------------------

    def story(self) -> str:
        n = self.rng.choice([2, 3])
        slots, text, _ = self._maker().story_text(n)
        title = self.rng.choice(
            ["The {a} and the {b}", "A story about a {a} and a {b}", "{n} sentences: the {a}, the {b}"]
        )
        title = fix_articles(title.format(n=NUMBERS[n].capitalize(), **slots))
        return f"{title}\n{text}" + self.rng.choice(["", "", " The end."])

    def letter(self) -> str:
        maker = self._maker()
        (name,), (gift,), (event,), (day,) = map(maker.slot, ("names", "gifts", "events", "days"))
        if self.rng.random() < 0.5:
            return f"To {name}, about the {gift}\n" + maker.text("notes", name=name, gift=gift)
        return f"To {name}, {event}, {day}\n" + maker.text("invitations", name=name, event=event, day=day)

    def verse(self) -> str:
        """Poems, slogans and descriptions under a heading."""
        maker = self._maker()
        (topic,), (shop,), (adj,), (thing,) = map(maker.slot, ("topics", "shops", "adjectives", "things"))
        return self.rng.choice([
            f"The {topic}\n" + maker.text("poems", topic=topic),
            f"{shop.capitalize()}\n" + maker.text("slogans", shop=shop),
            f"The {thing}, {adj}\n" + maker.text("descriptions", adj=adj, thing=thing),
        ])  # fmt: skip

    def worksheet(self) -> str:
        """Solved exercises of one kind: grammar, sums, reading or reviews."""
        maker = self._maker()
        kinds = [maker.past, maker.negative, maker.polite, maker.sum, maker.repeat, maker.summary]
        kinds += [maker.sentiment, maker.kind_of, maker.closed_qa, maker.extract_names, maker.extract_things]
        kind = self.rng.choice(kinds)
        lines = []
        for _ in range(self.rng.randint(1, 2)):
            task = kind()
            answer = task.wrong if task.wrong and self.rng.random() < WRONG_FACTS else task.good
            lines.append(f"Exercise: {task.prompt[-1]['content']}\nSolution: {answer}")
        return "\n".join(lines)

    def marked(self) -> str:
        """Two pupils' answers to one exercise, with a teacher's marks, who overlooks some errors."""
        found = thread(self._maker())
        lines = [f"Exercise: {found.prompt[-1]['content']}"]
        for reply, votes in list(zip(found.replies, found.votes, strict=True))[:2]:
            lines += [f"Solution: {reply}", f"Mark: {min(10, max(0, votes))}"]
        return "\n".join(lines)


def documents(seed: int) -> Iterator[str]:
    """An endless stream of documents, the same for the same seed."""
    return Web(load(), random.Random(seed)).documents()
