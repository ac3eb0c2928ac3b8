"""Stage checkpoints on disk: written as a whole or not at all, and checked before the next stage builds on them.

    runs/<run>/<stage>/           a complete checkpoint: config.json, model.safetensors, tokenizer, stage.json, ...
    runs/<run>/<stage>.partial/   while the stage works; metrics.jsonl grows here
    runs/<run>/<stage>.resume.safetensors  beside it: from where a killed stage goes on (rlhf_mini/core/resume.py)
    runs/<run>/<stage>.last_good/ what a stage saved before it stopped at a NaN; its stage.json says why in "stopped"

A stage uses this module like so:

    sft = load_checkpoint(run_dir / "sft", "sft")
    with writing(run_dir, "rm") as folder:
        ...                                       # train; MetricsLog(folder / "metrics.jsonl")
        finish(folder, stage="rm", model=model, ..., parents=[sft])
"""

import dataclasses
import hashlib
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import rlhf_mini
from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import plain, sha256

FORMAT = 1  # of stage.json; raise it when an older reader would go wrong
WEIGHTS = "model.safetensors"
LIBRARIES = ("torch", "transformers", "trl", "accelerate", "datasets", "numpy", "tokenizers")


def versions() -> dict[str, str]:
    """Of Python, of the libraries that decide what the weights become, and of this package."""
    own = {"python": platform.python_version(), "rlhf_mini": rlhf_mini.__version__}
    return own | {name: version(name) for name in LIBRARIES}


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def writing(run_dir: str | Path, stage: str) -> Iterator[Path]:
    """Gives the folder a stage works in; it becomes `run_dir/stage` when the block ends, and only then.

    The block calls `finish` last. If it raises (Ctrl-C and a full disk too), the folder is removed and an earlier
    checkpoint stays as it was. What a killed process left behind is cleared away by the next start.
    UserError if another process is writing the same checkpoint.
    """
    final = Path(run_dir) / stage
    partial, replaced = _beside(final, ".partial"), _beside(final, ".replaced")
    lock = _lock(final)  # UserError if another process holds it
    partial.parent.mkdir(parents=True, exist_ok=True)
    if partial.exists():  # its process was killed
        shutil.rmtree(partial)
    if replaced.exists():  # killed between the two renames below
        shutil.rmtree(replaced) if final.exists() else replaced.rename(final)
    partial.mkdir()
    try:
        yield partial
        if not (partial / "stage.json").is_file():
            raise RuntimeError(f"{partial} is not finished: call finish() at the end of the writing() block")
        _sync(partial)
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        if replaced.exists() and not final.exists():
            replaced.rename(final)
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            partial.parent.rmdir()  # a run that never got a checkpoint leaves no empty folder
        raise
    finally:
        lock.release()


def finish(
    folder: Path,
    *,
    stage: str,
    model: Any,
    tokenizer: Any,
    options: Any,
    seed: int,
    metrics: dict[str, Any],
    started: float,
    parents: Sequence["Checkpoint"] = (),
    stopped: str | None = None,
) -> None:
    """Saves model and tokenizer in `save_pretrained` form and then, last of all, stage.json.

    `options` is the stage's dataclass, `metrics` its final figures, `started` the `time.time()` at its start, `parents`
    what `load_checkpoint` gave, `stopped` the reason if the stage did not get to its end. `model` is the bare model, not
    accelerate's wrapper. The sha256 sums cover every file but the *.jsonl, which people may open and edit.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".jsonl"]
    info = {
        "format": FORMAT,
        "stage": stage,
        "options": dataclasses.asdict(options),
        "seed": seed,
        "metrics": metrics,
        "seconds": round(time.time() - started, 1),
        "peak_memory_mb": peak_memory_mb(),
        "versions": versions(),
        "sha256": {path.relative_to(folder).as_posix(): sha256(path) for path in files},
        "parents": [{"stage": p.stage, "path": str(p.path), "sha256": p.sha256} for p in parents],
        **({"stopped": stopped} if stopped else {}),
    }
    (folder / "stage.json").write_text(json.dumps(plain(info), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_last_good(run_dir: str | Path, stage: str, *, reason: str, **what: Any) -> Path:
    """Saves the weights from before a NaN as `run_dir/<stage>.last_good`, and returns that path for the error message.

    `what` is what `finish` takes, without `stage`; the metrics so far are copied from the stage's own folder.
    """
    with writing(run_dir, f"{stage}.last_good") as folder:
        with suppress(FileNotFoundError):
            shutil.copy(Path(run_dir) / f"{stage}.partial" / "metrics.jsonl", folder)
        finish(folder, stage=stage, stopped=reason, **what)
    return Path(run_dir) / f"{stage}.last_good"


def peak_memory_mb() -> int:
    """The most memory this process has held so far, in megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 if sys.platform == "darwin" else 1 / 1024) / 1e6)  # bytes on macOS, KiB elsewhere


