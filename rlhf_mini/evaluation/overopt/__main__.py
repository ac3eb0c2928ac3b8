"""Over-optimisation: what the reward model and gold say of a policy, the further it moves from the SFT model.

    python -m rlhf_mini.evaluation.overopt                       # runs/default -> runs/default/overopt.json

A reward model stands in for what is wanted. Optimise it a little, and what is wanted improves with it; optimise it too
far, and its mistakes are exploited. Gao et al. (2022, arXiv 2210.10760) measure this with a gold score over
d = sqrt(KL), for two ways of optimising: PPO along its training, and the best of n responses of the SFT model. Here,
n goes up to 256, and there are two reward models: the run's own, and one that was trained on few rankings.

What to inspect: the proxy rises along every curve. Where gold no longer follows, the score is no longer earned; where
gold falls, the reward model is being exploited. At the default kl_coef gold should not have begun to fall.

Gains are over the SFT model on the same prompts, on which nothing was trained. A finished curve is kept in
runs/<run>/overopt/, so an interrupted study resumes where it stopped.
"""

import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le
from pydantic import PositiveFloat, PositiveInt

from rlhf_mini.core.checkpoints import Checkpoint, load_checkpoint, locked, versions
from rlhf_mini.core.console import UserError, console, run, track
from rlhf_mini.core.examples import read_prompts
from rlhf_mini.core.files import is_number, plain, sha256, write_json
from rlhf_mini.core.options import RunOptions, Seed, command_line, option, options, parse_options
from rlhf_mini.evaluation.overopt import curves
from rlhf_mini.evaluation.runs import refuse_foreign_base
from rlhf_mini.evaluation.schema import Point, Scenario, Study, Training, read
from rlhf_mini.evaluation.tables import cells, decimal, grid
from rlhf_mini.world.knowledge import data_sha256
from stages.ppo.options import PPOOptions

if TYPE_CHECKING:  # imports torch, for which --help and early mistakes should not wait
    from rlhf_mini.evaluation.overopt.measure import Measurer

FEW = "few_rankings"
PROXY = "RM score"  # what is optimised
TITLES = {  # of the reward models that are optimised against, each with what it was trained on
    "default": ("the run's own reward model", "It was trained on all rankings, as in the recipe."),
    FEW: ("a reward model of {prompts} prompts", "It was trained on few rankings, with many passes over them."),
}


@options
class OveroptOptions(RunOptions):
    """Options of `python -m rlhf_mini.evaluation.overopt`."""

    out: str = option("", "Where the results go (default: RUNS_DIR/RUN/overopt.json).")
    seed: Seed = option(0, "Seed of the trainings and of the responses.")

    split: str = option("data/prompts/test.jsonl", "JSONL of prompts that SFT, RM and PPO did not train on.")
    num_prompts: PositiveInt = option(128, "Use only the first NUM_PROMPTS of them.")
    best_of: Annotated[int, Ge(2), Le(curves.N[-1])] = option(
        curves.N[-1], "Responses of the SFT model to each prompt, from which the best of n are chosen."
    )
    responses: PositiveInt = option(4, "Responses of each PPO policy to each prompt.")

    kl_coefs: str = option("0.1,0.02,0.005,0.001", "PPO's kl_coef, comma-separated; one training each.")
    updates: PositiveInt = option(120, "Iterations of each training.")
    snapshot_steps: PositiveInt = option(
        2, "Iterations between two measurements for the first ten measurements; later five times as many."
    )
    few_prompts: PositiveInt = option(128, "Prompts whose rankings the second reward model is trained on.")
    few_epochs: PositiveFloat = option(4.0, "Its passes over them.")

    def __post_init__(self) -> None:
        if self.snapshot_steps > self.updates:
            raise UserError(f"--snapshot_steps ({self.snapshot_steps}) must not exceed --updates ({self.updates})")
        try:
            valid = all(is_number(kl_coef) and kl_coef >= 0 for kl_coef in self.coefficients())
        except ValueError:
            valid = False
        if not valid:
            raise UserError(f"--kl_coefs must be comma-separated numbers from 0 upwards, not {self.kl_coefs!r}")

    def coefficients(self) -> list[float]:
        return [float(number) for number in self.kl_coefs.split(",")]

    @property
    def folder(self) -> Path:
        """Where the study trains; also the --runs_dir of its trainings."""
        return self.run_dir / "overopt"


