"""Over-optimisation: what the reward model and gold say of a policy, the further it goes from the SFT model.

    python -m rlhf_mini.evaluation.overopt                                  # runs/default -> runs/default/overopt.json

A reward model stands in for what is wanted. Optimise it a little, and what is wanted grows with it; optimise it too
far, and it is the reward model's mistakes that are found. Gao et al. (2022, arXiv 2210.10760) measure this with a gold
score, over d = sqrt(KL), in two ways of optimising: PPO along its training, and the best of n responses of the SFT
model, for n up to 256. Here, against two reward models: the run's own, and one that learned from few rankings.

What to inspect: the proxy rises along every curve. Where gold leaves it, the score is no longer earned; where gold
falls, it is earned at the cost of what was wanted. At the default kl_coef gold should not have begun to fall.

Gains are over the SFT model on the same prompts, on which nothing was trained. A curve that is finished is kept in
runs/<run>/overopt/, so a study that was interrupted goes on where it stopped.
"""

import json
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_mini.core.checkpoints import Checkpoint, data_sha256, load_checkpoint, versions
from rlhf_mini.core.console import UserError, console, run, track
from rlhf_mini.core.examples import read_prompts
from rlhf_mini.core.files import sha256, write_json
from rlhf_mini.core.options import command_line, option, parse_options
from rlhf_mini.evaluation.compare import both, grid

FORMAT = 1  # of overopt.json
N = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FEW = "few_rankings"


@dataclass
class OveroptOptions:
    """Options of `python -m rlhf_mini.evaluation.overopt`."""

    run: str = option("default", "Name of the run; its SFT, reward model and PPO are in RUNS_DIR/RUN.")
    runs_dir: str = option("runs", "Folder of all runs.")
    out: str = option("", "Where the figures go (default: RUNS_DIR/RUN/overopt.json).")
    seed: int = option(0, "Seed of the trainings and of the responses.")

    split: str = option("data/prompts/test.jsonl", "JSONL of prompts that SFT, RM and PPO did not train on.")
    num_prompts: int = option(128, "Take only so many of them, from the first.")
    best_of: int = option(256, "Responses of the SFT model to each prompt, of which the best of n are chosen.")
    responses: int = option(4, "Responses of each PPO policy to each prompt.")

    kl_coefs: str = option("0.2,0.07,0.02,0.005", "PPO's kl_coef, one training each, with commas between.")
    updates: int = option(120, "Updates of each training.")
    snapshot_steps: int = option(2, "Updates between two measurements, of the first ten; then five times as many.")
    few_prompts: int = option(128, "Prompts whose rankings the second reward model learns from.")
    few_epochs: float = option(4.0, "Its passes over them.")

    def __post_init__(self) -> None:
        for name in ("num_prompts", "responses", "updates", "snapshot_steps", "few_prompts", "few_epochs"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} must be greater than 0, not {getattr(self, name)}")
        if not 2 <= self.best_of <= N[-1]:
            raise UserError(f"--best_of must lie between 2 and {N[-1]}, not at {self.best_of}")
        if self.snapshot_steps > self.updates:
            raise UserError(f"--snapshot_steps ({self.snapshot_steps}) must not exceed --updates ({self.updates})")
        try:
            self.coefficients()
        except ValueError:
            raise UserError(f"--kl_coefs must be numbers with commas between, not {self.kl_coefs!r}") from None

    def coefficients(self) -> list[float]:
        return [float(number) for number in self.kl_coefs.split(",")]

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.run

    @property
    def folder(self) -> Path:
        """Where the study trains; also the --runs_dir of its trainings."""
        return self.run_dir / "overopt"


def main() -> None:
    options = parse_options(
        OveroptOptions,
        prog="python -m rlhf_mini.evaluation.overopt",
        description="Measures reward and gold over the KL to the SFT model, for PPO and best-of-n.",
    )
    study(options, command_line("python -m rlhf_mini.evaluation.overopt"))


