"""What a stage is made from: a change of it shows, and nothing else does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_mini.core import inputs
from rlhf_mini.core.checkpoints import FORMAT
from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import sha256
from rlhf_mini.core.inputs import changes, code_of, inputs_of
from stages.ppo.options import PPOOptions
from stages.rm.options import RMOptions
from stages.sft.options import SFTOptions

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("stage", "options", "has", "has_not"),
    [
        ("sft", SFTOptions(), ["stages/sft/train.py", "rlhf_mini/training/loop.py", "rlhf_mini/__init__.py"],
         ["stages/rm/loss.py", "data/knowledge/labelers.yaml"]),
        ("rm", RMOptions(),
         ["stages/rm/loss.py", "rlhf_mini/world/labelers.py", "data/knowledge/labelers.yaml"],
         ["stages/ppo/losses.py", "rlhf_mini/report/page.py"]),
        ("ppo", PPOOptions(), ["stages/ppo/losses.py", "stages/ppo/run.py"], ["rlhf_mini/world/gold.py"]),
        ("ppo", PPOOptions(reward="rlhf_mini.world.gold:reward"), ["rlhf_mini/world/gold.py"], ["stages/rm/loss.py"]),
    ],
)  # fmt: skip
def test_the_inputs_of_a_stage(stage: str, options: Any, has: list[str], has_not: list[str]) -> None:
    found = inputs_of(stage, options, ["data/prompts/ppo.jsonl"])
    assert set(has) <= set(found) and not set(has_not) & set(found)
    assert found[has[0]] == sha256(ROOT / has[0]) and "data/prompts/ppo.jsonl" in found


def test_the_modules_of_the_stages_are_those_that_they_import() -> None:
    """Read from the source against what Python has loaded."""
    stages = [f"stages.{stage}.train" for stage in ("sft", "rm", "ppo")]
    code = f"""if True:
        import json, sys, {", ".join(stages)}
        own = [m for n, m in sys.modules.items() if n.split(".")[0] in ("rlhf_mini", "stages")]
        print(json.dumps([m.__file__ for m in own]))
    """
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {Path(each).relative_to(ROOT).as_posix() for each in json.loads(loaded.stdout)}
    assert len(files) > 20 and files == set(code_of(stages))


def test_modules_of_the_users_own_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name, text in (
        ("mine/__init__.py", ""), ("mine/rewards.py", "from . import words\nimport json, elsewhere\n"),
        ("mine/words.py", "import mine.rewards\n"), ("elsewhere.py", "this is no Python"), ("other.py", ""),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    own = {"mine/__init__.py", "mine/rewards.py", "mine/words.py", "elsewhere.py"}
    found = inputs_of("ppo", PPOOptions(reward="mine.rewards:f"), [])
    assert {path for path in found if not path.startswith(("rlhf_mini/", "stages/"))} == own
    monkeypatch.chdir(tmp_path.parent)
    assert not own & set(code_of(["mine.rewards"]))
    monkeypatch.syspath_prepend(tmp_path)
    assert len(code_of(["mine.rewards"])) == 4
    packages = tmp_path / "lib" / "site-packages"
    shutil.move(tmp_path / "mine", packages / "mine")
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages), tmp_path])  # Python ignores what is no text
    assert set(code_of(["mine.rewards", "elsewhere"])) == {
        (tmp_path / "elsewhere.py").relative_to(Path.cwd()).as_posix()
    }


# --- a checkpoint that was made from them ----------------------------------------------------------------------------


def checkpoint(folder: Path, seed: int = 0, options: dict[str, Any] | None = None, **info: Any) -> Path:
    folder.mkdir(parents=True)
    weights = {"model.safetensors": folder.name + str(seed)}
    options = {"runs_dir": "runs", "run": folder.parent.name} | (options or {})
    content = {
        "format": FORMAT, "stage": folder.name, "seed": seed, "options": options, "metrics": {}, "seconds": 1,
        "peak_memory_mb": 1, "sha256": weights, "parents": [], **info,
    }  # fmt: skip
    (folder / "stage.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run whose RM was made from two files and the run's SFT."""
    monkeypatch.chdir(tmp_path)
    for name in ("prompts.jsonl", "loss.py"):
        Path(name).write_text("{}")
    made_from = {name: sha256(Path(name)) for name in ("prompts.jsonl", "loss.py")}
    checkpoint(Path("runs/a/sft"), made_from=made_from)
    parents = [{"stage": "sft", "path": "runs/a/sft", "sha256": "sft0"}]
    checkpoint(Path("runs/a/rm"), made_from=made_from, parents=parents)
    return tmp_path


