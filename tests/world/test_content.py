"""The pairs of data/content: the same manners, other content, on prompts that no stage was trained on."""

from collections import Counter

import pytest

from rlhf_mini.core.examples import Preference, read_demonstrations, read_preferences, read_prompts
from rlhf_mini.world import build
from rlhf_mini.world.content import KINDS, NEW, SEEN, differ_in_content
from rlhf_mini.world.knowledge import DATA, has_any, load
from rlhf_mini.world.tasks import Task, text_of, user

WORLD = load()
SPLITS = ("validation", "test")


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[Preference]]:
    return {split: read_preferences(DATA / "content" / f"{split}.jsonl") for split in SPLITS}


def said(pair: Preference) -> list[str]:
    return [pair["chosen"][0]["content"], pair["rejected"][0]["content"]]


def manners(text: str) -> list[str]:
    """The sentences of manners.yaml that it begins or ends with, and whether it is courteous otherwise."""
    around = [s for s in WORLD.manners["openers"] if text.startswith(f"{s} ")]
    around += [s for s in WORLD.manners["closers"] if text.endswith(f" {s}")]
    return [*around, str(has_any(text, WORLD.manners["courtesy_words"]))]


def test_the_files_match_the_knowledge_files_and_the_seed(pairs: dict[str, list[Preference]]) -> None:
    prompts = {split: read_prompts(DATA / "prompts" / f"{split}.jsonl") for split in ("rm", "ppo", *SPLITS)}
    made = build.content({"sft": list(read_demonstrations(DATA / "demonstrations.jsonl")), **prompts})
    assert made == pairs, "data/content is stale: run `make data`"


@pytest.mark.parametrize("split", SPLITS)
def test_both_responses_have_the_same_manners_and_different_content(
    pairs: dict[str, list[Preference]], split: str
) -> None:
    forms: Counter[str] = Counter()
    for pair in pairs[split]:
        (chosen, rejected), (own, other) = said(pair), map(manners, said(pair))
        assert own == other and len(own) <= 2, pair
        bare = [text.replace(own[0], "").strip() for text in (chosen, rejected)]
        assert bare[0] != bare[1] and all(text.endswith(".") for text in bare), pair
        assert not has_any(f"{chosen} {rejected}", [*WORLD.manners["rude_words"], *WORLD.manners["fillers"]]), pair
        forms[own[0] if len(own) == 2 else ""] += 1
    assert set(forms) == {"", *WORLD.manners["openers"], *WORLD.manners["closers"]}


def test_gold_prefers_the_chosen_response_for_its_content_alone() -> None:
    task = Task("open_qa", "fact", user("What is the capital of France?"), {"fact": "countries/France/capital"},
                good="The capital of France is Paris.")  # fmt: skip
    good, bad = task.good, "The capital of France is Rome."
    assert differ_in_content(task, good, bad, WORLD) and not differ_in_content(task, bad, good, WORLD)
    assert differ_in_content(task, f"Of course! {good}", f"{bad} Have a nice day!", WORLD)  # gold counts them alike
    assert not differ_in_content(task, f"Of course! {good}", bad, WORLD)
    assert not differ_in_content(task, good, f"{bad} Who cares about that?", WORLD)
    assert not differ_in_content(task, good, f"{bad} {' '.join(['Perhaps it is.'] * 5)}", WORLD)
    assert not differ_in_content(task, good, bad.rstrip("."), WORLD)


@pytest.mark.parametrize("split", SPLITS)
def test_each_kind_has_its_pairs_and_no_prompt_occurs_twice(pairs: dict[str, list[Preference]], split: str) -> None:
    found = Counter((pair["kind"], pair["novel"]) for pair in pairs[split])
    assert found == {
        (kind, novel): number
        for kind in KINDS
        for novel, number in (("none", SEEN), ("phrasing" if kind == "myth" else "entity", NEW))
    }
    files = [DATA / "demonstrations.jsonl", *(DATA / "prompts").glob("*.jsonl")]
    others = [example for path in files for example in read_prompts(path)]
    others += [pair for one in SPLITS for pair in pairs[one]]
    seen = Counter(text_of(example["prompt"]) for example in others)
    assert max(seen.values()) == 1 and len({pair["id"] for pair in pairs[split]}) == len(pairs[split])


def test_new_pairs_ask_for_what_the_split_alone_has(pairs: dict[str, list[Preference]]) -> None:
    held_out = [request["ask"].lower() for request in WORLD.harmful["requests"] if request.get("held_out")]
    for split in SPLITS:
        for pair in pairs[split]:
            asked = text_of(pair["prompt"])
            if pair["kind"] == "refusal":
                assert any(ask in asked for ask in held_out) == (pair["novel"] == "entity"), pair
            if pair["kind"] == "fact":
                about = {f.part for f in WORLD.facts.values() if f.entity.lower() in asked}
                assert (split if pair["novel"] == "entity" else "seen") in about, pair


def test_a_false_fact_is_told_in_the_words_of_the_true_one(pairs: dict[str, list[Preference]]) -> None:
    for pair in (pair for pair in pairs["test"] if pair["kind"] == "fact"):
        true, false = (text.split() for text in said(pair))
        ends = [next((n for n, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), len(x))
                for x, y in ((true, false), (true[::-1], false[::-1]))]  # fmt: skip
        assert len(true) - sum(ends) <= 3, pair  # what differs is the answer, with its article