@dataclass(frozen=True)
class Proxy:
    """A reward model to optimise against."""

    name: str
    rm: Checkpoint
    title: str
    what: str


@dataclass(frozen=True)
class Measured:
    """A finished curve, as it is kept until the study is done."""

    key: dict[str, Any]
    """Everything that the points depend on."""
    points: list[Point]


def main() -> None:
    options = parse_options(
        OveroptOptions,
        prog="python -m rlhf_mini.evaluation.overopt",
        description="Measures reward and gold over the KL to the SFT model, for PPO and best-of-n.",
    )
    study(options, command_line("python -m rlhf_mini.evaluation.overopt"))


def study(options: OveroptOptions, command: str) -> None:
    """Trains, measures, prints and writes runs/<run>/overopt.json. UserError if another process is at it."""
    with locked(options.folder):
        _study(options, command)


def _study(options: OveroptOptions, command: str) -> None:
    refuse_foreign_base(options.run_dir)
    sft = load_checkpoint(options.run_dir / "sft", "sft")
    rm = load_checkpoint(options.run_dir / "rm", "rm", of=sft)
    ppo = load_checkpoint(options.run_dir / "ppo", "ppo", of=rm)
    if not {"max_new_tokens", "temperature", "kl_coef", "prompts"} <= ppo.info["options"].keys():
        raise UserError(f"{ppo.path}/stage.json lacks PPO's options: train it again")
    examples = read_prompts(options.split)[: options.num_prompts]
    if any("check" not in example for example in examples):
        raise UserError(f"{options.split} has prompts without a check, so without gold: use prompts of the mini world")
    options.folder.mkdir(exist_ok=True)
    few = train_on_few(options, sft)

    proxies = [
        Proxy(name, model, title.format(prompts=options.few_prompts), what)
        for model, (name, (title, what)) in zip((rm, few), TITLES.items(), strict=True)
    ]

    from rlhf_mini.evaluation.overopt.measure import Measurer  # imports torch

    sampling = {key: ppo.info["options"][key] for key in ("max_new_tokens", "temperature")}
    measurer = Measurer(
        sft, {proxy.name: proxy.rm for proxy in proxies}, examples, best_of=options.best_of,
        responses=options.responses, seed=options.seed, **sampling,
    )  # fmt: skip
    scenarios = [against(proxy, options, measurer, sft, ppo) for proxy in proxies]
    provenance = {
        "command": command,
        "options": asdict(options),
        "sft_sha256": sft.sha256,
        "rm_sha256": rm.sha256,
        "ppo_sha256": ppo.sha256,
        **{f"{one.stage}_files_sha256": one.files_sha256 for one in (sft, rm, ppo)},
        "split_sha256": sha256(Path(options.split)),
        "data_sha256": data_sha256(),
        "versions": versions(),
        "threads": measurer.threads,
    }
    for scenario in scenarios:
        show(scenario)
    out = Path(options.out or options.run_dir / "overopt.json")
    write_json(out, Study(prompts=len(examples), scenarios=scenarios, provenance=provenance))
    console.print(f"overopt: {out} written", soft_wrap=True)


def against(proxy: Proxy, options: OveroptOptions, measurer: "Measurer", sft: Checkpoint, ppo: Checkpoint) -> Scenario:
    """Optimises against one reward model: best-of-n, and a PPO training for each KL coefficient."""
    trainings = []
    for kl_coef in options.coefficients():
        points = train_and_measure(proxy, options, measurer, sft, ppo, kl_coef)
        curve = curves.summarized(points, curves.rl_form, options.seed)
        trainings.append(Training(**vars(curve), kl_coef=kl_coef, default=kl_coef == ppo.info["options"]["kl_coef"]))
    return Scenario(
        name=proxy.name,
        title=proxy.title,
        what=proxy.what,
        proxy_name=PROXY,
        rm={"sha256": proxy.rm.sha256, "metrics": proxy.rm.info["metrics"], "options": proxy.rm.info["options"]},
        sft=measurer.start(proxy.name),
        recipe=replace(measurer.policy(ppo.path, proxy.name), gold_by_prompt=None),
        best_of_n=curves.summarized(measurer.best_of_n(proxy.name), curves.best_of_n_form, options.seed),
        ppo=trainings,
    )


