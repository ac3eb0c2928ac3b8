"""The three kinds of example that the stages read, as JSONL: UTF-8 text with one JSON object a line.

    demonstration  {"prompt": [{"role": "user", "content": "What colour is a kiwi inside?"}],
                    "completion": [{"role": "assistant", "content": "It is green."}]}
    prompt         {"prompt": [{"role": "user", "content": "What colour is a kiwi inside?"}]}
    ranking        {"prompt": [{"role": "user", "content": "What colour is a kiwi inside?"}],
                    "responses": ["It is green.", "Find out yourself.", "Green"], "ranks": [1, 3, 2]}

(wrapped here for reading). Rank 1 is the best, equal ranks are a tie. A ranking may say which responses ended by
themselves ("ended": [true, true, false]; without it, all did) and who ranked ("labeler": "ana"). The messages of a
prompt may be user, assistant, user: the last one is answered. Further keys are kept.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar, cast

from annotated_types import Ge, MinLen
from pydantic import AfterValidator, ConfigDict, PlainValidator, Strict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from rlhf_mini.core.console import UserError
from rlhf_mini.core.validation import sentence

E = TypeVar("E")


# --- what an example is ----------------------------------------------------------------------------------------------


def _whole(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):  # half a pair such as "\ud83d": no UTF-8 for it
        raise ValueError("a text holds half of a surrogate pair, which is not a character")
    return text


def _message(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or value.get("role") not in ("user", "assistant"):
        raise ValueError('a message is not of the form {"role": "user" or "assistant", "content": "..."}')
    if not isinstance(value.get("content"), str):
        raise ValueError('the "content" of a message must be text')
    if not value["content"].strip():
        raise ValueError('the "content" of a message is blank')
    _whole(value["content"])
    return value


def _ends_with_the_user(messages: "Messages") -> "Messages":
    if messages[-1]["role"] != "user":
        raise ValueError('the last message of "prompt" must have the role "user"')
    return messages


def _one_reply(messages: "Messages") -> "Messages":
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise ValueError('"completion" must be one message whose role is "assistant"')
    return messages


def _same_lengths(ranking: "Ranking") -> "Ranking":
    for key in ("ranks", "ended"):
        if key in ranking and len(ranking[key]) != len(ranking["responses"]):  # type: ignore[literal-required]
            raise ValueError(f'{len(ranking["responses"])} "responses" but {len(ranking[key])} "{key}"')  # type: ignore[literal-required]
    return ranking


Text = Annotated[str, AfterValidator(_whole)]


# Chat messages as transformers takes them: {"role": "user", "content": "..."}.
Messages = list[Annotated[dict[str, str], PlainValidator(_message)]]


@with_config(ConfigDict(extra="allow"))
class Prompt(TypedDict):
    """A conversation to respond to. The keys that need not be there are the mini world's."""

    prompt: Annotated[Messages, MinLen(1), AfterValidator(_ends_with_the_user)]
    id: NotRequired[str]
    use_case: NotRequired[str]
    kind: NotRequired[str]
    novel: NotRequired[str]
    check: NotRequired[dict[str, Any]]


class Demonstration(Prompt):
    """A prompt with a person's response: TRL's conversational prompt-completion."""

    completion: Annotated[Messages, AfterValidator(_one_reply)]


class Ranking(Prompt):
    """K >= 2 responses to a prompt, and their ranks."""

    responses: Annotated[list[Text], MinLen(2)]
    ranks: list[Annotated[int, Strict(), Ge(1)]]
    ended: NotRequired[list[Annotated[bool, Strict()]]]
    labeler: NotRequired[str]


@with_config(ConfigDict(extra="allow"))
class PlainText(TypedDict):
    """TRL's language-modelling form."""

    text: Text


@dataclass
class Response:
    """One response to a prompt, a model's or a person's."""

    text: str
    """Without special tokens."""
    ended: bool
    """True if it ends by itself: the model emitted its end of text within the allowed number of tokens."""
    ids: list[int] = field(default_factory=list)
    """The tokens as sampled, with the end of text if `ended`; empty for a response that came as text."""


# --- reading ---------------------------------------------------------------------------------------------------------


def read_demonstrations(path: str | Path) -> list[Demonstration]:
    """Demonstrations from a JSONL file. UserError names the file, the line and what is wrong with it."""
    return _read(path, TypeAdapter(Demonstration))


def read_prompts(path: str | Path) -> list[Prompt]:
    """Prompts from a JSONL file. UserError as above."""
    return _read(path, TypeAdapter(Prompt))


def read_rankings(path: str | Path) -> list[Ranking]:
    """Rankings from a JSONL file. UserError as above."""
    return _read(path, TypeAdapter(Annotated[Ranking, AfterValidator(_same_lengths)]))


def read_texts(path: str | Path) -> list[str]:
    """Plain texts from a JSONL file of {"text": "..."}. UserError as above."""
    return [example["text"] for example in _read(path, TypeAdapter(PlainText))]


def _read(path: str | Path, adapter: TypeAdapter[E]) -> list[E]:
    try:
        content = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")  # some editors put a byte order mark first
    except OSError as fault:
        raise UserError(f"{path} cannot be read ({fault.strerror}): check the file's name") from None
    examples = []
    for number, line in enumerate(content.split(b"\n"), start=1):  # not splitlines(): U+2028 may stand inside a text
        if not line.strip():
            continue
        try:
            example = json.loads(line.decode("utf-8"))
            if not isinstance(example, dict):
                raise UserError(f"{path}:{number}: not a JSON object; each line must be one {{...}}")
            adapter.validate_python(example)
        except UnicodeDecodeError:
            raise UserError(f"{path}:{number}: not UTF-8 text; save the file as UTF-8") from None
        except ValidationError as fault:
            raise UserError(f"{path}:{number}: {_sentence(fault)}") from None
        except (ValueError, RecursionError) as fault:
            what = f"{fault.msg} at column {fault.colno}" if isinstance(fault, json.JSONDecodeError) else fault
            raise UserError(f"{path}:{number}: not valid JSON ({what}); each line must be one {{...}}") from None
        examples.append(cast(E, example))  # as it was read, with its keys in their order
    if not examples:
        raise UserError(f"{path} is empty: it needs at least one example")
    return examples


def _sentence(fault: ValidationError) -> str:
    """The first fault, with the place as one would write it: "prompt[0].role" must be 'user' or 'assistant', ..."""
    first = fault.errors()[0]
    place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in first["loc"]).lstrip(".")
    return sentence(first, f'"{place}"')