def study(options: OveroptOptions, command: str) -> None:
    """Trains, measures, prints and writes runs/<run>/overopt.json."""
    sft = load_checkpoint(options.run_dir / "sft", "sft")
    rm = load_checkpoint(options.run_dir / "rm", "rm", of=sft)
    ppo = load_checkpoint(options.run_dir / "ppo", "ppo", of=rm)
    records = read_prompts(options.split)[: options.num_prompts]
    missing = next((record for record in records if "check" not in record), None)
    if missing:
        raise UserError(f"{options.split} has prompts without a check, so without gold: use prompts of the mini world")
    options.folder.mkdir(exist_ok=True)
    few = train_on_few(options, sft)

    from rlhf_mini.evaluation import (
        overopt_curves as overoptimisation,  # imports torch; --help and what is missing should not wait for it
    )

    measurer = overoptimisation.Measurer(sft, {"default": rm, FEW: few}, records, options, ppo.info["options"])
    scenarios = []
    for name, proxy, title, what in (
        ("default", rm, "the run's own reward model", "It learned from all rankings, as in the recipe."),
        (
            FEW,
            few,
            f"a reward model of {options.few_prompts} prompts",
            "It learned from few rankings, many times over.",
        ),
    ):
        trainings = []
        for kl_coef in options.coefficients():
            points = curve(options, measurer, name, sft, proxy, ppo, kl_coef)
            about = {"kl_coef": kl_coef, "default": kl_coef == ppo.info["options"]["kl_coef"]}
            trainings.append(about | overoptimisation.summed_up(points, overoptimisation.rl_form, options.seed))
        best_of_n = measurer.best_of_n(name)
        scenarios.append({
            "name": name, "title": title, "what": what, "proxy_name": "RM score",
            "rm": {"sha256": proxy.sha256, "metrics": proxy.info["metrics"], "options": proxy.info["options"]},
            "sft": measurer.start(name),
            "recipe": overoptimisation.shown(measurer.policy(ppo.path, name)),
            "best_of_n": overoptimisation.summed_up(best_of_n, overoptimisation.best_of_n_form, options.seed),
            "ppo": trainings,
        })  # fmt: skip
    result = {
        "format": FORMAT,
        "prompts": len(records),
        "scenarios": scenarios,
        "provenance": {
            "command": command,
            "options": asdict(options),
            "sft_sha256": sft.sha256,
            "rm_sha256": rm.sha256,
            "ppo_sha256": ppo.sha256,
            "split_sha256": sha256(Path(options.split)),
            "data_sha256": data_sha256(),
            "versions": versions(),
            "threads": measurer.threads,
        },
    }
    show(result)
    out = Path(options.out or options.run_dir / "overopt.json")
    write_json(out, result)
    console.print(f"overopt: {out} written", soft_wrap=True)


# --- trainings -------------------------------------------------------------------------------------------------------


