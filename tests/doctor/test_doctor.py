"""`python -m rlhf_mini.doctor` on small real runs: each is broken in one way, and the doctor names the fault."""

import dataclasses
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Messages, Prompt, Response
from rlhf_mini.core.files import read_json, write_jsonl
from rlhf_mini.doctor import checks
from rlhf_mini.doctor.__main__ import diagnose
from rlhf_mini.doctor.checks import Finding
from rlhf_mini.evaluation.compare import CompareOptions, compare
from stages.ppo import train
from stages.ppo.models import Models, load_models
from stages.ppo.options import PPOOptions
from stages.rm.options import RMOptions
from stages.rm.train import train_rm
from stages.sft.options import SFTOptions
from stages.sft.train import train_sft

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
WORDS = ["it", "is", "green"]


# --- small runs ------------------------------------------------------------------------------------------------------


@dataclass
class Likes:
    """A labeler who prefers the response with the higher `worth`."""

    worth: Callable[[str], float]
    name: str = "toy"

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        values = [self.worth(response.text) for response in responses]
        return [1 + sum(other > value for other in values) for value in values]


def likes_green() -> list[Likes]:
    return 2 * [Likes(green)]


def likes_length() -> list[Likes]:
    return 2 * [Likes(len)]


def dice() -> list[Likes]:
    rng = random.Random(0)
    return 2 * [Likes(lambda text: rng.random())]


def green(text: str) -> float:
    """1 for a response that begins with "green"."""
    return float(text.startswith("green"))


def greens(prompts: list[Messages], responses: list[str]) -> list[float]:
    return [green(response) for response in responses]


def lengths(prompts: list[Messages], responses: list[str]) -> list[float]:
    return [float(len(response)) for response in responses]


def prompt(number: int) -> Prompt:
    check = {"repeat": {"word": "it", "n": 1}, "max_words": 9}
    return {"id": f"p-{number}", "use_case": "other", "novel": "none", "check": check,
            "prompt": [{"role": "user", "content": f"Say {number}"}]}  # fmt: skip


