"""Whatever a user types, and whatever a file holds, ends in a result or in one sentence.

The suite tries a few hundred cases, always the same ones. At night, try more, and others:

    make nightly        # 2,000 sets of options and 10,000 files
"""

import io
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.bench import BenchOptions
from rlhf_mini.chat.options import ChatOptions
from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.checkpoints import load_checkpoint, save_checkpoint, writing
from rlhf_mini.core.console import UserError, console, printable
from rlhf_mini.core.examples import (
    read_demonstrations,
    read_preferences,
    read_prompts,
    read_rankings,
    read_texts,
)
from rlhf_mini.core.files import plain, read_json, read_jsonl
from rlhf_mini.core.options import parse_options
from rlhf_mini.core.resume import Resume
from rlhf_mini.doctor.__main__ import diagnose
from rlhf_mini.evaluation.compare import CompareOptions
from rlhf_mini.evaluation.evaluate import EvaluateOptions
from rlhf_mini.evaluation.overopt.__main__ import OveroptOptions
from rlhf_mini.evaluation.schema import (
    Curve,
    Evaluation,
    Fit,
    Group,
    Point,
    PooledEvaluation,
    Provenance,
    Scenario,
    Spent,
    Start,
    Study,
    Summary,
    Training,
    Weights,
    read,
)
from rlhf_mini.report.page import ReportOptions, read_rows
from stages.ppo.options import PPOOptions
from stages.rm.options import RMOptions
from stages.sft.options import SFTOptions

NIGHTLY = os.environ.get("FUZZ") == "nightly"


