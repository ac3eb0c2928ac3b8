"""Two processes do what one does. Run by a launcher, this file is what each of them runs: three stages, in small."""

import rlhf_mini  # noqa: F401, I001

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf_mini.core import processes, zero
from rlhf_mini.core.console import UserError, run
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.core.files import MetricsLog, read_jsonl, write_jsonl
from rlhf_mini.core.inputs import ROOT
from rlhf_mini.core.resume import command_of
from stages.ppo.options import PPOOptions
from stages.ppo.train import train_ppo
from stages.rm.options import RMOptions
from stages.rm.train import train_rm
from stages.sft.options import SFTOptions
from stages.sft.train import train_sft

LAUNCH = ["-m", "accelerate.commands.launch"]
TWO = [*LAUNCH, "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
       "--dynamo_backend", "no"]  # fmt: skip
FSDP = [*LAUNCH, "--config_file", str(ROOT / "configs" / "accelerate" / "fsdp.yaml")]
DEEPSPEED = [*LAUNCH, "--config_file", str(ROOT / "configs" / "accelerate" / "deepspeed.yaml")]
COMPARED = {"loss", "objective", "grad_norm", "eval_loss", "value"}
MODULE = "tests.core.test_processes"
DEATH = "the second process dies in update 3 of PPO"


def stages(folder: Path, name: str, death: str = "") -> None:
    """The three stages on what is in `folder`, with LoRA if the run's name says so."""
    if death and processes.index() == 1:
        log = MetricsLog.log

        def deadly(self: MetricsLog, step: int, **metrics: Any) -> None:
            log(self, step, **metrics)
            if step == 3 and "loss/policy" in metrics:
                os.kill(os.getpid(), signal.SIGKILL)

        MetricsLog.log = deadly  # type: ignore[method-assign]
    rank = 4 if name.startswith("lora") else 0
    shared: dict[str, Any] = {"run": name, "runs_dir": str(folder / "runs"), "lora_rank": rank}
    data, texts = str(folder / "data.jsonl"), str(folder / "texts.jsonl")
    run_dir = folder / "runs" / name
    if not (run_dir / "sft").exists():  # 5 a batch leave one, of which there is no share for the second process
        train_sft(SFTOptions(**shared, base=str(folder / "base"), demonstrations=data, ptx_texts=texts, batch_size=5,
                             num_train_epochs=1, ptx_batch_size=1, validation_share=0.1, show_every=4))  # fmt: skip
    if not (run_dir / "rm").exists():
        ranked: dict[str, Any] = {"rankings": data, "validation": ""}
        if name == "asked":
            labelers = dict.fromkeys(["labelers", "heldout_labelers", "gold_labeler"], f"{MODULE}:asked_once")
            ranked = {"prompts": data, "validation": data, "base": "", "max_new_tokens": 6, **labelers}
        train_rm(RMOptions(**shared, **ranked, demonstrations=data, init="sft", content="", batch_size=8,
                           num_train_epochs=1, heldout_share=0.1))  # fmt: skip
    # Of 9 rows of a minibatch, the first process has 5, which take two passes, and the second one 4.
    train_ppo(PPOOptions(**shared, prompts=data, validation_prompts=data, ptx_texts=texts, updates=4, episodes=18,
                         num_minibatches=2, num_ppo_epochs=2, max_new_tokens=6, evaluation_prompts=7, save_steps=2,
                         warmup_updates=1, bucket_size=4))  # fmt: skip


class AskedOnce:
    """A labeler whom only the first process may ask: a person, or one who would say another thing the second time."""

    name = "asked once"

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        assert processes.is_first()
        return list(range(1, len(responses) + 1))


def asked_once() -> list[AskedOnce]:
    return [AskedOnce()]


def launch(launcher: list[str], folder: Path, name: str, death: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, str(Path(__file__)), str(folder), name, death]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=ROOT)


def metrics(folder: Path, name: str, stage: str) -> list[dict[str, float]]:
    return read_jsonl(folder / "runs" / name / stage / "metrics.jsonl")


