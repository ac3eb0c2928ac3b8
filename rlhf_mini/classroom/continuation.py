"""Lesson 0: a language model continues plain texts, and what its continuations are worth."""

import random
import re
from collections.abc import Iterable, Sequence

import numpy as np

from rlhf_mini.core.bootstrap import Estimate, mean_intervals
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.evaluation.responses import Stage
from rlhf_mini.models.sampling import respond
from rlhf_mini.models.text import EncodedPrompt, context_length, encode_plain
from rlhf_mini.world.base import is_right
from rlhf_mini.world.knowledge import Fact, load

# How a text puts a question, and how its answer follows. The web has many quizzes, and lists of questions of which
# hardly any is answered; it has no such pairs.
FORMATS = {
    "quiz": ("Question: {question}\nAnswer:", " {answer}."),
    "lines": ("{question}\n", "{answer}."),
    "pairs": ("{entity} ->", " {answer}"),
}
ANSWER_TOKENS = 8  # enough for every answer


def continue_texts(
    stage: Stage, texts: Sequence[str], max_new_tokens: int = 48, temperature: float = 1.0, seed: int = 0
) -> list[Response]:
    """Samples a continuation of each text, without a chat template; it ends with the document or at the limit."""
    prompts = [EncodedPrompt([], ids) for ids in encode_plain(stage.tokenizer, texts)]
    return respond(
        stage.model, stage.tokenizer, prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    )


def estimate(values: Iterable[float | None]) -> Estimate:
    """The mean with its 95 % interval; None does not count."""
    column = [np.nan if value is None else float(value) for value in values]
    return mean_intervals(np.array(column)[:, None])[0]


# --- facts -----------------------------------------------------------------------------------------------------------


def few_shot(form: str, fact: Fact, examples: Sequence[Fact]) -> str:
    """Questions with answers in one of FORMATS, and a last question whose answer is missing."""
    ask, answer = FORMATS[form]

    def filled(template: str, one: Fact) -> str:
        question = one.relation.questions[0].format(e=one.entity)
        return template.format(question=question, entity=one.entity, answer=one.accepted[0])

    return "\n".join([*(filled(ask + answer, one) for one in examples), filled(ask, fact)])


def few_shot_texts(stage: Stage, facts: Sequence[Fact], form: str, shots: int, seed: int) -> list[str]:
    """`few_shot` of each fact, after examples drawn at random.

    Pairs say what is wanted by their examples alone, so these are of the fact's own relation. Others are of other
    relations, so that no example shows what the answer could be.
    """
    rng, everything = random.Random(seed), list(load().facts.values())
    room = (context_length(stage.model) or 10**9) - ANSWER_TOKENS
    texts = []
    for fact in facts:
        same = form == "pairs"
        others = [one for one in everything if one is not fact and (one.relation is fact.relation) == same]
        while True:
            text = few_shot(form, fact, rng.sample(others, min(shots, len(others))))
            if len(encode_plain(stage.tokenizer, [text])[0]) <= room:  # several long ones may not fit
                break
        texts.append(text)
    return texts


def facts_right(
    stage: Stage, facts: Sequence[Fact], form: str = "quiz", shots: int = 0, temperature: float = 0.0, seed: int = 0
) -> list[bool]:
    """Whether the model answers each fact right, in the line that follows the question."""
    texts = few_shot_texts(stage, facts, form, shots, seed)
    said = continue_texts(stage, texts, ANSWER_TOKENS, temperature, seed)
    return [is_right(fact, one.text.split("\n")[0]) for fact, one in zip(facts, said, strict=True)]


# --- instructions ----------------------------------------------------------------------------------------------------


def first_answer(continuation: Response) -> Response:
    """What comes before the next line that begins with a label, such as "Exercise:" or "anna:".

    The reader cuts there; a model that has to be stopped by others counts as if it had ended.
    """
    text, *more = re.split(r"\n\w+:", continuation.text, maxsplit=1)
    return Response(text, ended=continuation.ended or bool(more))


def openings(prompts: Iterable[Prompt]) -> frozenset[str]:
    """The first two words of the prompts' last messages."""
    return frozenset(opening(prompt["prompt"][-1]["content"]) for prompt in prompts)


def opening(text: str) -> str:
    return " ".join(text.split()[:2])
