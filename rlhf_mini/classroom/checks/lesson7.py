"""Checks of lesson 7: DPO's loss, the advantages of a group, what a rule can see."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_mini.classroom.checks import Verdict, answer_of, check, right, todo, wrong

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
REWARDS = (2.0, 0.0, 1.0, 1.0)
KNOWLEDGE = ("capital", "endanger")  # of the principles: those that no list of words decides


@check
def check_dpo(dpo_loss: Loss) -> Verdict:
    zeros = torch.zeros(2)
    chosen, rejected = torch.tensor([-3.0, -8.0]), torch.tensor([-6.0, -5.0])
    sft_chosen, sft_rejected = torch.tensor([-5.0, -6.0]), torch.tensor([-4.0, -7.0])
    found = answer_of(dpo_loss, chosen, rejected, sft_chosen, sft_rejected, 0.5)
    margin = (chosen - sft_chosen) - (rejected - sft_rejected)  # 4, -4
    if not isinstance(found, Tensor) or found.shape != (2,):
        return wrong("it must return a tensor with one loss for each of the pairs, without a mean.")
    mistakes = {
        "the policy's log-probabilities alone are not the reward: SFT's are missing.": -F.logsigmoid(
            0.5 * (chosen - rejected)
        ),
        "beta is missing.": -F.logsigmoid(margin),
        "the sign: the loss must fall when the chosen response becomes likelier.": -F.logsigmoid(-0.5 * margin),
        "this is log sigma itself; a loss is its negative.": F.logsigmoid(0.5 * margin),
        "this is sigma; the loss is minus its logarithm.": -torch.sigmoid(0.5 * margin),
        "beta multiplies the first reward only; both have it.": -F.logsigmoid(
            0.5 * (chosen - sft_chosen) - (rejected - sft_rejected)
        ),
    }
    for text, mistaken in mistakes.items():
        if torch.allclose(found, mistaken, atol=1e-5):
            return wrong(text)
    at_start = answer_of(dpo_loss, zeros, zeros, zeros, zeros, 0.5)
    if not torch.allclose(at_start, torch.full((2,), math.log(2)), atol=1e-5):
        return wrong(f"where the policy is SFT, every loss is log 2, not {at_start[0].item():.3f}.")
    if not torch.allclose(found, -F.logsigmoid(0.5 * margin), atol=1e-5):
        return wrong(
            "chosen [-3, -8], rejected [-6, -5], under SFT [-5, -6] and [-4, -7], beta 0.5: it gave "
            f"{[round(loss, 3) for loss in found.tolist()]}. In the first pair the policy has moved the right way, so "
            "its loss must be the smaller one."
        )
    return right("this is what DPOTrainer minimises. The pair that moved the wrong way has the larger loss.")


@check
def check_advantages(rloo: Sequence[Any], grpo: Sequence[Any]) -> Verdict:
    if any(one is ... for one in (*rloo, *grpo)):
        return todo("replace all eight ... above, run that cell, then this one.")
    if len(rloo) != 4 or len(grpo) != 4:
        return wrong("there are four responses, and so four advantages by each method.")
    mean = sum(REWARDS) / 4
    std = math.sqrt(sum((reward - mean) ** 2 for reward in REWARDS) / 3)
    for number, (reward, found) in enumerate(zip(REWARDS, rloo, strict=True), 1):
        if not near(found, reward - (sum(REWARDS) - reward) / 3):
            if near(found, reward - mean):
                return wrong(f"RLOO, response {number}: the mean is of the *other three*, without its own reward.")
            return wrong(f"RLOO, response {number}: {found} is not its reward minus the mean of the other three.")
    for number, (reward, found) in enumerate(zip(REWARDS, grpo, strict=True), 1):
        if not near(found, (reward - mean) / std):
            if near(found, (reward - mean) / (std * math.sqrt(3 / 4))):
                return wrong(f"GRPO, response {number}: divide the squared deviations by 3, not by 4.")
            if near(found, reward - mean):
                return wrong(f"GRPO, response {number}: this is not yet divided by the standard deviation.")
            return wrong(f"GRPO, response {number}: {found} is not (reward - mean) / standard deviation.")
    return right("in both, the advantages of a group add up to 0: only differences within it count.")


def near(found: float, expected: float) -> bool:
    return abs(found - expected) < 0.015


@check
def check_principles(needs: Mapping[str, Any]) -> Verdict:
    if any(need is ... for need in needs.values()):
        return todo("replace all four ... above, run that cell, then this one.")
    for principle, need in needs.items():
        if need not in ("text", "knowledge"):
            return wrong(f'write "text" or "knowledge", not {need!r}.')
        if need == "text" and any(word in principle for word in KNOWLEDGE):
            return wrong(
                f'"{principle}" Think of two responses that differ in one word. Does the text show which is it?'
            )
        if need == "knowledge" and not any(word in principle for word in KNOWLEDGE):
            return wrong(f'"{principle}" This could be counted in a language that you do not know.')
    return right("what must be known has to come from somewhere: from people, or from a model that knows.")