@pytest.fixture(scope="module")
def world(_nano_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, rankings and texts, and a run "one", of one process."""
    tmp_path = tmp_path_factory.mktemp("world")
    shutil.copytree(_nano_base, tmp_path / "base")
    answers = ["It is a bird.", "Look it up!", "No"]
    write_jsonl(tmp_path / "data.jsonl", [
        {"prompt": [{"role": "user", "content": f"What is {'a' * (n % 4)} kiwi {n}?"}], "responses": answers,
         "ranks": [1, 2 + n % 2, 3]} for n in range(41)
    ])  # fmt: skip
    write_jsonl(tmp_path / "texts.jsonl", [{"text": f"Kiwi {n} is green." * (1 + n % 3)} for n in range(30)])
    assert launch([], tmp_path, "one").returncode == 0
    return tmp_path


def test_two_processes_follow_one(world: Path) -> None:
    together = launch(TWO, world, "two")
    assert together.returncode == 0, together.stderr[-2000:]
    assert together.stdout.count("ppo: update 1/4") == 1  # only the first process prints
    agree(world, "one", "two")
    assert not list((world / "runs" / "two").glob("*.partial*"))


def agree(world: Path, one: str, two: str) -> None:
    """Losses, gradients and rewards at every step, and in the end the weights."""
    for stage in ("sft", "rm", "ppo"):
        pairs = list(zip(metrics(world, one, stage), metrics(world, two, stage), strict=True))
        assert len(pairs) == {"sft": 10, "rm": 5, "ppo": 4}[stage]
        for pair in pairs:
            a, b = ({name: of_one[name] for name in of_one if name.split("/")[0] in COMPARED} for of_one in pair)
            assert a == pytest.approx(b, rel=2e-3, abs=2e-4)
        folders = [world / "runs" / name / stage for name in (one, two)]
        weights = [
            load_file(next(folder.glob("*model.safetensors"))) for folder in folders
        ]  # the model, or its adapter
        assert weights[0].keys() == weights[1].keys()
        for name, tensor in weights[0].items():
            torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=2e-4)


def test_a_killed_process_ends_the_run_and_the_same_command_resumes(world: Path) -> None:
    if not (world / "runs" / "two" / "ppo").exists():
        launch(TWO, world, "two")
    started = time.monotonic()
    killed = launch(TWO, world, "killed", DEATH)
    assert killed.returncode != 0 and time.monotonic() - started < 60
    assert "[rank0]" not in killed.stderr  # no traceback of the process that has lost the other
    run_dir = world / "runs" / "killed"
    assert not (run_dir / "ppo").exists() and (run_dir / "ppo.resume.safetensors").exists()
    again = launch(TWO, world, "killed")
    assert again.returncode == 0 and "ppo: resumes after step 2" in again.stdout
    assert [line["step"] for line in metrics(world, "killed", "ppo")] == [1, 2, 3, 4]
    assert not list(run_dir.glob("*.partial"))
    for name in ("model.safetensors", "value_model/model.safetensors"):
        assert (run_dir / "ppo" / name).read_bytes() == (world / "runs" / "two" / "ppo" / name).read_bytes()


@pytest.mark.lessons
def test_labelers_are_asked_by_the_first_process_alone(world: Path) -> None:
    shutil.copytree(world / "runs" / "one" / "sft", world / "runs" / "asked" / "sft")
    together = launch(TWO, world, "asked")
    assert together.returncode == 0, together.stderr[-2000:]
    assert len(read_jsonl(world / "runs" / "asked" / "rm" / "rankings.jsonl")) > 20


@pytest.mark.lessons
def test_two_processes_with_a_part_of_the_weights_each_follow_one_and_resume(world: Path) -> None:
    assert launch(FSDP, world, "parts", DEATH).returncode != 0
    again = launch(FSDP, world, "parts")
    assert again.returncode == 0, again.stderr[-2000:]
    assert "ppo: resumes after step 2" in again.stdout
    agree(world, "one", "parts")


@pytest.mark.lessons
@pytest.mark.parametrize("launcher", [TWO, FSDP], ids=["whole", "parts"])
def test_two_processes_train_the_same_adapters(world: Path, launcher: list[str]) -> None:
    if not (world / "runs" / "lora").exists():
        assert launch([], world, "lora").returncode == 0
    name = f"lora-{'parts' if launcher is FSDP else 'whole'}"
    together = launch(launcher, world, name)
    assert together.returncode == 0, together.stderr[-2000:]
    agree(world, "lora", name)


@pytest.mark.lessons
def test_with_deepspeed_two_processes_follow_one_and_resume(world: Path) -> None:
    pytest.importorskip("deepspeed")
    assert launch(DEEPSPEED, world, "zero", DEATH).returncode != 0
    again = launch(DEEPSPEED, world, "zero")
    assert again.returncode == 0, again.stderr[-2000:]
    assert "ppo: resumes after step 2" in again.stdout
    agree(world, "one", "zero")


def test_a_fault_of_one_process_ends_all(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("")
    started = time.monotonic()
    failed = launch(TWO, tmp_path, "two")
    assert failed.returncode != 0 and "error: " in failed.stderr and time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("installed", "stage", "advice"),
    [(False, "2", r"pip install 'rlhf-mini\[deepspeed\]'"), (True, "3", "stages 1 and 2 are: configs/accelerate/fsdp")],
)
def test_deepspeed_that_cannot_be_used_is_one_sentence(
    installed: bool, stage: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "WORLD_SIZE", 2)
    monkeypatch.setattr(zero, "is_deepspeed_available", lambda: installed)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    with pytest.raises(UserError, match=advice):
        processes.begin("cpu")


def test_fsdp_1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WORLD_SIZE", 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"configs/accelerate/fsdp\.yaml"):
        processes.begin("cpu")


def test_what_deepspeed_saved_is_not_resumed_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WORLD_SIZE", 2)
    without = command_of(SFTOptions(), {}, [])
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert command_of(SFTOptions(), {}, []) != without


def test_the_launchers_precision_is_not_ignored_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UserError, match="give the stage --precision bf16"):
        processes.begin("cpu")
    monkeypatch.setattr(processes, "_precision", "no")  # put back afterwards
    processes.begin("cpu", "bf16")


def test_shares_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = ["a", "bb", "ccc", "dddd", "eeeee"]
    assert processes.share(batch) == (batch, batch, False) and processes.share(batch).weight(len) == 1.0
    monkeypatch.setattr(processes, "WORLD_SIZE", 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(processes, "RANK", rank)
        shares.append(processes.share(batch))
    assert [list(each.items) for each in shares] == [["a", "dddd"], ["bb", "eeeee"], ["ccc"]]
    assert sum(each.weight(len) for each in shares) == pytest.approx(1)
    # The mean over all tokens, from the shares' means: 3 tokens of weight 1 + ...
    means = [sum(len(text) ** 2 for text in each.items) / sum(map(len, each.items)) for each in shares]
    whole = sum(len(text) ** 2 for text in batch) / sum(map(len, batch))
    assert sum(mean * each.weight(len) for mean, each in zip(means, shares, strict=True)) == pytest.approx(whole)
    idle = processes.share(batch[:1])
    assert idle.items == ["a"] and idle.idle and idle.weight(len) == 0.0


if __name__ == "__main__":
    run(lambda: stages(Path(sys.argv[1]), *sys.argv[2:]))
