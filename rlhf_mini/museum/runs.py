"""The museum's runs: healthy and buggy ones, each trained once, and what is measured on them with healthy code."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rlhf_mini.core.checkpoints import load_checkpoint, locked, writing
from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Prompt
from rlhf_mini.core.files import read_json, write_json
from rlhf_mini.doctor.__main__ import check_stage
from rlhf_mini.doctor.checks import Finding
from rlhf_mini.doctor.outputs import read_stage
from rlhf_mini.evaluation.responses import Sampling, gold_of, load_stage
from rlhf_mini.models.scoring import sequence_logprobs
from rlhf_mini.museum.bugs import Bug
from stages.ppo.options import PPOOptions
from stages.ppo.train import train_ppo
from stages.rm.options import RMOptions
from stages.rm.train import train_rm
from stages.sft.options import SFTOptions
from stages.sft.train import train_sft

STAGES: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "sft": (SFTOptions, train_sft),
    "rm": (RMOptions, train_rm),
    "ppo": (PPOOptions, train_ppo),
}
Settings = Mapping[str, Mapping[str, Any]]  # by stage: the options that differ from its defaults

# Short runs with large steps, so that the symptoms show within a minute. Everything else is the recipe's.
SHORT: Settings = {
    "sft": dict(num_train_epochs=0.5, show_every=0, save_steps=0),
    "rm": dict(num_prompts=320, num_validation_prompts=100, save_steps=0),
    "ppo": dict(
        updates=16, warmup_updates=5, learning_rate=5e-4, kl_coef=0.05,
        evaluation_prompts=64, sample_every=100, on_collapse="warn", save_steps=0,
    ),
}  # fmt: skip


def together(*settings: Settings) -> Settings:
    """Later options take precedence."""
    return {
        stage: {name: value for each in settings for name, value in each.get(stage, {}).items()} for stage in STAGES
    }


def make(folder: Path, source: Path, trained: Sequence[str], settings: Settings, bug: Bug | None = None) -> None:
    """Trains the stages `trained` in `folder` with the bug switched on; the others are copied from the run `source`.

    What is there already is kept.

    Raises:
        UserError: what is there was made with other options, or from another run.
    """
    seed = load_checkpoint(source / "sft", "sft").info["seed"]
    for stage, (options_of, train) in STAGES.items():
        options = options_of(run=folder.name, runs_dir=str(folder.parent), seed=seed, **settings[stage])
        if not (folder / stage).exists():
            if stage in trained:
                with bug.switch_on() if bug else nullcontext():
                    train(options)
            else:
                with writing(folder, stage) as partial:
                    shutil.copytree(source / stage, partial, dirs_exist_ok=True)
        found = load_checkpoint(folder / stage, stage)
        if stage in trained:
            now = {name: value for name, value in asdict(options).items() if name not in ("run", "runs_dir")}
            same = now.items() <= found.info["options"].items()
        else:
            same = found.files_sha256 == load_checkpoint(source / stage, stage).files_sha256
        if not same:
            raise UserError(f"{folder} is of another {source} or another version of the museum: delete it")


# --- what is measured ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Means over the responses of a run's PPO to validation prompts, measured by healthy code."""

    gold: float
    sft_gold: float
    kl: float
    """To the run's own SFT, in nats per response."""
    length: float
    ended: float
    """Share of responses with an end of text."""
    responses: list[str]
    """To the first prompts."""


SHOWN = 8  # responses that are kept


def measure(folder: Path, examples: Sequence[Prompt]) -> Measured:
    """Measured on `examples`, which have a gold score. Kept in `folder`/measured.json."""
    key = {"ppo": load_checkpoint(folder / "ppo", "ppo").sha256, "prompts": [example["id"] for example in examples]}
    with locked(folder / "measured.json"):
        kept = read_json(folder / "measured.json")
        if kept.get("of") != key:
            kept = {"of": key, "measured": asdict(_measure(folder, examples))}
            write_json(folder / "measured.json", kept)
    return Measured(**kept["measured"])


def _measure(folder: Path, examples: Sequence[Prompt]) -> Measured:
    stages = {name: load_stage(folder / name, name) for name in ("ppo", "sft")}
    prompts = stages["sft"].encode([example["prompt"] for example in examples])
    said = {name: stage.respond(prompts, Sampling(48, 0.7, 0), 0) for name, stage in stages.items()}
    gold = {
        name: mean(found.score for found in map(gold_of, examples, responses) if found)
        for name, responses in said.items()
    }
    logprobs = {
        name: mean(sequence_logprobs(stage.model, stage.tokenizer, prompts, said["ppo"], 0.7))
        for name, stage in stages.items()
    }
    return Measured(
        gold=gold["ppo"],
        sft_gold=gold["sft"],
        kl=logprobs["ppo"] - logprobs["sft"],
        length=mean(len(response.ids) for response in said["ppo"]),
        ended=mean(response.ended for response in said["ppo"]),
        responses=[response.text for response in said["ppo"][:SHOWN]],
    )


def series(folder: Path, figure: tuple[str, str]) -> list[float]:
    """A metric of a stage, step by step."""
    stage, name = figure
    output = read_stage(folder, stage)
    return output.series(name) if output else []


def findings(folder: Path) -> dict[tuple[str, str], Finding]:
    """What the doctor finds in a run, by stage and check."""
    return {
        (stage, finding.name): finding
        for stage in STAGES
        for finding in check_stage(folder, stage, read_stage(folder, stage))
        if finding.level != "todo"
    }
