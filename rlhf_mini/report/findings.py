"""The three sentences of the first screen, and the lines that sections are folded behind: figures in words."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.core.texts import Texts
from rlhf_mini.evaluation.answers import JUDGES
from rlhf_mini.evaluation.schema import PooledEvaluation, Study
from rlhf_mini.report.cost import Cost
from rlhf_mini.report.explorer import STAGES
from rlhf_mini.world.gold import WEIGHTS


def summary(texts: Texts, evaluation: PooledEvaluation, reward: str = "") -> list[str]:
    """Three sentences about the results; one whose numbers could not be measured is left out.

    `reward` is PPO's --reward, "" if it was trained on the run's reward model.
    """
    judge = first_judge(evaluation)
    rates = evaluation.win_rates[judge]
    pooled = texts("summary.pooled", runs=", ".join(evaluation.runs)) if len(evaluation.runs) > 1 else ""
    sentences = [
        texts(
            "summary.wins", prompts=f"{evaluation.prompts:,}", pooled=pooled, sft=share(texts, rates["sft/base"]),
            ppo=share(texts, rates["ppo/sft"]), judge=texts.of(f"judge.{judge}", JUDGES[judge]),
        )
    ]  # fmt: skip
    base, sft, ppo = (evaluation.stages[stage] for stage in STAGES)
    brief = partial(number, texts, interval=False)
    golds, scores = [stage["gold"] for stage in (base, sft, ppo)], [stage["rm_score"] for stage in (sft, ppo)]
    if known(*golds, *scores):
        of_stages = dict(zip(("base", "sft", "ppo", "before", "after"), map(brief, [*golds, *scores]), strict=True))
        sentences.append(texts("summary.scores_own_reward" if reward else "summary.scores", **of_stages))
    changes = {part: ppo[part].mean - sft[part].mean for part in WEIGHTS if known(sft[part], ppo[part])}
    if changes:
        most, least = max(changes, key=lambda part: changes[part]), min(changes, key=lambda part: changes[part])
        sentences.append(
            texts(
                "summary.lost" if changes[least] < 0 else "summary.gained",
                most=texts.named("part", most), most_before=brief(sft[most]), most_after=brief(ppo[most]),
                least=texts.named("part", least), least_before=brief(sft[least]), least_after=brief(ppo[least]),
                kl=brief(ppo["kl"]),
            )
        )  # fmt: skip
    return sentences


def findings(
    texts: Texts,
    evaluation: PooledEvaluation,
    iterations: list[dict[str, Any]],
    study: Study | None,
    spent: list[Cost],
    ppo: Checkpoint,
) -> dict[str, str]:
    """By section, the line that it is folded behind."""
    return {
        "win-rates": of_win_rates(texts, evaluation),
        "baselines": of_baselines(texts, evaluation),
        "microscope": texts("finding.microscope"),
        "curves": of_curves(texts, iterations),
        "overopt": of_overopt(texts, study),
        "use-cases": of_use_cases(texts, evaluation),
        "probes": of_probes(texts, evaluation),
        "cost": texts("finding.cost", seconds=f"{spent[-1].seconds:,.0f}", memory=f"{spent[-1].memory:,.0f}"),
        "provenance": texts("finding.provenance", seed=ppo.info["seed"]),
    }


def of_win_rates(texts: Texts, evaluation: PooledEvaluation) -> str:
    judge = first_judge(evaluation)
    rates = evaluation.win_rates[judge]
    return texts(
        "finding.wins", ppo=share(texts, rates["ppo/sft"], interval=False),
        sft=share(texts, rates["sft/base"], interval=False), judge=texts.of(f"judge.{judge}", JUDGES.get(judge, judge)),
    )  # fmt: skip


def of_baselines(texts: Texts, evaluation: PooledEvaluation) -> str:
    """Of what is cheaper than PPO, the one with the best gold."""
    cheaper = {
        name: one
        for name, one in evaluation.baselines.items()
        if not name.startswith("ppo") and known(one.estimates["gold"], one.ppo_minus)
    }
    if not cheaper:
        return texts("finding.baselines_none")
    name = max(cheaper, key=lambda name: cheaper[name].estimates["gold"].mean)
    return texts(
        "finding.baselines", title=texts.of(f"baseline.{name}.title", cheaper[name].title),
        gold=number(texts, cheaper[name].estimates["gold"], interval=False),
        minus=number(texts, cheaper[name].ppo_minus),
    )  # fmt: skip


def of_curves(texts: Texts, iterations: list[dict[str, Any]]) -> str:
    logged = [line for line in iterations if "objective/scores" in line and "objective/kl" in line]
    if not logged:
        return texts("finding.curves_none")
    before, after, kl = (
        number(texts, Estimate(value, value, value), interval=False)
        for value in (logged[0]["objective/scores"], logged[-1]["objective/scores"], logged[-1]["objective/kl"])
    )
    return texts("finding.curves", before=before, after=after, kl=kl)


def of_overopt(texts: Texts, study: Study | None) -> str:
    points = study.scenarios[0].ppo[0].points if study and study.scenarios and study.scenarios[0].ppo else []
    if not points:
        return texts("finding.overopt_none")
    last = max(points, key=lambda point: point.kl)
    proxy, gold = (number(texts, one, interval=False) for one in (last.proxy, last.gold))
    return texts("finding.overopt", kl=f"{last.kl:.1f}", proxy=proxy, gold=gold)


def of_use_cases(texts: Texts, evaluation: PooledEvaluation) -> str:
    gains = {
        name: group.gold["ppo"].mean - group.gold["sft"].mean
        for name, group in evaluation.use_cases.items()
        if known(group.gold["ppo"], group.gold["sft"])
    }
    if not gains:
        return texts("finding.groups_none")
    most, least = max(gains, key=lambda name: gains[name]), min(gains, key=lambda name: gains[name])
    return texts(
        "finding.groups", most=texts.named("use_case", most), most_gain=f"{gains[most]:+.2f}".replace("-", "−"),
        least=texts.named("use_case", least), least_gain=f"{gains[least]:+.2f}".replace("-", "−"),
    )  # fmt: skip


def of_probes(texts: Texts, evaluation: PooledEvaluation) -> str:
    changed = [
        (probe.stages["ppo"].mean - probe.stages["sft"].mean) * (-1 if probe.better == "lower" else 1)
        for probe in evaluation.probes.values()
        if known(probe.stages["ppo"], probe.stages["sft"])
    ]
    better, worse = sum(one > 0 for one in changed), sum(one < 0 for one in changed)
    return texts("finding.probes", better=better, worse=worse, number=len(changed))


def first_judge(evaluation: PooledEvaluation) -> str:
    """The judge whose word stands first: the first one that could judge all pairs of stages; else the reward model."""
    judges = (judge for judge, rates in evaluation.win_rates.items() if judge in JUDGES and known(*rates.values()))
    return next(judges, "rm")


# --- numbers in words ------------------------------------------------------------------------------------------------


def known(*estimates: Estimate) -> bool:
    return not any(math.isnan(estimate.mean) for estimate in estimates)


def share(texts: Texts, estimate: Estimate, interval: bool = True) -> str:
    """A share as a percentage with its interval: 80% (78 to 83%)."""
    return formatted(texts, estimate, lambda x: f"{100 * x:.0f}", "%", interval)


def number(texts: Texts, estimate: Estimate, interval: bool = True) -> str:
    return formatted(texts, estimate, lambda x: f"{x:.2f}".replace("-", "−"), "", interval)


def elo(texts: Texts, estimate: Estimate) -> str:
    fixed = estimate == Estimate(0.0, 0.0, 0.0)  # the player that the others are measured against
    return formatted(texts, estimate, lambda x: f"{x:.0f}".replace("-", "−"), "", interval=not fixed)


def formatted(texts: Texts, estimate: Estimate, form: Callable[[float], str], unit: str, interval: bool) -> str:
    if not known(estimate):
        return "–"
    around = texts("number.range", low=form(estimate.low), high=f"{form(estimate.high)}{unit}")
    return f"{form(estimate.mean)}{unit}" + (f" ({around})" if interval else "")
