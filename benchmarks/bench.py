"""Measures PPO's speed beside TRL 1.12.0's PPOTrainer, in one run and taking turns, and beside the machine's own limit.

    make bench                                        # runs/default/sft + runs/default/rm -> runs/default/bench.json
    make bench ARGS="--rounds 5 --sweeps False"       # a first look

Both sides have the same models, prompts, batch, minibatches, lengths, epochs and threads; each is a process of its own,
and waits while the other works. What to inspect: the ratio and how far it spreads over the rounds, then how far we
are from the floor: the time that an update's matrix products alone would take.
"""

import json
import os
import platform
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from pydantic import NonNegativeInt
from rich.box import SIMPLE
from rich.table import Table
from transformers import AutoConfig

from benchmarks import cases, floor
from benchmarks.processes import Worker
from benchmarks.worker import Case
from rlhf_mini.core.bootstrap import interval, resampled_ratios
from rlhf_mini.core.checkpoints import load_checkpoint, versions
from rlhf_mini.core.console import UserError, console, run, track
from rlhf_mini.core.files import plain, replacing
from rlhf_mini.core.options import RunName, RunsDir, option, options, parse_options

SIZES = [
    (1024, 1024, 1024),
    (1000, 128, 512),
    (64, 128, 512),
]  # of matrix products: a large one, and two of the model's
SWEEP_EPISODES = (64, 128, 256, 512)
SWEEP_TOKENS = (16, 32, 64, 128)
AtLeastTwo = Annotated[int, Ge(2)]  # a spread takes two


@options
class BenchOptions:
    """Options of `python -m benchmarks.bench`."""

    run: RunName = option("default", "Name of the run; its checkpoints are in RUNS_DIR/RUN.")
    runs_dir: RunsDir = option("runs", "Folder of all runs.")
    prompts: str = option("data/prompts/ppo.jsonl", "Prompts of the real case.")
    trl: str = option(".trl-1.12", "Folder with TRL 1.12.0.")
    out: str = option("", "JSON file to write (default: RUNS_DIR/RUN/bench.json).")
    rounds: AtLeastTwo = option(10, "Updates of each side in each of the two cases.")
    sweep_rounds: AtLeastTwo = option(3, "The same in each case of the sweeps.")
    sweeps: bool = option(True, "Also measure against episodes an update and against response length.")
    episodes: int = option(64, "Responses sampled in one update.")
    threads: NonNegativeInt = option(0, "Threads of each side (0: as many as there are cores).")

    def __post_init__(self) -> None:
        if self.episodes % Case.minibatch_size:
            raise UserError(f"--episodes must be a multiple of {Case.minibatch_size}, not {self.episodes}")
        self.threads = self.threads or os.cpu_count() or 1

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.run


def main() -> None:
    options = parse_options(
        BenchOptions, prog="python -m benchmarks.bench", description="Measures PPO's speed beside TRL 1.12.0."
    )
    sft = load_checkpoint(options.run_dir / "sft", "sft")
    rm = load_checkpoint(options.run_dir / "rm", "rm", of=sft)
    if not (Path(options.trl) / "trl").is_dir():
        raise UserError(f"there is no TRL 1.12.0 in {options.trl}: run `make bench`, which installs it")
    torch.set_num_threads(options.threads)
    rates = {"x".join(map(str, size)): floor.matmul_rate(*size) for size in SIZES}
    rate = max(rates.values())
    config = AutoConfig.from_pretrained(sft.path)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings: dict[str, Any] = dict(prompts_file=options.prompts, episodes=options.episodes)
        never_ending = cases.never_ending(sft, rm, folder, max_new_tokens=32, **settings)
        real = cases.real(sft, rm, **settings)

        def both(name: str, case: Case, rounds: int) -> dict[str, Any]:
            return {"case": name} | summary(measure(name, case, rounds, folder, options), config, rate)

        main_cases = [
            both("random weights", never_ending, options.rounds),
            both("SFT checkpoint", real, options.rounds),
        ]
        show("PPO", main_cases)
        sweeps: dict[str, list[dict[str, Any]]] = {"episodes": [], "tokens": []}
        if options.sweeps:
            for episodes in SWEEP_EPISODES:
                case = replace(never_ending, episodes=episodes)
                sweeps["episodes"].append(both(f"{episodes} episodes, 32 tokens", case, options.sweep_rounds))
            for tokens in SWEEP_TOKENS:
                case = replace(never_ending, max_new_tokens=tokens)
                sweeps["tokens"].append(both(f"64 episodes, {tokens} tokens", case, options.sweep_rounds))
            show("against episodes an update", sweeps["episodes"])
            show("against response length", sweeps["tokens"])

    result = {
        "machine": machine(options.threads),
        "options": asdict(options),
        "checkpoints": {parent.stage: parent.sha256 for parent in (sft, rm)},
        "flops_per_second": rates,
        "cases": main_cases,
        "sweeps": sweeps,
    }
    out = Path(options.out) if options.out else options.run_dir / "bench.json"
    with replacing(out) as file:
        file.write(json.dumps(plain(result), indent=2) + "\n")
    console.print(f"{rate / 1e9:.0f} GFLOP/s in float32; {out} written")