def data_sha256() -> str:
    """Of the mini world's knowledge, which decides what gold, labelers and probes say: over all files, by name."""
    folder = Path(__file__).parents[2] / "data" / "knowledge"
    sums = [f"{path.relative_to(folder).as_posix()} {sha256(path)}" for path in sorted(folder.rglob("*.yaml"))]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _lock(final: Path) -> FileLock:
    """Locks a checkpoint for as long as this process lives or until `release`.

    The lock's file stays behind, in a folder of its own beside the runs: removing it would open a race.
    """
    locks = final.parent.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{final.parent.name}.{final.name}")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"another process is writing {final}: wait for it, or choose another run") from None
    return lock


def _sync(folder: Path) -> None:
    """Puts the files on the disk itself, so that not even a power cut leaves a complete name on half a file."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- checking --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole: where it is, its stage, the sha256 of its weights, and its stage.json."""

    path: Path
    stage: str
    sha256: str
    info: dict[str, Any]


def load_checkpoint(path: str | Path, stage: str, of: Checkpoint | None = None) -> Checkpoint:
    """Makes sure that `path` holds a whole and unchanged checkpoint of `stage`, before any work is built on it.

    With `of`, also that it was made from that very checkpoint: PPO asks `load_checkpoint(rm, "rm", of=sft)`, because a
    reward model judges the responses of the SFT model it was trained on.
    UserError says in one sentence what is wrong and what to run.
    """
    path = Path(path)
    make = how_to_make(path, stage)
    remake = "run `git checkout data/base`, or `make base`" if stage == "base" else f"delete {path}, then {make}"
    if not path.is_dir():
        raise UserError(f"there is no {stage} checkpoint in {path}: {make}")
    try:
        info = json.loads((path / "stage.json").read_text(encoding="utf-8"))
        found, sums, parents = info["stage"], dict(info["sha256"]), list(info["parents"])
        known, weights = info["format"] == FORMAT, sums[WEIGHTS]
    except FileNotFoundError:
        raise UserError(f"the {stage} checkpoint in {path} is half-written (it has no stage.json): {make}") from None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}/stage.json is not one that this project writes: {remake}") from None
    if not known:
        raise UserError(f"{path} was written by another version of this project: {remake}")
    if found != stage:
        raise UserError(f"{path} holds a checkpoint of stage {found}, not {stage}: {remake}")
    for name, expected in sums.items():
        if not (path / name).is_file():
            raise UserError(f"the {stage} checkpoint in {path} is incomplete ({name} is missing): {remake}")
        if sha256(path / name) != expected:
            raise UserError(f"{path / name} has changed since the {stage} stage wrote it: {remake}")
    if of is not None and not any(p["stage"] == of.stage and p["sha256"] == of.sha256 for p in parents):
        raise UserError(f"the {stage} checkpoint in {path} was not made from the {of.stage} in {of.path}: {remake}")
    return Checkpoint(path, stage, weights, info)


def tool_command(run_dir: Path, tool: str) -> str:
    """The command that measures a run, quoted; make's own if the run lies where make puts it."""
    if run_dir.parent != Path("runs"):
        return f"`python -m rlhf_mini.evaluation.{tool} --runs_dir {run_dir.parent} --run {run_dir.name}`"
    return f"`make {tool}`" if run_dir.name == "default" else f"`make {tool} RUN={run_dir.name}`"


def how_to_make(path: Path, stage: str) -> str:
    """The command that makes this checkpoint; make's own when it lies where make puts it."""
    if stage == "base":
        return "run `git checkout data/base`, or `make base`"
    runs_dir, run = path.parent.parent, path.parent.name
    if runs_dir == Path("runs"):
        return f"run `make {stage}`" if run == "default" else f"run `make {stage} RUN={run}`"
    return f"run `python -m stages.{stage} --runs_dir {runs_dir} --run {run}`"
