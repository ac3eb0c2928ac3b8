"""Progress and errors as the person at the terminal sees them."""

import errno
import os
import subprocess
import sys
import time

import pytest

from rlhf_mini.core import console
from rlhf_mini.core.console import UserError, printable, run, track

# --- running ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "sentence"),
    [
        (UserError("say what to do"), 1, "error: say what to do"),
        (
            KeyboardInterrupt(),
            130,
            "interrupted: no half-written files remain, and earlier checkpoints are unchanged\n",
        ),
        (
            KeyboardInterrupt("try again"),
            130,
            "interrupted: no half-written files remain, and earlier checkpoints are unchanged; try again\n",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: the disk is full"),
        (Exception("I/O error: No space left on device (os error 28)"), 1, "error: the disk is full"),  # as tokenizers'
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, "error: runs: no permission"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "runs/x"), 1, "error: runs/x: a file is where a folder"),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_sentence(
    fault: BaseException, status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise fault

    with pytest.raises(SystemExit) as stop:
        run(main)
    printed = capsys.readouterr().err
    assert stop.value.code == status and printed.startswith(sentence) and printed.count("\n") == 1


def test_a_lost_process_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "WORLD_SIZE", 2)

    def main() -> None:
        raise RuntimeError("[gloo/pair.cc:537] Read error [127.0.0.1]:20706: Connection reset by peer.")

    with pytest.raises(SystemExit):
        run(main)
    assert capsys.readouterr().err.startswith("error: another process has ended")


@pytest.mark.parametrize("bug", [KeyError("x"), FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError("odd")])
def test_a_bug_keeps_its_traceback(bug: Exception) -> None:
    def main() -> None:
        raise bug

    with pytest.raises(type(bug)):
        run(main)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_what_a_terminal_cannot_show_ends_no_training(encoding: str) -> None:
    code = """if True:
        from rlhf_mini.core.console import UserError, console, run
        def main():
            console.print("Paris \\u2013 \\u2603 \\ud55c\\uad6d\\uc5b4")
            raise UserError("\\u2603 melts")
        run(main)
    """
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    said, complaint = ran.stdout.decode(encoding), ran.stderr.decode(encoding)
    assert ran.returncode == 1 and said.startswith("Paris ") and complaint.endswith("melts\n"), complaint
    assert ("\u2603" in said) == ("\u2603" in complaint) == (encoding == "utf-8")


def test_importing_the_library_goes_offline() -> None:
    code = "import rlhf_mini, huggingface_hub.constants as c; print(c.HF_HUB_OFFLINE, c.HF_HUB_DISABLE_TELEMETRY)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_importing_the_library_bounds_what_onednn_keeps() -> None:
    """Without the bound SFT took 1.7 GB, and more with every step."""
    code = "import os, rlhf_mini; print(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    for given, expected in (({}, "16"), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "9"}, "9")):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN_")} | given
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


# --- progress --------------------------------------------------------------------------------------------------------


def test_track_without_a_terminal_prints_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(range(0, 10_000, 3))  # the clock advances three seconds each time it is read
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    assert list(track(range(6), "sampling")) == list(range(6))
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("sampling: 6 done")
    assert 1 <= len(printed) - 1 < 6 and all(line.startswith("sampling: ") and "/6" in line for line in printed[:-1])


def test_track_of_nothing_and_of_unknown_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([], "nothing")) == []
    assert list(track(iter("ab"), "letters")) == ["a", "b"]
    assert list(track(range(4, 6), "the rest", total=6, done=4)) == [4, 5]
    printed = capsys.readouterr().out
    assert "nothing: 0 done" in printed and "the rest: 6 done" in printed


def test_sampled_text_is_printed_verbatim(capsys: pytest.CaptureFixture[str]) -> None:
    console.console.print("[/b] :smile: [red]")
    assert capsys.readouterr().out == "[/b] :smile: [red]\n"


@pytest.mark.parametrize(
    "text",
    [
        "\U0001f469\u200d\U0001f680",  # an astronaut: woman, zero-width joiner, rocket
        "\u2764\ufe0f \U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",  # a heart, a flag
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian, with a zero-width non-joiner
        "\u0915\u094d\u200d\u0937",  # Hindi, with a zero-width joiner
        "10\u00a0000\u202f km, co\u00adoperate, \u3000\u200e\u200f, one\ntwo",
    ],
)
def test_printable_keeps_what_writing_needs(text: str) -> None:
    assert printable(text) == text


def test_printable_replaces_what_a_terminal_obeys() -> None:
    assert printable("a\x1b[2Jb\rc\x07d\x9be\x00\x7f\x85\n") == "a\ufffd[2Jb\ufffdc\ufffdd\ufffde\ufffd\ufffd\ufffd\n"
    directions = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
    assert printable("".join(map(chr, directions))) == "\ufffd" * 9
    assert printable("\ud83d") == "\ufffd"  # UTF-8 has no bytes for it
