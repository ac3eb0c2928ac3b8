"""What the projector shows of a round: who agrees with whom, what splits the room, whose preferences won."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from rlhf_mini.core.rankings import Count, agreement, bootstrap_interval
from rlhf_mini.workshop.store import RANKED, SKIPPED, Duel, Item, Label, Store

INSTRUCTGPT = {"share": 0.726, "half_width": 0.015}  # training labelers (Ouyang et al. 2022, section 3.4)
SPLITTING = 3  # pairs of responses that are shown


def live(store: Store, number: int) -> dict[str, Any]:
    """All figures of a round, as JSON."""
    items = {item.id: item for item in store.items(number)}
    labels = [label for label in store.labels(number) if label.kind != SKIPPED]
    by_item: dict[int, list[Label]] = defaultdict(list)
    for label in labels:
        by_item[label.item].append(label)
    ranks = {item: [label.ranks for label in of_item] for item, of_item in by_item.items()}
    among = [agreement(of_item) for of_item in ranks.values()]
    simulated = [agreement(of_item, items[item].simulated) for item, of_item in ranks.items() if items[item].simulated]
    return {
        "labelers": len({label.student for label in labels}),
        "rankings": len(labels),
        "all_bad": sum(label.kind != RANKED for label in labels),
        "prompts": len(by_item),
        "of_prompts": len(items),
        "agreement": share(among),
        "with_simulated": share(simulated),
        "instructgpt": INSTRUCTGPT,
        "split": splitting(items, by_item),
    }


def share(counts: Sequence[Count]) -> dict[str, float] | None:
    """A share of pairs with its 95 % interval over prompts, None without a pair."""
    counts = [count for count in counts if count.pairs]
    total = sum(counts, Count(0, 0))
    if not total.pairs:
        return None
    low, high = bootstrap_interval(counts)
    return {"share": total.share, "low": low, "high": high, "pairs": total.pairs}


def splitting(items: Mapping[int, Item], by_item: Mapping[int, Sequence[Label]]) -> list[dict[str, Any]]:
    """The pairs of responses about which the room is divided most evenly, one for each prompt: to discuss."""
    found = []
    for number, labels in by_item.items():
        for first, second in combinations(range(len(items[number].responses)), 2):
            for_first = sum(label.ranks[first] < label.ranks[second] for label in labels)
            for_second = sum(label.ranks[first] > label.ranks[second] for label in labels)
            found.append((min(for_first, for_second), number, first, second, for_first, for_second))
    found.sort(key=lambda one: (-one[0], abs(one[4] - one[5]), one[1:4]))
    shown: dict[int, dict[str, Any]] = {}
    for fewer, number, first, second, for_first, for_second in found:
        if fewer and number not in shown and len(shown) < SPLITTING:
            item = items[number]
            shown[number] = {
                "prompt": item.example["prompt"],
                "responses": [[item.responses[first], for_first], [item.responses[second], for_second]],
            }
    return list(shown.values())


def side_by_side(duels: Sequence[Duel], votes: Sequence[tuple[int, int, float]]) -> list[dict[str, Any]]:
    """The responses of both policies, with the votes for each."""
    for_ours: dict[int, float] = defaultdict(float)
    for_theirs: dict[int, float] = defaultdict(float)
    for _, duel, ours in votes:
        for_ours[duel] += ours
        for_theirs[duel] += 1 - ours
    return [
        {"prompt": one.prompt, "ours": [one.ours, for_ours[one.id]], "theirs": [one.theirs, for_theirs[one.id]]}
        for one in duels
    ]


def verdict(votes: Sequence[tuple[int, int, float]]) -> dict[str, float] | None:
    """The share of votes for the class's policy, a vote for neither counting half; 95 % interval over duels."""
    of_duel: dict[int, Count] = defaultdict(lambda: Count(0, 0))
    for _, duel, ours in votes:
        of_duel[duel] += Count(ours, 1)
    found = share(list(of_duel.values()))
    return found and {**found, "votes": len(votes)}