def measure(name: str, case: Case, rounds: int, folder: Path, options: BenchOptions) -> dict[str, list[dict[str, Any]]]:
    """The answers of both workers to `rounds` updates, taking turns, and of two samplers; after one of each to warm up.

    The first turn goes to the one side and the other by turns, so that neither always follows the other.
    """
    case.write(folder / "case.json")
    console.print(f"{name}: starting both sides")
    ours = Worker("benchmarks.ours", folder / "case.json", options.threads)
    trl = Worker("benchmarks.trl_ppo", folder / "case.json", options.threads, path=options.trl)
    answers: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": [], "sample": [], "generate": []}
    try:
        for worker in (ours, trl):
            if (threads := worker.read()["threads"]) != options.threads:
                raise RuntimeError(f"{worker.module} runs with {threads} threads, not {options.threads}")
        for turn in track(range(rounds + 1), name):
            for worker in (ours, trl) if turn % 2 else (trl, ours):
                answers["ours" if worker is ours else "trl"].append(worker.ask("update"))
        for turn in track(range(rounds + 1), f"{name}, sampling only"):
            for request in ("sample", "generate") if turn % 2 else ("generate", "sample"):
                answers[request].append(ours.ask(request))
    finally:
        for worker in (ours, trl):
            worker.stop()
    return {side: turns[1:] for side, turns in answers.items()}


def summary(answers: dict[str, list[dict[str, Any]]], config: Any, rate: float) -> dict[str, Any]:
    """Medians, ratios and their spread."""
    result: dict[str, Any] = {}
    for side in ("ours", "trl"):
        turns = answers[side]
        floors = [floor.update_flops(config, t["prompt_lengths"], t["response_lengths"]) / rate for t in turns]
        result[side] = {
            "seconds": [turn["seconds"] for turn in turns],
            "cpu_seconds": [turn["cpu_seconds"] for turn in turns],  # of all threads; other programs do not lengthen it
            "episodes_per_second": median(len(turn["response_lengths"]) / turn["seconds"] for turn in turns),
            "response_tokens": statistics.fmean(statistics.fmean(turn["response_lengths"]) for turn in turns),
            "times_the_floor": median(turn["seconds"] / at_least for turn, at_least in zip(turns, floors, strict=True)),
            "peak_memory_mb": turns[-1]["peak_memory_mb"],
        }
    for side in ("sample", "generate"):
        speeds = [sum(turn["response_lengths"]) / turn["seconds"] for turn in answers[side]]
        result[side] = {"tokens_per_second": median(speeds), "all": speeds}
    result["ratio"] = spread(result["trl"]["seconds"], result["ours"]["seconds"])
    result["cpu_ratio"] = spread(result["trl"]["cpu_seconds"], result["ours"]["cpu_seconds"])
    seconds_per_token = {
        side: [turn["seconds"] / sum(turn["response_lengths"]) for turn in answers[side]]
        for side in ("sample", "generate")
    }
    result["rollout_ratio"] = spread(seconds_per_token["generate"], seconds_per_token["sample"])
    return result


def median(values: Any) -> float:
    return statistics.median(values)


def spread(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times as long theirs takes, round by round; low to high is a 95 % interval of the ratio of the sums."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    low, high = interval(resampled_ratios(np.array(theirs)[:, None], np.array(ours)[:, None]))
    return {
        "median": median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "low": float(low[0]),
        "high": float(high[0]),
    }


def show(title: str, results: Sequence[dict[str, Any]]) -> None:
    """Each figure as ours / TRL's; of the rollout, tokens a second as our sampler's / model.generate's."""
    table = Table(title=f"{title}: ours / TRL's", box=SIMPLE, padding=0, pad_edge=False)
    for heading in ("", "episodes/s", "ratio (range)", "x floor", "MB", "rollout"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=bool(heading))
    for r in results:
        ours, trl, ratio = r["ours"], r["trl"], r["ratio"]
        table.add_row(
            r["case"],
            f"{ours['episodes_per_second']:.0f} / {trl['episodes_per_second']:.0f}",
            f"{ratio['median']:.2f} ({ratio['min']:.1f}-{ratio['max']:.1f})",
            f"{ours['times_the_floor']:.1f} / {trl['times_the_floor']:.1f}",
            f"{ours['peak_memory_mb']} / {trl['peak_memory_mb']}",
            f"{r['sample']['tokens_per_second'] / 1e3:.1f}k / {r['generate']['tokens_per_second'] / 1e3:.1f}k",
        )
    console.print(table)


def machine(threads: int) -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return {"processor": processor, "cores": os.cpu_count(), "threads": threads, "versions": versions()}


if __name__ == "__main__":
    run(main)
