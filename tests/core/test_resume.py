"""A killed stage resumes from its last save and ends with weights bit-identical to those of an uninterrupted run.

The stages run as users run them, in processes of their own that SIGKILL really ends. Run by `python`, this file starts
them: it imports the libraries once and forks one process for each of the given commands.
"""

import rlhf_mini  # noqa: F401, I001

import itertools
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_mini.core.checkpoints import WEIGHTS, Checkpoint
from rlhf_mini.core.console import UserError, run
from rlhf_mini.core.files import MetricsLog, read_json, sha256, write_jsonl
from rlhf_mini.evaluation.compare import CompareOptions
from rlhf_mini.core.resume import Resume, command_of, load_optimizer, optimizer_tensors
from stages.ppo import run as ppo
from stages.ppo.options import PPOOptions
from stages.ppo.train import train_ppo
from stages.rm import train as rm
from stages.sft import train as sft
from stages.sft.options import SFTOptions
from stages.sft.train import completion_loss

Answers = list[tuple[int, str]]  # a process's exit code and what it printed
STEPS = {"sft": 20, "rm": 12, "ppo": 8}  # how many each stage of `stage_commands` does


# --- the processes ---------------------------------------------------------------------------------------------------


def kill_at(module: Any, name: str, when: Callable[..., Any] = lambda *_, **__: True) -> None:
    """From now on, this process kills itself once it has called `module.name` with arguments that `when` accepts."""
    real = getattr(module, name)

    def deadly(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        if when(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, deadly)


def arrange_death(where: str) -> None:
    """`where` is "step 7", "save" (in the middle of it), "rank", "evaluation" or "1.5 s"; "" for never."""
    if where.endswith(" s"):
        watch = threading.Timer(float(where.removesuffix(" s")), os.kill, (os.getpid(), signal.SIGKILL))
        watch.daemon = True
        watch.start()
    elif where.startswith("step "):
        step = int(where.removeprefix("step "))
        kill_at(MetricsLog, "log", lambda _, at, **metrics: at == step and {"loss", "loss/policy"} & metrics.keys())
    elif where == "save":
        kill_at(os, "fsync")  # before the new file takes the place of the old
    elif where == "rank":
        kill_at(rm, "rank")
    elif where == "evaluation":
        kill_at(sft, "save_checkpoint")
        kill_at(ppo, "save_checkpoint")
        kill_at(rm, "simulated_evaluation")


class LikesLength:
    name = "toy"

    def rank(self, record: Any, responses: list[Any]) -> list[int]:
        return [1 + sum(len(other.text) > len(one.text) for other in responses) for one in responses]


def toy_labelers() -> list[LikesLength]:
    return [LikesLength()]


def fork_each(commands: list[list[str]]) -> None:
    """Runs each command, [where to die, stage, its arguments ...], in a child. Prints exit codes and output as JSON."""
    answers = []
    for where, stage, *arguments in commands:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            os.close(reader)
            arrange_death(where)
            sys.argv = [stage, *arguments]
            try:
                runpy.run_module(f"stages.{stage}", run_name="__main__")
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            sys.stdout.flush()
            os._exit(0)
        os.close(writer)
        with open(reader, encoding="utf-8") as pipe:
            printed = pipe.read()
        answers.append((os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), printed))
    print(json.dumps(answers))


def processes(commands: list[list[str]], *path: Path) -> Answers:
    """Runs the commands one after another. `path`: more folders to import from."""
    python_path = os.pathsep.join(map(str, (Path(__file__).parents[2], *path)))
    environment = {
        **os.environ,
        "PYTHONPATH": python_path,
        "OMP_NUM_THREADS": "1",
    }  # a pool of threads survives no fork
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(commands)], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return [(code, printed) for code, printed in json.loads(done.stdout)]


# --- killed, and restarted -------------------------------------------------------------------------------------------


def demonstration(number: int) -> dict[str, Any]:
    answer = " ".join(["it is green"] * (1 + number % 4))
    return {
        "prompt": [{"role": "user", "content": f"Say {number}"}],
        "completion": [{"role": "assistant", "content": answer}],
    }


