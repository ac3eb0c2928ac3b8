"""Means and intervals over prompts: the content of runs/<run>/compare.json, from the rows of compare.jsonl.

Shapes: n prompts, m measures, r runs. The rows of several runs lie end to end, run by run.
"""

import math
from collections.abc import Sequence

import numpy as np

from rlhf_mini.core.bootstrap import Estimate, divide, interval, mean_intervals, resampled_ratios
from rlhf_mini.core.rankings import Count
from rlhf_mini.evaluation.answers import GOLD, REFERENCES, STAGES, Row, win
from rlhf_mini.evaluation.schema import Group
from rlhf_mini.world.gold import WEIGHTS


def measures_of(row: Row, stage: str) -> dict[str, float]:
    """The numbers of one stage's answer that are averaged over prompts; NaN for those that this answer lacks."""
    answer, sft = row.answers[stage], row.answers["sft"]
    wins = {judge: win(answer, sft, judge) if stage != "sft" else None for judge in answer.ranks}
    heldout = [value for judge, value in wins.items() if judge not in (GOLD, REFERENCES) and value is not None]
    gain = None if answer.gold is None or sft.gold is None else answer.gold - sft.gold
    numbers = {
        "gold": answer.gold,
        **{part: (answer.parts or {}).get(part) for part in WEIGHTS},
        "gold_minus_sft": gain,
        "wins/heldout": sum(heldout) / len(heldout) if heldout else None,
        **{f"wins/{judge}": value for judge, value in wins.items()},
        "reference_score": answer.reference_score,
        "rm_score": answer.rm_score,
        "kl": answer.kl,
        "words": answer.words,
        "tokens": answer.tokens,
        "eos": answer.ended,
    }
    return {key: math.nan if value is None else float(value) for key, value in numbers.items()}


def grouped(
    rows: Sequence[Row], demonstrated_tokens: dict[str, float], seed: int = 0, runs: int = 1
) -> dict[str, Group]:
    """Estimates over all rows ("all"), by use case ("use_case/chat") and by novelty ("novel/entity").

    Args:
        rows: of all prompts, run by run if there are several `runs`; then the intervals are over runs, too.
        demonstrated_tokens: mean length of demonstrations, for "all" and for use cases. "length_ratio" is the mean
            length over that of the demonstrations (of the same use case, for a use case).
    """
    members: dict[str, list[int]] = {"all": list(range(len(rows)))}
    for key in ("use_case", "novel"):
        for index, row in enumerate(rows):
            if key in row.example:
                members.setdefault(f"{key}/{row.example.get(key)}", []).append(index)
    names = [(stage, measure) for stage in STAGES for measure in measures_of(rows[0], stage)]
    values = np.array([[value for stage in STAGES for value in measures_of(row, stage).values()] for row in rows])
    groups = {}
    for name, indices in members.items():
        stages: dict[str, dict[str, Estimate]] = {stage: {} for stage in STAGES}
        for (stage, measure), estimate in zip(names, mean_intervals(values[indices], seed, runs), strict=True):
            stages[stage][measure] = estimate
        usual = demonstrated_tokens.get(name, demonstrated_tokens["all"])
        for of_stage in stages.values():
            tokens = of_stage["tokens"]
            of_stage["length_ratio"] = Estimate(tokens.mean / usual, tokens.low / usual, tokens.high / usual)
        groups[name] = Group(len(indices) // runs, stages)
    return groups


def headline(groups: dict[str, Group], reward_model: dict[str, Estimate]) -> dict[str, Estimate]:
    """The estimates that say whether the recipe worked."""
    base, sft, ppo = (groups["all"].stages[name] for name in STAGES)
    return {
        **{f"sft_beats_base/{judge}": _lost(base[f"wins/{judge}"]) for judge in ("heldout", GOLD)},
        **{f"ppo_beats_sft/{judge}": ppo[f"wins/{judge}"] for judge in ("heldout", GOLD)},
        **{f"gold/{name}": of_stage["gold"] for name, of_stage in (("base", base), ("sft", sft), ("ppo", ppo))},
        "rm_score/sft": sft["rm_score"],
        "rm_score/ppo": ppo["rm_score"],
        **{f"rm/{name}": estimate for name, estimate in reward_model.items()},
        **{name: ppo[name] for name in ("kl", "eos", "length_ratio")},
    }


def _lost(wins: Estimate) -> Estimate:
    """The other side's win rate."""
    return Estimate(1 - wins.mean, 1 - wins.high, 1 - wins.low)


def below_sft(groups: dict[str, Group]) -> list[str]:
    """Use cases in which PPO's gold is below SFT's by more than the interval of their paired difference."""
    gains = {name: group.stages["ppo"]["gold_minus_sft"] for name, group in groups.items()}
    return [name.partition("/")[2] for name, gain in gains.items() if "use_case/" in name and gain.high < 0]


def reward_model_accuracy(counts: Sequence[tuple[Count, Count, Count]], seed: int = 0) -> dict[str, Estimate]:
    """The reward model's accuracy, gold's, the labelers' own agreement, and the first minus the last.

    One (accuracy, gold's accuracy, agreement) per prompt, as `responses.reward_model_counts` counts them.

    {} without a prompt.
    """
    if not counts:
        return {}
    right = np.array([[count.right for count in of_prompt] for of_prompt in counts])  # (n, 3)
    pairs = np.array([[count.pairs for count in of_prompt] for of_prompt in counts], dtype=float)  # (n, 3)

    def with_gap(shares: np.ndarray) -> np.ndarray:  # (..., 3) -> (..., 4)
        return np.concatenate([shares, shares[..., :1] - shares[..., 2:]], axis=-1)

    means = with_gap(divide(right.sum(0), pairs.sum(0)))  # (4,)
    low, high = interval(with_gap(resampled_ratios(right, pairs, seed=seed)))
    names = ("accuracy_heldout", "ceiling_heldout", "agreement_heldout", "gap_heldout")
    estimates = [Estimate(*map(float, three)) for three in zip(means, low, high, strict=True)]
    return dict(zip(names, estimates, strict=True))