@pytest.fixture(scope="module")
def world(_nano_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with examples, and in runs/t a reward model and an SFT model whose responses are short and end."""
    folder = tmp_path_factory.mktemp("doctor")
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 7))) for _ in range(200)]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    both = zip(completions, range(200), strict=True)
    write_jsonl(folder / "demonstrations.jsonl", [{**prompt(n), "completion": said} for said, n in both])
    write_jsonl(folder / "prompts.jsonl", [prompt(n) for n in range(1000, 1080)])
    write_jsonl(folder / "validation.jsonl", [prompt(n) for n in range(2000, 2030)])
    write_jsonl(folder / "texts.jsonl", [{"text": "it is green"} for _ in range(20)])
    shutil.copytree(_nano_base, folder / "base")
    train_sft(sft_options(folder))
    train_rm(rm_options(folder))
    return folder


@pytest.fixture
def run(world: Path, tmp_path: Path) -> Path:
    """A copy of the run for one test to break: its folder, next to the examples."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs" / "t"


def sft_options(folder: Path, **changes: Any) -> SFTOptions:
    settings: dict[str, Any] = dict(
        run="t", runs_dir=str(folder / "runs"), base=str(folder / "base"), show_every=0,
        demonstrations=str(folder / "demonstrations.jsonl"), num_train_epochs=4, learning_rate=1e-2, batch_size=8,
        ptx_coef=0.0,
    )  # fmt: skip
    return SFTOptions(**settings | changes)


def rm_options(folder: Path, labelers: str = "likes_green", **changes: Any) -> RMOptions:
    toy = f"{__name__}:{labelers}"
    settings: dict[str, Any] = dict(
        run="t", runs_dir=str(folder / "runs"), prompts=str(folder / "prompts.jsonl"), batch_size=8,
        validation=str(folder / "validation.jsonl"), demonstrations=str(folder / "demonstrations.jsonl"),
        labelers=toy, heldout_labelers=toy, gold_labeler=toy, content="", num_train_epochs=4, learning_rate=5e-3,
        max_new_tokens=16, init="sft", base="", exchange=False, num_responses=4, num_samples=4, likelihood=False,
    )  # fmt: skip
    return RMOptions(**settings | changes)


def ppo(run: Path, **changes: Any) -> None:
    """A short PPO run; healthy without `changes`."""
    folder = run.parent.parent
    settings: dict[str, Any] = dict(
        run="t", runs_dir=str(run.parent), prompts=str(folder / "prompts.jsonl"), ptx_texts=str(folder / "texts.jsonl"),
        validation_prompts=str(folder / "validation.jsonl"), updates=12, episodes=32,
        num_minibatches=4, num_ppo_epochs=2, max_new_tokens=16, temperature=1.0, warmup_updates=2, learning_rate=1e-3,
        kl_coef=0.5, value_learning_rate=3e-3, clip_range_value=1.0, evaluation_prompts=8, save_steps=0,
    )  # fmt: skip
    train.train_ppo(PPOOptions(**settings | changes))


def doctor(run: Path) -> dict[str, str]:
    """What the doctor prints about each stage, one finding per line."""
    with console.capture() as printed:
        well = diagnose(run)
    text = re.sub(r"\n {25}", " ", printed.get())  # joins wrapped table cells
    text = "\n".join(" ".join(line.split()) for line in text.splitlines())
    assert well == (re.search("^fail", text, re.M) is None)
    parts = re.split(r"\n\n", text.strip())
    return {part[: part.index(":")]: part for part in parts}


def problems(text: str) -> set[str]:
    """The names of the checks that did not pass."""
    return {line.split()[1] for line in text.splitlines() if line.startswith(("warn", "fail"))}


# --- each fault, in a run that really has it -------------------------------------------------------------------------


def test_a_healthy_run_passes(run: Path) -> None:
    ppo(run)
    said = doctor(run)
    assert all(f"\n{level} " not in text for text in said.values() for level in ("warn", "fail"))
    assert (
        "12 iterations" in said["ppo"]
        and "todo gold not measured yet: `python -m rlhf_mini.evaluation.compare" in said["ppo"]
    )


def test_rm_near_50_percent(run: Path) -> None:
    folder = run.parent.parent
    many = [prompt(n) for n in range(2000, 2300)]  # with thirty, chance alone exceeds the doctor's 55 % now and then
    write_jsonl(folder / "many.jsonl", many)
    train_rm(rm_options(folder, "dice", validation=str(folder / "many.jsonl")))
    said = doctor(run)
    assert re.search(
        r"^fail accuracy .*near 50 %, no better than chance.*agree with each other on only \d\d%", said["rm"], re.M
    )
    assert not problems(said["sft"])


def test_rm_that_overfits(run: Path) -> None:
    train_rm(rm_options(run.parent.parent, "dice", num_prompts=16, num_train_epochs=60.0))
    said = doctor(run)["rm"]
    assert re.search(r"^warn overfitting \d\d% in training, \d\d% on held-out rankings: it overfits", said, re.M)


def test_rm_of_peoples_rankings_is_judged_by_theirs(run: Path) -> None:
    """They dislike what the simulated labelers like."""
    folder, rng = run.parent.parent, random.Random(0)
    said = [["green " + rng.choice(WORDS), rng.choice(["it ", "is "]) + rng.choice(WORDS)] for _ in range(200)]
    people = [{**prompt(n), "responses": both, "ranks": [2, 1]} for n, both in enumerate(said)]
    write_jsonl(folder / "rankings.jsonl", people)
    train_rm(rm_options(folder, rankings=str(folder / "rankings.jsonl")))
    measured = read_json(run / "rm" / "stage.json")["metrics"]
    assert measured["accuracy/rankings"]["share"] > 0.8 and measured["accuracy/training"]["share"] < 0.5
    assert not problems(doctor(run)["rm"]) & {"accuracy", "agreement", "overfitting"}


def test_rm_that_does_not_read_the_prompt(run: Path) -> None:
    said = [[{"role": "assistant", "content": text}] for text in ("it is", "is it")]  # "green" never comes first
    pairs = [prompt(n) | {"kind": "own_answer", "chosen": said[n % 2], "rejected": said[1 - n % 2]} for n in range(80)]
    write_jsonl(run.parent.parent / "content.jsonl", pairs)
    train_rm(rm_options(run.parent.parent, content=str(run.parent.parent / "content.jsonl")))
    said_of_rm = doctor(run)["rm"]
    assert problems(said_of_rm) == {"reading"}
    assert re.search(
        r"^warn reading .* hardly reads the prompt try: --rankings whose .* and more steps", said_of_rm, re.M
    )


def test_rm_trained_on_another_sft(run: Path) -> None:
    ppo(run, updates=2)
    train_sft(sft_options(run.parent.parent, seed=1))
    said = doctor(run)
    for stage in ("rm", "ppo"):
        remedy = f"run `python -m stages.{stage} "
        assert re.search(f"^fail SFT checkpoint trained from another SFT.* try: {remedy}", said[stage], re.M)
    assert problems(said["rm"]) == {"SFT"} and "pass RM checkpoint" in said["ppo"]


def test_kl_blow_up(run: Path) -> None:
    # Long responses have room for more nats than the few tokens of "green".
    ppo(run, reward=f"{__name__}:lengths", kl_coef=0.0, learning_rate=5e-2, max_kl=0.0, min_entropy=0.0)
    assert re.search(
        r"^fail KL \d+\.\d nats per response .*KL blow-up.* try: a higher --kl_coef", doctor(run)["ppo"], re.M
    )


def test_kl_blow_up_that_stopped_the_stage(run: Path) -> None:
    with pytest.raises(UserError, match="above --max_kl"):
        ppo(run, kl_coef=0.0, learning_rate=5e-2, max_kl=20.0, min_entropy=0.0)
    said = doctor(run)["ppo"]
    assert "ppo.last_good)" in said and "fail learning rate" not in said
    assert re.search(r"^fail finished stopped: the KL to the SFT model, .* is above --max_kl in update \d", said, re.M)
    assert re.search(r"^fail KL .*\(at most 20\): KL blow-up", said, re.M)


def test_persistently_negative_kl(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Responses are sampled, and scored by the reference, at temperature 0.5, but scored by the policy at 1."""
    loaded: list[Models] = []
    sample, response_logprobs = train.sampling.sample, train.scoring.response_logprobs

    def load_and_keep(*arguments: Any) -> Models:
        loaded.append(load_models(*arguments))
        return loaded[0]

    def policy_at_1(
        model: Any, prompts: Any, responses: Any, temperature: float = 1.0, *others: Any, **named: Any
    ) -> Any:
        own = model is loaded[0].policy
        return response_logprobs(model, prompts, responses, 1.0 if own else temperature, *others, **named)

    def sample_and_score_at_1(model: Any, prompts: Any, **settings: Any) -> Any:
        sampled = sample(model, prompts, **settings)
        rescored = response_logprobs(model, prompts, sampled.response_ids, 1.0)
        return dataclasses.replace(sampled, logprobs=rescored.logprobs)

    monkeypatch.setattr("stages.ppo.run.load_models", load_and_keep)
    monkeypatch.setattr(train.scoring, "response_logprobs", policy_at_1)
    monkeypatch.setattr(train.sampling, "sample", sample_and_score_at_1)
    ppo(run, temperature=0.5, learning_rate=1e-5, updates=6)
    said = doctor(run)["ppo"]
    assert re.search(r"^fail KL sign -.*persistently negative.* try: sample from the full distribution", said, re.M)
    assert re.search(r"^fail first KL -", said, re.M) and "pass ratio" in said


def test_entropy_collapse(run: Path) -> None:
    with pytest.raises(UserError, match="below --min_entropy"):
        ppo(run, reward="stages.ppo.rewards:short", kl_coef=0.0, learning_rate=3e-3, updates=30, min_entropy=0.05)
    said = doctor(run)["ppo"]
    assert re.search(r"^fail entropy .*entropy collapse.* try: a higher --kl_coef", said, re.M)
    assert re.search(r"^fail length .*length drift", said, re.M)  # to a single token
    assert "pass eos 100%" in said and "pass KL" in said


def test_no_eos_length_drift_and_gold_that_falls(run: Path) -> None:
    """Labelers prefer long responses, the reward model learns it, and no KL penalty holds PPO back."""
    folder = run.parent.parent
    train_rm(rm_options(folder, "likes_length"))
    ppo(run, kl_coef=0.0, missing_eos_penalty=0.0, learning_rate=2e-3)
    options = CompareOptions(
        run="t", runs_dir=str(run.parent), base=str(folder / "base"), split=str(folder / "validation.jsonl"),
        demonstrations=str(folder / "demonstrations.jsonl"), show=0, max_new_tokens=16, temperature=1.0,
    )  # fmt: skip
    with console.capture():
        compare(options, "")
    said = doctor(run)["ppo"]
    assert re.search(r"^fail eos .*have no eos, they are truncated", said, re.M)
    assert re.search(r"^fail length .*length drift.* do longer ones score higher\?", said, re.M)
    assert re.search(
        r"^fail gold .*the reward rises while gold falls, so PPO exploits the reward model try: a higher --kl_coef",
        said,
        re.M,
    )
    assert "pass score" in said and "pass ratio" in said
    ppo(run, updates=2)
    assert "todo gold compare.json is of another PPO checkpoint" in doctor(run)["ppo"]


def test_ratio_away_from_1(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_dropout(*arguments: Any) -> Models:
        loaded = load_models(*arguments)
        for module in loaded.policy.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        loaded.policy.train()
        return loaded

    monkeypatch.setattr("stages.ppo.run.load_models", with_dropout)
    ppo(run, updates=4)
    assert re.search(r"^fail ratio .*away from 1.* try: no dropout", doctor(run)["ppo"], re.M)


def test_value_model_that_explains_nothing(run: Path) -> None:
    ppo(run, reward=f"{__name__}:greens", value_learning_rate=1e-12)
    said = doctor(run)["ppo"]
    assert re.search(r"^fail value model explains -.*explains nothing.* try: another --value_learning_rate", said, re.M)
    assert "gold" not in said  # `compare` needs a PPO of the run's own reward model


@pytest.mark.parametrize("rate", [1.0, 0.0])
def test_learning_rate_that_never_moved(run: Path, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.ppo.run.warmup_cosine", lambda *_: rate)
    ppo(run, updates=4)
    said = doctor(run)["ppo"]
    assert re.search(
        r"^fail learning rate .*never changed.* try: check the schedule in rlhf_mini/training/schedule.py", said, re.M
    )
    assert ("it never moved try: a higher --learning_rate" in said) == ("nothing was learned" in said) == (rate == 0)


def test_learning_rate_of_sft_that_never_moved(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_mini.training.loop.warmup_cosine", lambda *_, **__: 1.0)
    train_sft(sft_options(run.parent.parent))
    said = doctor(run)
    assert "fail learning rate 0.01 to 0.01: the learning rate never changed" in said["sft"]
    assert "fail SFT checkpoint trained from another SFT" in said["rm"]


def test_nan_stop_of_sft(run: Path) -> None:
    with pytest.raises(UserError, match="not a finite number"):
        train_sft(sft_options(run.parent.parent, learning_rate=1e30))
    said = doctor(run)
    assert "fail finished stopped: the loss was not a finite number at step" in said["sft"]
    assert "sft.last_good)" in said["sft"] and not problems(said["rm"])


# --- the other checks, on metrics made up by hand --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (checks.finite_metrics([{"loss": 0.5}, {"loss": None}]), "fail"),
        (checks.validation_loss([0.9, 0.9]), "fail"),
        (checks.overfitted_loss([0.5] * 20, [0.9, 0.64]), "pass"),
        (checks.overfitted_loss([0.5] * 20, [0.9, 0.66]), "warn"),
        (checks.accuracy(Estimate(0.3, low=0.2, high=0.4), None), "fail"),
        (checks.accuracy(Estimate(0.7, low=0.4, high=0.9), None), "warn"),  # too few pairs to tell
        (checks.below_agreement(0.66, 0.75), "pass"),
        (checks.below_agreement(0.64, 0.75), "warn"),
        (checks.overfitted_accuracy([0.5] * 9 + [0.9], 0.81), "pass"),
        (checks.overfitted_accuracy([0.5] * 9 + [0.9], 0.79), "warn"),
        (checks.reading(Estimate(0.5, low=0.4, high=0.6), Estimate(0.9, low=0.8, high=1.0)), "warn"),
        (checks.reading(Estimate(0.9, low=0.8, high=1.0), Estimate(0.5, low=0.4, high=0.6)), "warn"),
        (checks.reading(Estimate(0.7, low=0.6, high=0.8), None), "pass"),  # the interval includes the bound
        (checks.reading(None, None), None),  # of an older run
        (checks.score_spread(0.09), "fail"),
        (checks.kl_size([0.0, 16.0], 100.0), "warn"),
        (checks.kl_sign([0.1, -0.4, 0.3, -0.4]), "pass"),  # negative by chance
        (checks.kl_controller([0.1, 0.2, 0.1], [3.0, 1.0, 1.0], 2.0), "pass"),  # up after 3, down after 1
        (checks.kl_controller([0.1, 0.2, 0.3], [3.0, 1.0, 1.0], 2.0), "fail"),  # up after 1
        (checks.kl_controller([0.1, 0.1], [3.0, 1.0], 0.0), None),  # no controller
        (checks.sampling([0.85] * 6, [1.0] * 6), "fail"),
        (checks.sampling([0.95] * 6, [1.0] * 6), "pass"),
        (checks.sampling([0.1, 1.5, 0.1, 1.5, 0.1, 1.5], [1.0] * 6), "pass"),  # by chance
        (checks.sampling([0.5] * 4, [1.0] * 4), None),  # too few
        (checks.eos_rate([0.9, 0.8]), "warn"),
        (checks.eos_rate([0.3, 0.99]), "warn"),  # PPO taught it, SFT should have
        (checks.score_gain([0.0, 0.05], [1.0, 1.0]), "warn"),
        (checks.score_gain([0.0, -0.3], [1.0, 1.0]), "fail"),
        (checks.score_gain([1.0, 1.0], [0.0, 0.0]), "fail"),
        (checks.score_gain([1.0, 1.5], [0.5, 0.0]), "pass"),
        (
            checks.explained_variance([0.5, 0.3, -9.0, -9.0], [1.0, 0.8, 0.0, 0.0]),
            "pass",
        ),  # all scores are the same by then
        (checks.clip_fraction([0.1, 0.4, 0.1]), "warn"),
        (checks.learning_rate([1e-3]), None),
    ],
)
def test_bounds(finding: Finding | None, level: str | None) -> None:
    assert (finding and finding.level) == level
    assert finding is None or bool(finding.advice) == (level != "pass")


def test_options_it_advises_are_those_of_the_stages() -> None:
    text = (ROOT / "rlhf_mini" / "doctor" / "checks.py").read_text(encoding="utf-8")
    fields = {field.name for stage in (SFTOptions, RMOptions, PPOOptions) for field in dataclasses.fields(stage)}
    advised = set(re.findall(r"--(\w+)", text))
    assert len(advised) > 15 and advised <= fields


def test_files_it_advises_to_read_are_there() -> None:
    text = (ROOT / "rlhf_mini" / "doctor" / "checks.py").read_text(encoding="utf-8")
    assert (paths := re.findall(r"[\w/]+/\w+\.py", text))
    assert all((ROOT / path).is_file() for path in paths)


# --- the command -----------------------------------------------------------------------------------------------------


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "rlhf_mini.doctor", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_missing_stage_is_no_failure(run: Path) -> None:
    shutil.rmtree(run / "rm")
    result = command(run)
    assert (result.returncode, result.stderr) == (0, "")
    text = " ".join(result.stdout.split())
    assert "rm: reward model" in text and "todo no checkpoint yet: run `python -m stages.rm --runs_dir" in text


def test_a_running_or_killed_stage(run: Path) -> None:
    (run / "rm").rename(run / "rm.partial")
    (run / "rm.partial" / "stage.json").unlink()
    with (run / "rm.partial" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 11, "lo')  # the last line is being written
    said = doctor(run)["rm"]
    assert "todo finished no, it is still running or was killed; if it was killed, run `python -m stages.rm" in said
    assert "pass learning rate" in said and not problems(said)


def test_the_exit_status_distinguishes_a_failure_from_a_wrong_command(run: Path) -> None:
    info = json.loads((run / "rm" / "stage.json").read_text(encoding="utf-8"))
    info["metrics"]["score_std"] = 0.0
    (run / "rm" / "stage.json").write_text(json.dumps(info), encoding="utf-8")
    assert command(run).returncode == 1
    mistakes = {run / "nowhere": "there is no folder", run / "rm": f"name the run's folder, {run}", "--x": "--x"}
    for argument, sentence in mistakes.items():
        result = command(str(argument))
        assert result.returncode == 2 and sentence in result.stderr
    (run / "rm" / "stage.json").write_text("{", encoding="utf-8")
    result = command(run)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {run}/rm/stage.json is damaged") and result.stderr.count("\n") == 1


def test_help_explains_the_levels_and_the_exit_status() -> None:
    result = command("--help")
    assert result.returncode == 0 and "exit status is 0 if nothing failed" in " ".join(result.stdout.split())
    assert all(f"\n    {level}  " in result.stdout for level in ("pass", "warn", "fail", "todo"))


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("compare.json", '{"groups": {"all": 3}}', "compare.json is damaged"),
        ("compare.json", "[" * 99_999, "compare.json is damaged"),
        ("rm/metrics.jsonl", '{"loss": "\\ud800"}\n', "metrics.jsonl is damaged"),
        ("ppo/stage.json", '{"metrics": []}', "stage.json is damaged"),
        ("sft/stage.json", '{"sha256": 3}', "stage.json is damaged"),
    ],
)
def test_a_damaged_file_is_one_sentence(run: Path, file: str, content: str, sentence: str) -> None:
    shutil.copytree(run / "sft", run / "ppo")
    (run / file).write_text(content)
    with console.capture(), pytest.raises(UserError, match=sentence):
        diagnose(run)


def test_metrics_of_other_types_are_not_measured(run: Path) -> None:
    (run / "rm" / "metrics.jsonl").write_text('{"step": "x", "accuracy": true, "learning_rate": 1e999}\n' * 9)
    assert "0 steps" in doctor(run)["rm"]


def test_bfloat16_may_round_more() -> None:
    errors = [0.0, 0.03]
    exact, rough = checks.first_ratio(errors), checks.first_ratio(errors, "bf16")
    assert exact and exact.level == "fail" and rough and rough.level == "pass"
    lost = checks.first_ratio([2.0], "bf16")
    assert lost and lost.level == "fail"
