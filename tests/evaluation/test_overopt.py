"""Best-of-n against all choices there are, fits against known curves, and a small study from end to end."""

import itertools
import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.options import parse_options
from rlhf_mini.evaluation.compare import CompareOptions
from rlhf_mini.evaluation.overopt import __main__ as overopt
from rlhf_mini.evaluation.overopt import curves
from rlhf_mini.evaluation.overopt.__main__ import OveroptOptions
from rlhf_mini.evaluation.overopt.curves import best_of, best_of_n_form, fall, fits, rl_form
from rlhf_mini.evaluation.schema import Point
from stages.ppo.options import PPOOptions


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("levels", [100, 3], ids=["all different", "many ties"])
def test_best_of_n_is_the_mean_over_all_choices(n: int, levels: int) -> None:
    rng = np.random.default_rng(n + levels)
    proxy, gold = rng.integers(levels, size=(4, 7)).astype(float), rng.normal(size=(4, 7))
    for of_prompt, worth, got in zip(proxy, gold, best_of(proxy, gold, n), strict=True):
        values = []
        for chosen in map(list, itertools.combinations(range(7), n)):
            best = of_prompt[chosen] == of_prompt[chosen].max()
            values.append(worth[chosen][best].mean())
        # Those that tie have the same chance of being picked, so sharing a level's chances is exact.
        assert got == pytest.approx(np.mean(values), abs=1e-12)


def test_best_of_everything_is_the_best() -> None:
    proxy, gold = np.array([[3.0, 1.0, 2.0]]), np.array([[10.0, 20.0, 30.0]])
    assert best_of(proxy, gold, 3) == pytest.approx([10.0])
    assert best_of(proxy, gold, 1) == pytest.approx([20.0])
    assert best_of(proxy, gold, 2) == pytest.approx([(10 + 10 + 30) / 3])
    large = np.random.default_rng(0).normal(size=(1, 256))  # binomials of 256 are beyond a float
    assert best_of(large, large, 256) == pytest.approx(large.max())
    assert best_of(large, large, 1) == pytest.approx(large.mean())


@pytest.mark.parametrize("form", [best_of_n_form, rl_form])
def test_the_fit_finds_the_curve_it_was_drawn_from(form: Any) -> None:
    kl = np.array([0.0, 0.2, 0.7, 1.6, 3.0, 4.5])
    gains = form(np.sqrt(kl[1:])) @ np.array([0.8, 0.3])
    points = [
        Point(kl=k, proxy=Estimate(g, g, g), gold=Estimate(g + 0.1 * (-1) ** i, 0, 0))
        for i, (k, g) in enumerate(zip(kl, [0.0, *gains], strict=True))
    ]
    found = fits(points, form)
    assert vars(found["proxy"]) == pytest.approx({"a": 0.8, "b": 0.3, "rmse": 0.0, "r2": 1.0}, abs=1e-9)
    assert 0.03 < found["gold"].rmse <= 0.1
    assert math.isnan(fits(points[:3], form)["gold"].a)  # two points that are not 0: nothing to be wrong about


def test_a_fall_is_read_on_other_prompts_than_its_peak() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=400).tolist() for _ in range(60)]
    even = fall(noise, seed=0)
    assert abs(even.mean) < 0.2 and even.low < 0 < even.high  # the highest of sixty is no peak
    falling = [[level] * 10 for level in (0.1, 0.3, -0.2)]
    assert asdict(fall(falling, seed=0)) == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
    assert fall([[-0.2] * 10], seed=0).mean == pytest.approx(0.2)  # from the SFT model itself


