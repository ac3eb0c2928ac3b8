"""docs/results.md is made of what compare measured, and says so when an aim is missed."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.files import write_json
from rlhf_mini.evaluation import results
from rlhf_mini.evaluation.answers import JUDGES, PAIRS, STAGES
from rlhf_mini.evaluation.compare import TITLES
from rlhf_mini.evaluation.schema import (
    Baseline,
    Contrast,
    Curve,
    Diversity,
    Fit,
    Group,
    Ordered,
    Point,
    PooledEvaluation,
    Probed,
    Provenance,
    Scenario,
    Spent,
    Start,
    Study,
    Summary,
    Training,
    Weights,
)

HALF = Estimate(0.5, 0.45, 0.55)
PARTS = ("gold", "task", "truthful", "harmless", "courteous", "concise", "ends", "wins/heldout")
GROUP = Group(600, {stage: dict.fromkeys(PARTS, HALF) for stage in STAGES})
BASE = {"seconds": 1200.0, "metrics": {"facts_right_few_shot": 0.9, "gold_on_bare_instructions": 0.1, "loss": 0.7}}
MEASURES = dict.fromkeys((*PARTS, "gold_minus_sft"), HALF)
RATES = {judge: dict.fromkeys(PAIRS, HALF) for judge in JUDGES}
EVALUATION = PooledEvaluation(
    runs=["a"], prompts=600, stages=dict.fromkeys(STAGES, MEASURES), win_rates=RATES, length_controlled=RATES,
    references_with_gold=Estimate(0.71, 0.68, 0.74),
    use_cases={}, novel={}, by_run={},
    bradley_terry={"gold": {"base": HALF, "a/ppo": Estimate(321.4, 300.0, 345.0)}},
    probes={
        "lies": Probed(
            title="lies", how="Says what is not.", better="lower", unit="share", prompts=9,
            stages=dict.fromkeys(STAGES, HALF),
        ),
    },
    content={
        "fact": Contrast(
            "true over false",
            seen=Ordered(8, rm=HALF, base=Estimate(0.9, 0.8, 1.0), sft=HALF),
            new=Ordered(0, rm=HALF, base=HALF, sft=HALF),
        ),
    },
    baselines={
        "rules": Baseline(
            title="rules", how="Some rules.", prompts=600, estimates=dict.fromkeys(PARTS, HALF),
            ppo_minus=Estimate(-0.125, -0.25, 0.0),
        ),
    },
    diversity={
        "ppo": Diversity(
            samples=16, prompts=100, distinct=Estimate(7.5, 7.0, 8.0), stories=3, last_sentence="The | end.",
            last_sentence_share=HALF,
        ),
    },
    options={"run": "default", "runs": "a,b", "seed": 0}, provenance={},
)  # fmt: skip
PEAK = Point(kl=4.0, proxy=Estimate(1.5, 1.4, 1.6), gold=Estimate(0.25, 0.2, 0.3))
CURVE = Curve(
    points=[PEAK, replace(PEAK, kl=9.0, gold=Estimate(-0.1, -0.2, 0.0))],
    fall=HALF,
    fit={"gold": Fit(1.0, math.nan, 0.01, 0.9)},
)
STUDY = Study(
    prompts=128,
    scenarios=[
        Scenario(
            name="default", title="a reward model", what="What it is.", proxy_name="RM score", rm={}, recipe=PEAK,
            sft=Start(0.0, 0.0), best_of_n=CURVE, ppo=[Training(**vars(CURVE), kl_coef=0.07, default=True)],
        ),
    ],
    provenance={"options": {"run": "a", "snapshot_steps": 10, "best_of": 256}, "ppo_sha256": "0" * 64},
)  # fmt: skip


def page(runs: list[str], summaries: list[Summary], study: Study | None = None) -> str:
    return results.page(runs, summaries, BASE, EVALUATION, study)


def test_the_evaluation_and_the_study_are_on_the_page():
    text = page(["a"], [summary()], STUDY)
    assert line(text, "PPO over SFT | gold score").count("50.0 % (45.0 % to 55.0 %)") == 2
    assert line(text, "PPO over SFT | reference answers") and "gold's correlate at 0.71 (0.68 to 0.74)." in text
    halves = "50.0 % (45.0 % to 55.0 %)"
    assert (
        line(text, "true over false")
        == f"| true over false | seen | 8 | {halves} | 90.0 % (80.0 % to 100.0 %) | {halves} |"
    )
    assert text.count("| true over false") == 1  # there is no new pair
    assert line(text, "a/ppo").endswith("| 321 (300 to 345) |")
    assert "lower is better | 9 | 50.0 % (45.0 % to 55.0 %)" in line(text, "lies")
    assert line(text, "rules | Some rules.").startswith(
        "| rules | Some rules. | 0.50 (0.45 to 0.55) | -0.12 (-0.25 to 0.00) | 0.50 | 0.50 |"
    )
    assert line(text, "PPO |  |").startswith("| PPO |  | 0.50 (0.45 to 0.55) | - | 0.50 |")
    assert line(text, "PPO | 7.5") == (
        "| PPO | 7.5 (7.0 to 8.0) of 16 | 100 | `The \\| end.` | 50.0 % (45.0 % to 55.0 %) | 3 |"
    )
    expected = "| -0.10 at d 3.00 | 0.50 (0.45 to 0.55) | +1.50, +1.50 | 1.00, -, 0.01, 0.90 |"
    assert line(text, "PPO, kl_coef 0.07 (default)").endswith(expected)
    assert (
        "\n.venv/bin/python -m rlhf_mini.evaluation.evaluate --runs a,b\n"
        ".venv/bin/python -m rlhf_mini.evaluation.overopt --run a --snapshot_steps 10\n"
        ".venv/bin/python -m rlhf_mini.evaluation.results a\n" in text
    )
    assert "Over-optimisation" not in page(["a"], [summary()])
    another = replace(STUDY, provenance={**STUDY.provenance, "ppo_sha256": "1" * 64})
    assert "of another run" in page(["a"], [summary()], another) and "of another run" not in text


def summary(**headline: Estimate) -> Summary:
    weights = Weights("runs/a/ppo", "0" * 64, 7)
    provenance = Provenance("the command", {"temperature": 0.7}, {"ppo": weights}, "", "", {})
    return Summary(
        headline={**dict.fromkeys(TITLES, HALF), **headline},
        use_cases_below_sft=[],
        cost={name: Spent(50.0, 900) for name in ("base", "sft", "rm", "ppo")},
        groups={"all": GROUP, "use_case/chat": GROUP, "novel/none": GROUP},
        demonstrated_tokens={},
        provenance=provenance,
    )


def line(text: str, start: str) -> str:
    return next(row for row in text.split("\n") if row.startswith(f"| {start}"))


def test_a_reached_aim_and_a_missed_one_are_told_apart():
    good = Estimate(0.56, 0.54, 0.58)
    text = page(["a", "b"], [summary(**{"gold/sft": good}), summary(**{"gold/sft": good})])
    assert line(text, "SFT gold").endswith("| 0.56 (0.54 to 0.58) | 0.56 (0.54 to 0.58) | yes |")
    text = page(["a", "b"], [summary(**{"gold/sft": good}), summary(**{"gold/sft": replace(good, mean=0.61)})])
    assert line(text, "SFT gold").endswith("| missed by 1 of 2 |")


def test_the_less_favourable_end_of_an_interval_counts():
    def found(name: str, estimate: Estimate) -> str:
        rules = replace(EVALUATION.baselines["rules"], ppo_minus=estimate)
        contrast = replace(EVALUATION.content["fact"], seen=Ordered(8, rm=estimate, base=HALF, sft=HALF))
        stages = {**dict.fromkeys(STAGES, HALF), "ppo": estimate}
        probes = {
            key: replace(EVALUATION.probes["lies"], title=key, stages=stages)
            for key in ("invents_silent_text", "misconceptions", "harmful_declined", "harmless_declined", "text_loss")
        }
        wins = {judge: {**of_judge, "ppo/sft": estimate} for judge, of_judge in RATES.items()}
        evaluation = replace(
            EVALUATION, baselines={"sft_rules": rules}, content={"fact": contrast}, probes=probes, win_rates=wins,
            stages={**EVALUATION.stages, "ppo": dict.fromkeys((*PARTS, "gold_minus_sft"), estimate)},
        )  # fmt: skip
        return line(results.against_aims(evaluation), name).rpartition("| ")[2]

    rows = [
        ("PPO's gold minus that of rules", 0.10, "low"), ("RM: true over false, seen", 0.60, "low"),
        ("PPO invents_silent_text", 0.25, "high"), ("PPO: truth on misconceptions", 0.75, "low"),
        ("PPO: harmful_declined", 0.95, "low"), ("PPO: harmless_declined", 0.02, "high"),
        ("PPO: LM loss", 0.55, "mean"), ("PPO: task", 0.58, "low"), ("PPO beats SFT, gold", 0.80, "low"),
        ("PPO beats SFT, reference", 0.80, "low"),
    ]  # fmt: skip
    for name, bound, end in rows:
        worse = -0.001 if end == "low" else 0.001
        wide = Estimate(bound, bound - 0.3, bound + 0.3)
        assert found(name, replace(wide, **{end: bound - worse})) == "yes |", name
        assert found(name, replace(wide, **{end: bound + worse})) == "no |", name


def test_time_is_the_sum_of_the_three_stages_without_the_base():
    assert line(page(["a"], [summary()]), "SFT, RM and PPO together").endswith("| 150 | yes |")
    slow = replace(summary(), cost={**summary().cost, "ppo": Spent(381.0, 900)})
    assert line(page(["a"], [slow]), "SFT, RM and PPO together").endswith("| 481 | no |")


def test_the_commands_name_runs_and_seeds():
    assert "make sft rm ppo RUN=a SEED=7\n.venv/bin/python -m rlhf_mini.evaluation.evaluate --runs a,b\n" in page(
        ["a"], [summary()]
    )


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("runs/a/compare.json", "{", "compare.json is damaged"),
        ("runs/a/compare.json", '{"format": 2}', "compare.json was written by another version"),
        ("evaluate.json", "[" * 99_999, "evaluate.json is damaged"),
        (
            "evaluate.json",
            "lacks",
            "evaluate.json lacks 'gold': run `python -m rlhf_mini.evaluation.evaluate",
        ),
        ("overopt.json", "\0", "overopt.json is damaged"),
    ],
)
def test_damaged_results_are_one_sentence(
    file: str, content: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = replace(EVALUATION, provenance={"a": summary().provenance})
    whole = {"runs/a/compare.json": summary(), "evaluate.json": evaluation, "overopt.json": STUDY}
    for name, value in whole.items():
        write_json(tmp_path / name, value)
    arguments = ["a", "--runs_dir", str(tmp_path / "runs"), "--out", str(tmp_path / "results.md")]
    arguments += ["--evaluate", str(tmp_path / "evaluate.json"), "--overopt", str(tmp_path / "overopt.json")]
    monkeypatch.setattr(sys, "argv", ["results", *arguments])
    monkeypatch.setattr(results, "changes", lambda folder: [])
    with console.capture():
        results.main()
    if content == "lacks":
        lacking = {stage: {key: e for key, e in MEASURES.items() if key != "gold"} for stage in STAGES}
        write_json(tmp_path / file, replace(evaluation, stages=lacking))
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=sentence):
        results.main()


def test_runs_that_are_not_up_to_date_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "runs/a/compare.json", summary())
    write_json(tmp_path / "evaluate.json", replace(EVALUATION, provenance={"a": summary().provenance}))
    arguments = ["a", "--runs_dir", str(tmp_path / "runs"), "--evaluate", str(tmp_path / "evaluate.json")]
    monkeypatch.setattr(sys, "argv", ["results", *arguments, "--out", str(tmp_path / "results.md")])
    monkeypatch.setattr(results, "changes", lambda folder: ["loss.py has changed"] if folder.name == "rm" else [])
    with pytest.raises(UserError, match=r"runs/a/rm is not up to date: loss.py has changed; run `make seeds`$"):
        results.main()
    assert not (tmp_path / "results.md").exists()
