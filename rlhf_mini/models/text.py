"""Text to tokens and back: prompts and responses through the chat template, plain texts without one."""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_mini.core.console import UserError, console, printable
from rlhf_mini.core.examples import Demonstration, Messages, Prompt, Response

AT_ONCE = 1000  # examples that are encoded together
CHAT_TEMPLATE_ADVICE = "give the base a chat template as rlhf_mini/world/base.py does, save it again and start from it"


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint whose prompts and responses go through its chat template.

    Raises:
        UserError: it has no end-of-text token or no chat template, or one that cannot be rendered or that
            `encode_response` refuses.
    """
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in {path} has no eos_token: give the base one, save it again and start from it")
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer in {path} has no chat template: {CHAT_TEMPLATE_ADVICE}")
    try:
        encode_response(tokenizer, "?")
    except (TemplateError, ValueError) as fault:  # ValueError: of several templates, none is the default
        reason = " ".join(str(fault).split())
        raise UserError(f"the chat template in {path} cannot be used ({reason}): {CHAT_TEMPLATE_ADVICE}") from None
    return tokenizer


class EncodedPrompt(NamedTuple):
    """A prompt with its tokens, encoded once."""

    messages: Messages
    ids: list[int]
    """Through the chat template, up to where the assistant's turn begins."""


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages]) -> list[EncodedPrompt]:
    """The prompts with their tokens, by the tokenizer's chat template. "<|user|>" in a message is text, not a token."""
    if not prompts:
        return []

    def render(chats: list[Messages]) -> list[str]:
        rendered: list[str] = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        return rendered

    encoded = _encode_chats(tokenizer, list(prompts), render)
    return [EncodedPrompt(messages, ids) for messages, ids in zip(prompts, encoded, strict=True)]


def encode_fitting_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], fitting: "Fitting", max_new_tokens: int
) -> Iterator[tuple[Prompt, EncodedPrompt]]:
    """The prompts that leave room for a response of `max_new_tokens`, with their tokens."""
    for start in range(0, len(prompts), AT_ONCE):
        chunk = prompts[start : start + AT_ONCE]
        for example, prompt in zip(chunk, encode_prompts(tokenizer, [each["prompt"] for each in chunk]), strict=True):
            if ids := fitting(prompt.ids, max_new_tokens):
                yield example, EncodedPrompt(prompt.messages, ids)


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str, ended: bool = True) -> list[int]:
    """As `encode_responses`, of one response; without its end of text if it has not `ended`."""
    (ids,) = encode_responses(tokenizer, [text])
    return ids if ended else ids[:-1]


