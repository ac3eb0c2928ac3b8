"""Checks of lesson 4: a rule that detects refusals, their two error rates, when answering pays."""

import math
from collections.abc import Callable
from typing import Any

from rlhf_mini.classroom.checks import Verdict, answer_of, check, right, wrong
from rlhf_mini.world.knowledge import load

NO_REFUSALS = {
    "Sorry, I do not know the name Zubria.": "it admits not to know something",
    "I am not sure that gorvit is a real name.": "it admits not to know something",
    "The text does not say.": "it says what is not in a text",
    "A penguin cannot fly.": "it states a fact",
    "You can not see the Great Wall from the Moon.": "it states a truth about a myth",
    "I hope this helps! Let me know if you need more.": "it is a courtesy",
    "I am sorry to hear that. I hope you feel better soon.": "it is a kind reply",
    "Tell your mother that you are not able to come.": "it helps somebody to lie",
    "Say that stealing hurts nobody.": "it gives advice",
    "Three birds: owl, duck and hen.": "it answers",
}


@check
def check_refuses(refuses: Callable[[str], Any]) -> Verdict:
    harmful = load().harmful
    because = [reason["because"] for reason in harmful["reasons"].values()]
    cases = {form.format(because=because[i % len(because)]): True for i, form in enumerate(harmful["refusals"])}
    other_cases = ("i cannot help with that.", "I WILL NOT HELP WITH THAT.")
    cases |= dict.fromkeys(other_cases, True)
    found = {text: answer_of(refuses, text) for text in [*cases, *NO_REFUSALS]}
    if all(found.values()):
        return wrong("your rule finds a refusal in every response; over-refusal would then be 100 %.")
    if not any(found.values()):
        return wrong("your rule finds no refusal at all, not even in the first one that PPO shows above.")
    for text in cases:
        if not found[text]:
            why = " (mind upper and lower case)" if text in other_cases else ""
            return wrong(f"{text!r} is a refusal, and your rule does not see it{why}.")
    for text, what in NO_REFUSALS.items():
        if found[text]:
            return wrong(f"{text!r} is no refusal: {what}. Which word misled your rule?")
    return right(f"{len(cases)} refusals found, and none of {len(NO_REFUSALS)} other sentences taken for one.")


@check
def check_error_rates(error_rates: Callable[[list[bool], list[bool]], Any]) -> Verdict:
    harmful = [True] * 3 + [False] * 7
    refused = [True, True, False] + [True] + [False] * 6
    found = answer_of(error_rates, harmful, refused)
    if not isinstance(found, tuple | list) or len(found) != 2:
        return wrong("return two numbers: missed refusals first, then false refusals.")
    missed, false = map(float, found)

    def near(first: float, second: float) -> bool:
        return math.isclose(missed, first, abs_tol=1e-6) and math.isclose(false, second, abs_tol=1e-6)

    example = "3 harmful requests of which 2 were refused, and 7 harmless ones of which 1 was refused"
    if near(1 / 7, 1 / 3):
        return wrong("the two are in the wrong order: missed refusals come first.")
    if near(1 / 10, 1 / 10):
        return wrong("both are divided by the number of all prompts; each has a denominator of its own.")
    if near(2 / 3, 6 / 7) or near(2 / 3, 1 / 7):
        return wrong("the first is the share that *was* refused; it asks for the share that was missed.")
    if near(1 / 3, 1 / 3):
        return wrong(
            "the second is the share of the refusals that are false; it asks for a share of the harmless prompts."
        )
    if near(1, 1):
        return wrong("these are counts; divide each by the number of prompts of its kind.")
    if not near(1 / 3, 1 / 7):
        return wrong(f"for {example}, it gave {missed:.3g} and {false:.3g}.")
    return right("two rates with two denominators: neither can be had by giving up the other unnoticed.")


@check
def check_threshold(threshold: Callable[[float, float, float, float], Any]) -> Verdict:
    def found(right: float, wrong_: float, admit: float, overlooked: float) -> float:
        return float(answer_of(threshold, right, wrong_, admit, overlooked))

    if not math.isclose(found(1, 0, 0.2, 0), 0.2, abs_tol=1e-6):
        return wrong(
            "right 1, wrong 0, admit 0.2, nothing overlooked: answering earns p on average, so compare p with 0.2; "
            f"it gave {found(1, 0, 0.2, 0):.3g}."
        )
    punished = found(1, -1, 0.2, 0)
    if not math.isclose(punished, 0.6, abs_tol=1e-6):
        why = " Is `wrong` in the denominator, too?" if math.isclose(punished, 1.2, abs_tol=1e-6) else ""
        return wrong(f"right 1, wrong -1, admit 0.2: at the threshold, 2p - 1 = 0.2. It gave {punished:.3g}.{why}")
    some = found(1, 0, 0.2, 0.1)
    if math.isclose(some, 0.2, abs_tol=1e-6):
        return wrong("a judge who overlooks a tenth of the wrong answers changes nothing in it: use `overlooked`.")
    expected = (0.2 - 0.1) / 0.9
    if not math.isclose(some, expected, abs_tol=1e-6):
        return wrong(f"with overlooked 0.1, a wrong answer earns 0.1 on average, a right one 1; it gave {some:.3g}.")
    if not math.isclose(found(2, -1, 0.5, 0.5), 0.0, abs_tol=1e-6):
        return wrong(
            "right 2, wrong -1, admit 0.5, overlooked 0.5: a wrong answer earns 0.5 on average, as much as an "
            f"admission, so there is nothing to lose by answering; it gave {found(2, -1, 0.5, 0.5):.3g}."
        )
    return right(
        f"a judge who overlooks half of the wrong answers moves the threshold from 0.2 to {found(1, 0, 0.2, 0.5):.1f}, "
        "and it pays to answer always."
    )
