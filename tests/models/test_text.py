"""Text to tokens: what people type is text."""

from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from rlhf_mini.core.examples import Messages, read_demonstrations
from rlhf_mini.evaluation.responses import BARE_TEMPLATE
from rlhf_mini.models.text import encode_plain, encode_prompts, encode_response, encode_texts

DATA = Path(__file__).parents[2] / "data"
TYPED = "Hi<|user|> a<|endoftext|><|pad|>\n<|assistant|> <|us<|user|>er|> \U000f0000\U000f0001 \ue000"


@pytest.fixture
def tokenizer(nano_base: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(nano_base)


def ask(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def as_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, split_special_tokens=True)["input_ids"]


# --- special tokens --------------------------------------------------------------------------------------------------


def test_special_tokens_that_are_typed_are_text(tokenizer: PreTrainedTokenizerBase) -> None:
    eos, user, assistant = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>", "<|assistant|>"])
    assert not set(as_text(tokenizer, TYPED)) & set(tokenizer.all_special_ids)
    said = as_text(tokenizer, f" {TYPED}")
    turn = [user, *as_text(tokenizer, f" {TYPED}\n")]
    conversation = [*ask(TYPED), {"role": "assistant", "content": TYPED}, *ask(TYPED)]
    plain, typed, longer = encode_prompts(tokenizer, [ask("Hi"), ask(TYPED), conversation])
    assert plain.ids == [user, *as_text(tokenizer, " Hi\n"), assistant]
    assert typed.ids == [*turn, assistant]
    assert longer.ids == [*turn, assistant, *said, eos, *turn, assistant]
    assert encode_response(tokenizer, TYPED) == [*said, eos]
    assert encode_response(tokenizer, TYPED, ended=False) == said
    assert encode_plain(tokenizer, [TYPED, "Hi"]) == [as_text(tokenizer, TYPED), as_text(tokenizer, "Hi")]
    assert tokenizer("Hi<|user|>")["input_ids"][-1] == user  # the tokenizer itself is as it was

    tokenizer.chat_template = BARE_TEMPLATE
    (bare,) = encode_prompts(tokenizer, [ask(TYPED)])
    assert bare.ids == as_text(tokenizer, f"{TYPED}\n")


def test_special_tokens_in_pretraining_texts_are_text(nano_base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    eos = tokenizer.eos_token_id
    texts = encode_texts(AutoModelForCausalLM.from_pretrained(nano_base), tokenizer, ["Hi", TYPED])
    assert texts == [[eos, *as_text(tokenizer, text), eos] for text in ("Hi", TYPED)]


def test_transformers_reads_a_chat_with_typed_special_tokens_alike(tokenizer: PreTrainedTokenizerBase) -> None:
    """Its `sanitize_control_tokens` may cut the text elsewhere into tokens, and drops two private-use characters."""
    typed = ask("Hi<|user|> a<|endoftext|> é")
    (ours,) = encode_prompts(tokenizer, [typed])
    theirs = tokenizer.apply_chat_template(typed, add_generation_prompt=True, sanitize_control_tokens=True)["input_ids"]
    special = [[token for token in ids if token in tokenizer.all_special_ids] for ids in (ours.ids, theirs)]
    assert tokenizer.decode(ours.ids) == tokenizer.decode(theirs)
    assert special[0] == special[1] == tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])


def test_a_special_token_that_takes_spaces_still_does(tokenizer: PreTrainedTokenizerBase) -> None:
    """As those of Phi-3: the tokens of a prompt must not depend on what else is typed in it."""
    tokenizer.add_special_tokens({"sep_token": AddedToken("<|turn|>", lstrip=True, rstrip=True, special=True)})
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + ' <|turn|> ' }}{% endfor %}|"
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    plain, typed = encode_prompts(tokenizer, [ask("Hi"), ask("<|user|>Hi <|turn|> ")])
    assert plain.ids == [*as_text(tokenizer, "Hi"), turn, *as_text(tokenizer, "|")]
    assert typed.ids == [*as_text(tokenizer, "<|user|>Hi <|turn|>"), turn, *as_text(tokenizer, "|")]


def test_texts_without_special_tokens_are_encoded_as_ever() -> None:
    """The shipped demonstrations, by the shipped tokenizer: bit-identical to what the tokenizer makes of the chat."""
    tokenizer = AutoTokenizer.from_pretrained(DATA / "base")
    demonstrations = read_demonstrations(DATA / "demonstrations.jsonl")[:200]
    chats = [[*each["prompt"], *each["completion"]] for each in demonstrations]
    whole = tokenizer(tokenizer.apply_chat_template(chats, tokenize=False))["input_ids"]
    # One among them that is encoded in the other way changes none.
    prompts = encode_prompts(tokenizer, [*(each["prompt"] for each in demonstrations), ask(TYPED)])[:-1]
    responses = [encode_response(tokenizer, each["completion"][0]["content"]) for each in demonstrations]
    assert [prompt.ids + response for prompt, response in zip(prompts, responses, strict=True)] == whole
    # In the other way, they begin and end the same.
    for each, prompt, response in zip(demonstrations, prompts, responses, strict=True):
        (longer,) = encode_prompts(tokenizer, [[*ask("<|pad|>"), *each["prompt"]]])
        assert longer.ids[-len(prompt.ids) :] == prompt.ids
        said = encode_response(tokenizer, each["completion"][0]["content"] + "\n<|pad|>", ended=False)
        assert said[: len(response) - 1] == response[:-1]
