"""Resuming: when the command of a killed stage is run again, the stage continues from its last save.

    runs/<run>/<stage>.resume.safetensors   exists from the stage's first save until its checkpoint is written

    command = command_of(options, inputs_of("ppo", options, files=[options.prompts]), parents=[sft, rm])
    with Resume(run_dir, "ppo", command, started) as resume, writing(run_dir, "ppo") as folder:
        saved = resume.load(folder)  # None: start from the beginning
        ...
        resume.save(folder, step, {"policy": policy.state_dict(), "optimizer": optimizer_tensors(optimizer)}, {...})
        ...
        save_checkpoint(folder, ..., started=resume.started)

The final weights are bit-identical to those of an uninterrupted run if the stage saves everything that they depend on:
weights, optimizer, learning rates, random generators, position in the data. The stage's *.jsonl files are saved too.
It is a safetensors file with the rest as JSON in its metadata. It lies outside the folder that `writing` clears and is
replaced atomically, so that whenever the process is killed, the file is either the last save or the one before it.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from rlhf_mini.core import processes
from rlhf_mini.core.checkpoints import Checkpoint, versions
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.files import is_number, parse_object, plain, remove, replacing

FORMAT = 3  # of the file; increase it when older code would misread it

Tensors = dict[str, dict[str, torch.Tensor]]  # groups such as a model's state_dict, by name


class State(NamedTuple):
    """What a stage saved."""

    step: int
    """The last step that was done."""
    tensors: Tensors
    """On the CPU."""
    state: dict[str, Any]
    """Everything else, as JSON."""


def command_of(options: Any, made_from: Mapping[str, str], parents: Sequence[Checkpoint]) -> dict[str, Any]:
    """Everything that must stay the same for the weights to come out the same, under names that the user understands.

    Args:
        options: the stage's options, a dataclass.
        made_from: from `inputs_of`: the checksums of the files that the stage reads, and of its code.
        parents: the checkpoints that the stage is built on.
    """
    command = (
        {f"--{name}": value for name, value in dataclasses.asdict(options).items()}
        | {f"the content of {path}": checksum for path, checksum in made_from.items()}
        | {f"the {parent.stage} in {parent.path}": parent.files_sha256 for parent in parents}
        | {f"the version of {name}": number for name, number in versions().items()}
        # Both change the order in which sums are added up.
        | {"the number of threads": torch.get_num_threads(), "the number of processes": processes.number()}
        | {"the use of DeepSpeed": processes.with_deepspeed()}  # its optimizer states have shapes of their own
    )
    return {name: plain(value) for name, value in command.items()}


class Resume:
    """The resume file of one stage.

    Enter it as a context before `writing`, so that it removes the file once the checkpoint has been written.
    """

    def __init__(self, run_dir: Path, stage: str, command: dict[str, Any], started: float) -> None:
        """`command` is from `command_of`, `started` the `time.time()` at the start of the stage."""
        self.run_dir, self.stage, self.command = run_dir, stage, command
        self.started = started  # `load` moves it back by the time spent before the save
        self.path = run_dir / f"{stage}.resume.safetensors"
        self.step: int | None = None  # the step after which the same command would resume

    def __enter__(self) -> "Resume":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.remove()
        elif kind is KeyboardInterrupt and self.step is not None:
            raise KeyboardInterrupt(f"the same command resumes after step {self.step}") from None

    def save(self, folder: Path, step: int, tensors: Tensors, state: dict[str, Any]) -> None:
        """Replaces the previous save.

        Args:
            folder: the stage's folder, whose *.jsonl files are saved too.
            step: the last step that was done.
            tensors: on any device; they are copied.
            state: everything else, as JSON can hold it.
        """
        files = {path.name: np.frombuffer(path.read_bytes(), np.uint8) for path in folder.glob("*.jsonl")}
        groups = {**tensors, "files": {name: torch.tensor(content) for name, content in files.items()}}
        flat = {
            f"{group}/{name}": processes.full(tensor.detach()).to("cpu", copy=True).contiguous()  # not tied: refused
            for group, part in groups.items()
            for name, tensor in part.items()
        }
        if not processes.is_first():
            self.step = step
            return
        seconds = time.time() - self.started
        info = json.dumps({"command": self.command, "step": step, "seconds": seconds, "state": state})
        metadata = {"format": str(FORMAT), "info": info, "sha256": _digest(info, flat)}
        with replacing(self.path) as file:
            file.buffer.write(safetensors.torch.save(flat, metadata))
        self.step = step

    def load(self, folder: Path) -> State | None:
        """Reads the last save and restores its *.jsonl files into `folder`.

        Returns None if there is no usable save: no file, a damaged one, or one of another command. Prints what it did.
        Of several processes none goes on, and may save, before all have read.
        """
        saved = self._load(folder)
        processes.wait()
        return saved

    def _load(self, folder: Path) -> State | None:
        try:
            info, tensors = self._read()
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, KeyError, UserError):
            self._say(f"starts over because {self.path} is damaged or from another version of this project")
            return None
        saved = info["command"]
        for name in self.command | saved:
            if self.command.get(name) != saved.get(name):
                self._say(f"starts over because {name} has changed since {self.path} was written")
                return None
        for name, content in tensors.pop("files", {}).items():
            if processes.is_first():
                (folder / name).write_bytes(content.numpy().tobytes())
        self.step = info["step"]
        self.started -= info["seconds"]
        self._say(f"resumes after step {self.step} (delete {self.path} to start over)")
        return State(info["step"], tensors, info["state"])

    def remove(self) -> None:
        """Removes the file: the next start is from the beginning."""
        if processes.is_first():
            remove(self.path)
        self.step = None

    def _read(self) -> tuple[dict[str, Any], Tensors]:
        with safe_open(self.path, "pt") as file:
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        if metadata["format"] != str(FORMAT) or metadata["sha256"] != _digest(metadata["info"], flat):
            raise ValueError
        tensors: Tensors = {}
        for name, tensor in flat.items():
            group, _, rest = name.partition("/")
            tensors.setdefault(group, {})[rest] = tensor
        info = parse_object(metadata["info"], self.path)
        types = {"command": dict, "step": int, "state": dict}
        if not all(isinstance(info.get(key), kind) for key, kind in types.items()):
            raise ValueError
        if not is_number(info.get("seconds")):
            raise ValueError
        if any(Path(name).name != name for name in tensors.get("files", {})):  # it would be written elsewhere
            raise ValueError
        return info, tensors

    def _say(self, message: str) -> None:
        console.print(f"{self.stage}: {message}", soft_wrap=True)


def _digest(info: str, flat: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(info.encode())
    for name, tensor in sorted(flat.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def optimizer_tensors(optimizer: Any) -> dict[str, torch.Tensor]:
    """Adam's state of each parameter, and the learning rates; the rest of an optimizer comes from the options."""
    saved = optimizer.state_dict()
    tensors = {f"{index}.{key}": value for index, values in saved["state"].items() for key, value in values.items()}
    rates = [group["lr"] for group in saved["param_groups"]]
    return tensors | {"lr": torch.tensor(rates, dtype=torch.float64)}


def load_optimizer(optimizer: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Restores what `optimizer_tensors` gave, into an optimizer that was made with the same options."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name in sorted(tensors.keys() - {"lr"}):  # in the same order in every process
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensors[name]
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    state = {  # Adam's step is a number; the rest has the parameter's shape, and its parts
        number: {
            key: processes.like(value, parameters[number]) if value.dim() else value for key, value in of_one.items()
        }
        for number, of_one in state.items()
    }
    groups = optimizer.state_dict()["param_groups"]
    for group, rate in zip(groups, tensors["lr"].tolist(), strict=True):
        group["lr"] = rate
    optimizer.load_state_dict({"state": state, "param_groups": groups})
