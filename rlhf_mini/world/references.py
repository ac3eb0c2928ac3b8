"""A judge of another construction than gold: how much of a reference answer a response says, and in which order.

Each prompt of data/prompts/validation.jsonl and test.jsonl has good responses ("references") and bad ones
("mistakes"). The similarity of a response to one of them is ROUGE-L (Lin 2004): an edit distance without substitutions
on content words, normalised to [0, 1]. It departs from ROUGE-L in four ways:

1. Words that most references have and the mistakes lack, or the other way round, count for more: in "The capital of
   France is Paris." that is "Paris".
2. A word too many costs less than a missing one, so a courtesy costs little. So does an insult.
3. A text is compared part by part, in any order: sentences where references have several, else what stands between
   commas. Each part may come from another reference, as nobody writes down every list of three fruits.
4. What is nearer to a mistake, or to the prompt itself, than to the references loses the difference.

The judge knows no facts and none of gold's rules: it does not see manners, and a good answer in words that no reference
has is worth little to it.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.optimize import linear_sum_assignment

from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Prompt, Response

Part = tuple[str, ...]
"""The content words of a sentence, or of what stands between two commas."""
Weights = dict[str, float]

EMPHASIS = 4.0  # what a word that all references have and no mistake has weighs more than others, which weigh 1
EXTRA = 0.2  # what a word too many costs, next to a missing word
GRID = 0.01  # responses whose scores differ by less than half of this are usually tied
NEGATIONS = ("not", "never", "no")
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the is are was were be am it its this that these there here of in on at to by for with from as and or so "
        "go i you he she they we me my your his her their our us do does did has have had",
    )
)  # "go" because of "Here you go: ..."
SENTENCES = re.compile(r"[.!?\n]+")
CLAUSES = re.compile(r"[.!?\n,;:]+|\band\b")


class ReferenceJudge:
    """Ranks responses to one prompt, which must have `references`."""

    name = "references"

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        """Ranks in the order of `responses`: 1 = best, equal = tied. UserError if the prompt has no `references`."""
        if not example.get("references"):
            raise UserError(
                f"the judge by references cannot judge {example.get('id', example['prompt'][-1]['content'])!r}: it has "
                "no `references`; use the validation or test prompts of the mini world"
            )
        steps = [round(score(example, response.text) / GRID) for response in responses]
        return [1 + sum(other > step for other in steps) for step in steps]


def reference_judge() -> list[ReferenceJudge]:
    """The judge as a list of labelers, for `--labelers rlhf_mini.world.references:reference_judge`."""
    return [ReferenceJudge()]


def score(example: Prompt, response: str) -> float:
    """How good the response is by the prompt's references and mistakes, in [0, 1]."""
    references, mistakes, asked = example["references"], example.get("mistakes", []), example["prompt"][-1]["content"]
    cut = SENTENCES if any(len(parts(text, SENTENCES)) > 1 for text in references) else CLAUSES
    weights = weigh(tuple(references), tuple(mistakes), asked)
    said = parts(response, cut)
    by_length = defaultdict(list)
    for reference in references:
        cut_up = parts(reference, cut)
        by_length[len(cut_up)].append(cut_up)
    near = max(similarity(said, list(zip(*alike, strict=True)), weights) for alike in by_length.values())
    wrong = max(similarity(said, [(part,) for part in parts(text, cut)], weights) for text in (*mistakes, asked))
    return max(0.0, near - max(0.0, wrong - near))


def similarity(said: Sequence[Part], wanted: Sequence[Sequence[Part]], weights: Weights) -> float:
    """The F-measure of the words that both have in the same order, in [0, 1]; recall counts 1 / EXTRA times as much.

    Args:
        said: the M parts of the response. One that is said again is only too long.
        wanted: for each of the N parts of a reference, its wordings.
    """
    different = list(dict.fromkeys(said))
    if not different or not wanted:
        return 0.0
    best = {
        (m, n): max((agreement(part, wording, weights) for wording in wordings), key=lambda pair: f_measure(*pair))
        for m, part in enumerate(different)
        for n, wordings in enumerate(wanted)
    }
    shared = np.array([[best[m, n][0] for n in range(len(wanted))] for m in range(len(different))])  # (M, N)
    chosen = dict(zip(*(index.tolist() for index in linear_sum_assignment(shared, maximize=True)[::-1]), strict=True))
    both = sum(best[m, n][0] for n, m in chosen.items())
    # A part that the response leaves out would have had its shortest wording.
    required = sum(
        best[chosen[n], n][2] if n in chosen else min(weight(wording, weights) for wording in wordings)
        for n, wordings in enumerate(wanted)
    )
    return f_measure(both, sum(weight(part, weights) for part in said), required)


def agreement(part: Part, wording: Part, weights: Weights) -> tuple[float, float, float]:
    """The weights of the common words, of the response's words and of the reference's."""
    return common(part, wording, weights), weight(part, weights), weight(wording, weights)


def f_measure(both: float, said: float, required: float) -> float:
    """1 if nothing is missing and nothing is too much; 0 if there is nothing in common."""
    return (1 + EXTRA) * both / (required + EXTRA * said) if both else 0.0


def common(first: Part, second: Part, weights: Weights) -> float:
    """The weight of the heaviest common subsequence: words that both have in the same order."""
    row = [0.0] * (len(second) + 1)
    for word in first:
        above, row = row, [0.0]
        for place, other in enumerate(second):
            longer = above[place] + weights.get(word, 1.0) if word == other else 0.0
            row.append(max(above[place + 1], row[place], longer))
    return row[-1]


def weight(part: Part, weights: Weights) -> float:
    return sum(weights.get(word, 1.0) for word in part)


@cache
def weigh(references: tuple[str, ...], mistakes: tuple[str, ...], asked: str) -> Weights:
    """What words count; one that is not here counts 1. A mistake's words from the prompt count no more than others."""
    good, bad = ([set(words(text)) for text in texts] for texts in (references, mistakes))
    weights = {}
    for word in set().union(*good, *bad):
        in_good, in_bad = (sum(word in text for text in texts) / max(1, len(texts)) for texts in (good, bad))
        if in_good > in_bad or word not in words(asked):
            weights[word] = 1 + EMPHASIS * abs(in_good - in_bad)
    return weights


@cache
def parts(text: str, cut: re.Pattern[str]) -> list[Part]:
    """The parts of a text that hold a content word."""
    return [part for piece in cut.split(text) if (part := words(piece))]


@cache
def words(text: str) -> Part:
    """The content words in lower case; a negation is one word with the word that it denies.

    >>> words("Paris is not the capital of Italy.")
    ('paris', 'not capital', 'italy')
    """
    found: list[str] = []
    for word in re.findall(r"[\w'-]+", text.lower()):
        if word in STOP_WORDS:
            continue
        if found and found[-1] in NEGATIONS:
            found[-1] += f" {word}"
        else:
            found.append(word)
    return tuple(found)