# --- trainings -------------------------------------------------------------------------------------------------------


def stage(name: str, options: OveroptOptions, run_name: str, **settings: Any) -> Path:
    """Runs a stage in runs/<run>/overopt/<run_name> as one would by hand; returns its checkpoint's path."""
    arguments = {"runs_dir": options.folder, "run": run_name, **settings}
    command = [sys.executable, "-m", f"stages.{name}", *(f"--{key}={value}" for key, value in arguments.items())]
    console.print(f"overopt: {shlex.join(command[1:])}", soft_wrap=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise UserError(f"the {name} stage of {run_name} failed: what it printed says why")
    return options.folder / run_name / name


def copy_sft(options: OveroptOptions, run_name: str, sft: Checkpoint) -> None:
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
    copy_sft(options, FEW, sft)
    return load_checkpoint(stage("rm", options, FEW, **settings), "rm", of=sft)


def train_and_measure(
    proxy: Proxy, options: OveroptOptions, measurer: "Measurer", sft: Checkpoint, ppo: Checkpoint, kl_coef: float
) -> list[Point]:
    """The points of one PPO training. Its options are those of the run's own PPO except for the ones stated here."""
    run_name = f"{proxy.name}-kl{kl_coef:g}"
    kept = options.folder / f"{run_name}.json"
    of_ppo = {key: value for key, value in ppo.info["options"].items() if key in PPOOptions.__dataclass_fields__}
    settings = of_ppo | dict(
        reward=str(proxy.rm.path), kl_coef=kl_coef, kl_target=0.0, updates=options.updates, on_collapse="warn",
        save_steps=0, snapshot_steps=options.snapshot_steps, evaluation_prompts=8, seed=options.seed,
    )  # fmt: skip
    settings = {key: value for key, value in settings.items() if key not in ("run", "runs_dir")}
    measured_on = {key: getattr(options, key) for key in ("num_prompts", "best_of", "responses", "seed")}
    key = {
        "settings": settings, "measured_on": measured_on, "sft": sft.sha256, "rm": proxy.rm.files_sha256,
        "prompts": [sha256(Path(path)) for path in (options.split, settings["prompts"])],
        "data": data_sha256(), "versions": versions(), "threads": measurer.threads,
    }  # fmt: skip
    if kept.is_file() and (found := read(Measured, kept, f"delete {kept}")).key == plain(key):
        console.print(f"overopt: {run_name} was measured before")
        return found.points
    copy_sft(options, run_name, sft)
    snapshots = sorted((stage("ppo", options, run_name, **settings) / "snapshots").iterdir())
    early, late = 10 * options.snapshot_steps, 5 * options.snapshot_steps
    chosen = [s for s in snapshots if int(s.name) <= early or int(s.name) % late == 0]
    points = [
        measurer.policy(snapshot, proxy.name, update=int(snapshot.name))
        for snapshot in track(chosen, f"overopt: measuring {run_name}")
    ]
    write_json(kept, Measured(key, points))
    shutil.rmtree(options.folder / run_name)
    return points


# --- the console -----------------------------------------------------------------------------------------------------


def show(scenario: Scenario) -> None:
    """For each curve where gold peaks and where the curve ends, how far gold fell, and how well Gao's form fits."""
    table = grid(f"Against {scenario.title}: gains over SFT", "", "d", "RM score", "gold", "fall", "95 %", "R2")
    for name, curve in curves.titled(scenario):
        for place, point in (("peak", curves.peak(curve)), ("end", curve.points[-1])):
            gains = [f"{gain.mean:+.2f}" for gain in (point.proxy, point.gold)]
            at_end = [*cells(curve.fall), decimal(curve.fit["gold"].r2)] if place == "end" else []
            table.add_row(f"{name}, {place}", f"{curves.distance(point):.2f}", *gains, *at_end)
    console.print(table)


if __name__ == "__main__":
    run(main)
