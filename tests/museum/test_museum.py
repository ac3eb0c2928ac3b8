"""The museum's bugs, on small real runs: each shows its symptom, and the healthy run beside it does not."""

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.models.rows import Rows
from rlhf_mini.museum import __main__ as museum
from rlhf_mini.museum import runs as museum_runs
from rlhf_mini.museum import show
from rlhf_mini.museum.bugs import ALL, BUGS, EOS, KL, KL_COEF, RATIO, SFT, SFT_LOSS, Bug
from rlhf_mini.museum.runs import Settings, findings, make, measure, series, together
from stages.ppo import losses
from stages.ppo.options import PPOOptions
from stages.ppo.train import train_ppo
from stages.rm.options import RMOptions
from stages.rm.train import train_rm
from stages.sft.options import SFTOptions
from stages.sft.train import train_sft

pytestmark = [pytest.mark.lessons, pytest.mark.usefixtures("one_thread")]

ROOT = Path(__file__).parents[2]
WORDS = ["it", "is", "green"]


# --- small runs ------------------------------------------------------------------------------------------------------


@dataclass
class LikesGreen:
    """A labeler who prefers a response that begins with "green"."""

    name: str = "toy"

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        return [1 if response.text.startswith("green") else 2 for response in responses]


def likes_green() -> list[LikesGreen]:
    return [LikesGreen(), LikesGreen()]


def prompt(number: int) -> Prompt:
    check = {"repeat": {"word": "it", "n": 1}, "max_words": 9}
    text = "Say " + "it " * (number % 4) + str(number)  # of different lengths, so that padding matters
    return {"id": f"p-{number}", "use_case": "other", "novel": "none", "check": check,
            "prompt": [{"role": "user", "content": text}]}  # fmt: skip


@dataclass
class World:
    folder: Path
    settings: Settings

    @property
    def source(self) -> Path:
        return self.folder / "runs" / "default"

    @property
    def museum(self) -> Path:
        return self.folder / "runs" / "museum"

    def make(self, bug: Bug, changes: Settings | None = None) -> tuple[Path, Path]:
        """The healthy run and the buggy one; each is trained once in this module."""
        settings = together(self.settings, bug.settings)
        healthy, buggy = self.museum / bug.healthy, self.museum / bug.name
        make(healthy, self.source, SFT[SFT.index(bug.trained[0]) :], settings)
        make(buggy, self.source, bug.trained, together(settings, bug.own_settings, changes or {}), bug)
        return healthy, buggy


