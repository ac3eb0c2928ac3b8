"""Bands over runs, and in words where another run lies."""

from pathlib import Path

import pytest

from rlhf_mini.classroom import bands
from rlhf_mini.classroom.lesson import RECORDS
from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import read_json, write_json


def record(folder: Path, name: str, preset: str = "full", **figures: float) -> Path:
    (folder / name).mkdir()
    record = {"preset": preset, "minutes": 2.0, "figures": figures}
    write_json(folder / name / RECORDS, {"3": record, "4": record})
    return folder / name


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Bands of three runs with a KL of 1, 2 and 3."""
    runs = [record(tmp_path, f"seed{kl}", kl=kl) for kl in (1, 2, 3)]
    bands.write(tmp_path / "bands.json", runs, [3])
    return tmp_path / "bands.json"


def test_the_interval_is_that_of_one_more_run() -> None:
    """t(0.975, 2) = 4.3027 (any table); the standard deviation of 1, 2, 3 is 1."""
    low, high = bands.prediction_interval([1.0, 2.0, 3.0])
    assert high - 2 == pytest.approx(4.3027 * (4 / 3) ** 0.5, abs=1e-3)
    assert low == pytest.approx(4 - high)


def test_the_file_keeps_the_figures_of_each_run(measured: Path) -> None:
    found = read_json(measured)["lessons"]["3"]
    assert found["runs"] == ["seed1", "seed2", "seed3"]
    assert found["figures"]["kl"]["values"] == [1.0, 2.0, 3.0]


def test_the_page_says_the_same(measured: Path) -> None:
    page = measured.with_suffix(".md").read_text("utf-8")
    assert "3 runs, 2.0 to 2.0 minutes each." in page
    assert "| kl | 2 | -2.97 to 6.97 |" in page  # 2 +- 4.3027 (4 / 3)^0.5


def test_the_page_in_docs_is_that_of_the_bands_there() -> None:
    assert bands.BANDS.with_suffix(".md").read_text("utf-8") == bands.to_markdown(read_json(bands.BANDS)["lessons"])


def test_other_lessons_in_the_file_stay(measured: Path, tmp_path: Path) -> None:
    bands.write(measured, [tmp_path / f"seed{n}" for n in (1, 2, 3)], [4])
    assert read_json(measured)["lessons"].keys() == {"3", "4"}


@pytest.mark.parametrize(
    ("kl", "words"), [(2.5, "as expected"), (-9.0, "lower than expected"), (9.0, "higher than expected")]
)
def test_a_run_is_placed_in_words(measured: Path, tmp_path: Path, kl: float, words: str) -> None:
    lines = list(bands.compare(3, record(tmp_path, "mine", kl=kl), measured))
    assert lines[0].startswith(f"kl: {kl:.3g}, {words} (3 other runs")
    assert ("All lie" in lines[-1]) == (words == "as expected")


def test_nano_runs_are_not_blamed_and_do_not_count(measured: Path, tmp_path: Path) -> None:
    nano = record(tmp_path, "nano", preset="nano", kl=9.0)
    assert next(bands.compare(3, nano, measured)).startswith("This was a nano run")
    assert not bands.is_recorded(nano, 3)


def test_what_is_missing_is_said(measured: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="run the lesson to its last cell first"):
        list(bands.compare(3, tmp_path / "empty", measured))
    with pytest.raises(UserError, match="`make bands` makes it"):
        list(bands.compare(3, tmp_path / "seed1", tmp_path / "none.json"))
    with pytest.raises(UserError, match="lesson 3 of at least 3 runs, and 1 have it"):
        bands.write(measured, [tmp_path / "seed1"], [3])
