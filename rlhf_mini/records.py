"""The three kinds of record that the stages read, as JSONL: UTF-8 text with one JSON object a line.

    demonstration  {"prompt": [{"role": "user", "content": "What colour is a kiwi inside?"}],
                    "completion": [{"role": "assistant", "content": "It is green."}]}
    prompt         {"prompt": [{"role": "user", "content": "What colour is a kiwi inside?"}]}
    ranking        {"prompt": [{"role": "user", "content": "What colour is a kiwi inside?"}],
                    "responses": ["It is green.", "Find out yourself.", "Green"], "ranks": [1, 3, 2]}

(here broken into lines to be read). Rank 1 is the best, equal ranks are a tie. A ranking may say which responses ended
by themselves ("ended": [true, true, false]; without it, all did) and who ranked ("labeler": "ana"). A prompt's messages
may be user, assistant, user: the last is the one to answer. Further keys are kept and travel along.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rlhf_mini.console import UserError

Record = dict[str, Any]


class _Fault(Exception):
    """What is wrong with one record; the reader adds the file and the line."""


def read_demonstrations(path: str | Path) -> list[Record]:
    """Demonstrations: TRL's conversational prompt-completion. UserError names the file, the line and the fault."""
    return _read(path, _check_demonstration)


def read_prompts(path: str | Path) -> list[Record]:
    """Prompts to respond to. UserError names the file, the line and the fault."""
    return _read(path, _check_prompt)


def read_rankings(path: str | Path) -> list[Record]:
    """Rankings of K >= 2 responses to one prompt. UserError names the file, the line and the fault."""
    return _read(path, _check_ranking)


def read_texts(path: str | Path) -> list[str]:
    """Plain texts, TRL's language-modelling form: {"text": "..."}. UserError names the file, the line and the fault."""
    return [record["text"] for record in _read(path, _check_plain_text)]


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Writes the records, all or nothing: until the last one is on disk, `path` stays what it was."""
    with replacing(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


@contextmanager
def replacing(path: str | Path) -> Iterator[TextIO]:
    """A text file that takes the place of `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _read(path: str | Path, check: Callable[[Record], None]) -> list[Record]:
    try:
        content = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")  # some editors put a byte order mark first
    except OSError as fault:
        raise UserError(f"{path} cannot be read ({fault.strerror}): check the file's name") from None
    records = []
    for number, line in enumerate(content.split(b"\n"), start=1):  # not splitlines(): U+2028 may stand inside a text
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
            if not isinstance(record, dict):
                raise _Fault("not a JSON object; each line must be one {...}")
            check(record)
        except UnicodeDecodeError:
            raise UserError(f"{path}:{number}: not UTF-8 text; save the file as UTF-8") from None
        except (ValueError, RecursionError) as fault:
            what = f"{fault.msg} at column {fault.colno}" if isinstance(fault, json.JSONDecodeError) else fault
            raise UserError(f"{path}:{number}: not valid JSON ({what}); each line must be one {{...}}") from None
        except _Fault as fault:
            raise UserError(f"{path}:{number}: {fault}") from None
        records.append(record)
    if not records:
        raise UserError(f"{path} is empty: it needs at least one record")
    return records


def _check_demonstration(record: Record) -> None:
    _check_prompt(record)
    completion = _messages(record, "completion")
    if len(completion) != 1 or completion[0]["role"] != "assistant":
        raise _Fault('"completion" must be one message whose role is "assistant"')


def _check_plain_text(record: Record) -> None:
    _check_text(record.get("text"), '"text"')


def _check_prompt(record: Record) -> None:
    if _messages(record, "prompt")[-1]["role"] != "user":
        raise _Fault('the last message of "prompt" must have the role "user"')


def _check_ranking(record: Record) -> None:
    _check_prompt(record)
    responses = _list(record, "responses")
    if len(responses) < 2:
        raise _Fault('"responses" must hold at least two texts to rank')
    for response in responses:
        _check_text(response, '"responses"')
    ranks = _list(record, "ranks")
    if not all(type(rank) is int and rank >= 1 for rank in ranks):  # `type is`, as True is an int too
        raise _Fault('"ranks" must be whole numbers from 1 (the best)')
    if len(ranks) != len(responses):
        raise _Fault(f'{len(responses)} "responses" but {len(ranks)} "ranks"')
    if "ended" in record:
        ended = _list(record, "ended")
        if len(ended) != len(responses) or not all(type(end) is bool for end in ended):
            raise _Fault('"ended" must hold true or false for each response')


def _messages(record: Record, key: str) -> list[dict[str, str]]:
    """The messages under `key`: at least one, each from the user or the assistant, none of them blank."""
    messages = _list(record, key)
    if not messages:
        raise _Fault(f'"{key}" has no message')
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise _Fault(f'a message of "{key}" is not of the form {{"role": "user" or "assistant", "content": "..."}}')
        _check_text(message.get("content"), f'the "content" of a message of "{key}"')
        if not message["content"].strip():
            raise _Fault(f'a message of "{key}" is blank')
    return messages


def _list(record: Record, key: str) -> list[Any]:
    if key not in record:
        raise _Fault(f'"{key}" is missing')
    if not isinstance(record[key], list):
        raise _Fault(f'"{key}" must be a list [...]')
    return record[key]


def _check_text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise _Fault(f"{where} must be text")
    if any("\ud800" <= character <= "\udfff" for character in value):  # half a pair such as "\ud83d": no UTF-8 for it
        raise _Fault(f"{where} holds half of a surrogate pair, which is not a character")
