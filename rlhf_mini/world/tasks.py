"""Prompts of the mini world: ten use cases in InstructGPT's proportions, each with a check for its responses.

A `Task` is a prompt with its check and, for the writers of demonstrations, a good response and several bad ones.
`rlhf_mini.world.build` writes the files.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_mini.core.examples import Messages, Prompt, contents
from rlhf_mini.world.knowledge import NUMBERS, Fact, Knowledge, fix_articles, has_any, portion

# Percentage of each use case among the prompts (Ouyang et al. 2022, table 1). They add up to 99.9; `choices` rescales.
USE_CASES = {
    "generation": 45.6,
    "open_qa": 12.4,
    "brainstorming": 11.2,
    "chat": 8.4,
    "rewrite": 6.6,
    "summarization": 4.2,
    "classification": 3.5,
    "other": 3.5,
    "closed_qa": 2.6,
    "extract": 1.9,
}
HARMFUL_SHARE = 0.12  # of the generation, open-QA and chat prompts
MAX_WORDS_SLACK = 8  # words that courtesy may add to the answer


@dataclass
class Task:
    """A prompt, the check for its responses, and responses from which writers make demonstrations."""

    use_case: str
    kind: str
    prompt: Messages
    check: dict[str, Any]
    good: str
    wrong: str | None = None  # an untrue answer
    partial: str | None = None  # misses one of the requirements
    comply: str | None = None  # complies with a harmful request
    also: list[str] = field(default_factory=list)  # further good responses: the same content in other templates

    @property
    def references(self) -> list[str]:
        """Different good responses."""
        return list(dict.fromkeys([self.good, *self.also]))

    @property
    def mistakes(self) -> list[str]:
        """Different bad responses."""
        return list(dict.fromkeys(bad for bad in (self.wrong, self.partial, self.comply) if bad is not None))

    def example(self, identifier: str, novel: str) -> Prompt:
        """The prompt as the stages read it. `novel`: what is in no other split (none, entity, phrasing or both)."""
        words = len(self.good.split())
        check = self.check | {"max_words": words + words // 6 + MAX_WORDS_SLACK}
        return {
            "id": identifier,
            "use_case": self.use_case,
            "kind": self.kind,
            "novel": novel,
            "prompt": self.prompt,
            "check": check,
        }


class Maker:
    """Draws tasks with the entities of one part and the phrasings of one part (knowledge.PARTS)."""

    def __init__(self, knowledge: Knowledge, rng: random.Random, *, entity: str = "seen", phrasing: str = "seen"):
        self.knowledge, self.rng, self.entity, self.phrasing = knowledge, rng, entity, phrasing
        self.facts = [fact for fact in knowledge.facts.values() if fact.part == entity]
        self.categories = self._categories()  # keys for `Knowledge.category`
        requests = sorted(knowledge.harmful["requests"], key=lambda request: bool(request.get("held_out")))
        self.requests = portion(requests, sum(bool(request.get("held_out")) for request in requests), entity)
        self.makers: dict[str, list[tuple[float, Callable[[], Task]]]] = {
            "generation": [
                (3, self.story), (2, self.story_n), (2, self.story_end), (2, self.note), (2, self.invitation),
                (1.5, self.poem), (1.5, self.slogan), (1.5, self.description),
            ],
            "open_qa": [(7, self.fact), (1.3, self.myth), (0.7, self.false_premise), (0.8, self.unknown)],
            "brainstorming": [(1, self.items)],
            "chat": [(1, self.social), (1, self.follow_up)],
            "rewrite": [(1, self.past), (1, self.negative), (1, self.polite)],
            "summarization": [(1, self.summary)],
            "classification": [(1, self.sentiment), (1, self.kind_of)],
            "other": [(1, self.repeat), (1, self.sum)],
            "closed_qa": [(1, self.closed_qa)],
            "extract": [(1, self.extract_names), (1, self.extract_things)],
        }  # fmt: skip

    def draw(self, use_case: str | None = None) -> Task:
        """A task of this use case; by default of one drawn in the paper's proportions."""
        use_case = use_case or self.rng.choices(list(USE_CASES), list(USE_CASES.values()))[0]
        if use_case in ("generation", "open_qa", "chat") and self.rng.random() < HARMFUL_SHARE:
            task = self.harmful(use_case)
            if self.rng.random() < 0.6:  # so often because there are few requests
                self.wrap(task)
            return task
        weights, makers = zip(*self.makers[use_case], strict=True)
        task = self.rng.choices(makers, weights)[0]()
        task.use_case = use_case
        if len(task.prompt) == 1 and self.rng.random() < 0.25:
            self.wrap(task)
        return task

    def wrap(self, task: Task) -> None:
        """Puts a few words around a prompt of one turn."""
        wrapper = self._phrase(self.knowledge.prompts["wrappers"])
        task.prompt[0]["content"] = wrapper.format(x=task.prompt[0]["content"])

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _phrase(self, phrasings: dict[str, list[str]]) -> str:
        seen, held_out = phrasings["seen"], phrasings["held_out"]
        return self._question([*seen, *held_out], len(held_out))

    def _question(self, phrasings: Sequence[str], held_out: int = 2) -> str:
        """One of the phrasings; the last `held_out` of the list are held out."""
        return self.rng.choice(portion(phrasings, held_out, self.phrasing))

    def slot(self, name: str, count: int = 1) -> list[str]:
        """`count` different fillers from stories.yaml, of this maker's part where some are held out."""
        held_out = self.knowledge.stories["held_out"]
        values = self.knowledge.stories[name]
        if name in held_out:
            values = portion(values, held_out[name], self.entity)
        return self.rng.sample(values, count)

    def _ask(self, kind: str, /, **slots: Any) -> Messages:
        return user(fix_articles(self._phrase(self.knowledge.prompts[kind]).format(**slots)))

    def text(self, texts: str, /, **slots: Any) -> str:
        """One of the templates of this name in stories.yaml, filled in."""
        return fix_articles(self.rng.choice(self.knowledge.stories[texts]).format(**slots))

    def texts(self, texts: str, /, **slots: Any) -> list[str]:
        """All templates of this name in stories.yaml, filled in."""
        return [fix_articles(template.format(**slots)) for template in self.knowledge.stories[texts]]

    def wrong_answer(self, fact: Fact) -> str:
        """Another answer of the fact's relation."""
        return self.rng.choice([a for a in fact.relation.pool if a not in fact.accepted])

    def state(self, fact: Fact, answer: str) -> str:
        """A sentence that states this answer, right or wrong, to the fact's question."""
        return stated(self.rng.choice(fact.relation.statements), fact, answer)

    # --- generation --------------------------------------------------------------------------------------------------

    def story_text(self, sentences: int) -> tuple[dict[str, str], str, str]:
        """(slots, story, the same story about another thing)."""
        (a,), (b,), p = self.slot("heroes"), self.slot("things"), self.rng.choice(self.knowledge.stories["places"])
        slots = {"a": a, "b": b, "p": p}
        middle = [self.text("story_middles", **slots)] if sentences == 3 else []
        story = [self.text("story_begins", **slots), *middle, self.text("story_ends", **slots)]
        other = self.rng.choice([t for t in self.knowledge.stories["things"] if t != b])
        return slots, " ".join(story), " ".join(story).replace(f" {b}", f" {other}")

    def stories(self, sentences: int, **slots: str) -> list[str]:
        """Stories that have, between them, every beginning, middle and end once, each at another place."""
        parts = ["story_begins", "story_middles", "story_ends"] if sentences == 3 else ["story_begins", "story_ends"]
        told = zip(*(self.knowledge.stories[part] for part in parts), strict=False)
        places = self.knowledge.stories["places"]
        return [
            fix_articles(" ".join(sentences).format(**slots | {"p": place}))
            for sentences, place in zip(told, places, strict=False)
        ]

    def story(self) -> Task:
        slots, good, partial = self.story_text(self.rng.choice([2, 3]))
        check = {"mention": [[slots["a"]], [slots["b"]]]}
        also = [*self.stories(2, **slots), *self.stories(3, **slots)]
        return Task("", "story", self._ask("story", **slots), check, good, partial=partial, also=also)

    def story_n(self) -> Task:
        n = self.rng.choice([2, 3])
        slots, good, partial = self.story_text(n)
        check = {"mention": [[slots["a"]], [slots["b"]]], "sentences": n}
        if self.rng.random() < 0.5:
            partial = good + " " + self.text("story_ends", **slots)
        prompt = self._ask("story_n", n=NUMBERS[n], **slots)
        return Task("", "story_n", prompt, check, good, partial=partial, also=self.stories(n, **slots))

    def story_end(self) -> Task:
        slots, good, partial = self.story_text(2)
        check = {"mention": [[slots["a"]], [slots["b"]]], "end": "The end."}
        partial = self.rng.choice([good, partial + " The end."])
        prompt, also = self._ask("story_end", **slots), [story + " The end." for story in self.stories(2, **slots)]
        return Task("", "story_end", prompt, check, good + " The end.", partial=partial, also=also)

    def _from_template(self, kind: str, texts: str, check: dict[str, Any], /, **slots: str) -> Task:
        good, partial = self.text(texts, **slots), self.text(f"{texts}_partial", **slots)
        also = self.texts(texts, **slots)
        return Task("", kind, self._ask(kind, **slots), check, good, partial=partial, also=also)

    def note(self) -> Task:
        (name,), (gift,) = self.slot("names"), self.slot("gifts")
        check = {"mention": [[name], [gift], ["thank", "thanks"]]}
        return self._from_template("note", "notes", check, name=name, gift=gift)

    def invitation(self) -> Task:
        (name,), (event,), (day,) = self.slot("names"), self.slot("events"), self.slot("days")
        check = {"mention": [[name], [event], [day]]}
        return self._from_template("invitation", "invitations", check, name=name, event=event, day=day)

    def poem(self) -> Task:
        (topic,) = self.slot("topics")
        return self._from_template("poem", "poems", {"mention": [[topic]], "lines": 2}, topic=topic)

    def slogan(self) -> Task:
        (shop,) = self.slot("shops")
        return self._from_template("slogan", "slogans", {"mention": [[shop]]}, shop=shop)

    def description(self) -> Task:
        (adj,), (thing,) = self.slot("adjectives"), self.slot("things")
        check = {"mention": [[adj], [thing]], "sentences": 1}
        return self._from_template("description", "descriptions", check, adj=adj, thing=thing)

    # --- open questions ----------------------------------------------------------------------------------------------

    def fact(self) -> Task:
        fact = self.rng.choice(self.facts)
        return self._fact(fact, user(self.question(fact)))

    def question(self, fact: Fact) -> str:
        return fix_articles(self._question(fact.relation.questions).format(e=fact.entity))

    def _fact(self, fact: Fact, prompt: Messages) -> Task:
        good, wrong = self.state(fact, fact.accepted[0]), self.state(fact, self.wrong_answer(fact))
        also = [stated(statement, fact, fact.accepted[0]) for statement in fact.relation.statements]
        return Task("", "fact", prompt, {"fact": fact.key}, good, wrong=wrong, also=also)

    def myth(self) -> Task:
        myth = self.rng.choice(list(self.knowledge.misconceptions.values()))
        prompt = user(self._question(myth["questions"]))
        return Task("", "myth", prompt, {"myth": myth["topic"]}, myth["truth"], wrong=myth["myth"])

    def false_premise(self) -> Task:
        fact = self.rng.choice(self.facts)
        false = self.wrong_answer(fact)
        prompt = self._ask("false_premise", w=false, q=self.question(fact))
        task = self._fact(fact, prompt)
        task.kind, task.wrong = "false_premise", self.state(fact, false)
        return task

    def unknown(self) -> Task:
        """A question about something that does not exist; the wrong response invents an answer."""
        unknown = self.knowledge.unknown
        domain = self.rng.choice(list(unknown["kinds"]))
        name = self.unknown_name(domain)
        prompt = user(fix_articles(self._question(unknown["kinds"][domain]["ask"]).format(e=name)))
        good = self.rng.choice(unknown["unsure"]).format(e=name)
        alike = [f for f in self.facts if f.relation.domain == domain] or self.facts
        fact = self.rng.choice(alike)
        invented = fix_articles(self.rng.choice(fact.relation.statements).format(e=name, a=fact.accepted[0]))
        also = [unsure.format(e=name) for unsure in unknown["unsure"]]
        return Task("", "unknown", prompt, {"unsure": unknown["unsure_words"]}, good, wrong=invented, also=also)

    def unknown_name(self, domain: str) -> str:
        """The name of a thing that does not exist."""
        names: list[str] = portion(self.knowledge.unknown["kinds"][domain]["names"], 4, self.entity)
        return self.rng.choice(names)

    # --- brainstorming, chat -----------------------------------------------------------------------------------------

    def _categories(self) -> list[str]:
        by_held_out: dict[bool, list[str]] = {False: [], True: []}
        for key, entry in self.knowledge.lists.items():
            by_held_out[bool(entry["held_out"])].append(f"lists/{key}")
        for key, relation in self.knowledge.relations.items():
            for position, answer in enumerate(relation.lists):
                by_held_out[position % 4 == 3].append(f"{key}/{answer}")  # holds out every fourth list of a relation
        return portion([*by_held_out[False], *by_held_out[True]], len(by_held_out[True]), self.entity)

    def items(self) -> Task:
        key, n = self.rng.choice(self.categories), self.rng.choice([2, 3, 4])
        noun, valid = self.knowledge.category(key)
        same_kind = [k for k in self.categories if k.split("/")[0] == key.split("/")[0] and k != key] or [key]
        others = [i for i in self.knowledge.category(self.rng.choice(same_kind))[1] if i not in valid]
        chosen = self.rng.sample(valid, n)
        count = self.rng.choice([k for k in (1, 2, 3, 4, 5) if k != n and k <= len(valid)])
        wrong = [*chosen[:-1], self.rng.choice(others)] if others else None
        return Task(
            "", "items", self._ask("list", n=NUMBERS[n], x=noun), {"items": {"of": key, "n": n}},
            good=self.listing(chosen, noun), partial=self.listing(self.rng.sample(valid, count), noun),
            wrong=self.listing(wrong, noun) if wrong else None,
            also=[listed(window) for window in windows(valid, n)],
        )  # fmt: skip

    def listing(self, items: list[str], noun: str) -> str:
        """The items as an answer to a prompt such as "Name two birds."."""
        form = self.rng.choice(["{x}.", "Here you go: {x}.", "{n} {noun}: {x}."])
        text = form.format(x=joined(items), n=NUMBERS[len(items)], noun=noun)
        return text[0].upper() + text[1:]

    def social(self) -> Task:
        exchange = self.rng.choice(list(self.knowledge.chat.values()))
        prompt = user(self._question(exchange["says"]))
        replies = [reply for other in self.knowledge.chat.values() for reply in other["replies"]]
        unfit = [reply for reply in replies if not has_any(reply, exchange["words"])]
        good, partial = self.rng.choice(exchange["replies"]), self.rng.choice(unfit)
        return Task("", "social", prompt, {"reply": exchange["id"]}, good, partial=partial, also=exchange["replies"])

    def follow_up(self) -> Task:
        """Two turns: a question and its answer, then the same question about another entity."""
        second = self.rng.choice(self.facts)
        same = [f for f in self.facts if f.relation is second.relation and f.accepted[0] != second.accepted[0]]
        if not same:
            return self.follow_up()
        first = self.rng.choice(same)
        short = self._phrase(self.knowledge.prompts["follow_up"])
        question = fix_articles(short.format(e=second.entity))
        prompt = user(self.question(first)) + assistant(self.state(first, first.accepted[0])) + user(question)
        task = self._fact(second, prompt)
        task.kind = "follow_up"
        return task

    # --- rewrite, summarization, classification ----------------------------------------------------------------------

    def _sentence(self) -> tuple[str, dict[str, str], str]:
        grammar = self.knowledge.grammar
        subject, verb = self.rng.choice(grammar["subjects"]), self.rng.choice(grammar["verbs"])
        return subject[0].upper() + subject[1:], verb, self.rng.choice(grammar["places"])

    def past(self) -> Task:
        subject, verb, place = self._sentence()
        prompt = self._ask("past", x=f"{subject} {verb['third']} {place}.")
        good, same = f"{subject} {verb['past']} {place}.", f"{subject} {verb['third']} {place}."
        return Task("", "past", prompt, {"exactly": good}, good, partial=same)

    def negative(self) -> Task:
        subject, verb, place = self._sentence()
        sentence = f"{subject} {verb['third']} {place}."
        good = f"{subject} does not {verb['base']} {place}."
        return Task("", "negative", self._ask("negative", x=sentence), {"exactly": good}, good, partial=sentence)

    def polite(self) -> Task:
        pair, thing = (
            self.rng.choice(self.knowledge.grammar["polite"]),
            self.rng.choice(self.knowledge.grammar["things"]),
        )
        rude, good = pair["rude"].format(x=thing), pair["polite"].format(x=thing)
        return Task("", "polite", self._ask("polite", x=rude), {"exactly": good}, good, partial=rude)

    def summary(self) -> Task:
        (name,), (thing,), (adj,) = self.slot("names"), self.slot("things"), self.slot("adjectives")
        slots = {"name": name, "thing": thing, "adj": adj, "p": self.rng.choice(self.knowledge.stories["places"])}
        lead, details = self.text("news", **slots), self.rng.sample(self.knowledge.stories["news_details"], 2)
        text = " ".join(self.rng.choice([[lead, *details], [details[0], lead, details[1]]]))
        good = " ".join(w for w in lead.split() if w != adj).replace(" an ", " a ")
        good = fix_articles(good)
        check = {"mention": [[name], [thing]], "sentences": 1}
        prompt = self._ask("summary", x=text)
        return Task("", "summary", prompt, check, good, partial=" ".join(details), also=[lead])

    def sentiment(self) -> Task:
        words, label = self.knowledge.sentiment, self.rng.choice(["good", "bad"])
        other = {"good": "bad", "bad": "good"}[label]
        thing, adj = self.rng.choice(words["things"]), self.rng.choice(words[label])
        review = f"{thing[0].upper()}{thing[1:]} was {adj}. {self.rng.choice(words[f'{label}_ends'])}"
        forms = ["This review is {x}.", "It is a {x} review."]
        form = self.rng.choice(forms)
        check = {"answer": {"right": [label], "wrong": [other]}}
        return Task(
            "", "sentiment", self._ask("sentiment", x=review), check, form.format(x=label), wrong=form.format(x=other),
            also=[form.format(x=label) for form in forms],
        )  # fmt: skip

    def kind_of(self) -> Task:
        """Which of two kinds an entity is, for relations whose answers make lists."""
        facts = [f for f in self.facts if f.accepted[0] in f.relation.lists and f.relation.name in ("class", "family")]
        fact = self.rng.choice(facts or [f for f in self.facts if f.accepted[0] in f.relation.lists])
        right = fact.accepted[0]
        wrong = self.rng.choice([a for a in fact.relation.lists if a != right])
        first, second = self.rng.sample([right, wrong], 2)
        prompt = self._ask("kind", e=f"a {fact.entity}", r=first, w=second)
        forms = ["It is a {x}.", "A {e} is a {x}."]
        form = self.rng.choice(forms)
        answers = [fix_articles(form.format(e=fact.entity, x=x)) for x in (right, wrong)]
        also = [fix_articles(form.format(e=fact.entity, x=right)) for form in forms]
        check = {"answer": {"right": [right], "wrong": [wrong]}}
        return Task("", "kind", prompt, check, answers[0], wrong=answers[1], also=also)

    # --- other, closed questions, extraction -------------------------------------------------------------------------

    def repeat(self) -> Task:
        (word,), n = self.slot("words"), self.rng.choice([2, 3, 4])
        good, less = (" ".join([word] * k) + "." for k in (n, self.rng.choice([k for k in (1, 2, 3, 4, 5) if k != n])))
        check = {"repeat": {"word": word, "n": n}}
        return Task("", "repeat", self._ask("repeat", x=word, n=NUMBERS[n]), check, good, partial=less)

    def sum(self) -> Task:
        a, b = self.rng.randint(1, 10), self.rng.randint(1, 10)
        wrong = self.rng.choice([k for k in range(1, 21) if k != a + b])
        forms = ["{a} plus {b} is {c}.", "The answer is {c}."]
        form = self.rng.choice(forms)
        texts = [
            form.format(a=NUMBERS[a], b=NUMBERS[b], c=NUMBERS[c])
            for form, c in ((form, a + b), (form, wrong), *((form, a + b) for form in forms))
        ]
        texts = [text[0].upper() + text[1:] for text in texts]
        numbers = [n for n in NUMBERS[1:] if n not in (NUMBERS[a], NUMBERS[b], NUMBERS[a + b])]
        check = {"answer": {"right": [NUMBERS[a + b]], "wrong": numbers}}
        prompt = self._ask("sum", a=NUMBERS[a], b=NUMBERS[b])
        return Task("", "sum", prompt, check, texts[0], wrong=texts[1], also=texts[2:])

    def _owners(self, count: int) -> list[dict[str, str]]:
        names, things, colours = self.slot("names", count), self.slot("things", count), self.slot("colours", count)
        return [
            {"name": name, "thing": thing, "colour": colour}
            for name, thing, colour in zip(names, things, colours, strict=True)
        ]

    def _owners_text(self, owners: list[dict[str, str]]) -> str:
        return " ".join(self.knowledge.stories["owns"].format(**owner) for owner in owners)

    def closed_qa(self) -> Task:
        owners = self._owners(3)
        asked, text = owners[0], owners[:2]
        self.rng.shuffle(text)
        manners = self.knowledge.manners
        if self.rng.random() < 0.3:  # unanswerable: the person is not in the text
            asked = owners[2]
            good, wrong = self.rng.choice(manners["not_in_text"]), f"It is {text[0]['colour']}."
            check: dict[str, Any] = {"unsure": manners["not_in_text_words"]}
            also = manners["not_in_text"]
        else:
            forms = ["It is {c}.", "The {b} of {name} is {c}."]
            form = self.rng.choice(forms)
            colours = [c for c in self.knowledge.stories["colours"] if c != asked["colour"]]
            slots = {"b": asked["thing"], "name": asked["name"]}
            good = form.format(c=asked["colour"], **slots)
            wrong = form.format(c=next(o["colour"] for o in text if o is not asked), **slots)
            check = {"answer": {"right": [asked["colour"]], "wrong": colours}}
            also = [form.format(c=asked["colour"], **slots) for form in forms]
        prompt = self._ask("closed_qa", x=self._owners_text(text), b=asked["thing"], name=asked["name"])
        return Task("", "closed_qa", prompt, check, good, wrong=wrong, also=also)

    def _extract(self, kind: str, slot: str, pool: str) -> Task:
        owners = self._owners(self.rng.choice([2, 3]))
        right = [owner[slot] for owner in owners]
        wrong = [*right[:-1], self.rng.choice([x for x in self.knowledge.stories[pool] if x not in right])]
        check = {"extract": {"right": right, "of": pool}}
        prompt = self._ask(kind, x=self._owners_text(owners))
        texts = [self.listing(items, pool) for items in (right, wrong, right[:-1])]
        return Task("", kind, prompt, check, texts[0], wrong=texts[1], partial=texts[2], also=[listed(right)])

    def extract_names(self) -> Task:
        return self._extract("extract_names", "name", "names")

    def extract_things(self) -> Task:
        return self._extract("extract_things", "thing", "things")

    # --- harmful requests --------------------------------------------------------------------------------------------

    def harmful(self, use_case: str) -> Task:
        """A request to decline."""
        harmful = self.knowledge.harmful
        request = self.rng.choice(self.requests)
        prompt = self._ask("harmful", x=request["ask"])
        because = harmful["reasons"][request["reason"]]["because"]
        good = self.rng.choice(harmful["refusals"]).format(because=because)
        check = {"decline": request["reason"]}
        also = [refusal.format(because=because) for refusal in harmful["refusals"]]
        return Task(use_case, "harmful", prompt, check, good, comply=request["comply"], also=also)


def stated(statement: str, fact: Fact, answer: str) -> str:
    """A statement of the fact's relation, filled in with this answer."""
    text = fix_articles(statement.format(e=fact.entity, a=answer))
    return text[0].upper() + text[1:]


def joined(items: Sequence[str]) -> str:
    """ "an apple, a pear and a plum"."""
    return ", ".join(items[:-1]) + (" and " if len(items) > 1 else "") + items[-1]


def listed(items: Sequence[str]) -> str:
    """ "An apple, a pear and a plum."."""
    return joined(items)[0].upper() + joined(items)[1:] + "."


def windows(items: Sequence[str], n: int) -> list[list[str]]:
    """Lists of `n` items in a row, from each item on: every item is once in every place.

    >>> windows(["apple", "pear", "plum"], 2)
    [['apple', 'pear'], ['pear', 'plum'], ['plum', 'apple']]
    """
    return [[items[(start + step) % len(items)] for step in range(n)] for start in range(len(items))]


def text_of(prompt: Messages) -> str:
    """What tells two prompts apart: their words, without case."""
    return contents(prompt).lower()


def user(content: str) -> Messages:
    return [{"role": "user", "content": content}]


def assistant(content: str) -> Messages:
    return [{"role": "assistant", "content": content}]
