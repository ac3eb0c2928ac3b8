"""Text to tokens and back: prompts and responses through the chat template, plain texts without one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_mini.core.console import UserError, printable
from rlhf_mini.core.examples import Demonstration, Messages, Response


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt with its tokens, encoded once."""

    messages: Messages
    ids: list[int]
    """Through the chat template, up to where the assistant's turn begins."""


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages]) -> list[EncodedPrompt]:
    """The prompts with their tokens, by the tokenizer's chat template."""
    if not prompts:
        return []
    texts = tokenizer.apply_chat_template(list(prompts), add_generation_prompt=True, tokenize=False)
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [EncodedPrompt(messages, ids) for messages, ids in zip(prompts, encoded, strict=True)]


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str, ended: bool = True) -> list[int]:
    """Tokens of a response that comes as text (a person's, or one of a rankings file), with the end of text if `ended`.

    The chat template decides what surrounds it: whether a space comes first, and how the turn ends.
    """
    question = [{"role": "user", "content": "?"}]
    start = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    turn = tokenizer.apply_chat_template([*question, {"role": "assistant", "content": text}], tokenize=False)
    ids: list[int] = tokenizer(turn[len(start) :], add_special_tokens=False)["input_ids"]
    ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]  # some templates go on after the end of text
    return ids if ended else ids[:-1]


def encode_demonstrations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, demonstrations: Sequence[Demonstration], path: str
) -> list[tuple[list[int], list[int]]]:
    """The tokens of each prompt and of its completion.

    Raises:
        UserError: one, of the file `path`, is longer than the model's context.
    """
    prompts = encode_prompts(tokenizer, [each["prompt"] for each in demonstrations])
    completions = [encode_response(tokenizer, each["completion"][0]["content"]) for each in demonstrations]
    positions = context_length(model)
    for prompt, completion in zip(prompts, completions, strict=True):
        length = len(prompt.ids) + len(completion)
        if positions is not None and length > positions:
            raise UserError(
                f"{path}: the demonstration that begins {prompt.messages[-1]['content'][:60]!r} has {length} tokens, "
                f"but the model's context has {positions}: shorten it"
            )
    return [(prompt.ids, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def response_ids(tokenizer: PreTrainedTokenizerBase, response: Response) -> list[int]:
    """A response's tokens; one that came as text is encoded."""
    return response.ids or encode_response(tokenizer, response.text, response.ended)


def encode_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Plain texts as in pretraining: an end of text before and after each, no chat template, truncated to fit."""
    eos = tokenizer.eos_token_id
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [[eos, *ids, eos][: context_length(model)] for ids in encoded]


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
