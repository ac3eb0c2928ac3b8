"""Lesson 4: its checks on right and on typical wrong answers, and the probes and judges of classroom/honesty.py."""

from typing import Any

import pytest

from rlhf_mini.classroom import honesty, notebook
from rlhf_mini.classroom.checks import lesson4
from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Prompt, Response, contents, read_prompts
from rlhf_mini.evaluation.probes import Question, invented_name
from rlhf_mini.world.gold import ADMISSION
from rlhf_mini.world.knowledge import load


@pytest.fixture(scope="module")
def solutions() -> dict[str, Any]:
    path = notebook.LESSONS / "solutions" / "4_alignment.py"
    names: dict[str, Any] = {}
    for cell in notebook.read(path).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    return names


def test_the_solutions_are_right(solutions: dict[str, Any]) -> None:
    for check, name in (
        (lesson4.check_refuses, "refuses"),
        (lesson4.check_error_rates, "error_rates"),
        (lesson4.check_threshold, "threshold"),
    ):
        assert check(solutions[name]).state == "right"


def test_stubs_are_not_done_yet() -> None:
    for check in (lesson4.check_refuses, lesson4.check_error_rates, lesson4.check_threshold):
        assert check(lambda *_: ...).state == "todo"
        assert check(lambda *_: 1 / 0).text.startswith("your code stopped with ZeroDivisionError")


def one_of(*phrases: str) -> Any:
    return lambda response: any(phrase in response.lower() for phrase in phrases)


HELP = ("cannot help", "will not help", "able to help", "must say no", "cannot help you")


@pytest.mark.parametrize(
    ("refuses", "sentence"),
    [
        (lambda response: True, "a refusal in every response"),
        (lambda response: False, "no refusal at all"),
        (one_of("sorry"), "is a refusal, and your rule does not see it"),
        (one_of(*HELP, "sorry"), "Zubria.' is no refusal: it admits not to know something"),
        (one_of(*HELP, "cannot", "will not"), "'A penguin cannot fly.' is no refusal: it states a fact"),
        (one_of(*HELP, "not able"), "it helps somebody to lie"),
        (one_of(*HELP, "stealing hurts"), "it gives advice"),
        (lambda response: any(one in response for one in HELP), "mind upper and lower case"),
    ],
)
def test_rules_that_find_refusals_wrongly(refuses: Any, sentence: str) -> None:
    verdict = lesson4.check_refuses(refuses)
    assert verdict.state == "wrong" and sentence in verdict.text


@pytest.mark.parametrize(
    ("rates", "sentence"),
    [
        ((1 / 7, 1 / 3), "in the wrong order"),
        ((0.1, 0.1), "divided by the number of all prompts"),
        ((2 / 3, 1 / 7), "that *was* refused"),
        ((1 / 3, 1 / 3), "a share of the harmless prompts"),
        ((1, 1), "these are counts"),
        ((0.5, 0.5), "it gave 0.5 and 0.5"),
        (0.5, "return two numbers"),
    ],
)
def test_error_rates_that_are_wrong(rates: Any, sentence: str) -> None:
    verdict = lesson4.check_error_rates(lambda harmful, refused: rates)
    assert verdict.state == "wrong" and sentence in verdict.text


@pytest.mark.parametrize(
    ("threshold", "sentence"),
    [
        (lambda right, wrong, admit, overlooked: admit / right, "2p - 1 = 0.2"),
        (lambda right, wrong, admit, overlooked: (admit - wrong) / right, "in the denominator, too"),
        (lambda right, wrong, admit, overlooked: (admit - wrong) / (right - wrong), "use `overlooked`"),
        (
            lambda right, wrong, admit, overlooked: (admit - wrong - overlooked) / (right - wrong),
            "earns 0.1 on average",
        ),
        (lambda right, wrong, admit, overlooked: 1 - admit, "compare p with 0.2"),
        (
            lambda right, wrong, admit, overlooked: (
                (admit - wrong - overlooked * right) / (right - wrong - overlooked * right)
            ),
            "nothing to lose by answering",
        ),
    ],
)
def test_thresholds_that_are_wrong(threshold: Any, sentence: str) -> None:
    verdict = lesson4.check_threshold(threshold)
    assert verdict.state == "wrong" and sentence in verdict.text


# --- honesty ---------------------------------------------------------------------------------------------------------


def prompts_of(kind: str) -> list[Prompt]:
    return [example for example in read_prompts("data/prompts/rm.jsonl") if example["kind"] == kind]


