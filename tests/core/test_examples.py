"""Records: what is read is what was written, and each fault is told with its file and line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import read_demonstrations, read_prompts, read_rankings
from rlhf_mini.core.files import write_jsonl

USER = {"role": "user", "content": "What colour is a kiwi inside?"}
ASSISTANT = {"role": "assistant", "content": "It is green."}
PROMPT = {"prompt": [USER]}
DEMONSTRATION = {"prompt": [USER], "completion": [ASSISTANT]}
RANKING = {"prompt": [USER], "responses": ["It is green.", "Find out yourself.", "Green"], "ranks": [1, 3, 2]}


def lines(path: Path, *texts: str | bytes) -> Path:
    path.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts))
    return path


def test_each_kind_is_read_back_with_its_further_keys(tmp_path: Path) -> None:
    follow_up = {"id": "rm-00001", "prompt": [USER, ASSISTANT, USER], "use_case": "chat", "check": {"task": "x"}}
    kinds: list[tuple[Callable[[Path], list[dict[str, Any]]], list[dict[str, Any]]]] = [
        (read_demonstrations, [DEMONSTRATION, {**DEMONSTRATION, "writer": "ana"}]),
        (read_prompts, [PROMPT, follow_up]),
        (read_rankings, [RANKING, {**RANKING, "ended": [True, False, True], "labeler": "ana", "ranks": [1, 2, 2]}]),
    ]
    for read, records in kinds:
        write_jsonl(tmp_path / "deep" / "records.jsonl", records)
        assert read(tmp_path / "deep" / "records.jsonl") == records


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("texts") / "prompts.jsonl"
    records = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
    write_jsonl(path, records)
    assert read_prompts(path) == records


def test_hand_edited_files_are_read(tmp_path: Path) -> None:
    """A byte order mark, Windows line ends, blank lines and an unescaped U+2028 are no faults."""
    with_separator = {"prompt": [{"role": "user", "content": "one\u2028two"}]}
    text = json.dumps(with_separator, ensure_ascii=False)
    path = lines(tmp_path / "p.jsonl", b"\xef\xbb\xbf" + json.dumps(PROMPT).encode() + b"\r", "", "  \r", text, "")
    assert read_prompts(path) == [PROMPT, with_separator]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"prompt": [', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        ("[]", "not a JSON object"),
        ('"text"', "not a JSON object"),
        ("{}", '"prompt" is missing'),
        ('{"prompt": "What?"}', '"prompt" must be a list'),
        ('{"prompt": []}', '"prompt" has no message'),
        ('{"prompt": ["What?"]}', "not of the form"),
        ('{"prompt": [{"role": "human", "content": "What?"}]}', "not of the form"),
        ('{"prompt": [{"role": "user"}]}', '"content"'),
        ('{"prompt": [{"role": "user", "content": 3}]}', "must be text"),
        ('{"prompt": [{"role": "user", "content": " "}]}', "blank"),
        ('{"prompt": [{"role": "user", "content": "\\ud83d"}]}', "surrogate"),
        (json.dumps({"prompt": [USER, ASSISTANT]}), 'the last message of "prompt"'),
    ],
)
def test_a_malformed_prompt_is_told_with_its_line(tmp_path: Path, line: str | bytes, fault: str) -> None:
    path = lines(tmp_path / "p.jsonl", json.dumps(PROMPT), "", line)
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}:3: ") and fault in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"prompt": []}, '"prompt" has no message'),
        ({"completion": "It is green."}, '"completion" must be a list'),
        ({"completion": [USER]}, '"completion" must be one message'),
        ({"completion": [ASSISTANT, ASSISTANT]}, '"completion" must be one message'),
    ],
)
def test_a_malformed_demonstration(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=f":1: .*{fault}"):
        read_demonstrations(lines(tmp_path / "d.jsonl", json.dumps({**DEMONSTRATION, **change})))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"responses": ["one"]}, "at least two"),
        ({"responses": ["one", 2, "three"]}, "must be text"),
        ({"ranks": [1, 2]}, '3 "responses" but 2 "ranks"'),
        ({"ranks": [0, 1, 2]}, "whole numbers from 1"),
        ({"ranks": [1, 2, 2.5]}, "whole numbers from 1"),
        ({"ranks": [True, 2, 3]}, "whole numbers from 1"),
        ({"ranks": "1, 2, 3"}, '"ranks" must be a list'),
        ({"ended": [True]}, '"ended"'),
        ({"ended": [1, 0, 1]}, '"ended"'),
    ],
)
def test_a_malformed_ranking(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=f":1: .*{fault}"):
        read_rankings(lines(tmp_path / "r.jsonl", json.dumps({**RANKING, **change})))


def test_an_empty_response_can_be_ranked(tmp_path: Path) -> None:
    record = {**RANKING, "responses": ["", "a", "b"]}
    assert read_rankings(lines(tmp_path / "r.jsonl", json.dumps(record))) == [record]


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.jsonl cannot be read"):
        read_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path)
    with pytest.raises(UserError, match="is empty"):
        read_prompts(lines(tmp_path / "empty.jsonl", "", " ", ""))


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    write_jsonl(path, [PROMPT])

    def interrupted() -> Any:
        yield {"prompt": "half"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, interrupted())
    assert read_prompts(path) == [PROMPT]
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]
