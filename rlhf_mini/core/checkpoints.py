"""Stage checkpoints on disk: written completely or not at all, and verified before the next stage builds on them.

    runs/<run>/<stage>/            a complete checkpoint: config.json, model.safetensors, tokenizer, stage.json, ...
    runs/<run>/<stage>.partial/    while the stage runs; metrics.jsonl grows here
    runs/<run>/<stage>.resume.safetensors  what a killed stage resumes from (rlhf_mini/core/resume.py)
    runs/<run>/<stage>.last_good/  the last good weights of a stage that stopped; "stopped" in its stage.json says why
    runs/.locks/                   locks of the checkpoints and results that are being written

A stage uses this module as follows:

    sft = load_checkpoint(run_dir / "sft", "sft")
    with writing(run_dir, "rm") as folder:
        ...                                       # train; MetricsLog(folder / "metrics.jsonl")
        save_checkpoint(folder, stage="rm", model=model, ..., parents=[sft])
"""

import dataclasses
import hashlib
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
from rlhf_mini.core.cards import card
from rlhf_mini.core.console import RANK, WORLD_SIZE, UserError, printable
from rlhf_mini.core.files import damaged, is_number, parse_object, plain, read_json, read_text, sha256

FORMAT = 1  # of stage.json; increase it when older code would misread it
WEIGHTS = "model.safetensors"
ADAPTER = "adapter_model.safetensors"  # of LoRA (models/adapters.py), in place of all weights
EDITED = (".jsonl", ".md")  # by people
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

    Of several processes that train together only the first one writes; the others get the folder's name, and wait.

    Raises:
        UserError: another command is writing the same checkpoint.
    """
    final = Path(run_dir) / stage
    partial, replaced = _beside(final, ".partial"), _beside(final, ".replaced")
    if RANK > 0:
        yield partial
        _meet()
        return
    with locked(final):
        if partial.exists():  # its process was killed
            shutil.rmtree(partial)
        if replaced.exists():  # its process was killed between the two renames below
            shutil.rmtree(replaced) if final.exists() else replaced.rename(final)
        _make_folder(partial)
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
    _meet()


def _meet() -> None:
    """Waits for the other processes, if there are any."""
    if WORLD_SIZE > 1:
        from rlhf_mini.core import processes  # imports torch, for which --help should not wait

        processes.wait()


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

    The checksums in stage.json cover every file except *.jsonl and README.md, which people may open and edit.

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
    save_model(model, folder)
    if RANK > 0:
        return
    _save_tokenizer(folder, tokenizer, generates=model.can_generate())
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in EDITED]
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
        "parents": [
            {"stage": p.stage, "path": str(p.path), "sha256": p.sha256, "files_sha256": p.files_sha256} for p in parents
        ],
        **({"made_from": dict(made_from)} if made_from else {}),
        **({"stopped": stopped} if stopped else {}),
    }
    (folder / "README.md").write_text(card(info, adapter=(folder / ADAPTER).is_file()), encoding="utf-8")
    (folder / "stage.json").write_text(json.dumps(plain(info), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_model(model: Any, folder: Path) -> None:
    """`save_pretrained` in the first process, of the adapter alone if one was trained.

    Other processes help to put the weights together, if each has a part of them.
    """
    from rlhf_mini.core import processes  # imports torch, for which --help should not wait

    own = model.state_dict(keep_vars=True)
    whole = {id(tensor): processes.full(tensor.detach()) for tensor in own.values()}  # tied weights stay tied
    if RANK > 0:
        return
    weights = {name: whole[id(tensor)] for name, tensor in own.items()}
    if adapter := vars(model).get("adapter"):
        weights = {f"base_model.model.{name}": tensor for name, tensor in weights.items()}
        adapter.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
    else:
        model.save_pretrained(folder, state_dict=weights)


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
        if RANK == 0:
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


def _make_folder(folder: Path) -> None:
    for attempt in range(100):
        try:
            folder.mkdir(parents=True)
            return
        except FileNotFoundError:  # another stage of this run has failed just now and removed the run's empty folder
            if attempt == 99:
                raise


@contextmanager
def locked(final: Path, busy: str = "") -> Iterator[None]:
    """Locks a checkpoint or a file of a run against other writers until the block ends or this process dies.

    Raises:
        UserError: another process has locked it; `busy` says what it is doing (by default, writing it).
    """
    locks = final.parent.parent / ".locks"  # a run that fails at its start should not leave a folder
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{final.parent.name}.{final.name}")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        busy = busy or f"another process is writing {final}"
        raise UserError(f"{busy}: wait for it, or choose another run") from None
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
    """Of its weights."""
    info: dict[str, Any]
    """The content of its stage.json."""

    @property
    def files_sha256(self) -> str:
        """Of the checksums of all its files, which identifies it: weights alone do not tell what a reward model says.

        Its config.json has `reward_mean` and `likelihood_coef`, which change the score.
        """
        return files_sha256(self.info)

    def is_parent(self, parent: dict[str, Any]) -> bool:
        """Whether an entry of "parents" in a stage.json is this checkpoint; older ones know its weights alone."""
        return (
            (parent["stage"], parent["sha256"]) == (self.stage, self.sha256)
            and parent.get("files_sha256", self.files_sha256) == self.files_sha256
        )  # fmt: skip


def files_sha256(info: dict[str, Any]) -> str:
    """`Checkpoint.files_sha256` of the checkpoint with this stage.json."""
    sums = [f"{checksum}  {name}\n" for name, checksum in sorted(info.get("sha256", {}).items())]  # as sha256sum prints
    return hashlib.sha256("".join(sums).encode()).hexdigest()


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
        info = parse_object(read_text(path / "stage.json"), path / "stage.json")
    except FileNotFoundError:
        raise UserError(f"the {stage} checkpoint in {path} is half-written (it has no stage.json): {make}") from None
    except UserError:
        info = {}
    if isinstance(info.get("format"), int) and info["format"] != FORMAT:
        raise UserError(f"{path} was written by another version of this project: {remake}")
    if not is_stage_json(info):
        raise UserError(f"{path}/stage.json was not written by this project: {remake}")
    found, sums = info["stage"], info["sha256"]
    if found != stage:
        raise UserError(f"{path} holds a checkpoint of stage {printable(found)}, not {stage}: {remake}")
    weights = _weights(sums)
    if weights is None:
        raise UserError(
            f"the {stage} checkpoint in {path} has its weights in other files than {WEIGHTS}, the only one that is "
            "read: save it again, with a larger max_shard_size"
        )
    for name, expected in sums.items():
        if not (path / name).is_file():
            raise UserError(f"the {stage} checkpoint in {path} is incomplete ({name} is missing): {remake}")
        if sha256(path / name) != expected:
            raise UserError(f"{path / name} has changed since the {stage} stage wrote it: {remake}")
    for name in _that_run_code(path):
        raise UserError(f"{name} could run code that came with the checkpoint, which is never run: {remake}")
    if of is not None and not any(of.is_parent(parent) for parent in info["parents"]):
        raise UserError(f"the {stage} checkpoint in {path} was not made from the {of.stage} in {of.path}: {make}")
    return Checkpoint(path, stage, weights, info)


def read_stage_json(folder: Path) -> dict[str, Any]:
    """The content of the stage.json in `folder`, which nothing else is verified of; {} if there is none.

    Raises:
        UserError: it is damaged, or was not written by this project.
    """
    info = read_json(folder / "stage.json")
    if info and not is_stage_json(info):
        raise damaged(folder / "stage.json")
    return info


def known_by(info: dict[str, Any]) -> list[str]:
    """The checksums by which the stage.json of another checkpoint may know the one with this stage.json.

    That of all files comes first; older ones know the weights alone. [] if there are no weights.
    """
    weights = _weights(info.get("sha256", {}))
    return [] if weights is None else [files_sha256(info), weights]


def _weights(sums: Mapping[str, str]) -> str | None:
    """The checksum of a checkpoint's weights, or of its adapter, among those of all its files."""
    return sums.get(WEIGHTS) or sums.get(ADAPTER)