@pytest.fixture(scope="module")
def world(_nano_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    shutil.copytree(_nano_base, folder / "base")
    write_jsonl(folder / "demonstrations.jsonl", [demonstration(n) for n in range(80)])
    prompts = [{"prompt": demonstration(n)["prompt"], "check": {}} for n in range(100, 170)]
    write_jsonl(folder / "prompts.jsonl", prompts[:60])
    write_jsonl(folder / "validation.jsonl", prompts[60:])
    write_jsonl(folder / "texts.jsonl", [{"text": f"Say {n}, and say it is green. " * (1 + n % 3)} for n in range(30)])
    return folder


def logged(folder: Path) -> list[dict[str, float]]:
    """Each line of metrics.jsonl without the times in it."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "episodes_per_second"} for line in lines]


def assert_same(calm: Path, killed: Path, last_step: int) -> None:
    """The same weights and metrics, each step logged once, and nothing left over."""
    assert sha256(killed / WEIGHTS) == sha256(calm / WEIGHTS)
    assert logged(killed) == logged(calm)
    steps = [line["step"] for line in logged(killed) if line.keys() & {"loss", "loss/policy"}]
    assert steps == list(range(1, last_step + 1))
    for path in calm.rglob("*"):
        if path.is_file() and path.name not in ("metrics.jsonl", "stage.json", "README.md"):
            assert (killed / path.relative_to(calm)).read_bytes() == path.read_bytes(), path.name
    ours, theirs = [json.loads((folder / "stage.json").read_text())["metrics"] for folder in (calm, killed)]
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours if name != "episodes_per_second")
    assert {path.name for path in killed.parent.iterdir()} == {"sft", "rm", "ppo"}  # nothing to resume from


def resumed_after(answers: Answers) -> list[int | None]:
    """The step after which each process resumed; None if it started from the beginning."""
    parts = [printed.partition("resumes after step ")[2] for _, printed in answers]
    return [int(part.split()[0]) if part else None for part in parts]


def stage_commands(world: Path) -> dict[str, list[str]]:
    """The options of each stage, but for its run: all that a resumed stage could forget."""
    files = [f"--demonstrations={world / 'demonstrations.jsonl'}", f"--runs_dir={world / 'runs'}"]
    shared = [*files, "--batch_size=8", "--learning_rate=1e-2", "--max_new_tokens=8"]

    # 10 steps an epoch; a save after 5, 10 (the end of an epoch), 15, and the last
    of_sft = [f"--base={world / 'base'}", "--dropout=0.1", "--save_steps=5", "--show_every=3", "--ptx_batch_size=3"]
    of_sft += [f"--ptx_texts={world / 'texts.jsonl'}"]
    toys = [f"--{who}=test_resume:toy_labelers" for who in ("labelers", "heldout_labelers", "gold_labeler")]
    prompts = [f"--prompts={world / 'prompts.jsonl'}", f"--validation={world / 'validation.jsonl'}"]
    # 8 steps an epoch, and training ends in the middle of the second
    of_rm = [*toys, *prompts, f"--base={world / 'base'}", "--init=sft", "--num_train_epochs=1.5", "--save_steps=3"]
    of_rm += ["--num_samples=4", "--num_responses=5"]

    # 2 inner epochs, averaged weights, PPO-ptx, KL controller, a second pass
    of_ppo = [f"--runs_dir={world / 'runs'}", *prompts[:1], f"--validation_prompts={world / 'validation.jsonl'}"]
    of_ppo += [f"--ptx_texts={world / 'texts.jsonl'}", "--updates=8", "--episodes=16", "--num_minibatches=2"]
    of_ppo += ["--num_ppo_epochs=2", "--max_new_tokens=8", "--ema_decay=0.5", "--ptx_coef=0.5", "--kl_target=0.1"]
    of_ppo += ["--learning_rate=1e-3", "--save_steps=3", "--ptx_batch_size=3"]
    return {"sft": [*shared, *of_sft], "rm": [*shared, *of_rm], "ppo": of_ppo}


@pytest.fixture(scope="module")
def calm(world: Path) -> Path:
    """A run whose stages nobody killed."""
    answers = processes([["", stage, "--run=calm", *options] for stage, options in stage_commands(world).items()])
    assert [code for code, _ in answers] == [0, 0, 0], answers
    return world / "runs" / "calm"


def test_killed_stages_end_with_the_same_weights(world: Path, calm: Path) -> None:
    options = stage_commands(world)

    deaths_of_ppo = ["step 2", "step 5", "save", "step 7", "evaluation", ""]
    deaths_of_sft = ["step 3", "step 8", "save", "step 12", "step 17", "evaluation", ""]
    deaths_of_rm = ["rank", "step 1", "step 5", "step 12", "evaluation", ""]
    deaths = {"sft": deaths_of_sft, "rm": deaths_of_rm, "ppo": deaths_of_ppo}
    commands = [[where, stage, "--run=killed", *options[stage]] for stage, places in deaths.items() for where in places]
    answers = processes(commands)
    for (code, printed), (where, *_) in zip(answers, commands, strict=True):
        assert code == (-signal.SIGKILL if where else 0), printed

    rest = iter(answers)
    sft_answers, rm_answers, ppo_answers = (list(itertools.islice(rest, len(places))) for places in deaths.values())
    assert resumed_after(sft_answers) == [None, None, 5, 5, 10, 15, 20]
    assert resumed_after(rm_answers) == [None, None, 0, 3, 9, 12]
    assert resumed_after(ppo_answers) == [None, None, 3, 3, 6, 8]
    assert ["rm: sampling responses" in printed for _, printed in rm_answers] == [True, True, *[False] * 4]

    for stage, last_step in STEPS.items():
        assert_same(calm / stage, world / "runs" / "killed" / stage, last_step)


def test_stages_killed_at_random_times_end_with_the_same_weights(world: Path, calm: Path) -> None:
    """`make nightly` kills 200 times, and always at other times."""
    options = stage_commands(world)
    seconds = {stage: read_json(calm / stage / "stage.json")["seconds"] for stage in STEPS}
    kills, rng = int(os.environ.get("KILLS", "3")), random.Random()
    for number in itertools.count():
        if kills <= 0:
            break
        commands = [
            [where, stage, f"--run=random{number}", *options[stage]]
            for stage in STEPS
            for where in (f"{rng.uniform(0, seconds[stage] + 0.3):.3f} s", "")
        ]
        answers = processes(commands)
        told = [(where, code, printed) for (where, *_), (code, printed) in zip(commands, answers, strict=True)]
        assert all(code == 0 or (where and code == -signal.SIGKILL) for where, code, _ in told), told
        kills -= sum(code != 0 for code, _ in answers)  # some were done before
        for stage, last_step in STEPS.items():
            assert_same(calm / stage, world / "runs" / f"random{number}" / stage, last_step)


# --- other ends ------------------------------------------------------------------------------------------------------


def test_ctrl_c_then_another_command_then_a_nan(
    nano_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "demonstrations.jsonl", [demonstration(n) for n in range(80)])

    def options(learning_rate: float, save_steps: int = 5) -> SFTOptions:
        return SFTOptions(
            base=str(nano_base),
            demonstrations=str(tmp_path / "demonstrations.jsonl"),
            runs_dir=str(tmp_path),
            run="t",
            batch_size=8,
            save_steps=save_steps,
            learning_rate=learning_rate,
        )

    def multiply_loss(factor: Callable[[int], float]) -> None:
        """Multiplies the losses of the next training by `factor(steps that it has done)`."""
        done = itertools.count()

        def changed(model: Any, batch: Any) -> torch.Tensor:
            return completion_loss(model, batch) * (factor(next(done)) if model.training else 1.0)

        monkeypatch.setattr(sft, "completion_loss", changed)

    def interrupt(step: int) -> float:
        if step == 7:
            raise KeyboardInterrupt
        return 1.0

    multiply_loss(interrupt)
    with pytest.raises(KeyboardInterrupt):
        sft.train_sft(options(1e-2, save_steps=0))
    assert not (tmp_path / "t").exists()
    for rate in (1e-2, 1e-3):
        multiply_loss(interrupt)
        with pytest.raises(KeyboardInterrupt, match="the same command resumes after step 5"):
            sft.train_sft(options(rate))
        assert [path.name for path in (tmp_path / "t").iterdir()] == ["sft.resume.safetensors"]
    assert "starts over because --learning_rate has changed since" in capsys.readouterr().out

    multiply_loss(lambda step: float("nan"))
    with pytest.raises(UserError, match="not a finite number at step 6"):
        sft.train_sft(options(1e-3))
    assert "resumes after step 5" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["sft.last_good"]
    # Those from before step 1, as kept by the process that was interrupted; step 5 may have had the bad gradient.
    kept, base = [AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "t" / "sft.last_good", nano_base)]
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in kept.state_dict().items())


def test_a_reward_that_has_changed_starts_ppo_over(
    nano_run: CompareOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = """
def f(prompts, responses):
    global calls
    calls += 1
    if calls == {last}:
        raise KeyboardInterrupt
    return [{sign}1 - len(response) for response in responses]
calls = 0
"""
    monkeypatch.syspath_prepend(tmp_path)
    options = PPOOptions(
        run="r", runs_dir=nano_run.runs_dir, prompts=nano_run.split, reward="inverted_later:f", updates=6, episodes=8,
        max_new_tokens=6, ptx_coef=0.0, evaluation_prompts=2, save_steps=2, on_collapse="warn", warmup_updates=0,
    )  # fmt: skip

    def interrupted(sign: str, last: int) -> str:
        (tmp_path / "inverted_later.py").write_text(reward.format(sign=sign, last=last))
        sys.modules.pop("inverted_later", None)
        with pytest.raises(KeyboardInterrupt):
            train_ppo(options)
        return " ".join(capsys.readouterr().out.split())

    assert "starts over" not in interrupted("", 4)
    assert "resumes after step 2" in interrupted("", 4)
    said = interrupted("-", 4)
    assert f"starts over because the content of {tmp_path / 'inverted_later.py'} has changed" in said


# --- the file --------------------------------------------------------------------------------------------------------


@dataclass
class Options:
    seed: int = 3
    learning_rate: float = 1e-3


def saved(tmp_path: Path, command: dict[str, Any]) -> tuple[Resume, Path]:
    """One save after step 7, by a stage that began 100 seconds ago, and the stage's next folder."""
    resume = Resume(tmp_path, "sft", command, time.time() - 100)
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    (tmp_path / "before" / "metrics.jsonl").write_text('{"step": 7, "text": "Grüße"}\n', encoding="utf-8")
    weight = torch.arange(6.0).reshape(2, 3)
    model = {"wte": weight, "head.tied": weight, "step": torch.tensor(7.0)}
    resume.save(tmp_path / "before", 7, {"model": model, "rng": {"torch": torch.ones(3)}}, {"seen": [0.1, None]})
    return resume, tmp_path / "after"


def test_what_is_saved_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, after = saved(tmp_path, {"--seed": 3})
    resume = Resume(tmp_path, "sft", {"--seed": 3}, time.time())
    state = resume.load(after)
    assert state is not None and state.step == 7 and state.state == {"seen": [0.1, None]}
    assert set(state.tensors) == {"model", "rng"} and set(state.tensors["model"]) == {"wte", "head.tied", "step"}
    assert torch.equal(state.tensors["model"]["head.tied"], torch.tensor([[0.0, 1, 2], [3, 4, 5]]))
    assert state.tensors["model"]["step"].shape == ()
    assert [path.name for path in after.iterdir()] == ["metrics.jsonl"]
    assert (after / "metrics.jsonl").read_bytes() == (tmp_path / "before" / "metrics.jsonl").read_bytes()
    assert 100 <= time.time() - resume.started < 120
    path = tmp_path / "sft.resume.safetensors"
    assert " ".join(capsys.readouterr().out.split()) == f"sft: resumes after step 7 (delete {path} to start over)"


def test_another_command_starts_over_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("{}")

    def command(options: Any = None, weights: str = "abc") -> dict[str, Any]:
        return command_of(
            options or Options(), {"prompts.jsonl": sha256(Path("prompts.jsonl"))},
            [Checkpoint(Path("runs/x/base"), "base", weights, {"sha256": {WEIGHTS: weights}})],
        )  # fmt: skip

    _, after = saved(tmp_path, command())

    def why(command: dict[str, Any]) -> str:
        resume = Resume(tmp_path, "sft", command, time.time())
        assert resume.load(after) is None and resume.step is None and not list(after.iterdir())
        before, found, rest = " ".join(capsys.readouterr().out.split()).partition(" has changed since ")
        assert found and rest == f"{tmp_path / 'sft.resume.safetensors'} was written"
        return before.removeprefix("sft: starts over because ")

    assert why(command(Options(learning_rate=2e-3))) == "--learning_rate"
    assert why(command(weights="abd")) == "the base in runs/x/base"
    assert why({key: value for key, value in command().items() if key != "--seed"}) == "--seed"
    Path("prompts.jsonl").write_text("[]")
    assert why(command()) == "the content of prompts.jsonl"
    Path("prompts.jsonl").write_text("{}")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert why(command()) == "the number of threads"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert Resume(tmp_path, "sft", command(), time.time()).load(after) is not None


def test_a_damaged_file_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resume, after = saved(tmp_path, {"--seed": 3})
    whole = resume.path.read_bytes()
    damaged = [b"", whole[:7], whole[:-1], whole + b" ", whole.replace(b'"format":"3"', b'"format":"1"')]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 7)]
    for content in damaged:
        resume.path.write_bytes(content)
        assert Resume(tmp_path, "sft", {"--seed": 3}, time.time()).load(after) is None
        assert "is damaged or from another version of this project" in " ".join(capsys.readouterr().out.split())
    assert not list(after.iterdir())


