"""The sums of `python -m rlhf_mini.evaluation.evaluate`: from responses, ranks and probes to the figures of evaluate.json.

Shapes: r runs, n prompts, K players, S resamples. Rows of several runs lie end to end, run by run.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_mini.core.bootstrap import as_dict, divide, interval, mean_intervals, resample_weights, resampled_ratios
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.evaluation import measures
from rlhf_mini.evaluation.evaluate import JUDGES, PAIRS
from rlhf_mini.evaluation.measures import GOLD, Figure, judges, rank_blind, win
from rlhf_mini.evaluation.probes import PROBES, Values
from rlhf_mini.evaluation.ratings import bradley_terry, length_controlled, outcomes

Row = dict[str, Any]
RESAMPLES = 500  # of what is fitted anew in each resample
BY_RUN = ("gold", "rm_score", "kl", "tokens", "eos", "wins/heldout", "wins/gold")


@dataclass
class Measured:
    """What was measured on one run."""

    rows: list[Row]  # the lines of compare.jsonl, one a prompt
    summary: dict[str, Any]  # compare.json
    probes: Values


def summarize(measured: dict[str, Measured], records: Sequence[Prompt], labelers: str, seed: int) -> dict[str, Any]:
    """The figures of one run, or of several together, each with its 95 % interval, as evaluate.json has them."""
    runs, each = len(measured), list(measured.values())
    rows = [row for one in each for row in one.rows]
    groups = measures.summarize(rows, each[0].summary["demonstrated_tokens"], seed, runs)
    of_all = groups["all"]["stages"]
    return {
        "runs": list(measured),
        "prompts": groups["all"]["prompts"],
        "stages": {
            stage: {name: figure for name, figure in figures.items() if not name.startswith("wins/")}
            for stage, figures in of_all.items()
        },
        "win_rates": win_rates(rows, runs, seed),
        "length_controlled": at_equal_length(rows, runs, seed),
        "bradley_terry": rate(measured, records, labelers, seed),
        "use_cases": by_group(groups, "use_case/"),
        "novel": by_group(groups, "novel/"),
        "probes": {
            name: vars(probe)
            | {
                "prompts": len(each[0].probes[name]["sft"]),
                "stages": {stage: _ratio([one.probes[name][stage] for one in each], seed) for stage in measures.STAGES},
            }
            for name, probe in PROBES.items()
        },
        "by_run": by_run(measured),
        "provenance": provenance(measured),
    }


def rate_side_by_side(
    measured: dict[str, Measured], records: Sequence[Prompt], labelers: str, seed: int
) -> dict[str, Any]:
    """Of runs that differ in more than the seed: a mean over them would say nothing, but they can be rated."""
    return {
        "runs": list(measured),
        "prompts": len(records),
        "bradley_terry": rate(measured, records, labelers, seed),
        "by_run": by_run(measured),
        "provenance": provenance(measured),
    }


def by_run(measured: dict[str, Measured]) -> dict[str, Any]:
    """A few figures of each run, by name and stage."""
    groups = {name: one.summary["groups"]["all"]["stages"] for name, one in measured.items()}
    return {
        name: {key: {stage: figures[key] for stage, figures in stages.items()} for key in BY_RUN}
        for name, stages in groups.items()
    }


def provenance(measured: dict[str, Measured]) -> dict[str, Any]:
    """What each run was measured on."""
    return {name: one.summary["provenance"] for name, one in measured.items()}


def by_group(groups: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Gold of each stage, and PPO's win rate over SFT by the held-out labelers, of the groups named prefix + ..."""
    return {
        group.removeprefix(prefix): {
            "prompts": content["prompts"],
            "gold": {stage: figures["gold"] for stage, figures in content["stages"].items()},
            "win_rate": content["stages"]["ppo"]["wins/heldout"],
        }
        for group, content in sorted(groups.items(), key=lambda item: -item[1]["prompts"])
        if group.startswith(prefix)
    }


# --- pairs -----------------------------------------------------------------------------------------------------------


def wins_of(rows: Sequence[Row], pair: str, judge: str) -> np.ndarray:
    """Of the pair "ppo/sft", 1 where PPO won, 0 where SFT, 1/2 for a tie, NaN unknown: (r * n,).

    The judge "heldout" is the mean of those labelers.
    """
    stage, rival = pair.split("/")
    wins = []
    for row in rows:
        one, other = row["stages"][stage], row["stages"][rival]
        if judge == "rm":
            wins.append((np.sign(one["rm_score"] - other["rm_score"]) + 1) / 2)
            continue
        names = [GOLD] if judge == "gold" else [name for name in one["ranks"] if name != GOLD]
        verdicts = [verdict for name in names if (verdict := win(one, other, name)) is not None]
        wins.append(sum(verdicts) / len(verdicts) if verdicts else np.nan)
    return np.array(wins, dtype=float)