def is_stage_json(info: dict[str, Any]) -> bool:
    """Whether the content of a stage.json is of the types that every command takes for granted."""
    types = {"stage": str, "seed": int, "options": dict, "metrics": dict, "sha256": dict, "parents": list}
    return (
        info.get("format") == FORMAT
        and all(isinstance(info.get(key), kind) for key, kind in types.items())
        and all(is_number(info.get(key)) for key in ("seconds", "peak_memory_mb"))
        and isinstance(info.get("stopped", ""), str)
        and not any("\0" in value for value in info["options"].values() if isinstance(value, str))
        and isinstance(info.get("made_from", {}), dict)
        and all(
            isinstance(checksum, str) and "\0" not in name
            for files in (info["sha256"], info.get("made_from", {}))
            for name, checksum in files.items()
        )
        and all(
            isinstance(parent, dict) and all(isinstance(parent.get(key), str) for key in ("stage", "path", "sha256"))
            for parent in info["parents"]
        )
    )


def _that_run_code(path: Path) -> Iterator[Path]:
    """The files of a checkpoint that could: pickles, and configs with Python code, which transformers offers to run.

    Checksums do not help here, as whoever made the checkpoint made them, too.
    """
    for name in ("pytorch_model*", "adapter_model.bin"):
        yield from path.rglob(name)
    for config in path.rglob("*config.json"):
        with suppress(UserError):  # damaged: transformers will say so
            if _has_key(parse_object(read_text(config), config), "auto_map"):
                yield config


def _has_key(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return key in value or any(_has_key(item, key) for item in value.values())
    return isinstance(value, list) and any(_has_key(item, key) for item in value)


def how_to_make(path: Path, stage: str) -> str:
    """Tells how to make this checkpoint: "run `make sft`", or the full command where `make` does not apply."""
    if stage in SHIPPED:
        return f"run `git checkout data/{stage}`, or `make base`"
    runs_dir, run = path.parent.parent, path.parent.name
    if runs_dir == Path("runs"):
        return f"run `make {stage}`" if run == "default" else f"run `make {stage} RUN={shlex.quote(run)}`"
    return f"run `{shlex.join(['python', '-m', f'stages.{stage}', '--runs_dir', str(runs_dir), '--run', run])}`"
