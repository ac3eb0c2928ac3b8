"""Stage checkpoints on disk: written completely or not at all, and verified before the next stage builds on them.

    runs/<run>/<stage>/            a complete checkpoint: config.json, model.safetensors, tokenizer, stage.json, ...
    runs/<run>/<stage>.partial/    while the stage runs; metrics.jsonl grows here
    runs/<run>/<stage>.resume.safetensors  what a killed stage resumes from (rlhf_mini/core/resume.py)
    runs/<run>/<stage>.last_good/  the last good weights of a stage that stopped; "stopped" in its stage.json says why
    runs/.locks/                   locks of the checkpoints that are being written

A stage uses this module as follows:

    sft = load_checkpoint(run_dir / "sft", "sft")
    with writing(run_dir, "rm") as folder:
        ...                                       # train; MetricsLog(folder / "metrics.jsonl")
        save_checkpoint(folder, stage="rm", model=model, ..., parents=[sft])
"""

import dataclasses
import json
import os
import platform
import resource
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import rlhf_mini
from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import plain, sha256

FORMAT = 1  # of stage.json; increase it when older code would misread it
WEIGHTS = "model.safetensors"
SHIPPED = ("base", "judge")  # in data, for all runs
LIBRARIES = ("torch", "transformers", "numpy", "tokenizers")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that the weights depend on."""
    own = {"python": platform.python_version(), "rlhf_mini": rlhf_mini.__version__}
    return own | {name: version(name) for name in LIBRARIES}


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def writing(run_dir: str | Path, stage: str) -> Iterator[Path]:
    """Yields the folder in which a stage works. It becomes `run_dir/stage` only when the block ends.

    The block calls `save_checkpoint` last. If it raises (Ctrl-C or a full disk, for example), the folder is removed and
    an earlier checkpoint stays as it was. The next start cleans up after a process that was killed.

    Raises:
        UserError: another process is writing the same checkpoint.
    """
    final = Path(run_dir) / stage
    partial, replaced = _beside(final, ".partial"), _beside(final, ".replaced")
    with _locked(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        if partial.exists():  # its process was killed
            shutil.rmtree(partial)
        if replaced.exists():  # its process was killed between the two renames below
            shutil.rmtree(replaced) if final.exists() else replaced.rename(final)
        partial.mkdir()
        try:
            yield partial
            if not (partial / "stage.json").is_file():
                raise RuntimeError(f"{partial} is incomplete: call save_checkpoint() at the end of the writing() block")
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
                final.parent.rmdir()  # a run without any checkpoint leaves no empty folder
            raise


def save_checkpoint(
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
    made_from: Mapping[str, str] | None = None,
    stopped: str | None = None,
) -> None:
    """Saves model and tokenizer with `save_pretrained`, and then stage.json, which marks the checkpoint as complete.

    The checksums in stage.json cover every file except *.jsonl, which people may open and edit.

    Args:
        folder: what `writing` yields.
        model: the trained model.
        options: the stage's options, a dataclass.
        metrics: the final metrics.
        started: `time.time()` at the start of the stage.
        parents: the checkpoints that the stage was built on.
        made_from: what else it was made from (core/inputs.py).
        stopped: the reason, if the stage did not reach its end.
    """
    model.save_pretrained(folder)
    _save_tokenizer(folder, tokenizer, generates=model.can_generate())
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
        **({"made_from": dict(made_from)} if made_from else {}),
        **({"stopped": stopped} if stopped else {}),
    }
    (folder / "stage.json").write_text(json.dumps(plain(info), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _save_tokenizer(folder: Path, tokenizer: Any, generates: bool) -> None:
    """Saves the tokenizer so that plain transformers, version 4.57 too, uses it as the model needs.

    Args:
        generates: the model is a language model, not one with a scalar head.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # generate() appends to the last position of every row of a batch, so padding must come first. With a scalar head
    # transformers' GPT-2 counts positions from the first token of a row, so padding must come last.
    config["padding_side"] = "left" if generates else "right"
    # Two names that are new in transformers 5, which still reads the old ones.
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):  # 4.57 knows the name too, but for a dict
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    # By default, 4.57 also returns token_type_ids of 0, and GPT-2 would add the embedding of token 0 to every input.
    config["model_input_names"] = tokenizer.model_input_names
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def save_last_good(
    run_dir: str | Path,
    stage: str,
    *,
    reason: str,
    model: Any,
    tokenizer: Any,
    options: Any,
    seed: int,
    metrics: dict[str, Any],
    started: float,
    parents: Sequence["Checkpoint"] = (),
    made_from: Mapping[str, str] | None = None,
) -> Path:
    """Saves the weights from before a NaN or a collapse as `run_dir/<stage>.last_good`, with the metrics logged so far.

    Call it inside the stage's own `writing` block. `reason` says why the stage stopped; the other arguments are those
    of `save_checkpoint`.

    Returns:
        The path of the checkpoint, for the error message.
    """
    with writing(run_dir, f"{stage}.last_good") as folder:
        with suppress(FileNotFoundError):
            shutil.copy(Path(run_dir) / f"{stage}.partial" / "metrics.jsonl", folder)
        save_checkpoint(
            folder, stage=stage, model=model, tokenizer=tokenizer, options=options, seed=seed, metrics=metrics,
            started=started, parents=parents, made_from=made_from, stopped=reason,
        )  # fmt: skip
    return Path(run_dir) / f"{stage}.last_good"