def win_rates(rows: Sequence[Row], runs: int, seed: int) -> dict[str, dict[str, Figure]]:
    """By judge and pair: {"gold": {"ppo/sft": {"mean", "low", "high"}}}."""
    columns = np.array([wins_of(rows, pair, judge) for judge in JUDGES for pair in PAIRS]).T  # (r * n, judges * pairs)
    figures = iter(mean_intervals(columns, seed, runs))
    return {judge: {pair: next(figures) for pair in PAIRS} for judge in JUDGES}


def at_equal_length(rows: Sequence[Row], runs: int, seed: int) -> dict[str, dict[str, Figure]]:
    """The same, as if both responses were of the same number of tokens."""
    weights = _weights(len(rows) // runs, runs, seed)  # (1 + S, r * n)
    found: dict[str, dict[str, Figure]] = {}
    for judge in JUDGES:
        for pair in PAIRS:
            stage, rival = pair.split("/")
            longer = np.array([row["stages"][stage]["tokens"] - row["stages"][rival]["tokens"] for row in rows])
            rates = length_controlled(wins_of(rows, pair, judge), longer, weights)  # (1 + S,)
            found.setdefault(judge, {})[pair] = _figures(rates[:, None])[0]
    return found


def rate(
    measured: dict[str, Measured], records: Sequence[Prompt], labelers: str, seed: int
) -> dict[str, dict[str, Figure]]:
    """Bradley-Terry ratings by judge and player, over all pairs: Elo points, the base at 0, intervals over prompts.

    The players are the stages of each run; the base is one player. A reward model knows its own run only, so it rates
    where there is one.
    """
    first, *_ = each = list(measured.values())
    players = [("base", first, "base")]
    players += [
        (s if len(each) == 1 else f"{name}/{s}", one, s) for name, one in measured.items() for s in ("sft", "ppo")
    ]
    answers = [[one.rows[index]["stages"][stage] for _, one, stage in players] for index in range(len(records))]
    ranks = {judge: _array([[a["ranks"][judge] for a in of] for of in answers]) for judge in answers[0][0]["ranks"]}
    if len(each) > 1:
        ranks = _rank_all(records, answers, labelers, seed)
    verdicts = {
        "gold": [outcomes(ranks.pop(GOLD))],
        "heldout": [outcomes(of_judge) for of_judge in ranks.values()],
    }
    if len(each) == 1:
        verdicts["rm"] = [outcomes(-np.array([[answer["rm_score"] for answer in of] for of in answers]))]
    weights = _weights(len(records), 1, seed)  # (1 + S, n)
    size = len(players)
    found = {}
    for judge, of_judge in verdicts.items():
        wins = np.nan_to_num(np.stack(of_judge)).mean(0).reshape(len(records), size * size)
        ratings = bradley_terry((weights @ wins).reshape(-1, size, size))  # (1 + S, K)
        found[judge] = dict(zip((name for name, _, _ in players), _figures(ratings), strict=True))
    return found


def _rank_all(
    records: Sequence[Prompt], answers: Sequence[Sequence[dict[str, Any]]], labelers: str, seed: int
) -> dict[str, np.ndarray]:
    """Ranks (n, K) by judge, of all players' responses at once, blind."""
    rng, panel = random.Random(seed), judges(labelers)
    ranks: dict[str, list[Any]] = {judge.name: [] for judge in panel}
    for record, of_record in zip(records, answers, strict=True):
        said = [Response(answer["response"], answer["ended"]) for answer in of_record]
        for judge in panel:
            ranks[judge.name].append(rank_blind(judge, record, said, rng))
    return {name: _array(of_judge) for name, of_judge in ranks.items()}


def _array(ranks: Sequence[Sequence[int | None]]) -> np.ndarray:
    """(n, K), NaN where a judge could not judge."""
    return np.array(ranks, dtype=float)


# --- intervals -------------------------------------------------------------------------------------------------------


def _weights(prompts: int, runs: int, seed: int) -> np.ndarray:
    """How often each row counts: first all of them once, then in each resample. (1 + S, r * n)."""
    resampled = resample_weights(prompts, runs, RESAMPLES, seed)
    return np.concatenate([np.ones((1, prompts * runs)), resampled])


def _figures(values: np.ndarray) -> list[Figure]:
    """(1 + S, m): the first row is the mean, the others give the interval."""
    return [as_dict(*three) for three in zip(values[0], *interval(values[1:]), strict=True)]


def _ratio(values: Sequence[np.ndarray], seed: int) -> Figure:
    """Numerators over denominators, summed over prompts and runs; one array (n, 2) a run."""
    rows = np.concatenate(values)  # (r * n, 2)
    low, high = interval(resampled_ratios(rows[:, :1], rows[:, 1:], seed=seed, runs=len(values)))
    return as_dict(float(divide(rows[:, 0].sum(), rows[:, 1].sum())), low[0], high[0])
