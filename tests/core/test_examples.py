"""Examples: what is read is what was written, and each fault is reported with its file and line."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import (
    read_demonstrations,
    read_preferences,
    read_prompts,
    read_rankings,
    read_texts,
)
from rlhf_mini.core.files import write_jsonl

USER = {"role": "user", "content": "What colour is a kiwi inside?"}
ASSISTANT = {"role": "assistant", "content": "It is green."}
PROMPT = {"prompt": [USER]}
DEMONSTRATION = {"prompt": [USER], "completion": [ASSISTANT]}
RANKING = {"prompt": [USER], "responses": ["It is green.", "Find out yourself.", "Green"], "ranks": [1, 3, 2]}
PREFERENCE = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "It is red."}]}


def lines(path: Path, *texts: str | bytes) -> Path:
    path.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts))
    return path


def test_each_kind_is_read_back_with_its_further_keys(tmp_path: Path) -> None:
    follow_up = {"id": "rm-00001", "prompt": [USER, ASSISTANT, USER], "use_case": "chat", "check": {"task": "x"}}
    foreign = {"use_case": None, "prompt": [{**USER, "name": "bo"}], "id": 7, "check": "later"}
    kinds: list[tuple[Callable[[Path], Sequence[Mapping[str, Any]]], list[dict[str, Any]]]] = [
        (read_demonstrations, [DEMONSTRATION, {**DEMONSTRATION, "writer": "ana"}]),
        (read_prompts, [PROMPT, follow_up, foreign]),
        (read_rankings, [RANKING, {**RANKING, "ended": [True, False, True], "labeler": "ana", "ranks": [1, 2, 2]}]),
        (read_preferences, [PREFERENCE, {"id": "a", "kind": "fact", "novel": "none", **PREFERENCE}]),
    ]
    for read, examples in kinds:
        write_jsonl(tmp_path / "deep" / "examples.jsonl", examples)
        again = read(tmp_path / "deep" / "examples.jsonl")
        assert again == examples
        assert [list(example) for example in again] == [list(example) for example in examples]  # keys in their order
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "a", "source": "b"}, {"text": ""}])
    assert read_texts(tmp_path / "texts.jsonl") == ["a", ""]


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("texts") / "prompts.jsonl"
    examples = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
    write_jsonl(path, examples)
    assert read_prompts(path) == examples


def test_hand_edited_files_are_read(tmp_path: Path) -> None:
    """A byte order mark, Windows line ends, blank lines and an unescaped U+2028 are no faults."""
    with_separator = {"prompt": [{"role": "user", "content": "one\u2028two"}]}
    text = json.dumps(with_separator, ensure_ascii=False)
    path = lines(tmp_path / "p.jsonl", b"\xef\xbb\xbf" + json.dumps(PROMPT).encode() + b"\r", "", "  \r", text, "")
    assert read_prompts(path) == [PROMPT, with_separator]


def fault(read: Callable[[Path], object], path: Path, number: int) -> str:
    """What is said about line `number`, without the file and the line."""
    with pytest.raises(UserError) as caught:
        read(path)
    place, text = f"{path}:{number}: ", str(caught.value)
    assert text.startswith(place) and "\n" not in text
    return text.removeprefix(place)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"prompt": [', "not valid JSON (Expecting value at column 13); each line must be one {...}"),
        ("[" * 100_000, "not valid JSON ("),
        ('{"n": ' + "9" * 5000 + "}", "not valid JSON ("),
        (b'{"prompt": "\xff"}', "not UTF-8 text; save the file as UTF-8"),
        ("[]", "not a JSON object; each line must be one {...}"),
        ('"text"', "not a JSON object; each line must be one {...}"),
        ("{}", '"prompt" is missing'),
        ('{"prompt": "What?"}', "\"prompt\" must be a list [...], not 'What?'"),
        ('{"prompt": null}', '"prompt" must be a list [...], not null'),
        ('{"prompt": []}', '"prompt" must hold 1 or more items, not 0'),
        ('{"prompt": ["What?"]}', "\"prompt[0]\" must be an object {...}, not 'What?'"),
        (
            '{"prompt": [{"role": "human", "content": "What?"}]}',
            "\"prompt[0].role\" must be 'user' or 'assistant', not 'human'",
        ),
        ('{"prompt": [{"content": "What?"}]}', '"prompt[0].role" is missing'),
        ('{"prompt": [{"role": "user"}]}', '"prompt[0].content" is missing'),
        ('{"prompt": [{"role": "user", "content": 3}]}', '"prompt[0].content" must be text, not 3'),
        ('{"prompt": [{"role": "user", "content": true}]}', '"prompt[0].content" must be text, not true'),
        ('{"prompt": [{"role": "user", "content": " "}]}', '"prompt[0].content" is blank'),
        (
            '{"prompt": [{"role": "user", "content": "\\ud83d"}]}',
            '"prompt[0].content" holds half of a surrogate pair, which is not a character',
        ),
        (json.dumps({"prompt": [USER, ASSISTANT]}), "\"prompt\" must end with a message whose role is 'user'"),
        (json.dumps({"prompt": [USER, {}, USER]}), '"prompt[1].role" is missing'),
    ],
)
def test_a_malformed_prompt_is_reported_with_its_line(tmp_path: Path, line: str | bytes, sentence: str) -> None:
    said = fault(read_prompts, lines(tmp_path / "p.jsonl", json.dumps(PROMPT), "", line), 3)
    assert said.startswith(sentence) if sentence.endswith("(") else said == sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt": []}, '"prompt" must hold 1 or more items, not 0'),
        ({"completion": "It is green."}, "\"completion\" must be a list [...], not 'It is green.'"),
        ({"completion": []}, "\"completion\" must be one message whose role is 'assistant'"),
        ({"completion": [USER]}, "\"completion\" must be one message whose role is 'assistant'"),
        ({"completion": [ASSISTANT, ASSISTANT]}, "\"completion\" must be one message whose role is 'assistant'"),
        ({"completion": [{**ASSISTANT, "content": ""}]}, '"completion[0].content" is blank'),
    ],
)
def test_a_malformed_demonstration(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = lines(tmp_path / "d.jsonl", json.dumps({**DEMONSTRATION, **change}))
    assert fault(read_demonstrations, path, 1) == sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"responses": ["one"]}, '"responses" must hold 2 or more items, not 1'),
        ({"responses": ["one", 2, "three"]}, '"responses[1]" must be text, not 2'),
        (
            {"responses": ["one", "\ud83d", "three"]},
            '"responses[1]" holds half of a surrogate pair, which is not a character',
        ),
        ({"ranks": [1, 2]}, '"ranks" must hold one value for each of the 3 "responses", not 2'),
        ({"ranks": [0, 1, 2]}, '"ranks[0]" must be at least 1, not 0'),
        ({"ranks": [1, 2, 2.5]}, '"ranks[2]" must be a whole number, not 2.5'),
        ({"ranks": [True, 2, 3]}, '"ranks[0]" must be a whole number, not true'),
        ({"ranks": "1, 2, 3"}, "\"ranks\" must be a list [...], not '1, 2, 3'"),
        ({"ended": [True]}, '"ended" must hold one value for each of the 3 "responses", not 1'),
        ({"ended": [1, False, True]}, '"ended[0]" must be true or false, not 1'),
    ],
)
def test_a_malformed_ranking(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = lines(tmp_path / "r.jsonl", json.dumps({**RANKING, **change}))
    assert fault(read_rankings, path, 1) == sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt": [ASSISTANT]}, "\"prompt\" must end with a message whose role is 'user'"),
        ({"chosen": "It is green."}, "\"chosen\" must be a list [...], not 'It is green.'"),
        ({"chosen": [USER, ASSISTANT]}, "\"chosen\" must be one message whose role is 'assistant'"),
        ({"rejected": [USER]}, "\"rejected\" must be one message whose role is 'assistant'"),
        ({"rejected": [{**ASSISTANT, "content": " "}]}, '"rejected[0].content" is blank'),
    ],
)
def test_a_malformed_preference(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = lines(tmp_path / "p.jsonl", json.dumps({**PREFERENCE, **change}))
    assert fault(read_preferences, path, 1) == sentence
    without = {key: value for key, value in PREFERENCE.items() if key not in change}
    assert fault(read_preferences, lines(path, json.dumps(without)), 1) == f'"{next(iter(change))}" is missing'


def test_a_malformed_text(tmp_path: Path) -> None:
    assert fault(read_texts, lines(tmp_path / "t.jsonl", "{}"), 1) == '"text" is missing'
    assert fault(read_texts, lines(tmp_path / "t.jsonl", '{"text": ["a"]}'), 1) == "\"text\" must be text, not ['a']"


def test_an_empty_response_can_be_ranked(tmp_path: Path) -> None:
    example = {**RANKING, "responses": ["", "a", "b"]}
    assert read_rankings(lines(tmp_path / "r.jsonl", json.dumps(example))) == [example]


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.jsonl cannot be read"):
        read_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path)
    with pytest.raises(UserError, match="is empty"):
        read_prompts(lines(tmp_path / "empty.jsonl", "", " ", ""))


def test_half_of_a_surrogate_pair_in_a_key_that_is_kept(tmp_path: Path) -> None:
    """It would be found only where the example is written again."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": [{"role": "user", "content": "Hi"}], "note": ["\\ud83d"]}')
    with pytest.raises(UserError, match=r"prompts.jsonl:1: holds half of a surrogate pair, which is not a character$"):
        read_prompts(path)
    path.write_text('{"prompt": [{"role": "user", "content": "Hi"}], "note": ["\\ud83d\\ude00"]}')
    assert read_prompts(path)[0]["note"] == ["\N{GRINNING FACE}"]  # type: ignore[typeddict-item]