@pytest.fixture(scope="module")
def world(_nano_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A folder with examples and a run of SFT and RM; its responses are short and end."""
    folder = tmp_path_factory.mktemp("museum")
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 7))) for _ in range(200)]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    both = zip(completions, range(200), strict=True)
    write_jsonl(folder / "demonstrations.jsonl", [{**prompt(n), "completion": said} for said, n in both])
    write_jsonl(folder / "prompts.jsonl", [prompt(n) for n in range(1000, 1080)])
    write_jsonl(folder / "validation.jsonl", [prompt(n) for n in range(2000, 2030)])
    write_jsonl(folder / "texts.jsonl", [{"text": "it is green"} for _ in range(20)])
    shutil.copytree(_nano_base, folder / "base")
    toy, demonstrations = f"{__name__}:likes_green", str(folder / "demonstrations.jsonl")
    prompts, validation = str(folder / "prompts.jsonl"), str(folder / "validation.jsonl")
    settings: dict[str, dict[str, Any]] = {
        "sft": dict(
            base=str(folder / "base"), show_every=0, demonstrations=demonstrations, num_train_epochs=4,
            learning_rate=1e-2, batch_size=8, ptx_coef=0.0, save_steps=0,
        ),
        "rm": dict(
            prompts=prompts, batch_size=8, validation=validation, demonstrations=demonstrations, labelers=toy,
            heldout_labelers=toy, gold_labeler=toy, content="", num_train_epochs=4, learning_rate=5e-3,
            max_new_tokens=16, init="sft", base="", exchange=False, num_responses=4, num_samples=4, likelihood=False,
            save_steps=0,
        ),
        "ppo": dict(
            prompts=prompts, ptx_coef=0.0, ptx_texts=str(folder / "texts.jsonl"), validation_prompts=validation,
            updates=6, episodes=32, num_minibatches=4, max_new_tokens=16, temperature=1.0, warmup_updates=2,
            learning_rate=1e-3, kl_coef=0.5, value_learning_rate=3e-3, clip_range_value=1.0,
            evaluation_prompts=8, save_steps=0,
        ),
    }  # fmt: skip
    where: dict[str, Any] = dict(run="default", runs_dir=str(folder / "runs"))
    train_sft(SFTOptions(**settings["sft"] | where))
    train_rm(RMOptions(**settings["rm"] | where))
    for first in ("rm", "sft"):  # as long here as the source's own
        for stage in ("sft", "rm"):
            shutil.copytree(
                folder / "runs" / "default" / stage, folder / "runs" / "museum" / f"healthy-{first}" / stage
            )
    yield World(folder, settings)


def level(run: Path, stage: str, check: str) -> str:
    return findings(run)[stage, check].level


# --- each bug --------------------------------------------------------------------------------------------------------


def test_kl_sign(world: World) -> None:
    healthy, buggy = world.make(BUGS["kl_sign"])
    assert mean(series(healthy, KL)[3:]) > 0.05 and mean(series(buggy, KL)[3:]) < -0.05
    examples = [prompt(n) for n in range(2000, 2030)]
    assert measure(buggy, examples).kl > 2 * measure(healthy, examples).kl > 0  # healthy code knows the sign


def test_wrong_token() -> None:
    """Two responses, of two tokens and one: each score lands on the other's first token."""
    arguments = torch.tensor([10.0, 20.0]), torch.tensor([0.0, 0.0, 1.0]), Rows([2, 1]), 0.5
    with BUGS["wrong_token"].switch_on():
        assert losses.compute_rewards(*arguments).tolist() == [20.0, 0.0, 9.5]
    assert losses.compute_rewards(*arguments).tolist() == [0.0, 10.0, 19.5]


@pytest.mark.parametrize("name", ["dropout", "left_padding"])
def test_passes_that_disagree(world: World, name: str) -> None:
    healthy, buggy = world.make(BUGS[name])
    assert max(series(healthy, RATIO)) < 1e-4 and min(series(buggy, RATIO)) > 1e-2
    for check in BUGS[name].checks:
        assert (level(healthy, "ppo", check), level(buggy, "ppo", check)) == ("pass", "fail")


def test_kl_per_token(world: World) -> None:
    healthy, buggy = world.make(BUGS["kl_per_token"])
    assert series(healthy, KL_COEF)[-1] > series(buggy, KL_COEF)[-1]
    assert max(series(buggy, KL)) > BUGS["kl_per_token"].settings["ppo"]["kl_target"]
    assert series(buggy, KL_COEF) == sorted(series(buggy, KL_COEF), reverse=True)
    assert (level(healthy, "ppo", "KL controller"), level(buggy, "ppo", "KL controller")) == ("pass", "fail")


def test_filtered_sampling(world: World) -> None:
    healthy, buggy = world.make(BUGS["filtered_sampling"])
    assert (level(healthy, "ppo", "sampling"), level(buggy, "ppo", "sampling")) == ("pass", "fail")
    assert max(series(buggy, RATIO)) < 1e-4  # neither pass sees another model


def test_swapped_pairs(world: World) -> None:
    healthy, buggy = (load_checkpoint(run / "rm", "rm") for run in world.make(BUGS["swapped_pairs"]))
    right, wrong = (run.info["metrics"]["accuracy/training"]["share"] for run in (healthy, buggy))
    assert right > 0.8 and wrong < 0.4  # the share of a coin is 0.5
    assert level(buggy.path.parent, "rm", "accuracy") == "fail"
    assert mean(series(buggy.path.parent, ("rm", "accuracy"))[-10:]) > 0.7  # training does not notice


def test_untrained_rm(world: World) -> None:
    healthy, buggy = world.make(BUGS["untrained_rm"])
    sft = load_file(buggy / "sft" / "model.safetensors")
    for run, same in ((healthy, False), (buggy, True)):
        rm = load_file(run / "rm" / "model.safetensors")
        trunk = [name for name in rm if name.startswith("transformer.h.")]
        assert trunk and all(torch.equal(rm[name], sft[name]) for name in trunk) == same
    assert series(buggy, ("rm", "accuracy")) == []


def test_another_sft(world: World) -> None:
    healthy, buggy = world.make(BUGS["another_sft"], {"sft": {"num_train_epochs": 2}})
    assert (level(healthy, "rm", "SFT checkpoint"), level(buggy, "rm", "SFT checkpoint")) == ("pass", "fail")
    options = PPOOptions(run=buggy.name, runs_dir=str(buggy.parent), **world.settings["ppo"])
    with pytest.raises(UserError, match="was not made from the sft"):  # without the bug
        train_ppo(options)


@pytest.mark.parametrize("name", ["pad_is_eos", "no_eos_template"])
def test_responses_without_end(world: World, name: str) -> None:
    healthy, buggy = world.make(BUGS[name])
    assert series(healthy, EOS)[0] > 0.8 > 0.3 > series(buggy, EOS)[0]
    assert level(healthy, "ppo", "eos") != "fail" and level(buggy, "ppo", "eos") == "fail"


def test_prompt_in_loss(world: World) -> None:
    """The same base on the same demonstrations, before the first step: only the tokens that count can differ."""
    healthy, buggy = world.make(BUGS["prompt_in_loss"])
    assert abs(series(healthy, SFT_LOSS)[0] - series(buggy, SFT_LOSS)[0]) > 0.01
    demonstrations = [load_checkpoint(run / "sft", "sft").info["metrics"]["demonstrations"] for run in (healthy, buggy)]
    assert demonstrations[0] == demonstrations[1]


def test_patches_end_with_the_block() -> None:
    before = {name: id(value) for name, value in vars(losses).items()}
    for bug in ALL:
        with bug.switch_on():
            pass
    assert {name: id(value) for name, value in vars(losses).items()} == before


# --- runs ------------------------------------------------------------------------------------------------------------


def test_what_is_there_is_kept_and_never_mixed(world: World) -> None:
    run, _ = world.make(BUGS["kl_sign"])
    before = (run / "ppo" / "stage.json").stat().st_mtime_ns
    world.make(BUGS["kl_sign"])
    assert (run / "ppo" / "stage.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another version of the museum: delete it"):
        make(run, world.source, ("ppo",), together(world.settings, {"ppo": {"updates": 9}}))
    with pytest.raises(UserError, match="is of another"):
        make(run, world.make(BUGS["no_eos_template"])[1], ("ppo",), world.settings)


# --- the command -----------------------------------------------------------------------------------------------------


def visit(world: World, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(museum_runs, "SHORT", world.settings)
    monkeypatch.setattr(
        sys, "argv",
        ["museum", "--runs_dir", str(world.folder / "runs"), "--prompts", str(world.folder / "validation.jsonl"),
         "--show", "1", *arguments],
    )  # fmt: skip
    with console.capture() as printed:
        museum.main()
    return printed.get()


def test_a_bug_is_shown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said = visit(world, monkeypatch, "dropout")
    assert re.search(r"policy/first_ratio_error +healthy .*[▁▂▃▄▅▆▇█]", said)
    flat = " ".join(said.split())
    assert BUGS["dropout"].title in flat and "Exercise: left padding" in flat and "issues/155" in flat
    assert "fail" in said and "first KL" in flat and "Say" in said
    picture = world.museum / "dropout" / "curves.svg"
    assert picture.read_text(encoding="utf-8").count("healthy") >= 1
    before = picture.read_bytes()
    visit(world, monkeypatch, "dropout")
    assert picture.read_bytes() == before


def test_the_mystery_is_not_given_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = next(seed for seed in range(99) if random.Random(seed).choice(sorted(BUGS)) == "dropout")
    said = visit(world, monkeypatch, "mystery", "--seed", str(seed))
    assert f"mystery-{seed}" in said and "dropout" not in said and "thins" not in said
    told = visit(world, monkeypatch, "mystery", "--seed", str(seed), "--reveal")
    assert f"It is dropout: {BUGS['dropout'].title}" in " ".join(told.split())


def test_the_list(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said = visit(world, monkeypatch)
    assert all(f"\n{name} " in f"\n{said}" for name in BUGS) and "BUG=mystery" in said


def test_a_wrong_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"there is no bug 'kl_sing': choose one of kl_sign, wrong_token, .*, or mystery"
    ):
        visit(world, monkeypatch, "kl_sing")


def test_help_teaches_without_waiting_for_torch() -> None:
    code = "import sys; from rlhf_mini.museum.__main__ import arguments; assert 'torch' not in sys.modules; arguments()"
    line = [sys.executable, "-c", code, "--help"]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0 and "What to inspect: the curves" in result.stdout


def test_sparklines() -> None:
    assert show.sparkline([0.0, 1.0, 2.0], 0.0, 2.0) == "▁▅█"
    assert show.sparkline([1.0] * 90, 1.0, 1.0) == "▁" * 30
    assert show.sparkline([0.0] * 30 + [1.0] * 30, 0.0, 1.0) == "▁" * 15 + "█" * 15
