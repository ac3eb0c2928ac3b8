"""Options: from the command line, from a file, and what is said about a wrong one."""

import argparse
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError

from rlhf_mini.core.console import UserError
from rlhf_mini.core.options import RunOptions, load_function, option, options, parse_options, parse_seed


@options
class Options(RunOptions):
    kl_coef: float = option(0.1, "Weight of the KL penalty; 10 % of the reward.")
    k: Annotated[int, Ge(2), Le(9)] = option(4, "Responses per prompt.")
    share: Annotated[float, Gt(0), Lt(1)] = option(0.5, "Share held out.")
    whiten: bool = option(True, "Whiten the rewards.")
    show_all: bool = option(False, "Show all samples.")
    device: Literal["cpu", "auto"] = option("cpu", "cpu or auto.")
    reward: str = option("", "A reward function (default: the reward model).")

    def __post_init__(self) -> None:
        if self.k == 7 and self.whiten:
            raise UserError("--k 7 needs --no_whiten")


def message(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused command prints, without the parts that are always the same."""
    with pytest.raises(SystemExit) as stop:
        parse_options(Options, argv)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("error: ") and err.endswith(" (--help lists the options)\n")
    return err.removeprefix("error: ").removesuffix(" (--help lists the options)\n")


# --- where values come from ------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    assert parse_options(Options, []) == Options()
    config = tmp_path / "nano.yaml"
    config.write_text("kl_coef: 1e-3\nk: 9\nwhiten: false\nshow_all: true\nreward: mine:f\nrun: 7\n")
    expected = Options(kl_coef=0.001, k=2, whiten=False, show_all=True, reward="mine:f", run="7")
    assert parse_options(Options, ["--config", str(config), "--k", "2"]) == expected
    assert parse_options(Options, ["--k=2", f"--config={config}"]) == expected


def test_the_command_line_can_correct_the_file(tmp_path: Path) -> None:
    config = tmp_path / "nano.yaml"
    config.write_text("k: 12\n")
    assert parse_options(Options, ["--config", str(config), "--k", "5"]).k == 5


def test_negative_and_empty_values(tmp_path: Path) -> None:
    config = tmp_path / "nano.yaml"
    config.write_text("kl_coef: -2e-3\nrun: '--odd'\n")
    assert parse_options(Options, ["--config", str(config)]) == Options(kl_coef=-0.002, run="--odd")
    config.write_text("# no deviation\n")
    assert parse_options(Options, ["--config", str(config)]) == Options()
    assert parse_options(Options, ["--kl_coef", "-0.5", "--reward=", "--run=--odd"]) == Options(
        kl_coef=-0.5, run="--odd"
    )


def test_hyphens_are_underscores() -> None:
    for spelling in ("--kl_coef", "--kl-coef"):
        assert parse_options(Options, [spelling, "0.5"]) == parse_options(Options, [f"{spelling}=0.5"])
        assert parse_options(Options, [spelling, "0.5"]) == Options(kl_coef=0.5)


def test_flags() -> None:
    for argv in ([], ["--whiten"], ["--whiten", "True"], ["--whiten=true"], ["--no_whiten", "--whiten", "yes"]):
        assert parse_options(Options, argv).whiten is True
    for argv in (["--no_whiten"], ["--no-whiten"], ["--whiten", "False"], ["--whiten=false"], ["--whiten", "no"]):
        assert parse_options(Options, argv).whiten is False
    assert parse_options(Options, ["--show-all", "--k", "3"]) == Options(show_all=True, k=3)
    assert parse_options(Options, ["--show_all", "False"]).show_all is False


def test_the_class_checks_its_values_wherever_they_come_from() -> None:
    assert Options(run="x", runs_dir="y").run_dir == Path("y/x")
    for wrong in ({"k": 1}, {"k": "many"}, {"kl_coef": float("nan")}, {"kl": 0.1}):
        with pytest.raises(ValidationError):
            Options(**wrong)
    with pytest.raises(UserError):
        Options(k=7)


# --- wrong options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--kl", "0.1"], "unknown option --kl"),  # no abbreviations: a later option may begin alike
        (["--no_show_all"], "unknown option --no_show_all"),
        (["stray"], "unknown option stray"),
        (["--k", "many"], "--k must be a whole number, not 'many'"),
        (["--k", "4.5"], "--k must be a whole number, not '4.5'"),
        (["--k", ""], "--k must be a whole number, not ''"),
        (["--k"], "--k needs a value"),
        (["--kl-coef"], "--kl_coef needs a value"),
        (["--no-whiten=1"], "--no_whiten takes no value"),
        (["--k", "12"], "--k must be at most 9, not 12"),
        (["--k", "1"], "--k must be at least 2, not 1"),
        (["--share", "0"], "--share must be greater than 0, not 0"),
        (["--share=1.0"], "--share must be less than 1, not 1.0"),
        (["--kl_coef", "much"], "--kl_coef must be a number, not 'much'"),
        (["--kl_coef", "inf"], "--kl_coef must be a finite number, not inf"),
        (["--whiten", "perhaps"], "--whiten must be true or false, not 'perhaps'"),
        (["--device", "gpu"], "--device must be 'cpu' or 'auto', not 'gpu'"),
        (["--seed", "-1"], "--seed must be at least 0, not -1"),
        (["--seed", "5000000000"], "--seed must be at most 4294967295, not 5000000000"),
        *(
            (
                ["--run", name],
                f"--run must be a folder's name, without / \\ : and without a dot at its beginning, not {name!r}",
            )
            for name in ("", " ", ".", "..", "a/b", "/tmp/x", "../x", "a\\b", "a:b", ".locks", "a\nb")
        ),
        (["--runs_dir", ""], "--runs_dir must name a folder, such as runs"),
        (["--reward", "\udcff"], "--reward is not UTF-8 text"),
        (["--k", "7"], "--k 7 needs --no_whiten"),
        (["--k", "9" * 5000], "--k: Unable to parse input string as an integer, exceeded maximum size"),
        (["--k", "x" * 99], f"--k must be a whole number, not '{'x' * 56}..."),
        (["--config"], "--config needs a value"),
        (["--config", "absent.yaml"], "absent.yaml cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_option_is_one_sentence(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message(argv, capsys) == sentence


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("kl: 0.1", ": unknown option kl"),
        ("config: other.yaml", ": unknown option config"),
        ("3: 4", ": unknown option 3"),
        ("k: many", ": k must be a whole number, not 'many'"),
        ("k: true", ": k must be a whole number, not 'True'"),
        ("k: 4.5", ": k must be a whole number, not '4.5'"),
        ("k: 12", ": k must be at most 9, not 12"),
        ("kl_coef: true", ": kl_coef must be a number, not 'True'"),
        ("kl_coef: .inf", ": kl_coef must be a finite number, not inf"),
        ("whiten: perhaps", ": whiten must be true or false, not 'perhaps'"),
        ("device: gpu", ": device must be 'cpu' or 'auto', not 'gpu'"),
        ("k:", ": k needs a single value"),
        ("k: {a: 1}", ": k needs a single value"),
        ("k: [1, 2]", ": k needs a single value"),
        ("- k", " must hold lines of the form `option: value`"),
    ],
)
def test_a_wrong_file_is_one_sentence_that_names_it(
    content: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "{wrong}.yaml"
    config.write_text(content)
    assert message(["--config", str(config), "--share", "0.1"], capsys) == f"{config}{sentence}"


@pytest.mark.parametrize("content", [b"a: b: c", b"\xff", b"[", b"? [a]\n: 1\n? {b: 1}\n: 2"])
def test_a_file_that_is_not_yaml(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_bytes(content)
    assert message(["--config", str(config)], capsys).startswith(f"{config} is not valid YAML: ")


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_teaches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        parse_options(Options, ["--help"], prog="python -m stages.ppo", description="PPO against the reward model")
    assert stop.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for part in (
        "usage: python -m stages.ppo [-h] [--config FILE.yaml] [--run RUN]",
        "PPO against the reward model",
        "--config FILE.yaml Read options from this file",
        "--run RUN Name of the run; its checkpoints are in RUNS_DIR/RUN. (default: default)",
        "--kl_coef KL_COEF, --kl-coef KL_COEF Weight of the KL penalty; 10 % of the reward. (default: 0.1)",
        "--whiten [WHITEN] Whiten the rewards. (default: True) --no_whiten, --no-whiten The same as --whiten False.",
        "--reward REWARD A reward function (default: the reward model).",
    ):
        assert part in printed
    assert "(default: )" not in printed and "==" not in printed


# --- functions of the user's own -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("./mine.py:f", "without slashes and .py: write mine:f"),
        ("mine.py:f", "without slashes and .py: write mine:f"),
        ("rewards/mine.py:f", "without slashes and .py: write rewards.mine:f"),
        ("../mine:f", "without slashes and .py: write mine:f"),
        (".mine:f", "without slashes and .py: write mine:f"),
        ("syntax_error:f", r"cannot be imported: SyntaxError in line 2 of .*syntax_error.py \(.*\); correct it"),
        ("raises:f", r"cannot be imported: ValueError in line 1 of .*raises.py \(of two lines\); correct it"),
        ("exits:f", r"cannot be imported: SystemExit in line 1 of .*exits.py \(3\); correct it"),
        ("attribute:f", r"cannot be imported: AttributeError in line 2 of .*attribute.py \(.*\); correct it"),
        ("null:f", r"cannot be imported: \w+ \(source code .* null bytes\); correct it"),
        ("a\0b:f", "--reward 'a.x00b:f'.*"),
    ],
)
def test_a_function_that_cannot_be_imported_is_one_sentence(
    spec: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, code in (
        ("syntax_error", "x = 1\ndef f(:\n"), ("raises", "raise ValueError('of two\\nlines')"),
        ("exits", "raise SystemExit(3)"), ("attribute", "import math\nmath.nothing"), ("null", "x = 1\0"),
    ):  # fmt: skip
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=sentence) as refused:
        load_function(spec, "--reward")
    assert "\n" not in str(refused.value)


def test_seeds_of_commands_without_options_are_bounded() -> None:
    assert parse_seed("4294967295") == 2**32 - 1
    for text in ("-1", "4294967296", "1.5", "many"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"^it must be "):
            parse_seed(text)
