"""`make settings`: PPO with one option changed at a time, on the SFT and reward models of several seeds.

    python -m benchmarks.settings --runs seed0,seed1,seed2 --out docs/settings.json

Trains each variant in runs/<run>-ppo-<variant>, unless it is there, and measures it on validation prompts: what the
reward model says, what gold and the judge by references say, and the KL to SFT. Defaults are chosen by this. Three runs
are too few for an interval, so the tables have the least and the most of them.
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.console import UserError, console, run
from rlhf_mini.core.examples import Prompt, read_prompts
from rlhf_mini.core.files import write_json
from rlhf_mini.core.inputs import note_changes
from rlhf_mini.core.options import command_line
from rlhf_mini.evaluation.responses import Sampling, gold_of, load_stage
from rlhf_mini.models.scoring import score_texts, sequence_logprobs
from rlhf_mini.world.references import score
from stages.ppo.options import PPOOptions
from stages.ppo.train import train_ppo

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "learning_rate 5e-4": dict(learning_rate=5e-4),
    "kl_coef 0.01": dict(kl_coef=0.01),
    "kl_coef 0.05": dict(kl_coef=0.05),
    "ptx_coef 0.1": dict(ptx_coef=0.1),
    "ptx_coef 1": dict(ptx_coef=1.0),
    "temperature 1": dict(temperature=1.0),
    "num_ppo_epochs 2": dict(num_ppo_epochs=2),
}
MEASURES = ("rm score", "gold", "references", "gold at 0.2", "kl")
TEMPERATURES = (0.7, 0.2)


def train(run_name: str, variant: str, changed: dict[str, Any], runs_dir: str) -> Path:
    """The folder of the run's variant, trained with the run's own seed if it was not there."""
    original = Path(runs_dir) / run_name
    parents = [load_checkpoint(original / stage, stage) for stage in ("sft", "rm")]
    name = f"{run_name}-ppo-{variant.replace(' ', '_')}"
    # A policy that collapses is a result, too.
    options = PPOOptions(run=name, runs_dir=runs_dir, seed=parents[0].info["seed"], on_collapse="warn", **changed)
    for parent in parents:
        if not (options.run_dir / parent.stage).exists():
            shutil.copytree(parent.path, options.run_dir / parent.stage)
    if not (options.run_dir / "ppo").exists():
        train_ppo(options)
    ppo = load_checkpoint(options.run_dir / "ppo", "ppo")
    of_now = {key: value for key, value in asdict(options).items() if key not in ("runs_dir", "on_collapse")}
    if not of_now.items() <= ppo.info["options"].items() or not all(
        any(parent.is_parent(known) for known in ppo.info["parents"]) for parent in parents
    ):
        raise UserError(f"{options.run_dir} is of other options or another {run_name}: delete it")
    note_changes([ppo.path])
    return options.run_dir


def measure(folder: Path, stage: str, examples: Sequence[Prompt]) -> list[float]:
    """MEASURES of SFT's or PPO's responses: means over the prompts, at the same temperatures whatever PPO's was."""
    policy, sft, rm = (load_stage(folder / name, name) for name in (stage, "sft", "rm"))
    prompts = policy.encode([example["prompt"] for example in examples])
    warm, cold = (
        policy.respond(prompts, Sampling(48, temperature, 0), 0, f"{folder.name}: {stage} at {temperature}")
        for temperature in TEMPERATURES
    )
    logprobs, of_sft = (
        sequence_logprobs(model.model, model.tokenizer, prompts, warm, TEMPERATURES[0]) for model in (policy, sft)
    )
    scores = score_texts(rm.model, rm.tokenizer, prompts, warm)
    references = [score(example, response.text) for example, response in zip(examples, warm, strict=True)]
    gold, gold_cold = (
        [found.score for found in map(gold_of, examples, responses) if found] for responses in (warm, cold)
    )
    return [mean(scores), mean(gold), mean(references), mean(gold_cold), mean(logprobs) - mean(of_sft)]


def table(title: str, rows: Mapping[str, Sequence[Sequence[float]]]) -> Iterator[str]:
    """The mean over runs of each measure, and its least and most, in the form of a page."""
    yield f"| {title} | {' | '.join(MEASURES)} |"
    yield "|---" * (1 + len(MEASURES)) + "|"
    for name, of_runs in rows.items():
        columns = list(zip(*of_runs, strict=True))
        cells = [f"{mean(column):+.3f} ({min(column):+.3f} to {max(column):+.3f})" for column in columns]
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.settings", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--runs", default="seed0,seed1,seed2", help="finished runs, comma-separated (default: %(default)s)"
    )
    parser.add_argument("--runs_dir", default="runs", help="folder of all runs (default: runs)")
    parser.add_argument(
        "--prompts", default="data/prompts/validation.jsonl", help="to measure on (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/settings.json"), help="file to write")
    arguments = parser.parse_args()
    examples = [example for example in read_prompts(arguments.prompts) if "check" in example]
    runs = arguments.runs.split(",")
    means: dict[str, list[list[float]]] = {}  # by variant, then by run and measure
    for variant, changed in VARIANTS.items():
        for name in runs:
            folder = train(name, variant, changed, arguments.runs_dir)
            if variant == "default":
                means.setdefault("SFT", []).append(measure(folder, "sft", examples))
            means.setdefault(variant, []).append(measure(folder, "ppo", examples))
    found = {
        "command": command_line("python -m benchmarks.settings"),
        "runs": runs,
        "prompts": len(examples),
        "variants": {name: dict(zip(MEASURES, zip(*rows, strict=True), strict=True)) for name, rows in means.items()},
    }
    write_json(arguments.out, found)
    default = np.array(means["default"])
    absolute = {name: rows for name, rows in means.items() if name in ("SFT", "default")}
    differences = {name: (np.array(rows) - default).tolist() for name, rows in means.items() if name not in absolute}
    for line in [*table("mean (least to most of the runs)", absolute), "", *table("minus the default", differences)]:
        console.print(line, soft_wrap=True, markup=False)


if __name__ == "__main__":
    run(main)
