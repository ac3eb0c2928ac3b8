"""The model that SFT starts from: this project's own base, or any causal language model of transformers.

    checkpoint, model, tokenizer = load_base("data/base")
    checkpoint, model, tokenizer = load_base("distilgpt2")          # a folder, or a name in the local cache

Another project's model gets what the stages need and it may lack: a pad token that is not its end of text, a chat
template, embeddings for both, and no dropout. Weights are read from safetensors alone, and no code that comes with a
model is run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file

from rlhf_mini.core import processes
from rlhf_mini.core.checkpoints import Checkpoint, load_checkpoint
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.files import sha256
from rlhf_mini.models.forward import forward_pass
from rlhf_mini.models.rows import Rows
from rlhf_mini.models.text import encode_plain, encode_response, load_tokenizer

PAD, USER, ASSISTANT = "<|pad|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|> ' + message['content'] + eos_token }}"
    "{% else %}{{ '<|user|> ' + message['content'] + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
NONE = "it has none"
SAYINGS = ("The weather is fine today.", "오늘 날씨가 좋습니다.", "今天天气很好。", "Сегодня хорошая погода.")
TOLERANCE = 1e-3  # between the logits of rows that lie end to end and those of the model itself


def load_base(source: str) -> tuple[Checkpoint, PreTrainedModel, PreTrainedTokenizerBase]:
    """The base with its weights and its tokenizer.

    Raises:
        UserError: it is not there, or cannot be used; the sentence says why.
    """
    path = Path(source)
    if (path / "stage.json").is_file() or not (path.is_dir() or looks_like_a_name(source)):
        base = load_checkpoint(path, "base")
        return base, AutoModelForCausalLM.from_pretrained(base.path), load_tokenizer(base.path)
    folder = folder_of(source)
    model, tokenizer, added = load_equipped(source, folder)
    if added:
        console.print(f"{source} gets {' and '.join(added)}", soft_wrap=True)
    check_rows(source, model)
    files = [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.json"))]
    sums = {file.name: sha256(file) for file in files}
    weights = [sums[file.name] for file in files if file.suffix == ".safetensors"]
    info = {"stage": "base", "sha256": sums, "parents": [], "options": {}, "metrics": {}, "seed": 0}
    return Checkpoint(folder, "base", weights[0], info), model, tokenizer


def load_equipped(source: str, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """A model from elsewhere and its tokenizer, made fit for chats, and what was added to the tokenizer, in words."""
    model = load_foreign(source, folder)
    tokenizer, added = equip(source, folder, model.config)
    fit_to(model, tokenizer)
    return model, tokenizer, added


def new_tokens(base: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> range:
    """The tokens that `load_base` has added to the base's own, whose embeddings nobody has trained."""
    return range(len(read_tokenizer(base.path)), len(tokenizer))


def base_tokenizer(source: str) -> tuple[PreTrainedTokenizerBase, Any]:
    """The tokenizer that `load_base` would give this model, and its config, without loading weights."""
    path = Path(source)
    if (path / "stage.json").is_file():
        return load_tokenizer(path), AutoConfig.from_pretrained(path)
    folder = folder_of(source) if looks_like_a_name(source) else path
    if not (folder / "config.json").is_file():
        raise UserError(f"{source} is no model: it has no config.json")
    config = AutoConfig.from_pretrained(folder)
    return equip(source, folder, config)[0], config


def looks_like_a_name(source: str) -> bool:
    """gpt2 or owner/name, and not a folder that is not there."""
    return source.count("/") <= 1 and not source.startswith((".", "/", "~", "data/", "runs/"))


def folder_of(source: str) -> Path:
    """Where a model from elsewhere is: a folder, or one in the cache. UserError if it is in neither."""
    return path if (path := Path(source)).is_dir() else in_cache(source)


