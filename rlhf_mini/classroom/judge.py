"""Lesson 6's judges: a language model asked which of two answers is better, and a simulated judge of known biases.

A judge sees a question and two answers and says by a margin which it prefers: above 0 the answer that is shown first.

Shapes: n pairs of answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlhf_mini.core.bootstrap import Estimate, interval, mean_intervals, resample_weights
from rlhf_mini.core.examples import Messages, Prompt, Response
from rlhf_mini.evaluation.ratings import length_controlled
from rlhf_mini.evaluation.responses import Stage, gold_of
from rlhf_mini.models.scoring import response_logprobs
from rlhf_mini.models.text import context_length, encode_plain

Judge = Callable[[Sequence[Prompt], Sequence[Response], Sequence[Response]], np.ndarray]
"""(questions, answers shown first, answers shown second) -> margins (n,)."""

QUESTION = "Question: {question}\nA: {first}\nB: {second}\nThe better answer is"
EXAMPLES = [  # one won by A, one by B, so that the examples favour no position
    ("What is the opposite of hot?", "Find it out yourself.", "The opposite of hot is cold.", "B"),
    ("Say tree two times.", "tree tree", "I do not know what a tree is.", "A"),
]


# --- judges ----------------------------------------------------------------------------------------------------------


def model_judge(model: Stage) -> Judge:
    """The model reads two judged examples, the question and the answers, and says "A" or "B" (Zheng et al. 2023).

    The margin is log p(A) - log p(B).
    """
    shown = "".join(f"{asked(question, a, b)} {better}.\n" for question, a, b, better in EXAMPLES)
    (a, b), eos = (encode_plain(model.tokenizer, [letter])[0] for letter in (" A", " B")), model.tokenizer.eos_token_id

    def judge(examples: Sequence[Prompt], first: Sequence[Response], second: Sequence[Response]) -> np.ndarray:
        texts = [
            shown + asked(in_words(example["prompt"]), one.text, other.text)
            for example, one, other in zip(examples, first, second, strict=True)
        ]
        room = (context_length(model.model) or 10**6) - 2
        prompts = [[eos, *ids[-room:]] for ids in encode_plain(model.tokenizer, texts)]  # too long: the end counts
        with torch.no_grad():
            for_a, for_b = (
                response_logprobs(model.model, prompts, [letter] * len(prompts)).logprobs.view(len(prompts), -1).sum(1)
                for letter in (a, b)
            )  # (n,) each
        return (for_a - for_b).numpy()

    return judge


def asked(question: str, first: str, second: str) -> str:
    """What the judge reads, on one line each."""
    parts = {"question": question, "first": first, "second": second}
    return QUESTION.format(**{name: " ".join(text.split()) for name, text in parts.items()})


def in_words(prompt: Messages) -> str:
    return " ".join(message["content"] for message in prompt)


def biased_judge(first_bonus: float, word_bonus: float) -> Judge:
    """A simulated judge: it knows gold, and likes what is shown first and what is longer.

    Args:
        first_bonus: what the first place is worth, in gold points.
        word_bonus: what each word more than the other answer has is worth.
    """

    def judge(examples: Sequence[Prompt], first: Sequence[Response], second: Sequence[Response]) -> np.ndarray:
        return np.array(
            [
                quality(example, one) - quality(example, other) + first_bonus + word_bonus * (words(one) - words(other))
                for example, one, other in zip(examples, first, second, strict=True)
            ]
        )

    return judge


def quality(example: Prompt, response: Response) -> float:
    """Gold; NaN where it cannot tell."""
    gold = gold_of(example, response)
    return gold.score if gold else np.nan


def words(response: Response) -> int:
    return len(response.text.split())


# --- verdicts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdicts:
    """What a judge says of n pairs in both orders: above 0 where it prefers ours."""

    ours_first: np.ndarray  # (n,)
    ours_second: np.ndarray  # (n,)
    longer: np.ndarray  # (n,) words of ours less those of theirs

    @property
    def consistent(self) -> Estimate:
        """The share of pairs with the same winner, or the same tie, in both orders."""
        return share(1 - np.sign(np.abs(wins(self.ours_first) - wins(self.ours_second))))

    @property
    def first_wins(self) -> Estimate:
        """The share of verdicts for the answer that was shown first; without position bias 1/2."""
        return share((wins(self.ours_first) + wins(-self.ours_second)) / 2)

    @property
    def one_order(self) -> np.ndarray:
        """Our wins (n,) if we are always shown first."""
        return wins(self.ours_first)

    @property
    def both_orders(self) -> np.ndarray:
        """Our wins (n,): 1 or 0 if both orders agree, else 1/2 (Zheng et al. 2023, section 3.4)."""
        return (wins(self.ours_first) + wins(self.ours_second)) / 2


def both_orders(
    judge: Judge, examples: Sequence[Prompt], ours: Sequence[Response], theirs: Sequence[Response]
) -> Verdicts:
    return Verdicts(
        ours_first=judge(examples, ours, theirs),
        ours_second=-judge(examples, theirs, ours),
        longer=np.array([words(one) - words(other) for one, other in zip(ours, theirs, strict=True)], dtype=float),
    )


def wins(margins: np.ndarray) -> np.ndarray:
    """1 above 0, 0 below, 1/2 at 0; NaN where the margin is."""
    return (np.sign(margins) + 1) / 2


def agreement(won: np.ndarray, truth: np.ndarray) -> Estimate:
    """How often wins (n,) are the true ones, among the pairs that have a better answer; a tie is half right."""
    decided = np.isin(truth, (0.0, 1.0))
    return share(1 - np.abs(won - truth)[decided])


def share(values: np.ndarray) -> Estimate:
    """The mean of n values with its 95 % interval over prompts."""
    return mean_intervals(values.astype(float)[:, None])[0]


def at_equal_length(won: np.ndarray, longer: np.ndarray, resamples: int = 500) -> Estimate:
    """The win rate as if both answers had the same length, with its 95 % interval over prompts."""
    weights = np.concatenate([np.ones((1, len(won))), resample_weights(len(won), resamples=resamples)])
    rates = length_controlled(won, longer, weights)  # (1 + S,)
    low, high = interval(rates[1:, None])
    return Estimate(float(rates[0]), float(low[0]), float(high[0]))
