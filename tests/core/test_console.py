"""Options, progress, metrics, and errors as the person at the terminal meets them."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_mini.core import console
from rlhf_mini.core.console import UserError, run, track
from rlhf_mini.core.files import MetricsLog, plain
from rlhf_mini.core.options import parse_options


@dataclass
class Options:
    run: str = field(default="default", metadata={"help": "name of the run"})
    kl_coef: float = field(default=0.1, metadata={"help": "weight of the KL penalty; 10 %% of the reward"})
    k: int = field(default=4, metadata={"help": "responses a prompt"})
    whiten: bool = field(default=True, metadata={"help": "whiten the rewards"})
    names: list[str] = field(default_factory=lambda: ["ana"], metadata={"help": "labelers"})
    rankings: str | None = field(default=None, metadata={"help": "a rankings file"})

    def __post_init__(self) -> None:
        if not 2 <= self.k <= 9:
            raise UserError("k must be from 2 to 9")


# --- options ---------------------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    assert parse_options(Options, []) == Options()
    config = tmp_path / "nano.yaml"
    config.write_text("kl_coef: 1e-3\nk: 9\nwhiten: false\nnames: [bo, cy]\nrankings: mine.jsonl\n")
    expected = Options(kl_coef=0.001, k=2, whiten=False, names=["bo", "cy"], rankings="mine.jsonl")
    assert parse_options(Options, ["--config", str(config), "--k", "2"]) == expected
    assert parse_options(Options, ["--k=2", f"--config={config}"]) == expected


def test_a_file_may_be_put_right_by_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "nano.yaml"
    config.write_text("k: 12\n")
    assert parse_options(Options, ["--config", str(config), "--k", "5"]).k == 5


def test_negative_and_empty_values(tmp_path: Path) -> None:
    config = tmp_path / "nano.yaml"
    config.write_text("kl_coef: -2e-3\nrun: '--odd'\n")
    assert parse_options(Options, ["--config", str(config)]) == Options(kl_coef=-0.002, run="--odd")
    config.write_text("# nothing deviates\n")
    assert parse_options(Options, ["--config", str(config)]) == Options()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--kl", "0.1"], "unknown option --kl"),  # no guessing from a beginning: a later option may begin alike
        (["stray"], "unknown option stray"),
        (["--k", "many"], "argument --k: invalid int value: 'many'"),
        (["--k"], "argument --k: expected one argument"),
        (["--k", "12"], "k must be from 2 to 9"),
        (["--config"], "argument --config: expected one argument"),
        (["--config", "absent.yaml"], "absent.yaml: cannot be read"),
    ],
)
def test_a_wrong_option_is_one_sentence(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_options(Options, argv)
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {sentence}") and told.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("kl: 0.1", "unknown option kl"),
        ("config: other.yaml", "unknown option config"),
        ("k: many", "argument --k: invalid int value: 'many'"),
        ("k: true", "argument --k: invalid int value: 'True'"),
        ("k: 4.5", "argument --k: invalid int value: '4.5'"),
        ("whiten: perhaps", "argument --whiten: "),
        ("k:", "option k needs a value"),
        ("k: {a: 1}", "option k needs a value"),
        ("- k", "must hold lines"),
        ("a: b: c", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_sentence_that_names_it(
    content: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text(content)
    with pytest.raises(SystemExit) as stop:
        parse_options(Options, ["--config", str(config)])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {config}: {sentence}") and told.count("\n") == 1


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_options(Options, ["--help"], prog="python -m stages.ppo", description="PPO against the reward model")
    assert stop.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for part in ("python -m stages.ppo", "PPO against", "10 % of the reward (default: 0.1)", "--config FILE.yaml"):
        assert part in told


# --- running ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "sentence"),
    [
        (UserError("say what to do"), 1, "error: say what to do"),
        (KeyboardInterrupt(), 130, "interrupted: "),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: the disk is full"),
        (Exception("I/O error: No space left on device (os error 28)"), 1, "error: the disk is full"),  # as tokenizers'
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, "error: runs: no permission"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "runs/x"), 1, "error: runs/x: a file is where a folder"),
    ],
)
def test_what_a_user_can_cause_is_one_sentence(
    fault: BaseException, status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise fault

    with pytest.raises(SystemExit) as stop:
        run(main)
    told = capsys.readouterr().err
    assert stop.value.code == status and told.startswith(sentence) and told.count("\n") == 1


@pytest.mark.parametrize("bug", [KeyError("x"), FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError("odd")])
def test_a_bug_keeps_its_traceback(bug: Exception) -> None:
    def main() -> None:
        raise bug

    with pytest.raises(type(bug)):
        run(main)


def test_importing_the_library_goes_offline() -> None:
    code = "import rlhf_mini, huggingface_hub.constants as c; print(c.HF_HUB_OFFLINE, c.HF_HUB_DISABLE_TELEMETRY)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_importing_the_library_bounds_what_onednn_keeps() -> None:
    """SFT took 1.7 GB without it, and more with every step."""
    code = "import os, rlhf_mini; print(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    for given, expected in (({}, "16"), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "9"}, "9")):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN_")} | given
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


# --- progress and metrics --------------------------------------------------------------------------------------------


def test_track_without_a_terminal_prints_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(range(0, 10_000, 3))  # each look at the clock finds it three seconds later
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(now)))
    assert list(track(range(6), "sampling")) == list(range(6))
    told = capsys.readouterr().out.splitlines()
    assert told[-1].startswith("sampling: 6 done")
    assert 1 <= len(told) - 1 < 6 and all(line.startswith("sampling: ") and "/6" in line for line in told[:-1])


def test_track_of_nothing_and_of_unknown_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([], "nothing")) == []
    assert list(track(iter("ab"), "letters")) == ["a", "b"]
    assert list(track(range(4, 6), "the rest", total=6, done=4)) == [4, 5]
    told = capsys.readouterr().out
    assert "nothing: 0 done" in told and "the rest: 6 done" in told


def test_sampled_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console.console.print("[/b] :smile: [red]")
    assert capsys.readouterr().out == "[/b] :smile: [red]\n"


def test_metrics_are_strict_json_lines(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.log(step=1, loss=float("nan"), **{"objective/kl": torch.tensor(1.5), "n": np.int64(3)})
    log.log(step=2, loss=float("inf"))
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(first) == {"step": 1, "loss": None, "objective/kl": 1.5, "n": 3}
    assert json.loads(second) == {"step": 2, "loss": None}
    assert "NaN" not in first + second


def test_plain() -> None:
    value = {1: (np.float32(0.5), Path("a/b"), None), "t": torch.tensor(float("inf"))}
    assert plain(value) == {"1": [0.5, "a/b", None], "t": None}