def in_cache(name: str) -> Path:
    """The folder of a model of the Hub. UserError if it is not in the local cache and must not be downloaded."""
    try:
        config = cached_file(name, "config.json")
        cached_file(name, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        config = None
    if config is None:
        raise UserError(
            f"{name} is neither a folder nor in the local cache of models: give a folder, or allow the network with "
            "HF_HUB_OFFLINE=0"
        )
    return Path(config).parent


def load_foreign(source: str, folder: Path) -> PreTrainedModel:
    """Its weights in float32, without dropout."""
    if not any(folder.glob("*.safetensors")):
        pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        why = "its weights are pickles, which can run code: save it again with transformers"
        raise UserError(f"{source} has no safetensors file: {why if pickles else 'it has no weights'}")
    try:
        config: Any = AutoConfig.from_pretrained(folder)
        for name, value in vars(config).items():
            if ("drop" in name and isinstance(value, int | float)) or name == "layerdrop":
                setattr(config, name, 0.0)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, config=config, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError) as fault:
        reason = " ".join(str(fault).split())[:200]
        raise UserError(f"{source} is no causal language model that transformers can load ({reason})") from None
    return model


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, as its tokenizer.json says.

    Without a tokenizer_config.json, transformers goes by the architecture and makes it a GPT-2's, byte-level. Where it
    is another, as KoGPT2's is, most of a text would vanish.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    lost = [saying for saying in SAYINGS if not keeps(tokenizer, saying)]
    if lost and (folder / "tokenizer.json").is_file():
        as_it_is: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
        if any(keeps(as_it_is, saying) for saying in lost):
            return as_it_is
    return tokenizer


def keeps(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether its tokens say what `text` says, but for spaces at both ends."""
    (ids,) = encode_plain(tokenizer, [text])
    return str(tokenizer.decode(ids)).strip() == text


def equip(source: str, folder: Path, config: Any) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer with a pad token and a chat template, and what was added to it, in words."""
    try:
        tokenizer = read_tokenizer(folder)
    except (OSError, ValueError, KeyError) as fault:
        reason = " ".join(str(fault).split())[:200]
        raise UserError(f"{source} has no tokenizer that transformers can load ({reason})") from None
    if tokenizer.eos_token_id is None:
        eos = config.eos_token_id[0] if isinstance(config.eos_token_id, Sequence) else config.eos_token_id
        if eos is None or eos >= len(tokenizer):
            raise UserError(f"{source} has no end-of-text token: give its tokenizer an eos_token, and save it again")
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eos)
    added = []
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
        added.append("a pad token")
    if reason := fault_of_template(tokenizer):
        speakers = {"additional_special_tokens": [USER, ASSISTANT]}
        tokenizer.add_special_tokens(speakers, replace_extra_special_tokens=False)
        tokenizer.chat_template = CHAT_TEMPLATE
        added.append("a chat template" if reason == NONE else f"another chat template (its own fails: {reason})")
    return tokenizer, added


def fit_to(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives the model an embedding for each token, and the tokenizer's ends."""
    config: Any = model.config
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        with torch.random.fork_rng():  # new ones are drawn from the distribution of the others, the same every time
            torch.manual_seed(0)
            model.resize_token_embeddings(len(tokenizer))
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id


def fault_of_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Why the stages cannot use its chat template; "" if they can."""
    if not tokenizer.chat_template:
        return NONE
    try:
        encode_response(tokenizer, "?")
    except Exception as fault:  # a template is a program: it may fail in any way
        return " ".join(str(fault).split())[:120]
    return ""


@torch.no_grad()
def check_rows(source: str, model: PreTrainedModel) -> None:
    """UserError if rows that lie end to end (forward.py) would not give what the model itself gives."""
    model.eval()
    rows = [[5, 6, 7, 8], [9, 8]]
    with processes.in_float32(), forward_pass(model) as forward:
        together = forward(torch.tensor([token for row in rows for token in row]), Rows([len(row) for row in rows]))
    alone = torch.cat([model(torch.tensor([row])).logits[0] for row in rows])
    if not torch.allclose(together, alone, atol=TOLERANCE, rtol=TOLERANCE):
        raise UserError(
            f"the architecture {model.config.model_type} of {source} computes something else when texts lie end to end "
            "in a batch, so it is not supported: choose a base such as GPT-2, Llama or Qwen 2"
        )
