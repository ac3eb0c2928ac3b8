"""Who is preferred to whom: win rates, length-controlled win rates and Bradley-Terry ratings, with intervals.

Shapes: r runs, n prompts, K players, S resamples. Rows of several runs lie end to end, run by run.
"""

import random
from collections.abc import Mapping, Sequence

import numpy as np

from rlhf_mini.core.bootstrap import Estimate, interval, mean_intervals, resample_weights
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.core.rankings import Labeler
from rlhf_mini.evaluation.answers import GOLD, JUDGES, PAIRS, REFERENCES, STAGES, Answer, Row, win
from rlhf_mini.evaluation.ratings import bradley_terry, length_controlled, outcomes, pearson
from rlhf_mini.evaluation.responses import rank_blind

RESAMPLES = 500  # of what is fitted anew in each resample

ByJudge = dict[str, dict[str, Estimate]]
"""{"gold": {"ppo/sft": Estimate}}"""


# --- pairs -----------------------------------------------------------------------------------------------------------


def wins_of(rows: Sequence[Row], pair: str, judge: str) -> np.ndarray:
    """For the pair "ppo/sft": 1 where PPO won, 0 where SFT won, 1/2 for a tie, NaN if unknown: (r * n,).

    The judge "heldout" is the mean of those labelers.
    """
    stage, rival = pair.split("/")
    wins = []
    for row in rows:
        one, other = row.answers[stage], row.answers[rival]
        if judge == "rm":
            wins.append((np.sign(one.rm_score - other.rm_score) + 1) / 2)
            continue
        alone = judge in (GOLD, REFERENCES)
        names = [judge] if alone else [name for name in one.ranks if name not in (GOLD, REFERENCES)]
        verdicts = [verdict for name in names if (verdict := win(one, other, name)) is not None]
        wins.append(sum(verdicts) / len(verdicts) if verdicts else np.nan)
    return np.array(wins, dtype=float)


def judges_of(rows: Sequence[Row]) -> list[str]:
    """The names of the judges, without the one by references where no prompt has any."""
    known = any(row.answers["ppo"].reference_score is not None for row in rows)
    return [judge for judge in JUDGES if known or judge != REFERENCES]


def win_rates(rows: Sequence[Row], runs: int, seed: int) -> ByJudge:
    """The share of prompts that the first of each pair wins, by judge."""
    judges = judges_of(rows)
    columns = np.array([wins_of(rows, pair, judge) for judge in judges for pair in PAIRS]).T  # (r * n, judges * pairs)
    estimates = iter(mean_intervals(columns, seed, runs))
    return {judge: {pair: next(estimates) for pair in PAIRS} for judge in judges}


def length_controlled_win_rates(rows: Sequence[Row], runs: int, seed: int) -> ByJudge:
    """The same, as if both responses had the same number of tokens."""
    weights = _weights(len(rows) // runs, runs, seed)  # (1 + S, r * n)
    found: ByJudge = {}
    for judge in judges_of(rows):
        for pair in PAIRS:
            stage, rival = pair.split("/")
            longer = np.array([row.answers[stage].tokens - row.answers[rival].tokens for row in rows])
            rates = length_controlled(wins_of(rows, pair, judge), longer, weights)  # (1 + S,)
            found.setdefault(judge, {})[pair] = _estimates(rates[:, None])[0]
    return found


def references_with_gold(rows: Sequence[Row], runs: int, seed: int) -> Estimate | None:
    """Pearson's correlation of the scores by references and by gold, over all stages' answers; None without any."""
    if REFERENCES not in judges_of(rows):
        return None
    scores = [
        [(answer.reference_score, answer.gold) for answer in (row.answers[stage] for stage in STAGES)] for row in rows
    ]
    both = np.array(scores, dtype=float)  # (r * n, 3, 2)
    weights = np.repeat(_weights(len(rows) // runs, runs, seed), len(STAGES), axis=1)  # (1 + S, r * n * 3)
    return _estimates(pearson(both[..., 0].ravel(), both[..., 1].ravel(), weights)[:, None])[0]


# --- ratings ---------------------------------------------------------------------------------------------------------


def rate(
    runs: Mapping[str, Sequence[Row]], examples: Sequence[Prompt], judges: Sequence[Labeler], seed: int
) -> ByJudge:
    """Bradley-Terry ratings by judge and player, over all pairs: Elo points, the base at 0, intervals over prompts.

    The players are the stages of each run; the base is one player. A reward model knows its own run only, so it rates
    if there is one run.

    Args:
        runs: the rows of each run, by its name.
        judges: rank the answers of all runs together, if there are several.
    """
    alone, first = len(runs) == 1, next(iter(runs.values()))
    players = {"base": [row.answers["base"] for row in first]}
    for name, rows in runs.items():
        for stage in ("sft", "ppo"):
            players[stage if alone else f"{name}/{stage}"] = [row.answers[stage] for row in rows]
    by_prompt = list(zip(*players.values(), strict=True))  # n tuples of K answers
    if alone:
        names = by_prompt[0][0].ranks
        ranks = {judge: _array([[answer.ranks[judge] for answer in of] for of in by_prompt]) for judge in names}
    else:
        ranks = rank_all(examples, by_prompt, judges, seed)
    verdicts = {"gold": [outcomes(ranks.pop(GOLD))]}
    by_references = ranks.pop(REFERENCES, None)
    if by_references is not None and REFERENCES in judges_of(first):
        verdicts["references"] = [outcomes(by_references)]
    verdicts["heldout"] = [outcomes(of_judge) for of_judge in ranks.values()]
    if alone:
        verdicts["rm"] = [outcomes(-np.array([[answer.rm_score for answer in of] for of in by_prompt]))]
    weights, size = _weights(len(examples), 1, seed), len(players)  # (1 + S, n)
    found = {}
    for judge, of_judge in verdicts.items():
        wins = np.nan_to_num(np.stack(of_judge)).mean(0).reshape(len(examples), size * size)
        ratings = bradley_terry((weights @ wins).reshape(-1, size, size))  # (1 + S, K)
        found[judge] = dict(zip(players, _estimates(ratings), strict=True))
    return found


def rank_all(
    examples: Sequence[Prompt], answers: Sequence[Sequence[Answer]], judges: Sequence[Labeler], seed: int
) -> dict[str, np.ndarray]:
    """Ranks (n, K) by judge, of all players' answers to a prompt together, blind."""
    rng = random.Random(seed)
    ranks: dict[str, list[Sequence[int | None]]] = {judge.name: [] for judge in judges}
    for example, of_prompt in zip(examples, answers, strict=True):
        said = [Response(answer.response, answer.ended) for answer in of_prompt]
        for judge in judges:
            ranks[judge.name].append(rank_blind(judge, example, said, rng))
    return {name: _array(of_judge) for name, of_judge in ranks.items()}


def _array(ranks: Sequence[Sequence[int | None]]) -> np.ndarray:
    """(n, K), NaN where a judge could not judge."""
    return np.array(ranks, dtype=float)


# --- intervals -------------------------------------------------------------------------------------------------------


def _weights(prompts: int, runs: int, seed: int) -> np.ndarray:
    """How often each row counts: once each in the first row, then in each resample. (1 + S, r * n)."""
    resampled = resample_weights(prompts, runs, RESAMPLES, seed)
    return np.concatenate([np.ones((1, prompts * runs)), resampled])


def _estimates(values: np.ndarray) -> list[Estimate]:
    """(1 + S, m): the first row is the mean, the others give the interval."""
    return [Estimate(*map(float, three)) for three in zip(values[0], *interval(values[1:]), strict=True)]
