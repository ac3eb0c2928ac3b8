"""Files: written completely or not at all, as strict JSON, and read back."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import MetricsLog, plain, read_json, read_jsonl, replacing, write_json, write_jsonl


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    write_jsonl(path, [{"text": "Grüße"}])
    assert path.read_bytes() == '{"text": "Grüße"}\n'.encode()

    def interrupted() -> Iterator[dict[str, str]]:
        yield {"text": "half"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, interrupted())
    assert read_jsonl(path) == [{"text": "Grüße"}]
    assert [p.name for p in path.parent.iterdir()] == ["a.jsonl"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), replacing(tmp_path / "a") as file:
        file.write("new")
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_many_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    """Each writes its own number 2,000 times; a shared temporary name would mix them, or be gone when it is renamed."""
    code = (
        "import os, sys, time; from rlhf_mini.core.files import write_jsonl\n"
        "go, children = time.time() + 0.3, []\n"
        "for number in range(40):\n"
        "    if (child := os.fork()) == 0:\n"
        "        time.sleep(max(0, go - time.time()))\n"
        "        try:\n"
        "            write_jsonl('all.jsonl', ({'of': number} for _ in range(2000)))\n"
        "        except BaseException:\n"
        "            os._exit(1)\n"
        "        os._exit(0)\n"
        "    children.append(child)\n"
        "print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout == f"{[0] * 40}\n"
    assert len(read_jsonl(tmp_path / "all.jsonl")) == 2000
    assert len({line["of"] for line in read_jsonl(tmp_path / "all.jsonl")}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["all.jsonl"]


def test_what_killed_writers_left_is_removed_and_what_living_ones_write_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a[1].json"
    orphan, foreign = tmp_path / "a[1].json.0123abcd.partial", tmp_path / "a1.json.0123abcd.partial"
    with replacing(path) as file:
        (living,) = tmp_path.iterdir()
        for old in (orphan, foreign):
            old.write_text("half")
        write_json(path, {"n": 1})
        assert {each.name for each in tmp_path.iterdir()} == {path.name, living.name, foreign.name}
        file.write('{"n": 2}')
    assert read_json(path) == {"n": 2} and not living.exists()


def test_json_is_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"loss": float("nan"), "name": "Grüße"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "loss": null,\n "name": "Grüße"\n}\n'
    assert read_json(tmp_path / "a.json") == {"loss": None, "name": "Grüße"}
    assert read_json(tmp_path / "absent.json") == {} and read_jsonl(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", '{"a": "\udcff"}', '{"a": "\\ud800"}', '{"a": ' + "[" * 100_000, '{"a": ' + "9" * 5000 + "}"],
    ids=range(8),
)  # the fifth is no UTF-8, the sixth half of a surrogate pair
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content, errors="surrogateescape")
    (tmp_path / "a.jsonl").write_text(f'{{"a": 1}}\n{content or "]"}\n', errors="surrogateescape")
    for read in (read_json, read_jsonl):
        path = tmp_path / ("a.json" if read is read_json else "a.jsonl")
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(caught.value) == f"{path} is damaged, or was not written by this project: make it again"


def test_metrics_are_strict_json_lines(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.log(step=1, loss=float("nan"), **{"objective/kl": torch.tensor(1.5), "n": np.int64(3)})
    log.log(step=2, loss=float("inf"))
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(first) == {"step": 1, "loss": None, "objective/kl": 1.5, "n": 3}
    assert json.loads(second) == {"step": 2, "loss": None}
    assert "NaN" not in first + second


def test_plain() -> None:
    value = {1: (np.float32(0.5), Path("a/b"), None), "t": torch.tensor(float("inf"))}
    assert plain(value) == {"1": [0.5, "a/b", None], "t": None}
