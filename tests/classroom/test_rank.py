"""`python -m rlhf_mini.classroom.rank`: orders, the file of rankings, and the program as its user runs it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from rlhf_mini.classroom.rank import Group, RankOptions, as_ranking, opened, parse_order, session
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Response, contents, read_rankings
from rlhf_mini.core.rankings import pairs
from rlhf_mini.evaluation.compare import CompareOptions

ROOT = Path(__file__).parents[2]
SECONDS = 120  # for the slowest machine; only a failure waits that long
MODULE = "rlhf_mini.classroom.rank"


def groups(number: int) -> Iterator[Group]:
    for index in range(number):
        prompt = [{"role": "user", "content": f"Question {index}?"}]
        yield {"prompt": prompt}, [Response(f"Answer {index}{letter}.", True) for letter in "abc"]


def run_session(path: Path, lines: list[str], goal: int = 3, labeler: str = "ana") -> str:
    """What a session prints that gets these lines; it ends as if Ctrl-D had been pressed after the last."""
    left = iter(lines)

    def ask(_: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    with console.capture() as capture, opened(path) as file:
        session(groups(5), file, labeler, goal, ask)
    return capture.get()


@pytest.mark.parametrize(
    ("order", "ranks"),
    [
        ("2 1 4 3", [2, 1, 4, 3]),
        ("2=1 4 3", [1, 1, 4, 3]),  # responses 1 and 2 are the best, 4 the third, 3 the last
        (" 2 = 1,4 > 3 ", [1, 1, 4, 3]),
        ("4=3=2=1", [1, 1, 1, 1]),
        ("3 1=2=4", [2, 2, 1, 2]),
        ("1=2 3=4", [1, 1, 3, 3]),
        ("2143", [2, 1, 4, 3]),
    ],
)
def test_an_order_as_ranks(order: str, ranks: list[int]) -> None:
    assert parse_order(order, 4) == ranks


@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        ("2 1 4", "the order lacks 3: name all 4 responses"),
        ("1", "the order lacks 2 and 3 and 4"),
        ("2 1 4 3 2", "response 2 is named twice"),
        ("1 2 3 5", "there is no response 5: the numbers go from 1 to 4"),
        ("=1 2 3 4", "is not an order"),
        ("1 2 3 4=", "is not an order"),
        ("1==2 3 4", "is not an order"),
        ("best is 2", "is not an order"),
        ("\x1b[2J", "is not an order"),
        ("0 1 2 3", "is not an order"),
    ],
)
def test_what_is_no_order_is_told(order: str, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)) as fault:
        parse_order(order, 4)
    assert "\x1b" not in str(fault.value)


def test_each_ranking_is_on_the_disk_before_the_next_prompt(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    seen = []

    def ask(_: str) -> str:
        seen.append(len(read_rankings(path)) if path.stat().st_size else 0)
        return "1=2 3"

    with console.capture(), opened(path) as file:
        assert session(groups(5), file, "ana", 3, ask) == 3
    assert seen == [0, 1, 2]
    for ranking in read_rankings(path):
        assert ranking["ranks"] == [1, 1, 3] and ranking["labeler"] == "ana" and len(pairs(ranking["ranks"])) == 2


def test_a_session_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    run_session(path, ["1 2 3"])
    shown = run_session(path, ["3 2 1", "s", "1 2 3"])
    assert "Question 0?" not in shown and "2 of 3" in shown
    assert [contents(one["prompt"]) for one in read_rankings(path)] == ["Question 0?", "Question 1?", "Question 3?"]
    assert "order" not in run_session(path, ["1 2 3"])  # the goal is reached: nothing is asked
    assert "1 of 3" in run_session(path, [], labeler="ben")  # who has ranked none of them


def test_answers_can_be_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    shown = run_session(path, ["u", "1 2 3", "3 2 1", "u", "2 1 3", "q"])
    assert "nothing to take back" in shown and shown.count("Taken back.") == 1
    assert [one["ranks"] for one in read_rankings(path)] == [[1, 2, 3], [2, 1, 3]]
    run_session(path, ["u", "q"])  # those of an earlier session stay
    assert len(read_rankings(path)) == 2


def test_the_order_on_the_screen_is_random_and_the_same_again(tmp_path: Path) -> None:
    orders: dict[str, list[list[list[str]]]] = {}
    for labeler in ("ana", "ben", "eva", "ana"):
        path = tmp_path / f"{len(orders)}{labeler}.jsonl"
        run_session(path, ["1 2 3"] * 3, labeler=labeler)
        orders.setdefault(labeler, []).append([one["responses"] for one in read_rankings(path)])
    assert orders["ana"][0] == orders["ana"][1]
    assert len({str(of[0]) for of in orders.values()}) > 1


def test_a_file_that_was_cut_off_or_edited_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    run_session(path, ["1 2 3"])
    whole = path.read_text()
    path.write_text(whole + whole[:30])  # a power cut
    run_session(path, ["1 2 3"], labeler="ben")
    assert [one["labeler"] for one in read_rankings(path)] == ["ana", "ben"]
    path.write_text(whole.rstrip("\n"))  # an editor
    run_session(path, ["1 2 3"], labeler="ben")
    assert [one["labeler"] for one in read_rankings(path)] == ["ana", "ben"]
    path.write_text("no rankings\n")
    with pytest.raises(UserError, match=r"mine\.jsonl:1: not valid JSON"):
        run_session(path, [])
    assert path.read_text() == "no rankings\n"


def test_two_sessions_cannot_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    with opened(path), pytest.raises(UserError, match="somebody else is ranking into"), opened(path):
        pass
    assert not (tmp_path / "mine.jsonl").exists()  # nobody ranked anything


def test_what_a_model_wrote_cannot_command_the_terminal(tmp_path: Path) -> None:
    group: Group = (
        {"prompt": [{"role": "user", "content": "Hi\x1b[2J"}]},
        [Response(f"\x1b]0;{x}\a", True) for x in "ab"],
    )
    with console.capture() as capture, opened(tmp_path / "mine.jsonl") as file:
        session(iter([group]), file, "ana", 1, lambda _: "1 2")
    assert "\x1b" not in capture.get() and "\a" not in capture.get()
    assert read_rankings(tmp_path / "mine.jsonl")[0]["prompt"] == group[0]["prompt"]  # the file has it as it was


def test_a_name_must_be_printable() -> None:
    for name in (" ", "a\nb", "\x1b[2J"):
        with pytest.raises(UserError, match="--labeler needs a name"):
            RankOptions(labeler=name)


def test_a_ranking_keeps_what_the_prompt_says() -> None:
    example, group = next(groups(1))
    assert as_ranking({**example, "id": "rm-1"}, group, [1, 2, 2], "ana") == {
        "prompt": example["prompt"], "id": "rm-1", "responses": ["Answer 0a.", "Answer 0b.", "Answer 0c."],
        "ended": [True, True, True], "ranks": [1, 2, 2], "labeler": "ana",
    }  # fmt: skip


# --- the program -----------------------------------------------------------------------------------------------------


def test_help_teaches() -> None:
    done = subprocess.run([sys.executable, "-m", MODULE, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and '"2=1 4 3" with a tie' in " ".join(done.stdout.split())


def test_a_session_in_a_terminal(nano_run: CompareOptions, tmp_path: Path) -> None:
    """The random model's answers rarely end, so short ones are made likely by many samples of many prompts."""
    source = tmp_path / "prompts.jsonl"
    source.write_text(
        "".join(json.dumps({"prompt": [{"role": "user", "content": f"Say {i}."}]}) + "\n" for i in range(60))
    )
    out = tmp_path / "mine.jsonl"
    command = [
        *("-m", MODULE, "--run", "r", "--runs_dir", nano_run.runs_dir, "--source", str(source), "--out", str(out)),
        *("--labeler", "ana", "--prompts", "2", "--responses", "2", "--max_new_tokens", "60", "--temperature", "3"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"}

    def start() -> pexpect.spawn:
        return pexpect.spawn(
            sys.executable, command, cwd=str(ROOT), env=environment, dimensions=(40, 100), encoding="utf-8",
            timeout=SECONDS,
        )  # fmt: skip

    child = start()
    child.expect("order> ")
    child.sendline("7 1")
    child.expect("there is no response 7")
    child.expect("order> ")
    child.sendline("2 1")
    child.expect("2 of 2")
    child.expect("order> ")
    child.sendintr()
    child.expect("interrupted: .*your rankings are in")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert [one["ranks"] for one in read_rankings(out)] == [[2, 1]]

    child = start()
    child.expect("2 of 2")
    child.expect("order> ")
    child.sendline("1=2")
    child.expect("has 2 rankings by ana")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0 and len(read_rankings(out)) == 2
