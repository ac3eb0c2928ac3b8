"""The examples that the stages read, as JSONL: UTF-8 text with one JSON object per line.

    demonstration  {"prompt": [{"role": "user", "content": "What colour is a kiwi inside?"}],
                    "completion": [{"role": "assistant", "content": "It is green."}]}
    prompt         {"prompt": [{"role": "user", "content": "What colour is a kiwi inside?"}]}
    ranking        {"prompt": [{"role": "user", "content": "What colour is a kiwi inside?"}],
                    "responses": ["It is green.", "Find out yourself.", "Green"], "ranks": [1, 3, 2]}
    preference     {"prompt": [{"role": "user", "content": "What colour is a kiwi inside?"}],
                    "chosen": [{"role": "assistant", "content": "It is green."}],
                    "rejected": [{"role": "assistant", "content": "It is red."}]}

(wrapped here to fit the page). Rank 1 is the best; equal ranks are a tie. A ranking may also say which responses ended
with an end-of-text token ("ended": [true, true, false]; by default all did) and who ranked them ("labeler": "ana"). A
prompt may be a conversation (user, assistant, user); the response answers its last message. Other keys are kept.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar, cast

from annotated_types import Ge, MinLen
from pydantic import (
    AfterValidator,
    GetPydanticSchema,
    SkipValidation,
    Strict,
    TypeAdapter,
    ValidationError,
)
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from rlhf_mini.core.console import UserError
from rlhf_mini.core.validation import is_utf8, sentence

Example = TypeVar("Example")


# --- what an example is ----------------------------------------------------------------------------------------------


def _is_unicode(text: str) -> str:
    if not is_utf8(text):
        raise ValueError("holds half of a surrogate pair, which is not a character")
    return text


def _is_not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank")
    return text


def _ends_with_the_user(messages: "Messages") -> "Messages":
    if messages[-1]["role"] != "user":
        raise ValueError("must end with a message whose role is 'user'")
    return messages


def _is_one_reply(messages: "Messages") -> "Messages":
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise ValueError("must be one message whose role is 'assistant'")
    return messages


def _is_consistent(ranking: "Ranking") -> "Ranking":
    number = len(ranking["responses"])
    ended = ranking.get("ended", [True] * number)
    for key, values in (("ranks", ranking["ranks"]), ("ended", ended)):
        if len(values) != number:
            raise ValueError(f'"{key}" must hold one value for each of the {number} "responses", not {len(values)}')
    seen: dict[tuple[str, bool], int] = {}
    for response, end, rank in zip(ranking["responses"], ended, ranking["ranks"], strict=True):
        if seen.setdefault((response, end), rank) != rank:
            raise ValueError(
                f'"responses" holds {_beginning(response)} twice, with ranks {seen[response, end]} and {rank}: '
                "remove one, or rank them equal"
            )
    return ranking


def _beginning(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


Text = Annotated[str, AfterValidator(_is_unicode)]


class _Message(TypedDict):
    role: Literal["user", "assistant"]
    content: Annotated[Text, AfterValidator(_is_not_blank)]


# Messages as transformers' chat templates take them: plain dicts to a type checker, validated as `_Message`.
Messages = list[Annotated[dict[str, str], GetPydanticSchema(lambda _, handler: handler(_Message))]]


def contents(messages: Messages) -> str:
    """What identifies a prompt: the contents of its messages, in which people may repeat a prompt under another id."""
    return "\n".join(message["content"] for message in messages)


class Prompt(TypedDict):
    """A conversation to respond to. The optional keys describe prompts of the mini world.

    They are not validated, because other people's files may use these names for something else.
    """

    prompt: Annotated[Messages, MinLen(1), AfterValidator(_ends_with_the_user)]
    id: NotRequired[SkipValidation[str]]
    use_case: NotRequired[SkipValidation[str]]
    kind: NotRequired[SkipValidation[str]]
    novel: NotRequired[SkipValidation[str]]
    check: NotRequired[SkipValidation[dict[str, Any]]]
    references: NotRequired[SkipValidation[list[str]]]
    mistakes: NotRequired[SkipValidation[list[str]]]


class Demonstration(Prompt):
    """A prompt and a person's response to it: TRL's conversational prompt-completion format."""

    completion: Annotated[Messages, AfterValidator(_is_one_reply)]


class Ranking(Prompt):
    """K >= 2 responses to a prompt and their ranks, 1 = best."""

    responses: Annotated[list[Text], MinLen(2)]
    ranks: list[Annotated[int, Strict(), Ge(1)]]
    ended: NotRequired[list[Annotated[bool, Strict()]]]
    labeler: NotRequired[SkipValidation[str]]


class Preference(Prompt):
    """A prompt with a better and a worse response: TRL's conversational preference format."""

    chosen: Annotated[Messages, AfterValidator(_is_one_reply)]
    rejected: Annotated[Messages, AfterValidator(_is_one_reply)]


