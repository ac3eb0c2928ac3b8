"""Checks of lesson 2: a K-wise loss by hand, bias or variance, which split leaks."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from rlhf_mini.classroom.checks import Verdict, check, right, todo, wrong
from rlhf_mini.classroom.reward import Fit
from stages.rm.loss import k_wise_loss

SCORES, RANKS = [0.0, 1.0, -2.0], [1, 2, 2]  # of the responses A, B and C
TOLERANCE = 2e-3  # three digits on paper are enough
CLOSE = 0.01  # two errors that differ by less are hard to tell apart on a plot
# Whether a split leaks, and an example of why or why not.
SPLITS = {
    "a tenth of the comparisons, at random": (
        True, "A over B may be in training and B over C in validation, and both are about the same prompt."
    ),
    "all comparisons of a tenth of the prompts": (
        False, "which comparison of training could be about a prompt of validation?"
    ),
    "all rankings by one labeler, where every labeler ranked every prompt": (
        True, "the others have ranked the same responses, so validation asks what training has answered."
    ),
    "all rankings by one labeler, where every prompt was ranked by one labeler": (
        False, "who else has ranked the prompts of the labeler that is left out?"
    ),
}  # fmt: skip


@check
def check_loss(loss: Any) -> Verdict:
    scores, ranks = torch.tensor([SCORES]), torch.tensor([RANKS])
    expected = k_wise_loss(scores, ranks, torch.ones_like(ranks, dtype=torch.bool)).item()
    if abs(loss - expected) < TOLERANCE:
        return right("stages.rm.loss.k_wise_loss gives the same.")
    of_pairs = F.softplus(torch.tensor([SCORES[1] - SCORES[0], SCORES[2] - SCORES[0]]))  # -log sigmoid of A's margins
    swapped = F.softplus(torch.tensor([SCORES[0] - SCORES[1], SCORES[0] - SCORES[2]]))
    tie = F.softplus(torch.tensor([SCORES[2] - SCORES[1], SCORES[1] - SCORES[2], 0.0]))  # as B or C better, as a draw
    total = of_pairs.sum()
    mistakes = {
        "that is the sum over the pairs; divide it by the number of all pairs.": [total],
        "you divide by the ordered pairs only. The tied pair adds nothing to the sum, but C(3, 2) counts it.": [
            total / 2
        ],
        "the tied pair must add nothing: nobody said which of the two is better.": [
            *((total + tie) / 3), (total + tie[:2].mean()) / 3, (total + tie[:2].sum()) / 3, *(total + tie)
        ],
        "you took the worse response's score minus the better one's: rank 1 is the best.": [
            swapped.sum() / 3, swapped.sum(), swapped.sum() / 2
        ],
        "the logarithm of a probability is negative, and the loss is its negative.": [-total / 3, -total, -total / 2],
        "take the natural logarithm.": [total / 3 / torch.tensor(10.0).log(), total / 3 / torch.tensor(2.0).log()],
        "that is the mean probability; the loss adds up its logarithm.": [(-of_pairs).exp().sum() / 3],
    }  # fmt: skip
    for text, values in mistakes.items():
        if any(abs(loss - value.item()) < TOLERANCE for value in values):
            return wrong(text)
    return wrong(f"{loss:g} is not it. A has two margins, one over B and one over C; only one of them is positive.")


@check
def check_larger(larger: Mapping[str, Any], fits: Mapping[str, Fit], floor: float) -> Verdict:
    """`floor` is the error that cannot be avoided."""
    if any(answer is ... for answer in larger.values()):
        return todo("replace all of the ... above, run that cell, then this one.")
    if missing := fits.keys() - larger.keys():
        return wrong(f"{sorted(missing)[0]!r} is missing.")
    if unknown := larger.keys() - fits.keys():
        return wrong(f"there is no {sorted(unknown)[0]!r} in the table.")
    for name, answer in larger.items():
        bias, variance = parts(fits[name], floor)
        if answer not in ("bias", "variance"):
            return wrong(f"{name}: write 'bias' or 'variance', not {answer!r}.")
        if answer != ("bias" if bias > variance else "variance") and abs(bias - variance) > CLOSE:
            return wrong(f"{name}: compare its training error with the floor, and with its validation error.")
    return right("more data helps where variance is larger; where bias is, only another model or start does.")


def parts(fit: Fit, floor: float) -> tuple[float, float]:
    """The two parts of a validation error above the floor: bias and variance."""
    return fit.training.error - floor, fit.validation.error - fit.training.error


@check
def check_leaks(leaks: Mapping[str, Any]) -> Verdict:
    if any(answer is ... for answer in leaks.values()):
        return todo("replace all four ... above, run that cell, then this one.")
    for split, (expected, example) in SPLITS.items():
        if bool(leaks[split]) != expected:
            return wrong(f"{split}: {example}")
    return right("a split is honest if no prompt is on both sides of it.")