@pytest.fixture
def options(nano_run: CompareOptions, monkeypatch: pytest.MonkeyPatch) -> OveroptOptions:
    """Of random checkpoints. Copies of the run's stages stand in for trainings, which have tests of their own."""

    def stage(name: str, options: OveroptOptions, run_name: str, **settings: Any) -> Path:
        trainings.append((name, run_name, settings))
        path = options.folder / run_name / name
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(options.run_dir / name, path)
        if name == "ppo":
            for update in (10, 20):
                shutil.copytree(options.run_dir / "ppo", path / "snapshots" / f"{update:04d}")
        return path

    trainings: list[Any] = []

    def points_of(gold_by_prompt: Any, seed: int) -> Estimate:
        return Estimate(len(gold_by_prompt), 0.0, 0.0)

    monkeypatch.setattr(overopt, "stage", stage)
    monkeypatch.setattr(curves, "fall", points_of)
    monkeypatch.setattr(overopt, "TRAININGS", trainings, raising=False)
    info = nano_run.run_dir / "ppo" / "stage.json"
    content = json.loads(info.read_text())
    content["options"] = asdict(PPOOptions(kl_coef=0.5, max_new_tokens=6))
    info.write_text(json.dumps(content))
    return OveroptOptions(
        run="r",
        runs_dir=nano_run.runs_dir,
        split=nano_run.split,
        best_of=4,
        responses=2,
        kl_coefs="0.5,0",
        few_prompts=3,
    )


def test_a_study(options: OveroptOptions) -> None:
    with console.capture() as printed:
        overopt.study(options, "the command")
    assert "PPO, kl_coef 0.5 (default), end" in printed.get() and "best of n, peak" in printed.get()
    result = json.loads((options.run_dir / "overopt.json").read_text())
    assert [scenario["name"] for scenario in result["scenarios"]] == ["default", "few_rankings"]
    for scenario in result["scenarios"]:
        points = scenario["best_of_n"]["points"]
        assert [point["n"] for point in points] == [1, 2, 4]
        assert points[0]["kl"] == 0 and points[0]["proxy"]["mean"] == pytest.approx(0)
        assert points[1]["kl"] == pytest.approx(math.log(2) - 1 / 2)
        assert points[0]["proxy"]["mean"] < points[1]["proxy"]["mean"] < points[2]["proxy"]["mean"]
        assert scenario["best_of_n"]["fall"]["mean"] == 3 and scenario["ppo"][0]["fall"]["mean"] == 2
        assert [curve["default"] for curve in scenario["ppo"]] == [True, False]
        for curve in scenario["ppo"]:
            first, second = curve["points"]
            assert (first["update"], second["update"]) == (10, 20)
            assert {**first, "update": 20} == second and first["kl"] == scenario["recipe"]["kl"]  # copies of one policy
    trained = [(name, run_name) for name, run_name, _ in overopt.TRAININGS]  # type: ignore[attr-defined]
    assert trained[0] == ("rm", "few_rankings") and len(trained) == 5

    # Finished curves are kept, and nothing of their trainings.
    before = (options.run_dir / "overopt.json").read_bytes()
    overopt.TRAININGS.clear()  # type: ignore[attr-defined]
    with console.capture() as printed:
        overopt.study(options, "the command")
    assert printed.get().count("was measured before") == 4
    assert [name for name, *_ in overopt.TRAININGS if name == "ppo"] == []  # type: ignore[attr-defined]
    assert (options.run_dir / "overopt.json").read_bytes() == before
    kept = {path.name for path in options.folder.iterdir()}
    assert kept == {"few_rankings", "default-kl0.5.json", "default-kl0.json", "few_rankings-kl0.5.json",
                    "few_rankings-kl0.json"}  # fmt: skip


def test_a_training_that_fails_is_one_sentence(tmp_path: Path) -> None:
    with console.capture(), pytest.raises(UserError, match="the ppo stage of x failed: what it printed says why"):
        overopt.stage("ppo", OveroptOptions(runs_dir=str(tmp_path)), "x", updates=1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--best_of", "1"], "--best_of must be at least 2, not 1"),
        (["--best_of", "257"], "--best_of must be at most 256, not 257"),
        (["--kl_coefs", "0.1;0"], "--kl_coefs must be comma-separated numbers from 0 upwards, not '0.1;0'"),
        (["--updates", "0"], "--updates must be greater than 0, not 0"),
        (["--snapshot_steps", "200"], "--snapshot_steps (200) must not exceed --updates (120)"),
    ],
)
def test_mistakes(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(OveroptOptions, arguments)
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1