def test_a_change_of_content_shows_and_another_time_does_not(project: Path) -> None:
    rm = Path("runs/a/rm")
    assert changes(rm) == []
    os.utime("loss.py")
    Path("unrelated.py").write_text("")
    assert changes(rm) == []
    Path("loss.py").write_text("{ }")
    assert changes(rm) == ["loss.py has changed"]
    Path("loss.py").unlink()
    assert changes(rm) == ["loss.py is gone"]


def test_a_stage_that_was_trained_again_shows_in_the_next(project: Path) -> None:
    shutil.copytree("runs/a", "runs/b")
    shutil.rmtree("runs/a/sft")
    checkpoint(Path("runs/a/sft"), seed=1)
    assert changes(Path("runs/a/rm")) == ["the sft that it was built on was trained again"]
    assert changes(Path("runs/b/rm")) == []  # the copy has its own
    shutil.rmtree("runs/b/sft")
    shutil.rmtree("runs/a/sft")
    assert changes(Path("runs/b/rm")) == []  # no sft to compare with


def test_a_copied_run_whose_own_sft_was_trained_again_shows_it(project: Path) -> None:
    shutil.copytree("runs/a", "runs/b")
    shutil.rmtree("runs/b/sft")
    assert changes(Path("runs/b/rm")) == []  # that of the original is as it was
    checkpoint(Path("runs/b/sft"), seed=1)
    assert changes(Path("runs/b/rm")) == ["the sft that it was built on was trained again"]
    assert changes(Path("runs/a/rm")) == []


def test_a_checkpoint_of_another_run_is_looked_for_there(project: Path) -> None:
    checkpoint(Path("runs/c/ppo"), seed=1)
    parents = [{"stage": "ppo", "path": "runs/a/ppo", "sha256": "ppo0"}]
    made_from = {"loss.py": sha256(Path("loss.py"))}
    rm = checkpoint(Path("runs/c/rm"), made_from=made_from, parents=parents)  # a second round of rankings
    assert changes(rm) == []
    checkpoint(Path("runs/a/ppo"))
    assert changes(rm) == []
    shutil.rmtree("runs/a/ppo")
    checkpoint(Path("runs/a/ppo"), seed=2)
    assert changes(rm) == ["the ppo that it was built on was trained again"]


def test_what_does_not_say_is_not_up_to_date(project: Path) -> None:
    assert changes(checkpoint(Path("runs/old/rm"))) == ["stage.json does not say what it was made from"]
    odd = json.dumps(json.loads(Path("runs/old/rm/stage.json").read_text()) | {"options": {"init": "a\0b"}})
    for broken in ("{", "[]", '{"parents": 1}', odd):
        Path("runs/old/rm/stage.json").write_text(broken)
        with pytest.raises(UserError, match="was not written by this project: delete runs/old/rm"):
            changes(Path("runs/old/rm"))


# --- python -m stages ------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(project: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls `python -m stages`. Returns the arguments with which it starts the stage, None if it does not."""
    from stages.__main__ import main

    def call(*arguments: str) -> list[str] | None:
        started: list[list[str]] = []
        monkeypatch.setattr(sys, "argv", ["stages", *arguments])
        monkeypatch.setattr(os, "execv", lambda _, command: started.append(command[1:]))
        main()
        return started[0] if started else None

    return call