class PlainText(TypedDict):
    """TRL's language-modelling format."""

    text: Text


@dataclass
class Response:
    """A response to a prompt, sampled from a model or written by a person."""

    text: str
    """Without special tokens."""
    ended: bool
    """True if it is finished: the model emitted the end-of-text token within `max_new_tokens`."""
    ids: list[int] = field(default_factory=list)
    """The sampled tokens, with the end-of-text token if `ended`. Empty for a response that was read from a file."""


# --- reading ---------------------------------------------------------------------------------------------------------


def read_demonstrations(path: str | Path) -> list[Demonstration]:
    """Reads demonstrations.

    Raises:
        UserError: the file is missing or empty, or an example is malformed; names the file, the line and the fault.
    """
    return _read(path, TypeAdapter(Demonstration))


def read_prompts(path: str | Path) -> list[Prompt]:
    """Reads prompts. Raises UserError as `read_demonstrations` does."""
    return _read(path, TypeAdapter(Prompt))


def read_rankings(path: str | Path) -> list[Ranking]:
    """Reads rankings. Raises UserError as `read_demonstrations` does."""
    return _read(path, TypeAdapter(Annotated[Ranking, AfterValidator(_is_consistent)]))


def read_preferences(path: str | Path) -> list[Preference]:
    """Reads preferences. Raises UserError as `read_demonstrations` does."""
    return _read(path, TypeAdapter(Preference))


def read_texts(path: str | Path) -> list[str]:
    """Reads plain texts, one {"text": "..."} per line. Raises UserError as `read_demonstrations` does."""
    return [example["text"] for example in _read(path, TypeAdapter(PlainText))]


def _read(path: str | Path, adapter: TypeAdapter[Example]) -> list[Example]:
    try:
        content = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")  # some editors write a byte order mark
    except OSError as fault:
        raise UserError(f"{path} cannot be read ({fault.strerror}): check the file's name") from None
    examples: list[Example] = []
    for number, line in enumerate(content.split(b"\n"), start=1):  # not splitlines(): a text may contain U+2028
        if not line.strip():
            continue
        try:
            example = json.loads(line.decode("utf-8"))
            if not isinstance(example, dict):
                raise UserError(f"{path}:{number}: not a JSON object; each line must be one {{...}}")
            adapter.validate_python(example)
            if b"\\u" in line and not is_utf8(json.dumps(example, ensure_ascii=False)):
                raise UserError(f"{path}:{number}: holds half of a surrogate pair, which is not a character")
        except UnicodeDecodeError:
            raise UserError(f"{path}:{number}: not UTF-8 text; save the file as UTF-8") from None
        except ValidationError as fault:
            raise UserError(f"{path}:{number}: {_sentence(fault)}") from None
        except (ValueError, RecursionError) as fault:
            what = f"{fault.msg} at column {fault.colno}" if isinstance(fault, json.JSONDecodeError) else fault
            raise UserError(f"{path}:{number}: not valid JSON ({what}); each line must be one {{...}}") from None
        examples.append(cast(Example, example))  # not pydantic's copy, whose keys are in another order
    if not examples:
        raise UserError(f"{path} is empty: it needs at least one example")
    return examples


def _sentence(fault: ValidationError) -> str:
    """The first fault with its place: "prompt[0].role" must be 'user' or 'assistant', not 'human'."""
    first = fault.errors()[0]
    place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in first["loc"]).lstrip(".")
    return sentence(first, f'"{place}"' if place else "")
