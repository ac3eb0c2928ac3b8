"""`make settings`: PPO with one option changed at a time, on the SFT and reward models of several seeds.

    python -m benchmarks.settings --runs seed0,seed1,seed2 --out docs/settings.json

Trains each variant in runs/<run>-ppo-<variant>, unless it is there, and measures it on validation prompts: what the
reward model says, what gold and the judge by references say, and the KL to SFT. Defaults are chosen by this.
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_mini.core.bootstrap import Estimate, mean_intervals
from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.console import console, run
from rlhf_mini.core.examples import Prompt, read_prompts
from rlhf_mini.core.files import write_json
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


def train(run_name: str, variant: str, changes: dict[str, Any], runs_dir: str) -> Path:
    """The folder of the run's variant, trained with the run's own seed if it was not there."""
    original = Path(runs_dir) / run_name
    seed = load_checkpoint(original / "sft", "sft").info["seed"]
    options = PPOOptions(run=f"{run_name}-ppo-{variant.replace(' ', '_')}", runs_dir=runs_dir, seed=seed, **changes)
    for stage in ("sft", "rm"):
        if not (options.run_dir / stage).exists():
            shutil.copytree(original / stage, options.run_dir / stage)
    if not (options.run_dir / "ppo").exists():
        train_ppo(options)
    return options.run_dir


def measure(folder: Path, stage: str, examples: Sequence[Prompt]) -> np.ndarray:
    """MEASURES of one response of SFT or PPO to each of n prompts: (n, 5)."""
    policy, sft, rm = (load_stage(folder / name, name) for name in (stage, "sft", "rm"))
    prompts = policy.encode([example["prompt"] for example in examples])
    warm, cold = (
        policy.respond(prompts, Sampling(48, temperature, 0), 0, f"{folder.name}: {stage} at {temperature}")
        for temperature in TEMPERATURES
    )
    logprobs, of_sft = (
        sequence_logprobs(model.model, model.tokenizer, prompts, warm, TEMPERATURES[0]) for model in (policy, sft)
    )
    gold, gold_cold = (
        [found.score for found in map(gold_of, examples, responses) if found] for responses in (warm, cold)
    )
    references = [score(example, response.text) for example, response in zip(examples, warm, strict=True)]
    scores = score_texts(rm.model, rm.tokenizer, prompts, warm)
    return np.array([scores, gold, references, gold_cold, np.subtract(logprobs, of_sft)]).T


def row(name: str, estimates: Sequence[Estimate]) -> str:
    cells = [f"{each.mean:+.2f} ({each.low:+.2f} to {each.high:+.2f})" for each in estimates]
    return f"| {name} | {' | '.join(cells)} |"


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
    values: dict[str, list[np.ndarray]] = {}
    for variant, changes in VARIANTS.items():
        for name in runs:
            folder = train(name, variant, changes, arguments.runs_dir)
            if variant == "default":
                values.setdefault("SFT", []).append(measure(folder, "sft", examples))
            values.setdefault(variant, []).append(measure(folder, "ppo", examples))
    rows = {name: np.concatenate(of_runs) for name, of_runs in values.items()}  # (r * n, 5)
    absolute = {name: mean_intervals(rows[name], runs=len(runs)) for name in ("SFT", "default")}
    others = {
        name: mean_intervals(rows[name] - rows["default"], runs=len(runs)) for name in VARIANTS if name != "default"
    }
    found = {
        part: {name: dict(zip(MEASURES, map(asdict, of_row), strict=True)) for name, of_row in of_part.items()}
        for part, of_part in (("mean", absolute), ("difference from the default", others))
    }
    write_json(arguments.out, {"command": f"make settings ARGS='--runs {arguments.runs}'", **found})
    console.print(f"| | {' | '.join(MEASURES)} |", soft_wrap=True, markup=False)
    for name, of_row in (absolute | others).items():
        console.print(row(name, of_row), soft_wrap=True, markup=False)


if __name__ == "__main__":
    run(main)
