"""The parts of the chat that need no model: parsing, what fits into the context, and how answers are shown."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlhf_mini.chat.conversation import Exchange, build_prompt, drop_count
from rlhf_mini.chat.display import answer_text, colour, decode_partial
from rlhf_mini.chat.options import parse_stages
from rlhf_mini.chat.shell import parse_command
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Messages, Response


def exchange(message: str, answer: str, ended: bool = True) -> Exchange:
    prompt = [{"role": "user", "content": message}]
    return Exchange(number=1, stage="ppo", prompt=prompt, response=Response(answer, ended))


@pytest.mark.parametrize(("room", "dropped"), [(None, 0), (26, 0), (25, 0), (24, 1), (15, 1), (14, 2), (6, 2), (5, 2)])
def test_the_oldest_exchanges_are_dropped_until_the_prompt_fits(room: int | None, dropped: int) -> None:
    """Two exchanges of 4 + 6 characters, and a message of 5."""
    past = [exchange("aaaa", "bbbbbb"), exchange("cccc", "dddddd")]
    seen: list[Messages] = []

    def length(prompt: Messages) -> int:
        seen.append(prompt)
        return sum(len(message["content"]) for message in prompt)

    assert drop_count(past, "eeeee", length, room) == dropped
    assert [message["content"] for message in seen[-1]] == ["aaaa", "bbbbbb", "cccc", "dddddd", "eeeee"][2 * dropped :]
    assert [message["role"] for message in build_prompt(past[:1], "x")] == ["user", "assistant", "user"]


def test_a_message_that_is_too_long_by_itself_is_an_error_with_numbers() -> None:
    with pytest.raises(UserError, match="alone has 5 tokens, but the context has room for 4 "):
        drop_count([exchange("aaaa", "bbbbbb")], "eeeee", lambda prompt: len(prompt[-1]["content"]), 4)


def test_commands_are_parsed() -> None:
    assert parse_command("/best-of  4 ") == ("best-of", "4")
    assert parse_command("/save my file.jsonl") == ("save", "my file.jsonl")
    assert parse_command("/why") == ("why", "")
    for line in ("/", "/stag sft", "/foo\x1b[2J", "/Help"):
        with pytest.raises(UserError, match=r"^there is no command /.*: /help lists the commands$") as fault:
            parse_command(line)
        assert "\x1b" not in str(fault.value)
    with pytest.raises(UserError, match="/reset takes no argument"):
        parse_command("/reset now")


def test_stages_are_parsed() -> None:
    assert parse_stages("base, ppo") == ["base", "ppo"]
    for wrong in ("rm", "", "sft,", "SFT"):
        with pytest.raises(UserError, match="name base, sft or ppo"):
            parse_stages(wrong)
    with pytest.raises(UserError, match="twice"):
        parse_stages("sft,sft")


def test_half_a_character_is_not_shown_yet(nano_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(nano_base)
    text = "é€ 😀."
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode()), "the bytes are tokens of their own here, or this tests nothing"
    shown = [decode_partial(tokenizer, ids[:end]) for end in range(len(ids) + 1)]
    assert list(dict.fromkeys(shown)) == ["", "é", "é€", "é€ ", "é€ 😀", "é€ 😀."]
    assert decode_partial(tokenizer, [*tokenizer(" Hi")["input_ids"], tokenizer.eos_token_id]) == "Hi"


def test_the_sign_shows_without_colours_too() -> None:
    assert colour(1.0, 2.0) == colour(5.0, 10.0) != colour(2.0, 2.0)
    assert "bold" in colour(1.0, 2.0) and "underline" not in colour(1.0, 2.0)
    assert "underline" in colour(-1.0, 2.0) and "bold" not in colour(-1.0, 2.0)
    assert colour(0.1, 2.0) == colour(0.0, 0.0) == ""


def test_a_model_cannot_send_control_characters_to_the_terminal() -> None:
    with console.capture() as capture:
        console.print(answer_text(exchange("?", "[bold]a[/bold] :smile:\x1b[2J", ended=False)))
    assert capture.get() == "[bold]a[/bold] :smile:\N{REPLACEMENT CHARACTER}[2J (truncated)\n"
