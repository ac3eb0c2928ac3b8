"""Win rates and ratings from rows made by hand, and intervals over prompts and seeds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.evaluation import baselines, diversity, evaluate, pairs
from rlhf_mini.evaluation.answers import STAGES, Answer, Row
from rlhf_mini.evaluation.summary import grouped

EXAMPLE: Prompt = {"prompt": [{"role": "user", "content": "?"}]}


def test_wins_by_each_judge() -> None:
    def answer(rm_score: float, a: int | None, b: int | None, gold: int | None) -> Answer:
        ranks = {"a": a, "b": b, "gold": gold}
        return Answer(response="", ended=True, tokens=1, words=1, ids=[], rm_score=rm_score, gold=None, parts=None,
                      kl=None, ranks=ranks)  # fmt: skip

    example = {"prompt": [{"role": "user", "content": "?"}]}
    rows = [
        Row(example, {"ppo": answer(1.0, 1, 2, 3), "sft": answer(0.5, 2, 2, 1)}),  # type: ignore[arg-type]
        Row(example, {"ppo": answer(1.0, None, None, None), "sft": answer(1.0, None, None, None)}),  # type: ignore[arg-type]
    ]
    by_judge = {judge: pairs.wins_of(rows, "ppo/sft", judge).tolist() for judge in ("gold", "heldout", "rm")}
    assert by_judge["rm"] == [1.0, 0.5]
    assert by_judge["gold"][0] == 0.0 and by_judge["heldout"][0] == 0.75
    assert np.isnan(by_judge["gold"][1]) and np.isnan(by_judge["heldout"][1])


def test_references_judge_beside_gold() -> None:
    def answer(gold: float, likeness: float | None, rank: int | None) -> Answer:
        ranks = {"a": 1, "gold": 1, "references": rank}
        return Answer(response="", ended=True, tokens=1, words=1, ids=[], rm_score=0.0, gold=gold, parts=None,
                      kl=None, ranks=ranks, reference_score=likeness)  # fmt: skip

    def row(*of_stages: tuple[float, float | None, int | None]) -> Row:
        stages = zip(("base", "sft", "ppo"), of_stages, strict=True)
        return Row({"prompt": [{"role": "user", "content": "?"}]}, {stage: answer(*of) for stage, of in stages})

    known = [row((0.0, 0.1, 3), (0.5, 0.6, 2), (1.0, 0.8, 1)), row((0.2, 0.0, 2), (0.4, 0.5, 1), (0.9, 0.5, 1))]
    rates = pairs.win_rates(known, 1, 0)
    assert rates["references"]["ppo/sft"].mean == 0.75 and rates["heldout"]["ppo/sft"].mean == 0.5
    assert list(pairs.rate({"r": known}, [one.example for one in known], [], 0)) == list(rates)
    found = pairs.references_with_gold(known, 1, 0)
    by_hand = np.corrcoef([0.0, 0.5, 1.0, 0.2, 0.4, 0.9], [0.1, 0.6, 0.8, 0.0, 0.5, 0.5])[0, 1]
    assert found and found.mean == pytest.approx(by_hand) and found.low < found.mean < found.high

    unknown = [row((0.0, None, None), (0.5, None, None), (1.0, None, None))]
    assert list(pairs.win_rates(unknown, 1, 0)) == ["gold", "heldout", "rm"]
    assert "references" not in pairs.rate({"r": unknown}, [unknown[0].example], [], 0)
    assert pairs.references_with_gold(unknown, 1, 0) is None


# --- ratings ---------------------------------------------------------------------------------------------------------


def said(text: str, ranks: dict[str, int | None], **other: Any) -> Answer:
    usual: dict[str, Any] = dict(ended=True, tokens=4, words=1, ids=[], rm_score=0.0, gold=0.5, parts=None, kl=None)
    return Answer(response=text, ranks=ranks, **usual | other)


class Longest:
    name = "gold"

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        lengths = [len(response.text) for response in responses]
        return [1 + sum(other > length for other in lengths) for length in lengths]


class Shortest(Longest):
    name = "a"

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        lengths = [len(response.text) for response in responses]
        return [1 + sum(other < length for other in lengths) for length in lengths]


class Unable(Longest):
    name = "unable"

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        raise UserError("no check")


def of_run(sft: str, ppo: str, prompts: int = 4) -> list[Row]:
    """The base says nothing, and the judges rank by length."""
    texts = {"base": "", "sft": sft, "ppo": ppo}
    by_length = Longest().rank(EXAMPLE, [Response(text, True) for text in texts.values()])
    answers = {
        stage: said(text, {"gold": rank, "a": rank}, rm_score=-float(rank))
        for (stage, text), rank in zip(texts.items(), by_length, strict=True)
    }
    return [Row(EXAMPLE, answers)] * prompts


def test_the_players_of_one_run_are_its_stages_and_its_reward_model_judges_too() -> None:
    rated = pairs.rate({"r": of_run("a", "aaa")}, [EXAMPLE] * 4, [], 0)
    assert list(rated) == ["gold", "heldout", "rm"]
    for ratings in rated.values():
        assert list(ratings) == list(STAGES)
        assert ratings["base"] == Estimate(0, 0, 0) and 0 < ratings["sft"].mean < ratings["ppo"].mean
        # Of 4 games each side of a pair, one more is drawn: 4.5 of 5 wins. All resamples are alike.
        assert ratings["ppo"].low == pytest.approx(ratings["ppo"].mean) == pytest.approx(ratings["ppo"].high)


def test_the_players_of_several_runs_are_judged_together() -> None:
    rated = pairs.rate({"r": of_run("a", "aaa"), "s": of_run("aaaaa", "a")}, [EXAMPLE] * 4, [Longest(), Shortest()], 0)
    ratings = rated["gold"]
    assert list(ratings) == ["base", "r/sft", "r/ppo", "s/sft", "s/ppo"]  # the base is one player
    assert ratings["base"].mean == 0 < ratings["r/sft"].mean < ratings["r/ppo"].mean < ratings["s/sft"].mean
    assert ratings["s/ppo"].mean == pytest.approx(ratings["r/sft"].mean, abs=1e-3)
    by_length = [ratings[player].mean for player in ratings]
    assert [rated["heldout"][player].mean for player in ratings] == pytest.approx([-rating for rating in by_length])
    assert "rm" not in rated  # each run has one of its own


def test_ranks_of_all_players_are_nan_where_a_judge_cannot_judge() -> None:
    answers = [[said("aa", {}), said("a", {}), said("aaa", {})]] * 5
    ranks = pairs.rank_all([EXAMPLE] * 5, answers, [Longest(), Unable()], seed=0)
    assert ranks["gold"].tolist() == [[2, 3, 1]] * 5 and np.isnan(ranks["unable"]).all()


# --- intervals over prompts and seeds --------------------------------------------------------------------------------

PROMPTS = 40


def seeds_that_differ() -> list[Row]:
    """Three runs: PPO wins on every prompt in the first, on none in the second and on every other in the third."""
    rows = []
    for run in range(3):
        for number in range(PROMPTS):
            won = run == 0 or (run == 2 and number % 2 == 0)
            like = number / PROMPTS if run == 0 else 1 - number / PROMPTS if run == 1 else float(number % 2)
            answers = {
                stage: said(
                    "The end." if won else f"{number}.",
                    {judge: 1 if won == (stage == "ppo") else 2 for judge in ("gold", "a", "references")},
                    rm_score=float(won == (stage == "ppo")),
                    gold=number / PROMPTS,
                    reference_score=like,
                )
                for stage in STAGES
            }
            rows.append(Row({**EXAMPLE, "kind": "story"}, answers))
    return rows


def win_rate(rows: Sequence[Row], runs: int) -> Estimate:
    return pairs.win_rates(rows, runs, 0)["gold"]["ppo/sft"]


def length_controlled(rows: Sequence[Row], runs: int) -> Estimate:
    return pairs.length_controlled_win_rates(rows, runs, 0)["heldout"]["ppo/sft"]


def group(rows: Sequence[Row], runs: int) -> Estimate:
    found = grouped(rows, {"all": 4.0}, 0, runs)["all"]
    assert found.prompts == len(rows) // runs
    return found.stages["ppo"]["wins/heldout"]


def won(rows: Sequence[Row]) -> np.ndarray:
    return pairs.wins_of(rows, "ppo/sft", "gold")


def ratio(rows: Sequence[Row], runs: int) -> Estimate:
    return evaluate.ratio([np.stack([one, np.ones_like(one)], -1) for one in np.split(won(rows), runs)], 0)


def baseline(rows: Sequence[Row], runs: int) -> Estimate:
    values = [np.repeat(one[:, None], 8, axis=1) for one in np.split(won(rows), runs)]
    return baselines.estimated([dict.fromkeys(baselines.BASELINES, one) for one in values], 0)["sft_rules"].ppo_minus


def distinct(rows: Sequence[Row], runs: int) -> Estimate:
    return diversity.estimated(rows, {"ppo": won(rows).astype(int).tolist()}, runs, 0)["ppo"].distinct


def last_sentences(rows: Sequence[Row], runs: int) -> Estimate:
    found = diversity.estimated(rows, {"ppo": [0] * len(rows)}, runs, 0)["ppo"]
    assert found.last_sentence == "The end."
    return found.last_sentence_share


@pytest.mark.parametrize(
    "estimate",
    [win_rate, length_controlled, group, ratio, baseline, distinct, last_sentences],
    ids=lambda f: f.__name__,
)
def test_intervals_hold_the_seeds(estimate: Callable[[Sequence[Row], int], Estimate]) -> None:
    """Of three draws of a run, the same one three times has a probability of 1/27: either end is beyond 2.5 %."""
    rows = seeds_that_differ()
    over_prompts, over_both = estimate(rows, 1), estimate(rows, 3)
    assert over_prompts.mean == over_both.mean == pytest.approx(1 / 2, abs=0.01)
    assert over_prompts.low > 0.35 and over_prompts.high < 0.65  # as if all 120 rows were of one run
    assert over_both.low < 0.05 and over_both.high > 0.95


def test_the_correlation_of_references_with_gold_holds_the_seeds() -> None:
    found = pairs.references_with_gold(seeds_that_differ(), 3, 0)
    assert found and found.low < -0.9 and found.high > 0.9 and abs(found.mean) < 0.2


def test_the_same_prompts_are_drawn_for_all_runs() -> None:
    """Where seeds do not differ, several runs are no more evidence than one."""
    one = seeds_that_differ()[2 * PROMPTS :]
    alone, together = win_rate(one, 1), win_rate(one * 3, 3)
    assert together == alone and alone.high - alone.low == pytest.approx(4 * 0.5 / PROMPTS**0.5, rel=0.15)