def test_a_disk_that_fills_up_leaves_the_save_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resume, after = saved(tmp_path, {"--seed": 3})
    before = resume.path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        resume.save(after, 8, {}, {})
    assert resume.path.read_bytes() == before and resume.step == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after", "before", "sft.resume.safetensors"]


def test_the_file_stays_until_the_stage_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resume, _ = saved(tmp_path, {"--seed": 3})

    def interrupted(resume: Resume) -> None:
        with resume:
            raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        run(lambda: interrupted(resume))
    assert capsys.readouterr().err.endswith("are unchanged; the same command resumes after step 7\n")
    with pytest.raises(SystemExit):
        run(lambda: interrupted(Resume(tmp_path, "sft", {"--seed": 4}, time.time())))  # the file is not its own
    assert capsys.readouterr().err.endswith("are unchanged\n")
    with pytest.raises(ValueError), resume:
        raise ValueError
    assert resume.path.exists()
    with resume:
        pass
    assert not resume.path.exists()


def test_an_optimizer_goes_on_as_if_nothing_had_happened() -> None:
    def made() -> tuple[list[torch.nn.Parameter], torch.optim.Adam]:
        weights = [torch.nn.Parameter(torch.linspace(-1, 1, n)) for n in (3, 5)]
        groups = [{"params": [weight], "lr": rate} for weight, rate in zip(weights, (0.1, 0.2), strict=True)]
        return weights, torch.optim.Adam(groups, betas=(0.9, 0.95))

    def step(weights: list[torch.nn.Parameter], optimizer: torch.optim.Adam, rate: float) -> None:
        optimizer.zero_grad()
        sum((weight**3).sum() for weight in weights).backward()  # type: ignore[union-attr]
        optimizer.param_groups[1]["lr"] = rate
        optimizer.step()

    weights, optimizer = made()
    for rate in (0.3, 0.1 + 0.2):
        step(weights, optimizer, rate)
    others, other = made()
    load_optimizer(other, {name: value.clone() for name, value in optimizer_tensors(optimizer).items()})
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.1 + 0.2]  # all digits of it
    for mine, copy in zip(weights, others, strict=True):
        copy.data = mine.data.clone()
    for one, adam in ((weights, optimizer), (others, other)):
        step(one, adam, 0.05)
    assert all(torch.equal(mine, copy) for mine, copy in zip(weights, others, strict=True))


if __name__ == "__main__":
    fork_each(json.loads(sys.argv[1]))
