"""Text to tokens: what people type is text, and a chat template that training cannot use is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from rlhf_mini.chat.answers import Chat
from rlhf_mini.chat.options import ChatOptions
from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Messages, read_demonstrations
from rlhf_mini.evaluation.compare import CompareOptions, compare
from rlhf_mini.evaluation.responses import BARE_TEMPLATE
from rlhf_mini.models.text import encode_plain, encode_prompts, encode_response, encode_texts, load_tokenizer
from rlhf_mini.world.base import CHAT_TEMPLATE
from stages.ppo.options import PPOOptions
from stages.ppo.train import train_ppo
from stages.rm.options import RMOptions
from stages.rm.train import train_rm
from stages.sft.options import SFTOptions
from stages.sft.train import train_sft

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
    tokenizer = load_tokenizer(DATA / "base")
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


# --- chat templates --------------------------------------------------------------------------------------------------

WITHOUT_END = CHAT_TEMPLATE.replace(" + '<|endoftext|>'", "")
UNUSABLE = {
    None: "the tokenizer in {} has no chat template: give the base a chat template as rlhf_mini/world/base.py does",
    WITHOUT_END: "the chat template in {} writes no end of text (<|endoftext|>) after a response, so that no model",
    CHAT_TEMPLATE.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|>!' }}"): (
        "the chat template in {} does not begin a response with the generation prompt, after which a model"
    ),
    "{{ raise_exception('only\nsystem messages') }}": "the chat template in {} cannot be used (only system messages): ",
    "{% for": "the chat template in {} cannot be used (",
}


def spoil(checkpoint: Path, template: str | None) -> None:
    """Gives a checkpoint another chat template, as if it had been made with it before such a template was refused."""
    path, info = checkpoint / "chat_template.jinja", json.loads((checkpoint / "stage.json").read_text())
    path.unlink()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(checkpoint)
    info["sha256"] = {name: sum_ for name, sum_ in info["sha256"].items() if "token" not in name and "chat" not in name}
    info["parents"] = [{key: parent[key] for key in ("stage", "path", "sha256")} for parent in info["parents"]]
    (checkpoint / "stage.json").write_text(json.dumps(info))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("template", UNUSABLE)
def test_a_chat_template_that_training_cannot_use_is_refused(nano_base: Path, template: str | None) -> None:
    load_tokenizer(nano_base)
    spoil(nano_base, template)
    said = refusal(nano_base)
    assert said.startswith(UNUSABLE[template].format(nano_base)) and said.endswith("save it again and start from it")


def test_a_tokenizer_without_an_end_of_text_is_refused(nano_base: Path) -> None:
    path = nano_base / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name != "eos_token"}))
    assert refusal(nano_base) == (
        f"the tokenizer in {nano_base} has no eos_token: give the base one, save it again and start from it"
    )


@pytest.mark.parametrize("template", [None, WITHOUT_END])
def test_every_command_refuses_it_before_its_first_step(nano_run: CompareOptions, template: str | None) -> None:
    for checkpoint in (Path(nano_run.base), *(nano_run.run_dir / stage for stage in ("sft", "rm", "ppo"))):
        spoil(checkpoint, template)
    run: dict[str, Any] = dict(run=nano_run.run, runs_dir=nano_run.runs_dir)
    commands: dict[str, Callable[[], object]] = {
        "sft": lambda: train_sft(SFTOptions(base=nano_run.base, demonstrations=nano_run.demonstrations, **run)),
        "rm": lambda: train_rm(RMOptions(base=nano_run.base, init="sft", **run)),
        "ppo": lambda: train_ppo(PPOOptions(prompts=nano_run.split, **run)),
        "compare": lambda: compare(nano_run, ""),
        "chat": lambda: Chat(ChatOptions(base=nano_run.base, **run)).load("ppo"),
    }
    said = UNUSABLE[template].partition("{}")[0]
    for name, command in commands.items():
        with pytest.raises(UserError, match=f"^{re.escape(said)}") as caught:
            command()
        assert "\n" not in str(caught.value), name