def encode_responses(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of responses that come as text (a person's, or those of a rankings file), each with its end of text.

    The chat template decides what surrounds them: whether a space comes first, and how the turn ends. "<|user|>" in a
    text is text, not a token.

    Raises:
        UserError: the chat template writes no end of text after a response, or something else than the generation
            prompt before it.
    """
    if not texts:
        return []
    question = [{"role": "user", "content": "?"}]
    start = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)

    def render(chats: list[Messages]) -> list[str]:
        turns: list[str] = tokenizer.apply_chat_template(chats, tokenize=False)
        if not all(turn.startswith(start) for turn in turns):
            raise UserError(
                f"the chat template in {tokenizer.name_or_path} does not begin a response with the generation prompt, "
                f"after which a model would be sampled: {CHAT_TEMPLATE_ADVICE}"
            )
        return [turn[len(start) :] for turn in turns]

    chats = [[*question, {"role": "assistant", "content": text}] for text in texts]
    encoded = _encode_chats(tokenizer, chats, render)
    if not all(tokenizer.eos_token_id in ids for ids in encoded):
        raise UserError(
            f"the chat template in {tokenizer.name_or_path} writes no end of text ({tokenizer.eos_token}) after a "
            f"response, so that no model could learn to end one: {CHAT_TEMPLATE_ADVICE}"
        )
    # Some templates go on after the end of text.
    return [ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)] for ids in encoded]


def _encode_chats(
    tokenizer: PreTrainedTokenizerBase, chats: list[Messages], render: Callable[[list[Messages]], list[str]]
) -> list[list[int]]:
    """Tokens of what `render`, which applies the chat template, makes of each chat.

    Only the special tokens that the template writes are tokens; one that is typed in a message is text. transformers
    has `sanitize_control_tokens` for this, but only for whole chats, and it encodes the text in pieces.
    """
    encoded: list[list[int]] = tokenizer(render(chats), add_special_tokens=False)["input_ids"]
    special = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.special}
    for index, chat in enumerate(chats):
        if any(name in message["content"] for message in chat for name in special):
            encoded[index] = _encode_typed(tokenizer, chat, render, special)
    return encoded


def _encode_typed(
    tokenizer: PreTrainedTokenizerBase,
    chat: Messages,
    render: Callable[[list[Messages]], list[str]],
    special: dict[str, AddedToken],
) -> list[int]:
    """As `_encode_chats`, of one chat in whose messages special tokens are typed.

    A character that is in no message stands in for each special token: in the messages until they are rendered, and
    then for those of the template, as a token of a copy of the tokenizer. So the text is encoded in one piece.
    """
    typed = "".join(message["content"] for message in chat)
    unused = (character for character in map(chr, range(0xF0000, 0xFFFFE)) if character not in typed)  # private use
    stand_ins = dict(zip(special, unused, strict=False))
    other = stand_ins | {stand_in: name for name, stand_in in stand_ins.items()}
    either = re.compile("|".join(map(re.escape, sorted(other, key=len, reverse=True))))

    def swap(text: str) -> str:
        return either.sub(lambda found: other[found[0]], text)

    (rendered,) = render([[message | {"content": swap(message["content"])} for message in chat]])
    tokenizer_of_stand_ins = copy.deepcopy(tokenizer)
    tokenizer_of_stand_ins.add_tokens(
        [
            AddedToken(stand_in, lstrip=special[name].lstrip, rstrip=special[name].rstrip, normalized=False)
            for name, stand_in in stand_ins.items()
        ]
    )
    (ids,) = encode_plain(tokenizer_of_stand_ins, [swap(rendered)])
    token_ids = {
        tokenizer_of_stand_ins.convert_tokens_to_ids(stand_in): tokenizer.convert_tokens_to_ids(name)
        for name, stand_in in stand_ins.items()
    }
    return [token_ids.get(token, token) for token in ids]


def encode_plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of plain texts, without a chat template and with nothing added. "<|user|>" is text, not a token."""
    if not texts:
        return []
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return encoded


def encode_demonstrations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, demonstrations: Sequence[Demonstration],
    fitting: "Fitting | None" = None,
) -> Iterator[tuple[list[int], list[int]]]:  # fmt: skip
    """The tokens of each prompt and of its completion, of those that `fitting` lets pass (default: those that fit)."""
    fitting = fitting or Fitting(model, "drop")
    for start in range(0, len(demonstrations), AT_ONCE):
        chunk = demonstrations[start : start + AT_ONCE]
        prompts = encode_prompts(tokenizer, [each["prompt"] for each in chunk])
        completions = encode_responses(tokenizer, [each["completion"][0]["content"] for each in chunk])
        for prompt, completion in zip(prompts, completions, strict=True):
            if ids := fitting(prompt.ids, len(completion)):
                yield ids, completion


def response_ids(tokenizer: PreTrainedTokenizerBase, responses: Sequence[Response]) -> list[list[int]]:
    """The tokens of responses; those that came as text are encoded, all at once because that is ten times faster."""
    as_text = [index for index, response in enumerate(responses) if not response.ids]
    encoded = dict(zip(as_text, encode_responses(tokenizer, [responses[i].text for i in as_text]), strict=True))
    return [
        response.ids or (encoded[index] if response.ended else encoded[index][:-1])
        for index, response in enumerate(responses)
    ]


def encode_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Plain texts as in pretraining: an end of text before and after each, no chat template, truncated to fit."""
    eos = tokenizer.eos_token_id
    return [[eos, *ids, eos][: context_length(model)] for ids in encode_plain(tokenizer, texts)]


def split_texts(texts: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """The texts to train on, and a tenth held out to measure the LM loss."""
    held_out = -(-len(texts) // 10)
    return texts[held_out:], texts[:held_out]


def to_responses(tokenizer: PreTrainedTokenizerBase, sampled: Sequence[list[int]]) -> list[Response]:
    """Sampled tokens as responses, without the space with which a template may begin a turn."""
    texts = tokenizer.batch_decode(list(sampled), skip_special_tokens=True) if sampled else []
    return [
        Response(text.removeprefix(" "), ended=ids[-1:] == [tokenizer.eos_token_id], ids=ids)
        for text, ids in zip(texts, sampled, strict=True)
    ]


def excerpt(prompt: Messages, response: Response, width: int = 100) -> str:
    """A prompt's last message and a response to it, each on one line of at most `width` printable characters."""
    text = response.text + ("" if response.ended else " ...")
    lines = [printable(" ".join(part.split())) for part in (prompt[-1]["content"], text)]
    question, answer = [line if len(line) <= width else line[: width - 3] + "..." for line in lines]
    return f"    user: {question}\n    model: {answer}"


def context_length(model: PreTrainedModel) -> int | None:
    """The number of positions the model has, None if its config states none."""
    config: Any = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


class Fitting:
    """Makes prompts fit into a model's context beside their responses, and counts those that it drops or cuts."""

    def __init__(self, model: PreTrainedModel, too_long: Literal["drop", "cut"]) -> None:
        self.positions, self.too_long = context_length(model), too_long
        self.dropped = self.cut = 0

    def __call__(self, prompt_ids: list[int], response: int) -> list[int]:
        """The prompt's tokens, perhaps without the first ones; [] if the example has to be dropped.

        Args:
            response: tokens of the (longest) response.
        """
        room = len(prompt_ids) if self.positions is None else self.positions - response
        if len(prompt_ids) <= room:
            return prompt_ids
        if self.too_long == "drop" or room < 1:
            self.dropped += 1
            return []
        self.cut += 1
        return prompt_ids[-room:]

    def report(self, stage: str, what: str) -> None:
        """Says how many there were, if any."""
        if self.dropped:
            advice = "; --too_long cut would keep the end of their prompts" if self.too_long == "drop" else ""
            over = f"longer than the model's context of {self.positions} tokens"
            console.print(f"{stage}: {self.dropped:,} {what} are {over} and are left out{advice}", soft_wrap=True)
        if self.cut:
            console.print(
                f"{stage}: the prompts of {self.cut:,} {what} begin later, to fit the model's context of "
                f"{self.positions} tokens", soft_wrap=True,
            )  # fmt: skip


def check_prompt_lengths(model: PreTrainedModel, prompts: Sequence[EncodedPrompt], max_new_tokens: int) -> None:
    """Raises a UserError if a prompt and a response of `max_new_tokens` would not fit into the model's context."""
    positions = context_length(model)
    longest = max((len(prompt.ids) for prompt in prompts), default=0)
    if positions is not None and longest + max_new_tokens > positions:
        raise UserError(
            f"a prompt has {longest} tokens, but the model's context of {positions} leaves "
            f"{positions - max_new_tokens} beside max_new_tokens={max_new_tokens}: "
            "shorten the prompt or lower max_new_tokens"
        )
