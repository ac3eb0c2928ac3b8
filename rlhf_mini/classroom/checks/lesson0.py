"""Checks of lesson 0: a softmax with temperature, a draw by inverting cumulative probabilities, a few-shot prompt."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_mini.classroom.checks import Verdict, answer_of, check, right, wrong
from rlhf_mini.classroom.continuation import ANSWER_TOKENS, continue_texts
from rlhf_mini.evaluation.responses import Stage
from rlhf_mini.models.text import context_length, encode_plain
from rlhf_mini.world.base import is_right
from rlhf_mini.world.knowledge import Fact, load

LOGITS, HOT = [2.0, 1.0, 0.0], 2.0
PROBABILITIES = [0.0, 0.2, 0.5, 0.0, 0.3]
DRAWS = {0.0: 1, 0.1: 1, 0.25: 2, 0.69: 2, 0.75: 4, 0.99: 4}  # none lies on a boundary, where rounding decides
ASKED = 64  # facts with which a few-shot prompt is tried
GAIN = 0.1


@check
def check_softmax(softmax: Callable[[Tensor, float], Tensor]) -> Verdict:
    logits = torch.tensor(LOGITS)
    found = answer_of(softmax, logits.clone(), HOT)
    plain = logits.softmax(-1)
    if not isinstance(found, Tensor) or found.shape != logits.shape:
        return wrong(f"it must return a tensor with one probability per logit, {tuple(logits.shape)}.")
    if torch.allclose(found, (logits * HOT).softmax(-1), atol=1e-5):
        return wrong("a temperature above 1 must bring the probabilities closer together, yours moves them apart.")
    if torch.allclose(found, plain, atol=1e-5):
        return wrong("the temperature changes nothing.")
    if torch.allclose(found, plain / HOT, atol=1e-5):
        return wrong("your probabilities add up to less than 1: the temperature belongs to the logits.")
    if abs(found.sum().item() - 1) > 1e-4:
        return wrong(f"your probabilities add up to {found.sum().item():.3f}, not to 1.")
    if not torch.allclose(found, (logits / HOT).softmax(-1), atol=1e-5):
        return wrong(f"for logits {LOGITS} and temperature {HOT:g} it gave {rounded(found)}.")
    if not torch.allclose(softmax(logits, 0.5), (logits / 0.5).softmax(-1), atol=1e-5):
        return wrong(f"it is right at temperature {HOT:g}, but not at 0.5.")
    if not torch.allclose(softmax(logits + 1000, 1.0), plain, atol=1e-4):
        return wrong(
            "it is right for small logits, but with 1000 added to each, which changes no probability, it gives "
            f"{rounded(softmax(logits + 1000, 1.0))}: exp overflows. Take the largest logit away first."
        )
    return right("the lower the temperature, the more of the probability goes to the largest logit.")


def rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]


@check
def check_draw(draw: Callable[[Tensor, float], int]) -> Verdict:
    probabilities = torch.tensor(PROBABILITIES)
    found: dict[float, Any] = {u: answer_of(draw, probabilities.clone(), u) for u in DRAWS}
    try:
        drawn = {u: int(token) for u, token in found.items()}
    except (TypeError, ValueError):
        return wrong(f"it must return the index of a token, not {next(iter(found.values()))!r}.")
    if len(set(drawn.values())) == 1:
        return wrong(f"it gives token {drawn[0.0]} for every u: the number u must decide.")
    if drawn == {u: token - 1 for u, token in DRAWS.items()}:
        return wrong("each token is one too low: the token whose cumulative probability is above u is itself the one.")
    for u, token in drawn.items():
        if not 0 <= token < len(PROBABILITIES):
            return wrong(f"for u = {u} it gave token {token}, but there are only {len(PROBABILITIES)}.")
        if PROBABILITIES[token] == 0:
            return wrong(
                f"for u = {u} it gave token {token}, whose probability is 0: take the first token whose cumulative "
                "probability is above u, not equal to it."
            )
        if token != DRAWS[u]:
            return wrong(f"for probabilities {PROBABILITIES} and u = {u} it gave token {token}.")
    return right("rlhf_mini.models.sampling.draw does the same for a whole batch.")


@check
def check_few_shot(few_shot_prompt: Callable[[str, list[tuple[str, str]]], str], base: Stage) -> Verdict:
    """Looks at the text, then tries it on the base: with examples it must do better than without."""
    facts = list(load().facts.values())
    asked = facts[:: len(facts) // ASKED][:ASKED]
    texts = [answer_of(few_shot_prompt, question(fact), examples_for(fact, facts)) for fact in asked]
    text, examples = texts[0], examples_for(asked[0], facts)
    if not isinstance(text, str):
        return wrong(f"it must return a text, not {text!r}.")
    for number, (shown, answer) in enumerate(examples, 1):
        if shown not in text:
            return wrong(f"the question of example {number} is missing.")
        if answer not in text.split(shown, 1)[1]:
            return wrong(f"the answer to example {number} must follow its question.")
    last = question(asked[0])
    if last not in text:
        return wrong("the question that is to be answered is missing.")
    if any(text.index(shown) > text.index(last) for shown, _ in examples):
        return wrong("the question that is to be answered must come last.")
    if text.endswith(" "):
        return wrong("it ends with a space, but the model's words begin with theirs: end right after the colon.")
    longest = max(map(len, encode_plain(base.tokenizer, texts)))
    if longest + ANSWER_TOKENS > (context_length(base.model) or longest + ANSWER_TOKENS):
        return wrong(f"your longest text has {longest} tokens, which leaves no room for an answer: add less to it.")
    with_examples, without = (
        share_right(base, asked, some) for some in (texts, [few_shot_prompt(question(fact), []) for fact in asked])
    )
    shares = f"{with_examples:.0%} right with examples, {without:.0%} without"
    if with_examples < without + GAIN:
        return wrong(
            f"{shares}: on your format, examples do not help. Which documents of the web have questions *and* answers?"
        )
    return right(f"{shares}, and no weight has changed.")


def question(fact: Fact) -> str:
    return fact.relation.questions[0].format(e=fact.entity)


def examples_for(fact: Fact, facts: Sequence[Fact]) -> list[tuple[str, str]]:
    """Two questions with answers, of other relations."""
    others = [one for one in facts if one.relation is not fact.relation]
    return [(question(one), one.accepted[0]) for one in (others[10], others[-10])]


def share_right(base: Stage, facts: Sequence[Fact], texts: Sequence[str]) -> float:
    said = continue_texts(base, texts, ANSWER_TOKENS, temperature=0.0)
    return sum(is_right(fact, one.text.split("\n")[0]) for fact, one in zip(facts, said, strict=True)) / len(facts)
