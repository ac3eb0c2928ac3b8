"""The runs that are evaluated: their checkpoints, and the provenance of what is measured on them."""

import dataclasses
import shlex
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rlhf_mini.core.checkpoints import Checkpoint, load_checkpoint, locked, read_stage_json, versions
from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import sha256
from rlhf_mini.core.inputs import note_changes
from rlhf_mini.evaluation.schema import Provenance, Weights
from rlhf_mini.world.knowledge import data_sha256


def find_checkpoints(run_dir: Path, base: str | Path) -> dict[str, Checkpoint]:
    """Base, SFT, RM and PPO by name. Says so if one of the last three is not up to date.

    Raises:
        UserError: one of them is missing, broken, or not made from the one before it.
    """
    refuse_foreign_base(run_dir)
    found = {"base": load_checkpoint(base, "base")}
    for name, before in (("sft", "base"), ("rm", "sft"), ("ppo", "sft")):
        found[name] = load_checkpoint(run_dir / name, name, of=found[before])
    if not found["ppo"].info["options"].get("reward"):  # with --reward it was trained on something else, on purpose
        load_checkpoint(run_dir / "ppo", "ppo", of=found["rm"])
    note_changes([run_dir / name for name in ("sft", "rm", "ppo")])
    return found


def foreign_base(run_dir: Path) -> str | None:
    """The path of the model that this run's SFT started from, if it is none of this project's."""
    bases = [parent["path"] for parent in read_stage_json(run_dir / "sft").get("parents", [])]
    found = (base for base in bases if (Path(base) / "config.json").is_file())
    return next((base for base in found if not (Path(base) / "stage.json").is_file()), None)


def refuse_foreign_base(run_dir: Path) -> None:
    if model := foreign_base(run_dir):
        raise UserError(
            f"{run_dir} began with {model}, a model from elsewhere: this command asks what the mini world's own models "
            "know, and compares with their base"
        )


def measuring(run_dir: Path) -> AbstractContextManager[None]:
    """Locks what compare and evaluate write, so that all of it is of one process. UserError if another one is at it."""
    return locked(run_dir / "measurements", f"another process is measuring {run_dir}")


def provenance(settings: Any, command: str, checkpoints: dict[str, Checkpoint]) -> Provenance:
    """Of what `settings`, a command's options with a `split`, measure on these checkpoints."""
    return Provenance(
        command=command,
        options=dataclasses.asdict(settings),
        checkpoints={
            name: Weights(str(c.path), c.sha256, c.info["seed"], c.files_sha256) for name, c in checkpoints.items()
        },
        split_sha256=sha256(Path(settings.split)),
        data_sha256=data_sha256(),
        versions=versions(),
    )


def tool_command(run_dir: Path, tool: str) -> str:
    """The command that measures a run with `tool` (compare, evaluate, ...), in backticks; `make` where it applies."""
    if run_dir.parent != Path("runs"):
        module = ["python", "-m", f"rlhf_mini.evaluation.{tool}"]
        return f"`{shlex.join([*module, '--runs_dir', str(run_dir.parent), '--run', run_dir.name])}`"
    return f"`make {tool}`" if run_dir.name == "default" else f"`make {tool} RUN={shlex.quote(run_dir.name)}`"
