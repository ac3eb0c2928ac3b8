"""Resume: a stage that was killed goes on from its last save when the same command is given again.

    runs/<run>/<stage>.resume.safetensors   from the stage's first save until it is finished

    command = command_of(options, files=[options.prompts], parents=[sft, rm])
    with Resume(run_dir, "ppo", command, started) as resume, writing(run_dir, "ppo") as folder:
        saved = resume.load(folder)  # None: begin at the beginning
        ...
        resume.save(folder, step, {"policy": policy.state_dict(), "optimizer": optimizer_tensors(optimizer)}, {...})
        ...
        finish(folder, ..., started=resume.started)

The weights become those of an undisturbed run, bit for bit, if the stage saves all that decides what comes next:
weights, optimizer, learning rates, generators, its place in the data. The stage's *.jsonl files are kept along.
The file is a plain safetensors file; its metadata hold the rest as JSON. It lies outside the folder that `writing`
clears and is replaced as a whole, so a kill at any moment leaves it as the last save or the one before made it.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from rlhf_mini.core.checkpoints import Checkpoint, versions
from rlhf_mini.core.console import console
from rlhf_mini.core.files import plain, replacing, sha256

FORMAT = 2  # of the file; raise it when an older reader would go wrong

Tensors = dict[str, dict[str, torch.Tensor]]  # groups such as a model's state_dict, by name


class State(NamedTuple):
    """What a stage saved: after which step, its tensors (on the CPU), and its plain figures."""

    step: int
    tensors: Tensors
    state: dict[str, Any]


def command_of(options: Any, files: Sequence[str], parents: Sequence[Checkpoint]) -> dict[str, Any]:
    """All that has to be the same for the weights to come out the same, by the names that the user reads.

    `options` is the stage's dataclass, `files` are those that it reads, `parents` what `load_checkpoint` gave.
    """
    return plain(
        {f"--{name}": value for name, value in dataclasses.asdict(options).items()}
        | {f"the content of {path}": sha256(Path(path)) for path in files}
        | {f"the {parent.stage} in {parent.path}": parent.sha256 for parent in parents}
        | {f"the version of {name}": number for name, number in versions().items()}
        | {"the number of threads": torch.get_num_threads()}  # it decides in which order sums are added up
    )


class Resume:
    """The file of one stage. As a context, put before `writing`, it removes the file once the checkpoint is there."""

    def __init__(self, run_dir: Path, stage: str, command: dict[str, Any], started: float) -> None:
        """`started` is the `time.time()` at the stage's start."""
        self.run_dir, self.stage, self.command = run_dir, stage, command
        self.started = started  # `load` moves it back by the time that was spent before the save
        self.path = run_dir / f"{stage}.resume.safetensors"
        self.step: int | None = None  # that the same command would go on after

    def __enter__(self) -> "Resume":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.remove()
        elif kind is KeyboardInterrupt and self.step is not None:
            raise KeyboardInterrupt(f"the same command goes on after step {self.step}") from None

    def save(self, folder: Path, step: int, tensors: Tensors, state: dict[str, Any]) -> None:
        """Takes the place of the save before. `state` is plain JSON; the *.jsonl in `folder` are kept along."""
        files = {path.name: np.frombuffer(path.read_bytes(), np.uint8) for path in folder.glob("*.jsonl")}
        groups = {**tensors, "files": {name: torch.tensor(content) for name, content in files.items()}}
        flat = {
            f"{group}/{name}": tensor.detach().to("cpu", copy=True).contiguous()  # copied, as weights may be tied
            for group, part in groups.items()
            for name, tensor in part.items()
        }
        seconds = time.time() - self.started
        info = json.dumps({"command": self.command, "step": step, "seconds": seconds, "state": state})
        metadata = {"format": str(FORMAT), "info": info, "sha256": _digest(info, flat)}
        with replacing(self.path) as file:
            file.buffer.write(safetensors.torch.save(flat, metadata))
        self.step = step

    def load(self, folder: Path) -> State | None:
        """The last save, if it is of this very command; its *.jsonl go back into `folder`. Says what it does."""
        try:
            info, tensors = self._read()
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, KeyError):
            self._say(f"starts over, as {self.path} is damaged, or of another version of this project")
            return None
        then = info["command"]
        for name in self.command | then:
            if self.command.get(name) != then.get(name):
                self._say(f"starts over, as {name} is not what it was when {self.path} was written")
                return None
        for name, content in tensors.pop("files", {}).items():
            (folder / name).write_bytes(content.numpy().tobytes())
        self.step = info["step"]
        self.started -= info["seconds"]
        self._say(f"goes on after step {self.step} (delete {self.path} to start over)")
        return State(info["step"], tensors, info["state"])

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.step = None

    def _read(self) -> tuple[dict[str, Any], Tensors]:
        with safe_open(self.path, "pt") as file:
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (it is no dict)
        if metadata["format"] != str(FORMAT) or metadata["sha256"] != _digest(metadata["info"], flat):
            raise ValueError
        tensors: Tensors = {}
        for name, tensor in flat.items():
            group, _, rest = name.partition("/")
            tensors.setdefault(group, {})[rest] = tensor
        return json.loads(metadata["info"]), tensors

    def _say(self, what: str) -> None:
        console.print(f"{self.stage}: {what}", soft_wrap=True)


def _digest(info: str, flat: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(info.encode())
    for name, tensor in sorted(flat.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def optimizer_tensors(optimizer: Any) -> dict[str, torch.Tensor]:
    """What Adam keeps of each parameter, and the learning rates; the rest of an optimizer comes from the options."""
    saved = optimizer.state_dict()
    tensors = {f"{index}.{key}": value for index, values in saved["state"].items() for key, value in values.items()}
    rates = [group["lr"] for group in saved["param_groups"]]
    return tensors | {"lr": torch.tensor(rates, dtype=torch.float64)}


def load_optimizer(optimizer: Any, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse, for an optimizer made with the same options."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name in tensors.keys() - {"lr"}:
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensors[name]
    groups = optimizer.state_dict()["param_groups"]
    for group, rate in zip(groups, tensors["lr"].tolist(), strict=True):
        group["lr"] = rate
    optimizer.load_state_dict({"state": state, "param_groups": groups})
