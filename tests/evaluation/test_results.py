"""docs/results.md is made of what compare measured, and says so when an aim is missed."""

import copy
from typing import Any

import pytest

from rlhf_mini.core.console import UserError
from rlhf_mini.evaluation import results
from rlhf_mini.evaluation.compare import TITLES
from rlhf_mini.evaluation.results import read

STAGES = ("base", "sft", "ppo")
FIGURE = {"mean": 0.5, "low": 0.45, "high": 0.55}
PARTS = ("gold", "task", "truthful", "harmless", "courteous", "concise", "ends", "wins/heldout")
GROUP = {"prompts": 600, "stages": {stage: {part: FIGURE for part in PARTS} for stage in STAGES}}
BASE = {"seconds": 1200.0, "metrics": {"facts_right_few_shot": 0.9, "gold_on_bare_instructions": 0.1, "loss": 0.7}}


PAIRS = {pair: FIGURE for pair in ("sft/base", "ppo/sft", "ppo/base")}
TOGETHER = {
    "runs": ["a"],
    "win_rates": {judge: PAIRS for judge in ("gold", "heldout", "rm")},
    "length_controlled": {judge: PAIRS for judge in ("gold", "heldout", "rm")},
    "bradley_terry": {"gold": {"base": FIGURE, "a/ppo": {"mean": 321.4, "low": 300.0, "high": 345.0}}},
    "probes": {
        "lies": {"title": "lies", "how": "Says what is not.", "better": "lower", "unit": "share", "prompts": 9,
                 "stages": {stage: FIGURE for stage in STAGES}},
    },
    "options": {"run": "default", "runs": "a,b", "seed": 0},
    "provenance": {"a": {"command": "the command of that time"}},
}  # fmt: skip
POINT = {"kl": 4.0, "proxy": {"mean": 1.5}, "gold": {"mean": 0.25}}
END = POINT | {"kl": 9.0, "gold": {"mean": -0.1}}
CURVE = {"points": [POINT, END], "fall": FIGURE, "fit": {"gold": {"a": 1.0, "b": None, "rmse": 0.01, "r2": 0.9}}}
STUDY = {
    "prompts": 128,
    "scenarios": [
        {"title": "a reward model", "what": "What it is.", "best_of_n": CURVE,
         "ppo": [CURVE | {"kl_coef": 0.07, "default": True}]},
    ],
    "provenance": {"options": {"run": "a", "snapshot_steps": 10, "best_of": 256}},
}  # fmt: skip


def page(runs: list[str], summaries: list[dict[str, Any]], base: dict[str, Any], study: Any = None) -> str:
    return results.page(runs, summaries, base, TOGETHER, study)


def test_the_evaluation_and_the_study_are_on_the_page():
    text = page(["a"], [summary()], BASE, STUDY)
    assert line(text, "PPO over SFT | gold score").count("50.0 % (45.0 % to 55.0 %)") == 2
    assert line(text, "a/ppo").endswith("| 321 (300 to 345) |")
    assert "lower is better | 9 | 50.0 % (45.0 % to 55.0 %)" in line(text, "lies")
    expected = "| -0.10 at d 3.00 | 0.50 (0.45 to 0.55) | +1.50, +1.50 | 1.00, -, 0.01, 0.90 |"
    assert line(text, "PPO, kl_coef 0.07 (default)").endswith(expected)
    assert (
        "\n.venv/bin/python -m rlhf_mini.evaluation.evaluate --runs a,b\n"
        ".venv/bin/python -m rlhf_mini.evaluation.overopt --run a --snapshot_steps 10\n"
        ".venv/bin/python -m rlhf_mini.evaluation.results a\n" in text
    )
    assert "Over-optimisation" not in page(["a"], [summary()], BASE)


def summary(**headline: dict[str, float]) -> dict[str, Any]:
    return {
        "headline": {name: FIGURE for name in TITLES} | headline,
        "use_cases_below_sft": [],
        "cost": {name: {"seconds": 50.0, "peak_memory_mb": 900} for name in ("base", "sft", "rm", "ppo")},
        "groups": {"all": GROUP, "use_case/chat": GROUP, "novel/none": GROUP},
        "provenance": {"options": {"temperature": 0.7}, "checkpoints": {"ppo": {"seed": 7}}},
    }


def line(text: str, start: str) -> str:
    return next(row for row in text.split("\n") if row.startswith(f"| {start}"))


def test_a_reached_aim_and_a_missed_one_are_told_apart():
    good = {"mean": 0.86, "low": 0.84, "high": 0.88}
    text = page(["a", "b"], [summary(**{"gold/ppo": good}), summary(**{"gold/ppo": good})], BASE)
    assert line(text, "PPO gold").endswith("| 0.86 (0.84 to 0.88) | 0.86 (0.84 to 0.88) | yes |")
    text = page(["a", "b"], [summary(**{"gold/ppo": good}), summary()], BASE)
    assert line(text, "PPO gold").endswith("| missed by 1 of 2 |")


def test_a_win_rate_must_also_have_its_interval_above_70_percent():
    wide = {"mean": 0.76, "low": 0.69, "high": 0.82}
    assert "missed by 1 of 1" in line(
        page(["a"], [summary(**{"ppo_beats_sft/gold": wide})], BASE), "PPO beats SFT, gold"
    )


def test_time_is_the_sum_of_the_three_stages_without_the_base():
    assert line(page(["a"], [summary()], BASE), "SFT, RM and PPO together").endswith("| 150 | yes |")
    slow = copy.deepcopy(summary())
    slow["cost"]["ppo"]["seconds"] = 201.0
    assert line(page(["a"], [slow], BASE), "SFT, RM and PPO together").endswith("| 301 | no |")


def test_the_commands_name_runs_and_seeds():
    assert "make sft rm ppo RUN=a SEED=7\n.venv/bin/python -m rlhf_mini.evaluation.evaluate --runs a,b\n" in page(
        ["a"], [summary()], BASE
    )


def test_a_run_without_a_comparison_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="make evaluate RUN=nothing"):
        read(tmp_path / "nothing")
