"""Checks of lesson 1: which tokens count, which checkpoint to keep, how often the writers are wrong."""

from collections.abc import Callable, Mapping, Sequence

from rlhf_mini.classroom.checks import Verdict, answer_of, check, right, wrong
from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.world.knowledge import load

IGNORED = -100  # what torch's cross_entropy leaves out
PROMPT, COMPLETION = [2, 41, 52, 13, 3], [71, 82, 93, 0]


@check
def check_labels(labels: Callable[[list[int], list[int]], list[int]]) -> Verdict:
    found = answer_of(labels, list(PROMPT), list(COMPLETION))
    try:
        found = [int(label) for label in found]
    except (TypeError, ValueError):
        return wrong(f"it must return a list of numbers, not {found!r}.")
    if len(found) != len(PROMPT) + len(COMPLETION):
        return wrong(
            f"for a prompt of {len(PROMPT)} tokens and a completion of {len(COMPLETION)} it gave {len(found)} labels: "
            "every token needs one."
        )
    if found == PROMPT + COMPLETION:
        return wrong("the prompt's tokens count, too: the model would learn to write the user's part.")
    if found == PROMPT + [IGNORED] * len(COMPLETION):
        return wrong("it is the other way round: the completion is what the model is to learn.")
    if found == [IGNORED] * len(PROMPT) + COMPLETION[:-1] + [IGNORED]:
        return wrong("the last token, the end of text, must count: otherwise the model never learns to stop.")
    if found == [IGNORED] * (len(PROMPT) - 1) + COMPLETION + [IGNORED]:
        return wrong("the completion is one place too early: the library shifts the labels itself.")
    counted = sum(label != IGNORED for label in found)
    if counted != len(COMPLETION):
        return wrong(f"{counted} tokens count, but the completion has {len(COMPLETION)}.")
    if found != [IGNORED] * len(PROMPT) + COMPLETION:
        return wrong(f"for the prompt {PROMPT} and the completion {COMPLETION} it gave {found}.")
    return right("stages.sft.train does the same by computing logits at the completion's tokens only.")


@check
def check_epochs(by_loss: int, by_gold: int, losses: Mapping[int, Estimate], golds: Mapping[int, Estimate]) -> Verdict:
    losses = {epochs: loss for epochs, loss in losses.items() if epochs > 0}  # 0 is the base, which is no run
    golds = {epochs: gold for epochs, gold in golds.items() if epochs > 0}
    for name, chosen in (("by_loss", by_loss), ("by_gold", by_gold)):
        if chosen not in losses:
            return wrong(f"{name} = {chosen!r} is none of the runs: choose one of {', '.join(map(str, losses))}.")
    if any(one.mean < losses[by_loss].mean for one in losses.values()):
        return wrong(f"the validation loss after {by_loss} epochs is {losses[by_loss].mean:.3f}; another one is lower.")
    if any(one.mean > golds[by_gold].mean for one in golds.values()):
        return wrong(f"gold after {by_gold} epochs is {golds[by_gold].mean:.3f}; another one is higher.")
    if by_loss == by_gold:
        return right("here both choose the same run. In the paper they did not.")
    if golds[by_loss].high > golds[by_gold].low:
        return right("they choose different runs, but the intervals of gold overlap: this may be chance.")
    return right("they choose different runs, as in the paper.")


@check
def check_wrong_share(wrong_share: float) -> Verdict:
    writers = load().writers.values()
    slips: Sequence[float] = [writer["slip"] for writer in writers]
    expected = sum(writer["share"] * writer["slip"] for writer in writers)
    if abs(wrong_share - sum(slips) / len(slips)) < 1e-3:
        return wrong("this is the plain mean of the slips, but the writers have not written equally much.")
    if abs(wrong_share - (1 - expected)) < 1e-3:
        return wrong("this is the share of right answers.")
    if abs(wrong_share - 100 * expected) < 0.1:
        return wrong("give it as a share between 0 and 1, not in per cent.")
    if wrong_share > max(slips):
        return wrong(f"{wrong_share:g} is more than the most careless writer slips: weigh each slip by its share.")
    if abs(wrong_share - expected) > 1e-3:
        return wrong(f"{wrong_share:g} is not the mean of the slips, each weighed by its writer's share.")
    return right("a model that imitates the writers perfectly is wrong that often, however long it trains.")
