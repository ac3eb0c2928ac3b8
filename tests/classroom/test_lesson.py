"""What a lesson calls: the run it finds, guesses, trainings beside the run, records."""

from pathlib import Path
from typing import Any

import pytest

from rlhf_mini.classroom.lesson import RECORDS, GuessFirst, Lesson
from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import read_json
from rlhf_mini.core.inputs import ROOT
from rlhf_mini.evaluation.compare import CompareOptions


@pytest.fixture
def lesson(nano_run: CompareOptions, monkeypatch: pytest.MonkeyPatch) -> Lesson:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RUNS_DIR", nano_run.runs_dir)
    monkeypatch.setenv("RUN", nano_run.run)
    monkeypatch.setenv("PRESET", "nano")
    monkeypatch.delenv("PAGES", raising=False)
    return Lesson(3)


def test_it_says_which_stage_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    monkeypatch.setenv("RUN", "nowhere")
    with pytest.raises(UserError, match=r"nowhere/sft is missing: .*stages\.sft"):
        Lesson(3)


@pytest.mark.parametrize("guess", ["", " ", "...", "?"])
def test_a_cell_goes_on_only_after_a_guess(lesson: Lesson, guess: str) -> None:
    with pytest.raises(GuessFirst, match="write your guess"):
        lesson.predict(guess)


def test_a_guess_may_be_short_and_pages_need_none(lesson: Lesson) -> None:
    lesson.predict("0")
    lesson.building = True
    lesson.predict("")


def test_records_of_one_lesson_replace_its_own_only(lesson: Lesson) -> None:
    path = lesson.run_dir / RECORDS
    lesson.record(kl=1)
    lesson.finish()
    other = Lesson(5)
    other.record(agreement=0.7)
    other.finish()
    lesson.record(kl=2)
    lesson.finish()
    records = read_json(path)
    assert {number: record["figures"] for number, record in records.items()} == {
        "3": {"kl": 2.0}, "5": {"agreement": 0.7},
    }  # fmt: skip
    assert all(record["preset"] == "nano" and record["minutes"] >= 0 for record in records.values())


def test_a_variant_is_trained_once_beside_the_run(lesson: Lesson, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = dict(
        reward="stages.ppo.rewards:short", prompts="data/prompts/ppo.jsonl", updates=1, episodes=8, num_minibatches=1,
        max_new_tokens=2, warmup_updates=0, evaluation_prompts=2,
    )  # fmt: skip
    folder = lesson.train("ppo", "short", **options)
    assert folder == lesson.run_dir / "lesson3" / "short" / "ppo"
    weights = (folder / "model.safetensors").stat()
    assert lesson.train("ppo", "short", **options) == folder
    assert (folder / "model.safetensors").stat() == weights
    assert "is there already" in capsys.readouterr().out
    lesson.train("ppo", "short", **options | {"updates": 2})
    assert (folder / "model.safetensors").stat() != weights