def test_a_stage_is_trained_if_it_is_missing_or_asked_for_with_options(trained: Any) -> None:
    new = ["-m", "stages.rm", "--run", "new"]
    assert trained("rm", "--run", "new") == new
    assert trained("rm", "--run", "new", "--seed", "3", "--init", "sft") == [*new, "--seed", "3", "--init", "sft"]
    assert trained("rm", "--run", "a") is None
    assert trained("rm", "--run", "a", "--seed", "0") is None
    assert trained("rm", "--run", "a", "--seed", "1") == ["-m", "stages.rm", "--run", "a", "--seed", "1"]
    assert trained("rm", "--run", "a", "--init", "sft") == ["-m", "stages.rm", "--run", "a", "--init", "sft"]


def test_a_stale_stage_is_trained_again_with_its_own_options(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"run": "other", "seed": 7, "init": "sft", "gone": 1, "num_prompts": 0}
    made_from = {"loss.py": "another", "prompts.jsonl": "another"}
    checkpoint(Path("runs/c/rm"), seed=7, options=options, made_from=made_from)
    again = ["-m", "stages.rm", "--run", "c", "--seed", "7", "--init", "sft"]
    assert trained("rm", "--run", "c") == again == trained("rm", "--run", "c", "--seed", "7")
    said = " ".join(capsys.readouterr().out.split())
    assert "runs/c/rm is not up to date: loss.py has changed, and 1 more python -m stages.rm --run c" in said
    Path("loss.py").write_text("changed")
    assert trained("rm", "--run", "a", "--batch_size", "3")
    assert "note: runs/a/sft is not up to date: loss.py has changed" in capsys.readouterr().out


# --- make ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_trains_nothing_finished_that_is_not_named(project: Path) -> None:
    shutil.copy(ROOT / "Makefile", "Makefile")
    for name in ("pyproject.toml", "constraints.txt", ".venv/.installed"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    checkpoint(Path("runs/a/ppo"))

    of_make = ("MAKE", "MFLAGS", "RUN", "SEED", "ARGS", "PYTHON", "PIP_ARGS")
    outside = {name: value for name, value in os.environ.items() if not name.startswith(of_make)}

    def planned(*arguments: str) -> list[str]:
        # Under `make test`, make would also say which folder it enters, and take options and variables of that one.
        command = ["make", "-n", *arguments]
        made = subprocess.run(command, capture_output=True, text=True, check=True, env=outside)
        return [line.removeprefix(".venv/bin/python -m ") for line in made.stdout.splitlines()]

    for time in (0, 2**31):  # the older a file and the newer, whatever a copy did to their times
        os.utime("runs/a/sft/stage.json", (time, time))
        for tool in ("chat", "compare", "evaluate", "overopt"):
            assert [line for line in planned(tool, "RUN=a") if "stages" in line] == []
    named = [f"stages {stage} --run a  " for stage in ("sft", "rm", "ppo")]
    assert planned("sft", "rm", "ppo", "RUN=a") == named
    assert planned("ppo", "RUN=a", "SEED=2", "ARGS=--kl_coef 0") == ["stages ppo --run a --seed 2 --kl_coef 0"]
    shutil.rmtree("runs/a/rm")
    assert planned("ppo", "RUN=a", "ARGS=--kl_coef 0") == ["stages rm --run a ", "stages ppo --run a  --kl_coef 0"]
    shutil.rmtree("runs/a")
    assert planned("chat", "RUN=a")[:3] == [f"stages {stage} --run a " for stage in ("sft", "rm", "ppo")]


def test_the_knowledge_counts_where_it_is_read() -> None:
    assert "data/knowledge/labelers.yaml" in code_of([inputs.KNOWLEDGE_READER])
    assert not any(path.startswith("data/") for path in code_of(["stages.ppo.losses"]))