def peak_memory_mb() -> int:
    """Peak resident memory of this process, in megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 if sys.platform == "darwin" else 1 / 1024) / 1e6)  # bytes on macOS, KiB elsewhere


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@contextmanager
def _locked(final: Path) -> Iterator[None]:
    """Locks a checkpoint against other writers until the block ends or this process dies."""
    locks = final.parent.parent / ".locks"  # a run that fails at its start should not leave a folder
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{final.parent.name}.{final.name}")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"another process is writing {final}: wait for it, or choose another run") from None
    try:
        yield
    finally:
        lock.release()


def _sync(folder: Path) -> None:
    """Flushes the files to the disk, so that after a power cut a complete name never stands for half a file."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- loading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    stage: str
    sha256: str
    """Of its weights, which identifies it."""
    info: dict[str, Any]
    """The content of its stage.json."""


def load_checkpoint(path: str | Path, stage: str, of: Checkpoint | None = None) -> Checkpoint:
    """Verifies that `path` holds a complete, unchanged checkpoint of `stage`. Loads no weights.

    Args:
        of: also verify that it was built on this checkpoint. PPO calls `load_checkpoint(rm, "rm", of=sft)`, because a
            reward model is only valid for the SFT model whose responses it was trained on.

    Raises:
        UserError: it is not; the sentence says what is wrong and what to run.
    """
    path = Path(path)
    make = how_to_make(path, stage)
    remake = make if stage in SHIPPED else f"delete {shlex.quote(str(path))}, then {make}"
    if not path.is_dir():
        raise UserError(f"there is no {stage} checkpoint in {path}: {make}")
    try:
        info = json.loads((path / "stage.json").read_text(encoding="utf-8"))
        found, sums, parents = info["stage"], dict(info["sha256"]), list(info["parents"])
        known, weights = info["format"] == FORMAT, sums[WEIGHTS]
    except FileNotFoundError:
        raise UserError(f"the {stage} checkpoint in {path} is half-written (it has no stage.json): {make}") from None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}/stage.json was not written by this project: {remake}") from None
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
        raise UserError(f"the {stage} checkpoint in {path} was not made from the {of.stage} in {of.path}: {make}")
    return Checkpoint(path, stage, weights, info)


def how_to_make(path: Path, stage: str) -> str:
    """Tells how to make this checkpoint: "run `make sft`", or the full command where `make` does not apply."""
    if stage in SHIPPED:
        return f"run `git checkout data/{stage}`, or `make base`"
    runs_dir, run = path.parent.parent, path.parent.name
    if runs_dir == Path("runs"):
        return f"run `make {stage}`" if run == "default" else f"run `make {stage} RUN={shlex.quote(run)}`"
    return f"run `{shlex.join(['python', '-m', f'stages.{stage}', '--runs_dir', str(runs_dir), '--run', run])}`"