def times(suite: int, nightly: int) -> settings:
    return settings(
        max_examples=nightly if NIGHTLY else suite, derandomize=not NIGHTLY, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


# --- options ---------------------------------------------------------------------------------------------------------

OPTIONS = [
    SFTOptions, RMOptions, PPOOptions, CompareOptions, EvaluateOptions, OveroptOptions, ReportOptions, ChatOptions,
    BenchOptions,
]  # fmt: skip
VALUES = [
    "", " ", "0", "1", "-1", "2", "8", "0.5", "-0.5", "1.5", "1e400", "nan", "-inf", "1e-3", "5000000000", "4294967296",
    "9" * 4999, "0x10", "1_000", "\u0663", "true", "no", "None", "null", "cpu", "auto", "stop", "warn", "sft,ppo",
    "base", "a,a", "a,,b", ",", ".", "..", "../x", "/tmp/x", "a/b", "a:b", "\udcff", "\ud800", "--run", "-x",
    "--", "=", "a\nb",
    "\x1b[31m", "\0", "{name}", "%s", "\N{GRINNING FACE}", "x" * 5000, "0.1,0.02", "nan,1", "-1,1", "absent.yaml",
]  # fmt: skip
# What YAML files have in them besides.
ODD_YAML = [
    "2020-13-45", "!!int x", "!!bool x", "!!timestamp x", "!!float x", "!!binary x", "!!python/object:os.system [ls]",
    "*a", "&a [*a]", "[" * 3000, "{a: 1}", "[1]", "~", "0o17", "1:60", "0x" + "f" * 5000, "|\n  x", ">-\n  y", '"\\0"',
    '"\\ud800"', "'", "\t", "<<: 3", "? [1]", "2001-01-01", ".inf", "-.nan", "1" * 5000, "- a", "%YAML 9.9", "@", "`",
]  # fmt: skip


def arguments(cls: type[Any]) -> st.SearchStrategy[list[str]]:
    names = [field.name for field in fields(cls)]
    flag = st.sampled_from(
        [f"--{name}" for name in [*names, *(f"no_{name}" for name in names), "config", "odd", "x y"]]
    )
    value = st.one_of(
        st.sampled_from(VALUES), st.text(max_size=8), st.integers().map(str), st.floats().map(str),
        st.integers(0, 9).map(str),
    )  # fmt: skip
    joined = st.builds("{}={}".format, flag, value)
    pair = st.tuples(flag, value)
    item = st.one_of(pair, pair, pair, joined.map(lambda one: (one,)), flag.map(lambda one: (one,)), st.tuples(value))
    return st.lists(item, max_size=5).map(lambda items: [word for item in items for word in item])


def check_parsed(cls: type[Any], argv: list[str]) -> None:
    """Options, or one line on stderr and status 2."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            options = parse_options(cls, argv)
    except SystemExit as stop:
        told = err.getvalue()
        if stop.code == 0:
            assert {"--help", "-h"} & set(argv)
            return
        assert stop.code == 2, (stop.code, told)
        assert told.startswith("error: ") and told.endswith(" (--help lists the options)\n")
        assert told.count("\n") == 1 and printable(told) == told and len(told) < 20_000
        return
    assert isinstance(options, cls)
    json.dumps(plain(asdict(options)), ensure_ascii=False, allow_nan=False).encode()  # as stage.json records them
    assert Path(options.runs_dir) / options.run == Path(options.runs_dir, options.run)
    assert Path(options.run).name == options.run and options.run not in ("", ".", "..")
    if hasattr(options, "seed"):
        torch.manual_seed(options.seed)
        assert 0 <= options.seed < 2**32


@given(case=st.sampled_from(OPTIONS).flatmap(lambda cls: st.tuples(st.just(cls), arguments(cls))))
@times(150, 2000)
def test_any_command_line(case: tuple[type[Any], list[str]]) -> None:
    check_parsed(*case)


@given(seed=st.integers(0, 2**32))
@times(150, 2000)
def test_any_config_file(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = random.Random(seed)
    cls = rng.choice(OPTIONS)
    names = [field.name for field in fields(cls)]
    lines = [
        f"{rng.choice([*names, 'odd', '3', '[1]'])}: {rng.choice([*ODD_YAML, *VALUES])}"
        for _ in range(rng.randint(0, 3))
    ]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        content = damage(content, rng)
    elif rng.random() < 0.3:
        content = yaml.safe_dump({rng.choice(names): odd_value(rng)}).encode("utf-8", "surrogatepass")
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    check_parsed(cls, ["--config", str(path)])


# --- files -----------------------------------------------------------------------------------------------------------


def damage(content: bytes, rng: random.Random) -> bytes:
    """Truncates it, changes some bytes, or puts others in."""
    at = rng.randrange(len(content) + 1)
    kind = rng.randrange(5)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + rng.randbytes(rng.randint(1, 9)) + content[at + 1 :]
    if kind == 2:
        return (
            content[:at] + rng.choice([b"\0", b"\xff", b"\n", b"\xed\xa0\x80", b"\\ud800", b"]", b'"']) + content[at:]
        )
    if kind == 3:
        return rng.randbytes(rng.randint(0, 40))
    return content[:at] + content[rng.randrange(len(content) + 1) :]


class Raw:
    """A value that is written as this text, not as JSON would write it."""

    def __init__(self, text: str) -> None:
        self.text = text


def odd_value(rng: random.Random) -> Any:
    deep: Any = 0
    for _ in range(rng.choice([3, 200])):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return rng.choice(
        [
            None, True, False, 0, -1, 1, 0.5, 10**30, -(10**400), 1e308, math.nan, math.inf, "", "a", "\0", "\ud800",
            "\udfff\ud800", "\x1b[2J", "/dev/null", "../..", "x" * 300, [], {}, [None], [[]], [0, "a"], {"": {}}, deep,
            {"mean": None, "low": 1, "high": "2"}, {"share": True, "low": None, "high": 3},
        ]
    )  # fmt: skip


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy in which one thing, anywhere, is another or is gone."""
    if rng.random() < 0.15 or not isinstance(value, (dict, list)) or not value:
        return odd_value(rng)
    copy = value.copy()
    key: Any = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    if rng.random() < 0.15:
        del copy[key]
    elif rng.random() < 0.05:
        (copy.update if isinstance(copy, dict) else copy.extend)({rng.choice(["a", "\ud800", "\0"]): odd_value(rng)})
    else:
        copy[key] = mutated(copy[key], rng)
    return copy


def broken(value: Any, rng: random.Random) -> bytes:
    """The JSON of something like `value`, mostly."""
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        value = mutated(value, rng)
    content = json.dumps(value).encode()
    if rng.random() < 0.03:
        content = b"[" * 100_000 if rng.random() < 0.5 else b'{"a": ' * 100_000
    return damage(content, rng) if rng.random() < 0.3 else content


def estimate(mean: float) -> Estimate:
    return Estimate(mean, mean - 0.1, mean + 0.1)


MEASURES = {name: estimate(0.5) for name in ("gold", "rm_score", "gold_minus_sft", "kl", "words", "eos", "wins/gold")}
BY_STAGE = {stage: MEASURES for stage in ("base", "sft", "ppo")}
PROVENANCE = Provenance(
    "make", {"temperature": 0.7}, {"ppo": Weights("runs/r/ppo", "0" * 64, 0)}, "1", "2", {"torch": "2"}
)
SUMMARY = Summary(
    headline={"kl": estimate(1)}, use_cases_below_sft=["a"], cost={"sft": Spent(1.0, 2.0)},
    groups={"all": Group(3, BY_STAGE)}, demonstrated_tokens={"all": 9.0}, provenance=PROVENANCE,
)  # fmt: skip
EVALUATION = Evaluation(
    runs=["r"], prompts=3, bradley_terry={"gold": {"base": estimate(0)}}, by_run={"r": {"gold": {"sft": estimate(0)}}},
    provenance={"r": PROVENANCE}, options={"seed": 0},
)  # fmt: skip
POINT = Point(kl=1.0, proxy=estimate(1), gold=estimate(0), n=4)
CURVE = Curve(points=[POINT], fall=estimate(0), fit={"gold": Fit(1.0, math.nan, 0.1, 0.5)})
STUDY = Study(
    prompts=3, provenance={"ppo_sha256": "0"},
    scenarios=[Scenario(name="a", title="b", what="c", proxy_name="d", rm={"sha256": "0"}, sft=Start(0.0, 0.1),
                        recipe=POINT, best_of_n=CURVE, ppo=[Training(**vars(CURVE), kl_coef=0.1, default=True)])],
)  # fmt: skip
ASKED = [{"role": "user", "content": "Hi"}]
SAID = [{"role": "assistant", "content": "Hello."}]
EXAMPLES: dict[Callable[[Path], Any], dict[str, Any]] = {
    read_demonstrations: {"prompt": ASKED, "completion": SAID, "id": "1"},
    read_prompts: {"prompt": [*ASKED, *SAID, *ASKED], "check": {"max_words": 3}},
    read_rankings: {"prompt": ASKED, "responses": ["a", "b"], "ranks": [1, 2], "ended": [True, False], "labeler": "x"},
    read_preferences: {"prompt": ASKED, "chosen": SAID, "rejected": SAID},
    read_texts: {"text": "Hi"},
}
ANSWER = {"response": "Hi", "ended": True, "tokens": 2, "ids": [1, 2], "rm_score": 0.5, "gold": None, "parts": None}
ROW = {"prompt": ASKED, "use_case": "a", "stages": {stage: ANSWER for stage in ("base", "sft", "ppo")}}
METRICS: dict[str, dict[str, Any]] = {
    "sft": {"step": 1, "loss/demonstrations": 1.0, "eval_loss": 2.0, "learning_rate": 0.1},
    "rm": {"step": 1, "loss": 0.5, "accuracy": 0.6, "learning_rate": 0.1},
    "ppo": {"step": 1, "objective/kl": 1.0, "objective/scores": 1.0, "objective/scores_std": 1.0,
            "response/length": 9.0, "objective/entropy": 9.0, "response/eos_rate": 1.0,
            "policy/clip_fraction": 0.1, "learning_rate": 0.1,
            "policy/first_ratio_error": 0.0, "value/explained_variance": 0.5},
}  # fmt: skip
SHARE = {"share": 0.6, "low": 0.5, "high": 0.7, "pairs": 9}
FINAL = {"accuracy/training": SHARE, "agreement/training": SHARE, "score_std": 0.5, "content/own_answer/seen": SHARE,
         "content/other_kind/seen": SHARE}  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(_nano_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with its files as they should be."""
    run_dir = tmp_path_factory.mktemp("fuzz") / "r"
    shutil.copytree(_nano_base, run_dir.parent / "base")
    parents = [load_checkpoint(run_dir.parent / "base", "base")]
    for stage in METRICS:
        with writing(run_dir, stage) as folder:
            save_checkpoint(
                folder, stage=stage, model=AutoModelForCausalLM.from_pretrained(_nano_base), metrics=FINAL, seed=0,
                tokenizer=AutoTokenizer.from_pretrained(_nano_base), options=PPOOptions(), started=0.0, parents=parents,
            )  # fmt: skip
            (folder / "metrics.jsonl").write_text("".join(json.dumps(METRICS[stage]) + "\n" for _ in range(30)))
        parents = [*parents, load_checkpoint(run_dir / stage, stage)]
    (run_dir / "compare.json").write_text(json.dumps(plain(SUMMARY)))
    with console.capture():
        yield run_dir


def with_file(run_dir: Path, path: Path, content: bytes, use: Callable[[], Any]) -> None:
    """A result or a sentence of `use`, while the file holds `content`."""
    before = path.read_bytes() if path.is_file() else None
    path.write_bytes(content)
    try:
        use()
    except UserError as fault:
        assert str(fault) and "\n" not in str(fault) and len(str(fault)) < 2000
    finally:
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)


def break_examples(run_dir: Path, rng: random.Random) -> None:
    reader, example = rng.choice(list(EXAMPLES.items()))
    lines = [json.dumps(example).encode(), broken(example, rng)]
    path = run_dir / "examples.jsonl"
    with_file(run_dir, path, b"\n".join(lines), lambda: json.dumps(reader(path), ensure_ascii=False).encode())


def break_own_files(run_dir: Path, rng: random.Random) -> None:
    path = run_dir / "own.json"
    with_file(run_dir, path, broken(plain(SUMMARY), rng), lambda: (read_json(path), read_jsonl(path)))


def break_stage_json(run_dir: Path, rng: random.Random) -> None:
    stage = rng.choice(list(METRICS))
    path, sft = run_dir / stage / "stage.json", load_checkpoint(run_dir / "sft", "sft")
    content = broken(json.loads(path.read_text()), rng)
    with_file(run_dir, path, content, lambda: (load_checkpoint(run_dir / stage, stage, of=sft), diagnose(run_dir)))
    with_file(run_dir, path, content, lambda: diagnose(run_dir))


def break_results(run_dir: Path, rng: random.Random) -> None:
    kind, value = rng.choice(
        [(Summary, SUMMARY), (Evaluation, EVALUATION), (PooledEvaluation, EVALUATION), (Study, STUDY)]
    )
    path = run_dir / "results.json"
    with_file(run_dir, path, broken(plain(value), rng), lambda: read(kind, path, "run `make x`"))


def break_comparison(run_dir: Path, rng: random.Random) -> None:
    path, value = run_dir / "compare.json", plain(SUMMARY)
    value["provenance"]["checkpoints"]["ppo"]["sha256"] = load_checkpoint(run_dir / "ppo", "ppo").sha256
    with_file(run_dir, path, broken(value, rng), lambda: diagnose(run_dir))


def break_metrics(run_dir: Path, rng: random.Random) -> None:
    stage = rng.choice(list(METRICS))
    lines = [broken(METRICS[stage], rng) for _ in range(rng.randint(1, 30))]
    with_file(run_dir, run_dir / stage / "metrics.jsonl", b"\n".join([*lines, b""]), lambda: diagnose(run_dir))


def break_rows(run_dir: Path, rng: random.Random) -> None:
    lines = [json.dumps(ROW).encode(), broken(ROW, rng)]
    with_file(run_dir, run_dir / "compare.jsonl", b"\n".join(lines), lambda: read_rows(run_dir))


def break_resume(run_dir: Path, rng: random.Random) -> None:
    resume = Resume(run_dir, "ppo", {"--seed": 0}, 0.0)
    resume.save(run_dir / "ppo", 3, {"policy": {"w": torch.zeros(2)}}, {"kl_coef": 0.1})
    content = damage(resume.path.read_bytes(), rng)
    if rng.random() < 0.5:  # whole, but of something else
        info = broken({"command": {"--seed": 0}, "step": 3, "seconds": 1.0, "state": {}}, rng)
        content = forged_resume_file(info.decode("utf-8", "replace"))
    folder = run_dir / "resumed"
    folder.mkdir(exist_ok=True)
    with_file(run_dir, resume.path, content, lambda: resume.load(folder))


def forged_resume_file(info: str) -> bytes:
    import safetensors.torch

    from rlhf_mini.core import resume

    flat = {"policy/w": torch.zeros(2)}
    metadata = {"format": str(resume.FORMAT), "info": info, "sha256": resume._digest(info, flat)}
    return bytes(safetensors.torch.save(flat, metadata))


BREAKS = [break_examples, break_own_files, break_stage_json, break_results, break_comparison, break_metrics, break_rows,
          break_resume]  # fmt: skip


@pytest.mark.parametrize("break_file", BREAKS, ids=lambda each: each.__name__)
@given(seed=st.integers(0, 2**32))
@times(40, 10_000 // len(BREAKS))
def test_any_file(break_file: Callable[[Path, random.Random], None], seed: int, run_dir: Path) -> None:
    break_file(run_dir, random.Random(seed))


def test_what_is_not_broken_is_read(run_dir: Path) -> None:
    """Otherwise the tests above might only see refusals."""
    for reader, example in EXAMPLES.items():
        (run_dir / "whole.jsonl").write_text(json.dumps(example))
        assert len(reader(run_dir / "whole.jsonl")) == 1
    load_checkpoint(run_dir / "ppo", "ppo", of=load_checkpoint(run_dir / "rm", "rm"))
    for kind, value in ((Summary, SUMMARY), (Evaluation, EVALUATION), (Study, STUDY)):
        (run_dir / "whole.json").write_text(json.dumps(plain(value)))
        assert isinstance(read(kind, run_dir / "whole.json", ""), kind)
    diagnose(run_dir)