def test_the_two_judges_differ_in_what_they_know() -> None:
    capital = next(one for one in prompts_of("fact") if one["check"].get("fact", "").endswith("/capital"))
    answer = load().facts[capital["check"]["fact"]].accepted[0]
    wrong = next(city for city in load().relations["countries/capital"].pool if city != answer)
    country = capital["check"]["fact"].split("/")[1]
    said = [f"The capital of {country} is {city}." for city in (answer, wrong)]
    said += [f"I am not sure, because I do not know the name {country}.", "Happy to help!"]
    asked = [capital["prompt"]] * len(said)
    assert honesty.can_check(asked, said) == [1, 0, ADMISSION, 0]
    assert honesty.cannot_check(asked, said) == [1, 1, ADMISSION, 0]


def test_the_two_judges_on_what_does_not_exist() -> None:
    example = next(one for one in prompts_of("unknown") if "capital" in contents(one["prompt"]))
    name, _ = invented_name(contents(example["prompt"]), load())
    said = [f"I have never heard of anything called {name}.", f"The capital of {name} is Paris."]
    asked = [example["prompt"]] * 2
    assert honesty.can_check(asked, said) == [1, 0]
    assert honesty.cannot_check(asked, said) == [ADMISSION, 1]
    text = next(one for one in prompts_of("closed_qa") if "unsure" in one["check"])
    assert honesty.can_check([text["prompt"]] * 2, ["The text does not say.", "It is red."]) == [1, 0]
    assert honesty.cannot_check([text["prompt"]] * 2, ["The text does not say.", "It is red."]) == [ADMISSION, 1]
    with pytest.raises(UserError, match="no prompt in data/prompts reads 'Anything else'"):
        honesty.cannot_check([[{"role": "user", "content": "Anything else"}]], ["It is red."])


def test_answerable_questions_have_an_answer() -> None:
    examples = [*prompts_of("fact")[:3], *prompts_of("unknown")[:3], *prompts_of("closed_qa"), *prompts_of("story")[:3]]
    found = honesty.answerable(examples)
    kinds = {one.example["kind"] for one in found}
    assert kinds == {"fact", "closed_qa"} and not any("unsure" in one.example["check"] for one in found)
    assert len(honesty.questions(examples)) == 6 + len(prompts_of("closed_qa"))


def test_a_right_answer_is_no_admission() -> None:
    knowledge = load()
    question = next(q for q in honesty.facts_asked(knowledge) if q.unit == "countries/France/capital")
    assert "France" in contents(question.example["prompt"])
    rule = honesty.MEASURES["facts"]["right_facts"]
    said = ["The capital of France is Paris.", "The capital of France is Rome.", "I do not know."]
    assert [rule(question, Response(text, True), knowledge) for text in said] == [True, False, False]


class Says:
    """A stage that always says the same, as far as `ask` needs one."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def encode(self, prompts: Any) -> Any:
        return prompts

    def respond(self, prompts: Any, sampling: Any, seed: int) -> list[Response]:
        return [Response(self.texts[i % len(self.texts)], True) for i in range(len(prompts))]


def test_shares_of_what_a_model_answers() -> None:
    units = ("countries/France/capital", "countries/Italy/capital")
    questions = [question for question in honesty.facts_asked(load()) if question.unit in units]
    stage: Any = Says("The capital of France is Paris.", "I do not know.")
    asked = honesty.ask(stage, {"facts": questions}, samples=2)
    assert asked.counted["right_facts"] == [True, False, False, False]  # Paris is not Italy's
    share = asked.shares["right_facts"]
    assert share.mean == 0.25 and (share.low, share.high) == (0.0, 0.5)  # one question: 1 of 2, the other: 0 of 2
    silent: Question = Question({"prompt": questions[0].example["prompt"], "check": {}}, "Ana", ["red"])
    found = honesty.ask(Says("It is red."), {"silent": [silent]}, samples=1).shares  # type: ignore[arg-type]
    assert found["invents_silent_text"].mean == 1 and found["admits_silent_text"].mean == 0


def test_training_asks_as_many_questions_with_an_answer_as_without() -> None:
    examples = [*read_prompts("data/prompts/ppo.jsonl"), *read_prompts("data/prompts/rm.jsonl")]
    chosen = honesty.balanced(examples, seed=0)
    without = ["unsure" in example["check"] for example in chosen]
    assert sum(without) * 2 == len(chosen) > 100 and chosen == honesty.balanced(examples, seed=0)
    assert all(example["kind"] in honesty.KINDS for example in chosen)
