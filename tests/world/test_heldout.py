"""No validation or test prompt is given away: not by another split, and not by the base's corpus."""

from itertools import islice

import pytest

from rlhf_mini.core.examples import Messages, Prompt, read_demonstrations, read_prompts
from rlhf_mini.world.corpus import documents
from rlhf_mini.world.heldout import SPLITS, Core, core, held_out_prompts, occurring, without
from rlhf_mini.world.knowledge import DATA, has, load
from rlhf_mini.world.tasks import assistant, user

WORLD = load()
ASKED = "What is the capital of France?"
ONE: frozenset[Core] = frozenset({core(user(ASKED))})
TURNS: Messages = user(ASKED) + assistant("It is Paris.") + user("And of Italy?")
TWO: frozenset[Core] = frozenset({core(TURNS)})
DOCUMENTS = 3000


@pytest.fixture(scope="module")
def examples() -> dict[str, list[Prompt]]:
    prompts = {split: read_prompts(DATA / "prompts" / f"{split}.jsonl") for split in ("rm", "ppo", *SPLITS)}
    return {"sft": list(read_demonstrations(DATA / "demonstrations.jsonl")), **prompts}


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    """What the base reads first."""
    return list(islice(without(documents(5), held_out_prompts()), DOCUMENTS))


@pytest.mark.parametrize("wrapper", [w for part in WORLD.prompts["wrappers"].values() for w in part])
@pytest.mark.parametrize("prefix", ["", "anna: ", "Question: ", "Homework. ", "What now? "])
def test_a_prompt_is_found_in_any_wrapping_and_case_and_after_any_prefix(wrapper: str, prefix: str) -> None:
    wrapped = wrapper.format(x=ASKED)
    assert core(user(wrapped)) == core(user(wrapped.upper())) == core(user(ASKED))
    for line in (prefix + wrapped, prefix + wrapped.upper(), f"A title\n{prefix}{wrapped}\nAnswer: Paris."):
        assert occurring(line, ONE) == ONE, line


def test_another_prompt_and_a_part_of_a_prompt_are_not_found() -> None:
    for text in ("What is the capital of Spain?", "The capital of France?", f"{ASKED[:-1]} and of Spain?", "", "\n"):
        assert occurring(text, ONE) == set(), text


def test_a_prompt_of_two_turns_is_found_with_any_answer_between_them() -> None:
    for answer in ("It is Paris.", "Look it up yourself."):
        text = f"anna: {ASKED}\nben: {answer}\nanna: and of italy?\nben: It is Rome."
        assert occurring(text, TWO) == TWO
        assert occurring(text, ONE) == ONE
    assert occurring(f"anna: {ASKED}\nben: It is Paris.", TWO) == set()
    assert occurring("anna: And of Italy?\nben: It is Rome.", TWO) == set()
    assert occurring(f"anna: And of Italy?\nben: It is Rome.\nanna: {ASKED}", TWO) == set()


def test_without_drops_exactly_the_texts_in_which_a_prompt_occurs() -> None:
    texts = ["One day a fox found a lamp.", f"ben: {ASKED}", "What is the capital of Spain?"]
    assert list(without(texts, ONE)) == [texts[0], texts[2]]


@pytest.mark.parametrize("split", SPLITS)
def test_no_validation_or_test_prompt_occurs_in_another_split(examples: dict[str, list[Prompt]], split: str) -> None:
    own = {core(example["prompt"]) for example in examples[split]}
    for other in examples.keys() - {split}:
        assert not own & {core(example["prompt"]) for example in examples[other]}, other


def test_no_document_of_the_corpus_holds_a_validation_or_test_prompt(corpus: list[str]) -> None:
    drawn = list(islice(documents(5), DOCUMENTS))
    assert any(occurring(text, held_out_prompts()) for text in drawn)  # or nothing would be filtered
    asked = [prompt[0] for prompt in held_out_prompts() if len(prompt) == 1]
    for text in corpus:  # by plain search for whole lines, not by `occurring`
        lines = {rest for line in text.lower().split("\n") for rest in (line, line.partition(": ")[2])}
        assert not lines.intersection(asked), text


@pytest.mark.parametrize("split", SPLITS)
def test_harmful_prompts_of_validation_and_test_make_requests_of_their_own(
    examples: dict[str, list[Prompt]], split: str
) -> None:
    held_out = {request["ask"]: bool(request.get("held_out")) for request in WORLD.harmful["requests"]}
    requested: dict[str, set[str]] = {}
    for name, some in examples.items():
        asked = [example["prompt"][-1]["content"].lower() for example in some]
        requested[name] = {request for request in held_out if any(request.lower() in text for text in asked)}
    harmful = [example for example in examples[split] if example["kind"] == "harmful"]
    assert len(harmful) > 20 and {example["novel"] for example in harmful} == {"entity", "both"}
    for example in harmful:
        assert any(held_out[request] and request in example["prompt"][-1]["content"] for request in held_out), example
    assert requested[split] and all(held_out[request] for request in requested[split])
    for other in requested.keys() - {split}:
        assert not requested[split] & requested[other], other


def test_the_unknown_names_of_validation_and_test_never_occur_on_the_web() -> None:
    names = [name for kind in WORLD.unknown["kinds"].values() for name in kind["names"]]
    held_out = [name for kind in WORLD.unknown["kinds"].values() for name in kind["names"][-4:]]
    page = "\n".join(islice(documents(5), DOCUMENTS))
    assert [name for name in held_out if has(page, name)] == []
    assert any(has(page, name) for name in set(names) - set(held_out))  # those that training asks for do occur
