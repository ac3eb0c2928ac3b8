"""Every format from a file written by hand: what becomes of good records, and of broken ones."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlhf_mini.core.console import UserError, console
from rlhf_mini.data.__main__ import inspect
from rlhf_mini.data.load import Kind, Report, examples_of, load
from rlhf_mini.data.records import MAX_RECORD, Broken, read_records

HH = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Bye\n\nAssistant: {}"
TREE: dict[str, Any] = {
    "message_tree_id": "a",
    "prompt": {
        "message_id": "a", "role": "prompter", "text": "Q", "replies": [
            {"message_id": "b", "role": "assistant", "text": "poor", "rank": 1, "replies": []},
            {"message_id": "c", "role": "assistant", "text": "good", "rank": 0, "replies": [
                {"message_id": "d", "role": "prompter", "text": "More?", "replies": [
                    {"message_id": "e", "role": "assistant", "text": "More.", "replies": []}]}]},
        ],
    },
}  # fmt: skip
FLAT: list[dict[str, Any]] = [
    {"message_id": "e", "parent_id": "d", "role": "assistant", "text": "More."},
    {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Q"},
    {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "poor", "rank": 1},
    {"message_id": "c", "parent_id": "a", "role": "assistant", "text": "good", "rank": 0},
    {"message_id": "d", "parent_id": "c", "role": "prompter", "text": "More?"},
]
HELPSTEER = {"prompt": "Q", "correctness": 1, "coherence": 4, "complexity": 1, "verbosity": 1}


def user(*said: str) -> list[dict[str, str]]:
    """A conversation that the user begins."""
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(said)]


def write(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def read(source: str, kind: Kind) -> tuple[list[Any], Report]:
    report = Report(source)
    return list(examples_of(source, kind, report)), report


RANKINGS: list[tuple[str, list[Any], Any, Any, list[int]]] = [  # format, records, prompt, responses, ranks
    ("ranking", [{"prompt": user("Q"), "responses": ["a", "b", "c"], "ranks": [2, 1, 2]}], user("Q"), "abc", [2, 1, 2]),
    ("preference", [{"prompt": "Q", "chosen": "a", "rejected": "b"}], user("Q"), "ab", [1, 2]),
    (
        "preference",
        [{"prompt": user("Q"), "chosen": [{"role": "assistant", "content": "a"}],
          "rejected": [{"role": "assistant", "content": "b"}]}],
        user("Q"), "ab", [1, 2],
    ),
    ("preference", [{"chosen": user("Q", "a"), "rejected": user("Q", "b")}], user("Q"), "ab", [1, 2]),
    (
        "preference", [{"chosen": "The sky is blue.", "rejected": "The sky is green."}], user("The sky is"),
        ["blue.", "green."], [1, 2],
    ),
    (
        "hh-rlhf", [{"chosen": HH.format("See you."), "rejected": HH.format("Go.")}], user("Hi", "Hello!", "Bye"),
        ["See you.", "Go."], [1, 2],
    ),
    (
        "summarize",
        [{"info": {"post": "P", "title": "T", "subreddit": "s"}, "summaries": [{"text": " a"}, {"text": "b"}],
          "choice": 1, "worker": "w", "split": "train"}],
        user("SUBREDDIT: r/s\n\nTITLE: T\n\nPOST: P\n\nTL;DR:"), "ab", [2, 1],
    ),
    (
        "ultrafeedback",
        [{"prompt": "Q", "chosen": user("Q", "a"), "rejected": user("Q", "b"), "score_chosen": 8.5,
          "score_rejected": 8.5}],
        user("Q"), "ab", [1, 1],
    ),
    ("oasst-tree", [TREE], user("Q"), ["poor", "good"], [2, 1]),
    ("oasst", FLAT, user("Q"), ["poor", "good"], [2, 1]),
    (
        "helpsteer2",
        [{**HELPSTEER, "response": "a", "helpfulness": 1}, {**HELPSTEER, "response": "b", "helpfulness": 4}],
        user("Q"), "ab", [2, 1],
    ),
    ("shp", [{"history": "Q", "human_ref_A": "a", "human_ref_B": "b", "labels": 0}], user("Q"), "ab", [2, 1]),
    (
        "kochatgpt",
        [{"prompt": "질문", "completion_0": "가", "completion_1": "나", "completion_2": "다", "ranking": [2, 0, 1]}],
        user("질문"), "가나다", [3, 1, 2],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "records", "prompt", "responses", "ranks"), RANKINGS)
def test_rankings(tmp_path: Path, name: str, records: list[Any], prompt: Any, responses: Any, ranks: list[int]) -> None:
    found, report = read(write(tmp_path / "f.jsonl", records), "rankings")
    assert report.format == name and (report.records, report.used, report.rejected) == (len(records), len(records), [])
    assert {key: found[0][key] for key in ("prompt", "responses", "ranks")} == {
        "prompt": prompt, "responses": list(responses), "ranks": ranks}  # fmt: skip
    best, _ = read(str(tmp_path / "f.jsonl"), "demonstrations")
    assert best[0]["prompt"] == prompt
    assert best[0]["completion"] == [{"role": "assistant", "content": responses[ranks.index(min(ranks))]}]
    assert read(str(tmp_path / "f.jsonl"), "prompts")[0][0]["prompt"] == prompt


DEMONSTRATIONS: list[tuple[str, Any, Any, str]] = [
    ("prompt-completion", {"prompt": "Q", "completion": "a"}, user("Q"), "a"),
    ("prompt-completion", {"prompt": user("Q"), "completion": user("", "a")[1:]}, user("Q"), "a"),
    ("messages", {"messages": user("Q", "x", "R", "a")}, user("Q", "x", "R"), "a"),
    (
        "messages", {"messages": [{"role": "system", "content": "Be kind."}, *user("Q", "a", "thanks")]},
        user("Be kind.\n\nQ"), "a",
    ),
    ("alpaca", {"instruction": "Add.", "input": "1, 2", "output": "3"}, user("Add.\n\n1, 2"), "3"),
    ("alpaca", {"instruction": "Sing.", "input": "", "output": "La"}, user("Sing."), "La"),
    (
        "sharegpt",
        {"id": "x", "conversations": [{"from": "gpt", "value": "cut off"}, {"from": "human", "value": "Q"},
                                      {"from": "gpt", "value": "a"}]},
        user("Q"), "a",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "record", "prompt", "completion"), DEMONSTRATIONS)
def test_demonstrations(tmp_path: Path, name: str, record: Any, prompt: Any, completion: str) -> None:
    found, report = read(write(tmp_path / "f.jsonl", [record]), "demonstrations")
    assert (report.format, report.used) == (name, 1)
    assert found[0]["prompt"] == prompt and found[0]["completion"][0]["content"] == completion
    assert read(str(tmp_path / "f.jsonl"), "rankings")[1].rejected  # nobody compared anything


def test_prompts_texts_and_the_second_turn_of_a_tree(tmp_path: Path) -> None:
    assert read(write(tmp_path / "p.jsonl", [{"prompt": "Q", "id": "p1"}]), "prompts")[0] == [
        {"prompt": user("Q"), "id": "p1"}
    ]
    assert read(write(tmp_path / "t.jsonl", [{"text": "once"}]), "texts")[0] == ["once"]
    both = [user("Q"), user("Q", "good", "More?")]
    for records in ([TREE], FLAT):
        assert [one["prompt"] for one in read(write(tmp_path / "o.jsonl", records), "demonstrations")[0]] == both


BROKEN: list[tuple[str, Any, str]] = [
    ("preference", {"prompt": "Q", "chosen": "a", "rejected": 3}, "no text"),
    ("preference", {"prompt": "Q", "chosen": " ", "rejected": "b"}, "blank"),
    ("hh-rlhf", {"chosen": HH.format("a"), "rejected": HH.format("a")}, "the same"),
    ("hh-rlhf", {"chosen": HH.format(""), "rejected": HH.format("b")}, "empty"),
    ("hh-rlhf", {"chosen": HH.format("a"), "rejected": "\n\nHuman: Other\n\nAssistant: b"}, "part before"),
    ("hh-rlhf", {"chosen": HH.format("a\n\nHuman: x"), "rejected": HH.format("a\n\nHuman: y")}, "turn of the user"),
    ("sharegpt", {"conversations": 2 * [{"from": "human", "value": "Q"}]}, "follow each other"),
    ("sharegpt", {"conversations": [{"from": "tool", "value": "Q"}]}, "neither user nor assistant"),
    ("sharegpt", {"conversations": "Q"}, "not a list"),
    ("alpaca", {"instruction": "", "output": "x"}, "blank"),
    ("alpaca", {"instruction": "Q", "input": ["x"], "output": "x"}, "no text"),
    ("summarize", {"info": {"post": "P"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 2}, "choice"),
    ("kochatgpt", {"prompt": "Q", "completion_0": "a", "ranking": [0, 1]}, "completion_1"),
    ("ultrafeedback", {"prompt": "Q", "chosen": user("Q", "a"), "rejected": user("Q", "b"), "score_chosen": "high",
                       "score_rejected": 1}, "no number"),
    ("shp", {"history": "Q", "human_ref_A": "a", "human_ref_B": "b", "labels": 2}, "neither 0 nor 1"),
    ("ranking", {"prompt": "Q", "responses": ["a", "b"], "ranks": [1]}, "differ in length"),
    ("ranking", {"prompt": "Q", "responses": ["a", "a"], "ranks": [1, 2]}, "twice"),
    ("oasst-tree", {"prompt": {"role": "assistant", "text": "Q", "replies": []}}, "out of turn"),
    ("messages", {"messages": [{"role": "system", "content": "Be kind."}]}, "no turn of the user"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "record", "reason"), BROKEN)
def test_a_record_that_is_not_as_it_should_be(tmp_path: Path, name: str, record: Any, reason: str) -> None:
    report = Report(f"{name}:{write(tmp_path / 'f.jsonl', [record])}")
    assert list(examples_of(report.source, "rankings", report)) == []
    ((place, why),) = report.rejected
    assert place == "line 1" and reason in why, why


def test_flat_messages_that_hang_on_nothing_or_stand_there_twice(tmp_path: Path) -> None:
    lost = {"message_id": "x", "parent_id": "nobody", "role": "assistant", "text": "Hm"}
    found, report = read(write(tmp_path / "f.jsonl", [*FLAT, FLAT[1], lost]), "demonstrations")
    assert len(found) == 2 and (report.records, report.used) == (7, 5)
    assert {place: reason.split()[-2] for place, reason in report.rejected} == {"line 6": "there", "line 7": "is"}


def test_a_message_without_an_id_is_not_its_own_parent(tmp_path: Path) -> None:
    found, report = read(write(tmp_path / "f.jsonl", [*FLAT, {**FLAT[1], "message_id": ""}]), "demonstrations")
    assert len(found) == 2 and report.rejected == [("line 6", '"message_id" or "parent_id" is no text')]


# --- files -----------------------------------------------------------------------------------------------------------

ROWS = [{"prompt": f"Frage {n} ä\u2028x", "completion": "é"} for n in range(3)]


def texts() -> dict[str, str]:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    return {
        "lines": lines,
        "CRLF": lines.replace("\n", "\r\n"),
        "blank lines": lines.replace("\n", "\n\n"),
        "no last line end": lines.rstrip("\n"),
        "array": json.dumps(ROWS, ensure_ascii=False),
        "array, indented": json.dumps(ROWS, ensure_ascii=False, indent=2),
        "under one key": json.dumps({"version": 1, "data": ROWS}, ensure_ascii=False, indent=2),
        "objects, indented": "\n".join(json.dumps(row, ensure_ascii=False, indent=2) for row in ROWS),
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("layout", texts())
@pytest.mark.parametrize("suffix", [".jsonl", ".json.gz"])
def test_json_in_any_layout_and_encoding(tmp_path: Path, layout: str, encoding: str, suffix: str) -> None:
    content = texts()[layout].encode(encoding)
    path = tmp_path / f"f{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert [record for _, record in read_records(path)] == ROWS


def test_csv_and_parquet(tmp_path: Path) -> None:
    from datasets import Dataset

    (tmp_path / "f.csv").write_text(
        'instruction,input,output\n"Say ""hi"",\nplease",,Hi\nshort\nSing,,La\n', encoding="utf-8-sig"
    )
    found, report = read(str(tmp_path / "f.csv"), "demonstrations")
    assert [one["prompt"][0]["content"] for one in found] == ['Say "hi",\nplease', "Sing"]
    assert report.rejected == [("line 4", "1 fields, where the first line names 3 columns")]
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "f.parquet"))
    assert [record for _, record in read_records(tmp_path / "f.parquet")] == ROWS


def test_one_broken_line_does_not_cost_the_others(tmp_path: Path) -> None:
    good = json.dumps({"prompt": "Q", "completion": "a"}).encode()
    lines = [good, good[:20], b'{"prompt": "\xff", "completion": "a"}', b"[1]", b"{" * 5000, good]
    (tmp_path / "f.jsonl").write_bytes(b"\n".join(lines))
    with console.capture() as said:
        found = load("sft", str(tmp_path / "f.jsonl"), "demonstrations")
    assert len(found) == 2 and "4 of 6 records are left out, the first is line 2: not valid JSON" in said.get()
    report = Report("")
    list(examples_of(str(tmp_path / "f.jsonl"), "demonstrations", report))
    reasons = dict(report.rejected)
    assert "UTF-8" in reasons["line 3"] and "not a JSON object" in reasons["line 4"] and reasons["line 5"]
    with pytest.raises(UserError, match="line 2: not valid JSON"):
        load("sft", str(tmp_path / "f.jsonl"), "demonstrations", strict=True)


def test_a_truncated_array_and_a_truncated_archive_keep_what_came_before(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps(ROWS)[:-20], encoding="utf-8")
    *good, (place, last) = read_records(tmp_path / "f.json")
    assert [record for _, record in good] == ROWS[:2] and place == "record 3" and isinstance(last, Broken)
    content = gzip.compress("".join(json.dumps({"prompt": f"{n}"}) + "\n" for n in range(50_000)).encode())
    (tmp_path / "f.jsonl.gz").write_bytes(content[:-2000])
    *good, (place, last) = read_records(tmp_path / "f.jsonl.gz")
    assert len(good) > 1000 and place == "the end" and isinstance(last, Broken)


def test_a_huge_record_is_rejected_and_the_next_one_read(tmp_path: Path) -> None:
    huge = json.dumps({"prompt": "x" * (2 * MAX_RECORD + 7)})
    (tmp_path / "f.jsonl").write_text(huge + '\n{"prompt": "Q"}\n', encoding="utf-8")
    first, second = read_records(tmp_path / "f.jsonl")
    assert first == ("line 1", Broken("longer than 16,000,000 characters")) and second == ("line 2", {"prompt": "Q"})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.pkl", b"", "may hold a pickle"),
        ("empty.jsonl", b"", "it is empty"),
        ("other.jsonl", b'{"question": "Q"}\n', "the keys 'question'"),
        ("f.parquet", b"PAR1 not", "not a Parquet file"),
        ("answers.jsonl", b'{"prompt": "Q"}\n', "has no demonstrations"),
    ],
)
def test_what_cannot_be_read_at_all(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        load("sft", str(tmp_path / name), "demonstrations")


def test_a_data_set_that_is_not_in_the_cache_is_one_sentence() -> None:
    with pytest.raises(UserError, match="neither a file nor a data set in the local cache"):
        load("sft", "nobody/nothing@train", "demonstrations")
    with pytest.raises(UserError, match="no such file"):
        load("sft", "nothing.jsonl", "demonstrations")


def test_many_examples_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_mini.data import load as module

    path = write(tmp_path / "f.jsonl", [{"prompt": f"{n}: ä?", "completion": "é"} for n in range(100)])
    in_memory = load("sft", path, "demonstrations")
    monkeypatch.setattr(module, "IN_MEMORY", 1000)
    with console.capture():
        on_disk = load("sft", path, "demonstrations")
    assert isinstance(on_disk, module.OnDisk) and list(on_disk) == list(in_memory) and on_disk[5:7] == in_memory[5:7]
    assert on_disk[-1] == in_memory[-1] and len(on_disk) == 100
    with pytest.raises(IndexError):
        on_disk[100]


# --- inspect ---------------------------------------------------------------------------------------------------------

ONE = {"prompt": user("Q"), "responses": ["a", "b"], "ranks": [1, 2]}


def repetitions(folder: Path, records: list[Any]) -> list[str]:
    """What `inspect` says of them: [] if there are none."""
    with console.capture() as said:
        inspect(write(folder / "f.jsonl", records), base=None, examples=0, strict=False)
    return re.findall(r"^repetitions: (.+)$", said.get(), re.MULTILINE)


def test_repetitions_are_counted_and_used(tmp_path: Path) -> None:
    others = [{"completion": "a", "prompt": [{"content": "Q", "role": "user"}]}, {"prompt": "R", "completion": "a"}]
    said = repetitions(tmp_path, [{"prompt": "Q", "completion": "a"}] * 1203 + others)
    assert said == ["1,203 of 1,205 demonstrations, 1,203 of 1,205 prompts"]
    assert len(load("sft", str(tmp_path / "f.jsonl"), "demonstrations")) == 1205
    assert repetitions(tmp_path, [{"text": "Once."}, {"text": "Once."}]) == ["1 of 2 texts"]


def test_ids_and_labelers_do_not_count(tmp_path: Path) -> None:
    again = [{**ONE, "labeler": name, "id": n} for n, name in enumerate(["ana", "ben", "ana"])]
    assert repetitions(tmp_path, again) == ["2 of 3 demonstrations, 2 of 3 rankings, 2 of 3 prompts"]


@pytest.mark.parametrize(
    "other",
    [{"responses": ["a", "B"]}, {"responses": ["a", "b "]}, {"responses": ["b", "a"], "ranks": [2, 1]},
     {"ranks": [1, 1]}, {"responses": ["a", "b", "c"], "ranks": [1, 2, 3]}],
)  # fmt: skip
def test_almost_the_same_ranking_is_no_repetition(tmp_path: Path, other: dict[str, Any]) -> None:
    """But its prompt is one, and its best response to it."""
    assert repetitions(tmp_path, [ONE, ONE | other]) == ["1 of 2 demonstrations, 1 of 2 prompts"]


def test_no_repetitions_are_not_mentioned(tmp_path: Path) -> None:
    assert repetitions(tmp_path, [ONE, ONE | {"prompt": "q"}, ONE | {"prompt": user("Q", "a", "Q")}]) == []
    assert repetitions(tmp_path, [{"text": "Once."}, {"text": "Once"}, {"text": "once."}]) == []
