"""Checks of lesson 3: the rewards of a response, GAE by hand, the clip's six cases."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_mini.classroom.checks import Verdict, answer_of, check, right, todo, wrong
from rlhf_mini.models.rows import Rows
from stages.ppo import losses

REWARDS, VALUES, GAE_LAMBDA = [0.0, 0.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.2, 0.6, 0.9], 0.5
CLIP_RANGE = 0.2


@check
def check_rewards(token_rewards: Callable[[float, Tensor, float], Tensor]) -> Verdict:
    kl = torch.tensor([0.5, -0.1, 0.2])
    before = kl.clone()
    found = answer_of(token_rewards, 2.0, kl, 0.1)
    expected = losses.compute_rewards(torch.tensor([2.0]), before, Rows([3]), 0.1)
    if not torch.equal(kl, before):
        return wrong("the function changes the tensor `kl` that it was given; make a new one.")
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return wrong(f"it must return a tensor with one reward per token, {tuple(expected.shape)}.")
    if torch.allclose(found, -expected + torch.tensor([0.0, 0.0, 4.0]), atol=1e-6):
        return wrong("tokens with a positive KL must be charged, not paid: mind the sign.")
    if torch.allclose(found[:-1], expected[:-1]) and torch.allclose(found[-1], torch.tensor(2.0)):
        return wrong("the last token has the score, but is charged no KL.")
    if torch.allclose(found - expected, torch.tensor([2.0, 2.0, 0.0])):
        return wrong("every token gets the score: it counts once, at the last one.")
    if not torch.allclose(found, expected, atol=1e-6):
        return wrong(f"for score 2, kl {before.tolist()} and kl_coef 0.1 it gave {found.tolist()}.")
    return right("the same as stages.ppo.losses.compute_rewards gives.")


@check
def check_gae(advantages: Sequence[Any]) -> Verdict:
    if any(one is ... for one in advantages):
        return todo("replace all five ... above, run that cell, then this one.")
    rewards, values = torch.tensor(REWARDS), torch.tensor(VALUES)
    expected = losses.gae(rewards, values, Rows([5]), 1.0, GAE_LAMBDA).advantages.tolist()
    if len(advantages) != 5:
        return wrong(f"there are five tokens, and you gave {len(advantages)} numbers.")
    for t in reversed(range(5)):
        if abs(advantages[t] - expected[t]) > 1e-3:
            return wrong(
                f"{hint_on(t, advantages)} (The tokens after it are right.)" if t < 4 else hint_on(t, advantages)
            )
    return right("stages.ppo.losses.gae gives the same five numbers.")


def hint_on(t: int, advantages: Sequence[float]) -> str:
    """What is probably wrong with the advantage of token t."""
    next_value = VALUES[t + 1] if t < 4 else 0.0
    delta = REWARDS[t] + next_value - VALUES[t]
    found = advantages[t]
    if abs(found - REWARDS[t] - next_value) < 1e-3:
        return f"token {t + 1}: the value before it, {VALUES[t]}, is missing."
    if t == 4:
        return f"token 5: nothing comes after it, so its advantage is its reward minus its value, not {found}."
    if abs(found - delta) < 1e-3:
        return f"token {t + 1}: {found} is its prediction error alone; add lambda times the next advantage."
    if abs(found - delta - advantages[t + 1]) < 1e-3:
        return f"token {t + 1}: the next advantage counts in full; multiply it by lambda."
    return f"token {t + 1}: {found} is not its prediction error plus lambda times the next advantage."


@check
def check_clip(gradient_flows: Mapping[tuple[float, str], Any]) -> Verdict:
    if any(flows is ... for flows in gradient_flows.values()):
        return todo("replace all six ... above, run that cell, then this one.")
    for (ratio, sign), flows in gradient_flows.items():
        if bool(flows) != flows_in(ratio, sign):
            moved = {0.5: "has become rarer", 1.0: "is as likely as before", 1.5: "has become likelier"}[ratio]
            wanted = "likelier" if sign == "+" else "rarer"
            return wrong(f"ratio {ratio}, advantage {sign}: the token {moved}, and should become {wanted}. Look again.")
    return right("the gradient stops only where the step has gone far enough in the wanted direction.")


def flows_in(ratio: float, sign: str) -> bool:
    """Whether the loss of one token has a gradient, by the loss itself."""
    new = torch.tensor([ratio]).log().requires_grad_()
    losses.policy_loss(new, torch.zeros(1), torch.tensor([1.0 if sign == "+" else -1.0]), CLIP_RANGE).loss.backward()
    assert new.grad is not None
    return bool(new.grad.abs().item() > 0)
