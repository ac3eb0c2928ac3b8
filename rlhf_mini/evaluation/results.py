"""Writes docs/results.md from what `make evaluate` and `make overopt` measured, so that no figure there is typed.

    python -m rlhf_mini.evaluation.results seed0 seed1 seed2

reads runs/<run>/compare.json of each run, docs/evaluate.json of all of them together and, if it is there,
docs/overopt.json.
"""

import argparse
import math
import shlex
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.console import UserError, console, run
from rlhf_mini.core.files import read_json, replacing
from rlhf_mini.evaluation.answers import JUDGES, PAIRS
from rlhf_mini.evaluation.compare import DECIMAL, TITLES, spent
from rlhf_mini.evaluation.evaluate import EvaluateOptions, read_evaluation
from rlhf_mini.evaluation.overopt import curves
from rlhf_mini.evaluation.overopt.__main__ import OveroptOptions
from rlhf_mini.evaluation.tables import decimal
from rlhf_mini.evaluation.tables import percent as percent_of
from rlhf_mini.world.gold import WEIGHTS

BIN = ".venv/bin/"  # where the Makefile puts the Python that has everything
# What the recipe sets out to reach on the test split, by the names of compare.json's headline: (words, holds?).
TARGETS: dict[str, tuple[str, Callable[[dict[str, float]], bool]]] = {
    "sft_beats_base/gold": ("at least 85 %", lambda f: f["mean"] >= 0.85),
    "sft_beats_base/heldout": ("at least 85 %", lambda f: f["mean"] >= 0.85),
    "gold/sft": ("0.40 to 0.65", lambda f: 0.40 <= f["mean"] <= 0.65),
    "ppo_beats_sft/heldout": ("at least 75 %, interval above 70 %", lambda f: f["mean"] >= 0.75 and f["low"] > 0.70),
    "ppo_beats_sft/gold": ("at least 75 %, interval above 70 %", lambda f: f["mean"] >= 0.75 and f["low"] > 0.70),
    "gold/ppo": ("at least 0.80", lambda f: f["mean"] >= 0.80),
    "rm/gap_heldout": ("-6 points or better", lambda f: f["mean"] >= -0.06),
    "kl": ("at most 15 nats", lambda f: f["mean"] <= 15),
    "eos": ("at least 97 %", lambda f: f["mean"] >= 0.97),
    "length_ratio": ("at most 1.5", lambda f: f["mean"] <= 1.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlhf_mini.evaluation.results", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", help="names of runs that were compared, one a seed")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    docs = Path("docs")
    parser.add_argument("--evaluate", type=Path, default=docs / "evaluate.json", help="figures of these runs together")
    parser.add_argument(
        "--overopt", type=Path, default=docs / "overopt.json", help="an over-optimisation study, if any"
    )
    parser.add_argument("--out", type=Path, default=docs / "results.md", help="file to write")
    arguments = parser.parse_args()
    summaries = [read(arguments.runs_dir / name) for name in arguments.runs]
    make = f"python -m rlhf_mini.evaluation.evaluate --runs {','.join(arguments.runs)} --out {arguments.evaluate}"
    together = read_evaluation(arguments.evaluate, make)
    if together["runs"] != arguments.runs or "win_rates" not in together:
        raise UserError(f"{arguments.evaluate} is not of these runs together: run `{make}`")
    for name, summary in zip(arguments.runs, summaries, strict=True):
        if together["provenance"][name]["checkpoints"] != summary["provenance"]["checkpoints"]:
            raise UserError(f"{name} was made again since {arguments.evaluate} was measured: run `{make}`")
    study = curves.read_study(arguments.overopt)
    made = [summary["provenance"]["checkpoints"]["ppo"]["sha256"] for summary in summaries]
    if study and study["provenance"]["ppo_sha256"] not in made:
        console.print(f"results: {arguments.overopt} is of none of these runs and left out: run `make overopt`")
        study = None
    base = load_checkpoint("data/base", "base")
    text = page(arguments.runs, summaries, base.info, together, study)
    with replacing(arguments.out) as file:
        file.write(text)
    console.print(f"{arguments.out} written")


def read(folder: Path) -> dict[str, Any]:
    if not (folder / "compare.json").is_file():
        raise UserError(f"{folder} was not evaluated yet: run `make evaluate RUN={folder.name}`")
    return read_json(folder / "compare.json")


def page(
    runs: Sequence[str], summaries: Sequence[dict[str, Any]], base: dict[str, Any], together: dict[str, Any],
    study: dict[str, Any] | None,
) -> str:  # fmt: skip
    """The whole page as Markdown."""
    seeds = [str(summary["provenance"]["checkpoints"]["ppo"]["seed"]) for summary in summaries]
    prompts = summaries[0]["groups"]["all"]["prompts"]
    temperature = summaries[0]["provenance"]["options"]["temperature"]
    parts = [
        "# Results",
        f"Measured on the {prompts} prompts of the test split, which SFT, RM and PPO are not trained on. One "
        f"response a stage and prompt at temperature {temperature:g}; intervals are 95 % bootstrap intervals over "
        "prompts; one column a seed of SFT, RM and PPO, which start from one base. This page is written by",
        "```\n" + "\n".join(
            f"make sft rm ppo RUN={name} SEED={seed}" for name, seed in zip(runs, seeds, strict=True)
        ) + "\n" + command_of("evaluate", EvaluateOptions, together["options"])
        + (command_of("overopt", OveroptOptions, study["provenance"]["options"]) if study else "")
        + f"{BIN}python -m rlhf_mini.evaluation.results {' '.join(runs)}\n```",
        "## What it set out to reach",
        against_targets(seeds, summaries),
        "## The base model",
        table(
            ["", "measured"],
            [
                ["facts right, greedily, after four other questions with answers (at least 85 %)",
                 percent(base["metrics"]["facts_right_few_shot"])],
                ["gold on bare instructions, validation prompts (at most 0.25)",
                 decimal(base["metrics"]["gold_on_bare_instructions"])],
                ["language-model loss at the end of pretraining, nats a token", decimal(base["metrics"]["loss"])],
                ["time, s", f"{base['seconds']:.0f}"],
            ],
        ),
        "## Gold by use case, mean over the seeds",
        by_group(summaries, "use_case/"),
        "## Unseen entities and phrasings, mean over the seeds",
        by_group(summaries, "novel/"),
        "## Parts of the gold score, mean over the seeds",
        of_parts(summaries),
        "## Who beats whom",
        "Means over the seeds, with intervals over prompts and seeds, which with three seeds are rather too narrow "
        "([evaluation.md](evaluation.md)); a tie counts one half. The reward model judges "
        "its own run only, and PPO was trained to please it. Length-controlled: the win rate if both sides "
        "were equally long (Dubois et al. 2024).",
        pairs_table(together),
        "Bradley-Terry ratings over all pairs of these checkpoints, in Elo points over the base:",
        ratings_table(together),
        "## What a mean score hides",
        "Means over the seeds, with intervals over prompts and seeds.",
        probes_table(together),
        *(over_optimisation(study) if study else []),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def against_targets(seeds: Sequence[str], summaries: Sequence[dict[str, Any]]) -> str:
    rows = []
    for name, title in TITLES.items():
        target, holds = TARGETS.get(name, ("", lambda f: True))
        figures = [summary["headline"][name] for summary in summaries]
        misses = sum(not holds(figure) for figure in figures)
        verdict = "" if not target else "yes" if not misses else f"missed by {misses} of {len(figures)}"
        show = decimal if name.startswith(DECIMAL) else percent
        cells = [f"{show(f['mean'])} ({show(f['low'])} to {show(f['high'])})" for f in figures]
        rows.append([title, target, *cells, verdict])
    below = [", ".join(summary["use_cases_below_sft"]) or "none" for summary in summaries]
    rows.append(["use cases with PPO's gold below SFT's", "none", *below, verdict_of(all(b == "none" for b in below))])
    seconds, memory = zip(*(spent(summary["cost"]) for summary in summaries), strict=True)
    rows.append(["SFT, RM and PPO together, s", "at most 300", *(f"{s:.0f}" for s in seconds),
                 verdict_of(max(seconds) <= 300)])  # fmt: skip
    rows.append(["their peak memory, MB", "at most 1500", *(str(m) for m in memory), verdict_of(max(memory) <= 1500)])
    return table(["", "aim", *(f"seed {seed}" for seed in seeds), "reached"], rows)


def verdict_of(holds: bool) -> str:
    return "yes" if holds else "no"


def by_group(summaries: Sequence[dict[str, Any]], prefix: str) -> str:
    rows = []
    for group in sorted(summaries[0]["groups"], key=lambda g: -summaries[0]["groups"][g]["prompts"]):
        if group.startswith(prefix):
            stages = [summary["groups"][group]["stages"] for summary in summaries]
            gold = [decimal(mean(s[name]["gold"] for s in stages)) for name in ("base", "sft", "ppo")]
            wins = percent(mean(s["ppo"]["wins/heldout"] for s in stages))
            count = str(summaries[0]["groups"][group]["prompts"])
            rows.append([group.removeprefix(prefix).replace("_", " "), count, *gold, wins])
    return table(["", "prompts", "base", "SFT", "PPO", "PPO beats SFT, held-out labelers"], rows)


def of_parts(summaries: Sequence[dict[str, Any]]) -> str:
    stages = [summary["groups"]["all"]["stages"] for summary in summaries]
    rows = [
        [name.upper() if name != "base" else name, *(decimal(mean(s[name][part] for s in stages)) for part in WEIGHTS)]
        for name in ("base", "sft", "ppo")
    ]
    return table(["", *WEIGHTS], rows)


def command_of(name: str, options: type, recorded: dict[str, Any]) -> str:
    """The command that measures with the recorded options, without those that are defaults, and a line end."""
    changed = {key: value for key, value in recorded.items() if value != getattr(options, key, None)}
    arguments = [text for key, value in changed.items() for text in (f"--{key}", str(value))]
    return BIN + shlex.join(["python", "-m", f"rlhf_mini.evaluation.{name}", *arguments]) + "\n"


def pairs_table(together: dict[str, Any]) -> str:
    rows = []
    for pair, title in PAIRS.items():
        for judge, name in JUDGES.items():
            wins, controlled = (together[key][judge][pair] for key in ("win_rates", "length_controlled"))
            rows.append([title, name, with_interval(wins, percent), with_interval(controlled, percent)])
    return table(["", "judge", "win rate", "length-controlled"], rows)


def ratings_table(together: dict[str, Any]) -> str:
    ratings = together["bradley_terry"]
    rows = [
        [
            player,
            *(with_interval(ratings[judge][player], lambda x: "-" if x is None else f"{x:.0f}") for judge in ratings),
        ]
        for player in ratings["gold"]
    ]
    return table(["", *(JUDGES[judge] for judge in ratings)], rows)


def probes_table(together: dict[str, Any]) -> str:
    rows = []
    for probe in together["probes"].values():
        form = percent if probe["unit"] == "share" else decimal
        stages = [with_interval(probe["stages"][stage], form) for stage in ("base", "sft", "ppo")]
        rows.append([probe["title"], probe["how"], f"{probe['better']} is better", str(probe["prompts"]), *stages])
    return table(["", "what counts", "", "prompts or names", "base", "SFT", "PPO"], rows)


def over_optimisation(study: dict[str, Any]) -> list[str]:
    """Where gold is highest on each curve, where the curve ends, and how well Gao's forms fit."""
    options = study["provenance"]["options"]
    parts = [
        "## Over-optimisation",
        f"Gains over SFT on {study['prompts']} prompts of the test split, one training each; d is the square root of "
        f"the KL to SFT in nats. Best-of-n is computed without bias from {options['best_of']} responses a prompt. The "
        "fall is how much lower gold lies at the end than at its peak, the peak looked for on every other prompt and "
        "the fall read on the others; at or below 0, there was none. The fits of Gao et al. 2022 are to gold: "
        "d (a - b d) for best-of-n, d (a - b log d) for PPO, with the root mean square of their error and the share R2 "
        "of the variance that they explain.",
    ]
    for scenario in study["scenarios"]:
        rows = []
        for title, curve in curves.titled(scenario):
            last, fit = curve["points"][-1], curve["fit"]["gold"]
            peak = max(curve["points"], key=lambda point: point["gold"]["mean"])
            ends = [f"{p['gold']['mean']:+.2f} at d {math.sqrt(max(p['kl'], 0)):.2f}" for p in (peak, last)]
            fitted = f"{decimal(fit['a'])}, {decimal(fit['b'])}, {decimal(fit['rmse'])}, {decimal(fit['r2'])}"
            scores = f"{peak['proxy']['mean']:+.2f}, {last['proxy']['mean']:+.2f}"
            rows.append([title, *ends, with_interval(curve["fall"], decimal), scores, fitted])
        head = ["", "highest gold", "gold at the end", "fall", "RM score at both", "fit: a, b, error, R2"]
        parts += [f"Against {scenario['title']}. {scenario['what']}", table(head, rows)]
    return parts


def with_interval(figure: dict[str, Any], form: Callable[[Any], str]) -> str:
    """A mean with its interval."""
    return f"{form(figure['mean'])} ({form(figure['low'])} to {form(figure['high'])})"


def mean(figures: Any) -> float:
    return statistics.mean(figure["mean"] for figure in figures)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float | None) -> str:
    return percent_of(value, digits=1, unit=" %")


if __name__ == "__main__":
    run(main)
