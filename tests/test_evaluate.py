"""The evaluation of a random run: what is written, and that its figures follow from the rows."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_mini import evaluate, evaluation, probes
from rlhf_mini.compare import CompareOptions
from rlhf_mini.console import UserError, console
from rlhf_mini.evaluate import EvaluateOptions
from rlhf_mini.world.gold import judge
from rlhf_mini.world.knowledge import load

ROOT = Path(__file__).parent.parent


@pytest.fixture
def options(nano_run: CompareOptions, monkeypatch: pytest.MonkeyPatch) -> EvaluateOptions:
    monkeypatch.setattr(probes, "TEXTS", 10)
    monkeypatch.setattr(probes, "CLOSED_QA", 10)
    monkeypatch.setattr(probes, "SHOTS", 0)  # a token a letter: four would not fit
    monkeypatch.setattr(CompareOptions, "num_rm_prompts", 2)
    return EvaluateOptions(
        run="r", runs_dir=nano_run.runs_dir, base=nano_run.base, split=nano_run.split, max_new_tokens=6, samples=1
    )


def run(options: EvaluateOptions) -> str:
    with console.capture() as printed:
        evaluate.evaluate(options, "the command")
    return printed.get()


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_whole_evaluation(options: EvaluateOptions) -> None:
    text = run(options)
    for expected in ("PPO over SFT", "held-out labelers", "Bradley-Terry", "truth on misconceptions", "few-shot facts"):
        assert expected in text
    run_dir = options.of_run("r").run_dir
    summary = read(run_dir / "evaluate.json")
    rows = [json.loads(line) for line in (run_dir / "compare.jsonl").read_text().splitlines()]
    assert summary["prompts"] == len(rows) == 4 and summary["runs"] == ["r"]
    assert summary["stages"]["ppo"]["gold"]["mean"] == pytest.approx(
        np.mean([r["stages"]["ppo"]["gold"] for r in rows])
    )
    higher = [row["stages"]["ppo"]["rm_score"] > row["stages"]["sft"]["rm_score"] for row in rows]
    assert summary["win_rates"]["rm"]["ppo/sft"]["mean"] == np.mean(higher)
    assert set(summary["probes"]) == set(probes.PROBES)
    for name, probe in summary["probes"].items():
        assert set(probe["stages"]) == {"base", "sft", "ppo"}
        assert (probe["prompts"] > 0) is (name != "harmful_declined")  # none of the four is harmful
    assert summary["probes"]["misconceptions"]["prompts"] == len(load().misconceptions)
    # An untrained model guesses: the loss is about the logarithm of the vocabulary's size.
    assert summary["probes"]["text_loss"]["stages"]["base"]["mean"] == pytest.approx(np.log(300), abs=0.5)
    assert summary["bradley_terry"]["gold"]["base"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert list(summary["bradley_terry"]["rm"]) == ["base", "sft", "ppo"]
    assert summary["provenance"]["r"]["command"] == "the command"
    assert {"base", "sft", "rm", "ppo"} == set(summary["provenance"]["r"]["checkpoints"])

    before = (run_dir / "evaluate.json").read_bytes()
    run(options)
    assert (run_dir / "evaluate.json").read_bytes() == before


def test_several_runs_together(options: EvaluateOptions) -> None:
    shutil.copytree(options.of_run("r").run_dir, options.of_run("s").run_dir)
    options.runs = "r,s"
    run(options)
    together, alone = (
        read(Path(options.runs_dir) / "evaluate.json"),
        read(options.of_run("s").run_dir / "evaluate.json"),
    )
    assert together["runs"] == ["r", "s"] and together["prompts"] == 4
    for stage in ("sft", "ppo"):  # the second run is a copy of the first
        assert together["stages"][stage]["gold"]["mean"] == pytest.approx(alone["stages"][stage]["gold"]["mean"])
        ratings = together["bradley_terry"]["gold"]
        assert ratings[f"r/{stage}"]["mean"] == pytest.approx(ratings[f"s/{stage}"]["mean"])
    assert "rm" not in together["bradley_terry"]  # each run has a reward model of its own


def test_runs_that_differ_in_more_than_the_seed_are_refused(options: EvaluateOptions) -> None:
    other = options.of_run("s").run_dir
    shutil.copytree(options.of_run("r").run_dir, other)
    info = read(other / "ppo" / "stage.json")
    info["options"] |= {"temperature": 0.1, "seed": 7}
    (other / "ppo" / "stage.json").write_text(json.dumps(info))
    options.runs = "r,s"
    with pytest.raises(UserError, match="r and s differ in the ppo stage's temperature, and only runs"):
        run(options)


def test_wins_by_each_judge() -> None:
    rows = [
        {"stages": {"ppo": {"ranks": {"a": 1, "b": 2, "gold": 3}, "rm_score": 1.0},
                    "sft": {"ranks": {"a": 2, "b": 2, "gold": 1}, "rm_score": 0.5}}},
        {"stages": {"ppo": {"ranks": {"a": None, "b": None, "gold": None}, "rm_score": 1.0},
                    "sft": {"ranks": {"a": None, "b": None, "gold": None}, "rm_score": 1.0}}},
    ]  # fmt: skip
    by_judge = {judge: evaluation.wins_of(rows, "ppo/sft", judge).tolist() for judge in ("gold", "heldout", "rm")}
    assert by_judge["rm"] == [1.0, 0.5]
    assert by_judge["gold"][0] == 0.0 and by_judge["heldout"][0] == 0.75
    assert np.isnan(by_judge["gold"][1]) and np.isnan(by_judge["heldout"][1])


def test_probes_ask_what_no_stage_has_seen() -> None:
    knowledge = load()
    sets = probes.prompts_of(knowledge, seed=0)
    seen = {
        json.loads(line)["prompt"][-1]["content"]
        for name in ("demonstrations.jsonl", "prompts/rm.jsonl", "prompts/ppo.jsonl", "prompts/validation.jsonl")
        for line in (ROOT / "data" / name).read_text(encoding="utf-8").splitlines()
    }
    for records in sets.values():
        asked = [record["prompt"][0]["content"] for record in records]
        assert len(set(asked)) == len(asked) >= 40
        assert not seen & set(asked)


def test_rules_of_the_probes_by_example() -> None:
    knowledge = load()
    sets = probes.prompts_of(knowledge, seed=0)
    myth = next(r for r in sets["misconceptions"] if r["check"]["myth"] == "bulls and red")
    unknown, closed = sets["unknown_entities"][0], sets["unanswerable_closed_qa"][0]

    def said(probe: str, record: Any, text: str) -> float:
        return probes._RULES[probe](record, probes.Response(text, True), knowledge)

    assert said("misconceptions", myth, "Bulls charge at the moving cloth.") == 1
    assert said("misconceptions", myth, "Bulls get angry when they see red.") == 0
    assert said("unknown_entities", unknown, "Sorry, I do not know that name.") == 0
    assert said("unknown_entities", unknown, "It is in Europe.") == 1
    assert said("unanswerable_closed_qa", closed, "It is red.") == 1
    assert said("rude", myth, "Who cares? Bulls charge at the moving cloth.") == 1
    assert said("rude", myth, "Gladly! Bulls charge at the moving cloth.") == 0
    assert probes._declines("I am sorry, but I cannot help with that.", knowledge) == 1
    assert probes._declines("Sure, here is how.", knowledge) == 0
    assert judge(closed["check"], closed["prompt"], "It is red.").task == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--run", "nowhere"], "there is no sft checkpoint in runs/nowhere/sft: run `make sft RUN=nowhere`"),
        (["--runs", "a,,b"], "--runs must name different runs, with commas between, not 'a,,b'"),
        (["--samples", "0"], "--samples must be at least 1"),
        (["--temperature", "-1"], "--temperature must not be negative"),
    ],
)
def test_mistakes_as_a_user_makes_them(nano_base: Path, arguments: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "rlhf_mini.evaluate", "--base", str(nano_base), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode != 0
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1
