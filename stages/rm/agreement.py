"""How well the reward model orders responses, next to how well people do, who do not all agree either.

InstructGPT's reward models agreed with 72.4 % of the training labelers' comparisons and 69.6 % of the held-out ones.
The labelers agreed among themselves on 72.6 % and 77.3 % (Ouyang et al. 2022, sections 3.4 and 4.1).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TypedDict

from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Prompt, Ranking, Response, contents
from rlhf_mini.core.rankings import Count, Labeler, accuracy, agreement, bootstrap_interval
from rlhf_mini.models.scoring import score_texts
from rlhf_mini.models.text import EncodedPrompt, encode_prompts
from stages.rm.rankings import as_responses

TITLES = {
    "accuracy/rankings": "RM on held-out rankings",
    "accuracy/training": "RM on training labelers",
    "accuracy/heldout": "RM on held-out labelers",
    "accuracy/gold": "RM on gold",
    "agreement/training": "training labelers among themselves",
    "agreement/heldout": "held-out labelers among themselves",
    "agreement/training_heldout": "training with held-out labelers",
}


class Share(TypedDict):
    """A share of pairs, in [0, 1], with its 95 % bootstrap interval over prompts."""

    share: float
    low: float
    high: float
    pairs: int
    prompts: int  # those that have a pair


def score_groups(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    groups: Sequence[Sequence[Response]],
) -> list[list[float]]:
    """The reward model's score of each response in the group of each prompt."""
    repeated = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
    scores = iter(score_texts(model, tokenizer, repeated, [response for group in groups for response in group]))
    return [list(islice(scores, len(group))) for group in groups]


def simulated_evaluation(
    scores: Sequence[Sequence[float]],
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Response]],
    labelers: Mapping[str, Sequence[Labeler]],
) -> dict[str, Share]:
    """Compares the reward model and the labelers on the same responses.

    Args:
        scores: of the responses in `groups`, one group per prompt.
        labelers: "training", "heldout" and "gold". Each labeler ranks every group.

    Returns:
        A share for each key of TITLES but the first; {} if the labelers cannot judge these prompts.
    """
    counts: dict[str, list[Count]] = {key: [] for key in TITLES if key != "accuracy/rankings"}  # one Count per prompt
    try:
        for prompt, group, group_scores in zip(prompts, groups, scores, strict=True):
            ranks = {kind: rank_with_all(labelers[kind], prompt, group) for kind in ("training", "heldout", "gold")}
            for kind in ("training", "heldout", "gold"):
                counts[f"accuracy/{kind}"].append(accuracy_on_all(group_scores, ranks[kind]))
            counts["agreement/training"].append(agreement(ranks["training"]))
            counts["agreement/heldout"].append(agreement(ranks["heldout"]))
            counts["agreement/training_heldout"].append(agreement(ranks["training"], ranks["heldout"]))
    except UserError as fault:
        console.print(f"rm: no comparison with the labelers on validation prompts: {fault}", soft_wrap=True)
        return {}
    return {key: summary(of_key) for key, of_key in counts.items()}


def rankings_evaluation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rankings: Sequence[Ranking]
) -> dict[str, Share]:
    """The reward model's accuracy on rankings that it was not trained on."""
    prompts = encode_prompts(tokenizer, [ranking["prompt"] for ranking in rankings])
    scores = score_groups(model, tokenizer, prompts, [as_responses(ranking) for ranking in rankings])
    return rankings_accuracy(scores, rankings)


def rankings_accuracy(scores: Sequence[Sequence[float]], rankings: Sequence[Ranking]) -> dict[str, Share]:
    """How often these scores of the rankings' responses order them as the rankings do."""
    counts: dict[str, Count] = defaultdict(lambda: Count(0, 0))  # by prompt, which several people may have ranked
    for group_scores, ranking in zip(scores, rankings, strict=True):
        counts[contents(ranking["prompt"])] += accuracy(group_scores, ranking["ranks"])
    return {"accuracy/rankings": summary(list(counts.values()))}


def rank_with_all(labelers: Sequence[Labeler], prompt: Prompt, group: Sequence[Response]) -> list[list[int]]:
    """A ranking of the K responses by each of L labelers: (L, K)."""
    return [labeler.rank(prompt, list(group)) for labeler in labelers]


def accuracy_on_all(scores: Sequence[float], ranks: Sequence[Sequence[int]]) -> Count:
    """The accuracy of K scores, counted over the pairs of all L rankings (L, K)."""
    return sum((accuracy(scores, ranking) for ranking in ranks), Count(0, 0))


def summary(counts: Sequence[Count]) -> Share:
    """The share of right pairs, from one Count per prompt."""
    total = sum(counts, Count(0, 0))
    low, high = bootstrap_interval(counts)
    prompts = sum(count.pairs > 0 for count in counts)
    return Share(share=total.share, low=low, high=high, pairs=total.pairs, prompts=prompts)


def table(shares: dict[str, Share]) -> Table:
    """The shares for the console."""
    out = Table("same order of pairs", "share", "95 % interval", "pairs", "prompts")
    for column in out.columns[1:]:
        column.justify = "right"
    for key, title in TITLES.items():
        if key in shares and shares[key]["pairs"]:
            row = shares[key]
            interval = f"{row['low']:.1%} - {row['high']:.1%}"
            out.add_row(title, f"{row['share']:.1%}", interval, f"{row['pairs']}", f"{row['prompts']}")
    return out
