"""How well the reward model orders responses, beside how well people order them: they do not all agree either.

InstructGPT's reward models agreed with 72.4 % of the training labelers' comparisons and 69.6 % of the held-out ones,
where labelers agreed among themselves on 72.6 % and 77.3 % (Ouyang et al. 2022, sections 3.4 and 4.1).
"""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.core.rankings import Count, Labeler, accuracy, agreement, bootstrap_interval
from rlhf_mini.models.scoring import score_texts

TITLES = {
    "accuracy/rankings": "RM on rankings kept aside",
    "accuracy/training": "RM on training labelers",
    "accuracy/heldout": "RM on held-out labelers",
    "accuracy/gold": "RM on gold",
    "agreement/training": "training labelers among themselves",
    "agreement/heldout": "held-out labelers among themselves",
    "agreement/training_heldout": "training with held-out labelers",
}


def score_groups(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Prompt],
    groups: Sequence[Sequence[Response]],
) -> list[list[float]]:
    """The reward model's score of each response in each prompt's group."""
    prompts = [record["prompt"] for record, group in zip(records, groups, strict=True) for _ in group]
    flat = iter(score_texts(model, tokenizer, prompts, [response for group in groups for response in group]))
    return [[next(flat) for _ in group] for group in groups]


def simulated_evaluation(
    scores: Sequence[Sequence[float]],
    records: Sequence[Prompt],
    groups: Sequence[Sequence[Response]],
    labelers: dict[str, list[Labeler]],
) -> dict[str, dict[str, float]]:
    """The reward model and the labelers compared on the same responses.

    Args:
        scores: of the responses in `groups`, one group a prompt record.
        labelers: "training", "heldout" and "gold". Each of them ranks every group.

    Returns:
        For each key of TITLES but the first: share of pairs, its interval, numbers of pairs and prompts. {} if the
        labelers cannot judge these prompts.
    """
    try:
        ranks = {  # by kind of labeler: a ranking for each prompt and labeler
            kind: [
                [one.rank(record, list(group)) for one in ones] for record, group in zip(records, groups, strict=True)
            ]
            for kind, ones in labelers.items()
        }
    except UserError as fault:
        console.print(f"rm: no comparison with the labelers on validation prompts: {fault}", soft_wrap=True)
        return {}
    counts = {
        f"accuracy/{kind}": [
            sum((accuracy(scored, ranking) for ranking in rankings), Count(0, 0))
            for scored, rankings in zip(scores, ranks[kind], strict=True)
        ]
        for kind in ("training", "heldout", "gold")
    }
    for kind in ("training", "heldout"):
        counts[f"agreement/{kind}"] = [agreement(rankings) for rankings in ranks[kind]]
    counts["agreement/training_heldout"] = [
        agreement(training, heldout) for training, heldout in zip(ranks["training"], ranks["heldout"], strict=True)
    ]
    return {name: summary(by_prompt) for name, by_prompt in counts.items()}


def rankings_evaluation(scores: Sequence[Sequence[float]], rankings: Sequence[Prompt]) -> dict[str, dict[str, float]]:
    """The reward model's accuracy on rankings that it was not trained on."""
    counts = [accuracy(scored, ranking["ranks"]) for scored, ranking in zip(scores, rankings, strict=True)]
    return {"accuracy/rankings": summary(counts)}


def summary(by_prompt: Sequence[Count]) -> dict[str, float]:
    """Share of right pairs, its bootstrap interval over prompts, and what it was counted on."""
    total = sum(by_prompt, Count(0, 0))
    low, high = bootstrap_interval(by_prompt)
    return {
        "share": total.share,
        "low": low,
        "high": high,
        "pairs": total.pairs,
        "prompts": sum(count.pairs > 0 for count in by_prompt),
    }


def table(results: dict[str, dict[str, Any]]) -> Table:
    """The figures for the console."""
    out = Table("same order of pairs", "share", "95 % interval", "pairs", "prompts")
    for column in out.columns[1:]:
        column.justify = "right"
    for name, title in TITLES.items():
        if name in results and results[name]["pairs"]:
            row = results[name]
            interval = f"{row['low']:.1%} - {row['high']:.1%}"
            out.add_row(title, f"{row['share']:.1%}", interval, f"{row['pairs']}", f"{row['prompts']}")
    return out
