"""`make ablations`: what each part of the reward model's recipe is good for.

    python -m benchmarks.reward --run default --out docs/reward.json

Trains the reward model of a run again with one thing changed at a time, in runs/<run>-<variant>, and writes what
`make rm` measures on validation prompts: the order of held-out labelers' pairs, and the content probe.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.console import console, run
from rlhf_mini.core.files import write_json
from rlhf_mini.core.options import parse_seed
from stages.rm.options import RMOptions
from stages.rm.train import train_rm

ONE_SOURCE: dict[str, Any] = dict(base="", exchange=False, num_responses=4, num_samples=4, wide_temperature=0.7)
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "starts from SFT": dict(init="sft", learning_rate=1e-3),
    "four samples at one temperature": ONE_SOURCE,
    "all three": dict(init="sft", learning_rate=1e-3, likelihood=False, **ONE_SOURCE),
    "no response to another prompt": dict(exchange=False, num_responses=5),
    "no response of the base": dict(base="", num_responses=5),
    "no likelihood": dict(likelihood=False),
    "two epochs": dict(num_train_epochs=2.0),
    "hardly any rankings": dict(num_prompts=160),
}
KINDS = ("refusal", "admission", "myth", "fact", "constraints", "own_answer", "other_kind")


def measure(run_name: str, variant: str, changes: dict[str, Any], seed: int) -> dict[str, Any]:
    """Trains a variant on the SFT model of the run. Returns the metrics in its stage.json."""
    options = RMOptions(run=f"{run_name}-{variant.replace(' ', '_')}", seed=seed, **changes)
    if not (options.run_dir / "sft").exists():
        shutil.copytree(Path(options.runs_dir) / run_name / "sft", options.run_dir / "sft")
    if not (options.run_dir / "rm").exists():
        train_rm(options)
    checkpoint = load_checkpoint(options.run_dir / "rm", "rm")
    return {"seconds": checkpoint.info["seconds"], **checkpoint.info["metrics"]}


def row(variant: str, metrics: dict[str, Any]) -> str:
    """A line of the page's table: kinds as shares of pairs, seen (new)."""
    cells = [f"{metrics['accuracy/heldout']['share']:.0%}"]
    for kind in KINDS:
        seen, new = (metrics[f"content/{kind}/{part}"]["share"] for part in ("seen", "new"))
        cells.append(f"{seen:.0%} ({new:.0%})")
    return f"| {variant} | {' | '.join(cells)} | {metrics['seconds']:.0f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reward", description=__doc__.split("\n")[0])
    parser.add_argument("--run", default="default", help="run whose SFT model is used (default: default)")
    parser.add_argument("--seed", type=parse_seed, default=0, help="seed of the reward models")
    parser.add_argument("--out", type=Path, default=Path("docs/reward.json"), help="file to write")
    arguments = parser.parse_args()
    found = {name: measure(arguments.run, name, changes, arguments.seed) for name, changes in VARIANTS.items()}
    write_json(arguments.out, {"command": f"make ablations RUN={arguments.run}", "variants": found})
    console.print(f"| | labelers | {' | '.join(KINDS)} | time |", soft_wrap=True)
    for name, metrics in found.items():
        console.print(row(name, metrics), soft_wrap=True, markup=False)


if __name__ == "__main__":
    run(main)