def stage(name: str, options: OveroptOptions, run_name: str, **settings: Any) -> Path:
    """Runs a stage in runs/<run>/overopt/<run_name> as one would by hand; its checkpoint's path."""
    arguments = {"runs_dir": options.folder, "run": run_name, **settings}
    command = [sys.executable, "-m", f"stages.{name}", *(f"--{key}={value}" for key, value in arguments.items())]
    console.print(f"overopt: {shlex.join(command[1:])}", soft_wrap=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise UserError(f"the {name} stage of {run_name} failed: what it printed says why")
    return options.folder / run_name / name


def with_sft(options: OveroptOptions, run_name: str, sft: Checkpoint) -> None:
    """Gives the run a copy of the SFT checkpoint to start from."""
    shutil.copytree(sft.path, options.folder / run_name / "sft", dirs_exist_ok=True)


def train_on_few(options: OveroptOptions, sft: Checkpoint) -> Checkpoint:
    """The reward model of few rankings; kept, and trained again only if the SFT model or the options changed."""
    settings = {"num_prompts": options.few_prompts, "num_train_epochs": options.few_epochs, "seed": options.seed}
    path = options.folder / FEW / "rm"
    try:
        found = load_checkpoint(path, "rm", of=sft)
        if found.info["versions"] == versions() and all(found.info["options"][k] == v for k, v in settings.items()):
            return found
    except UserError:
        pass
    with_sft(options, FEW, sft)
    return load_checkpoint(stage("rm", options, FEW, **settings), "rm", of=sft)


def curve(
    options: OveroptOptions,
    measurer: Any,
    name: str,
    sft: Checkpoint,
    proxy: Checkpoint,
    ppo: Checkpoint,
    kl_coef: float,
) -> list[dict[str, Any]]:
    """The points of one PPO training: update, KL, proxy and gold. It differs from the run's own PPO as stated here."""
    run_name = f"{name}-kl{kl_coef:g}"
    kept = options.folder / f"{run_name}.json"
    settings = ppo.info["options"] | dict(
        reward=str(proxy.path), kl_coef=kl_coef, kl_target=0.0, updates=options.updates, on_collapse="warn",
        save_steps=0, snapshot_steps=options.snapshot_steps, evaluation_prompts=8, seed=options.seed,
    )  # fmt: skip
    del settings["run"], settings["runs_dir"]
    measured_on = {key: getattr(options, key) for key in ("num_prompts", "best_of", "responses", "seed")}
    key = {
        "settings": settings, "measured_on": measured_on, "sft": sft.sha256, "rm": proxy.sha256,
        "prompts": [sha256(Path(path)) for path in (options.split, settings["prompts"])],
        "data": data_sha256(), "versions": versions(), "threads": measurer.threads,
    }  # fmt: skip
    if kept.is_file() and (found := json.loads(kept.read_text(encoding="utf-8")))["key"] == key:
        console.print(f"overopt: {run_name} was measured before")
        points: list[dict[str, Any]] = found["points"]
        return points
    with_sft(options, run_name, sft)
    snapshots = sorted((stage("ppo", options, run_name, **settings) / "snapshots").iterdir())
    early, late = 10 * options.snapshot_steps, 5 * options.snapshot_steps
    chosen = [s for s in snapshots if int(s.name) <= early or int(s.name) % late == 0]
    points = [
        {"update": int(snapshot.name), **measurer.policy(snapshot, name)}
        for snapshot in track(chosen, f"overopt: measuring {run_name}")
    ]
    write_json(kept, {"key": key, "points": points})
    shutil.rmtree(options.folder / run_name)
    return points


# --- the console -----------------------------------------------------------------------------------------------------


def show(result: dict[str, Any]) -> None:
    """For each curve where gold is highest and where it ends, how far it fell, and how well Gao's form fits."""
    for scenario in result["scenarios"]:
        table = grid(f"Against {scenario['title']}: gains over SFT", "", "d", "RM score", "gold", "fall", "95 %", "R2")
        for title, content in curves(scenario):
            points: Sequence[dict[str, Any]] = content["points"]
            peak = max(points, key=lambda point: point["gold"]["mean"])
            for place, point in (("peak", peak), ("end", points[-1])):
                cells = [
                    f"{math.sqrt(max(point['kl'], 0)):.2f}",
                    *(f"{point[k]['mean']:+.2f}" for k in ("proxy", "gold")),
                ]
                last = [*both(content["fall"]), f"{content['fit']['gold']['r2']:.2f}"] if place == "end" else []
                table.add_row(f"{title}, {place}", *cells, *last)
        console.print(table)


def curves(scenario: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Best-of-n and each PPO training, with the names people see."""
    titles = [f"PPO, kl_coef {c['kl_coef']:g}" + (" (default)" if c["default"] else "") for c in scenario["ppo"]]
    return [("best of n", scenario["best_of_n"]), *zip(titles, scenario["ppo"], strict=True)]


def read(path: Path) -> dict[str, Any] | None:
    """An overopt.json, None if there is none. UserError if another version wrote it."""
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise UserError(f"{path} was written by another version of this project: run `make overopt`")
    return content


if __name__ == "__main__":
    run(main)
