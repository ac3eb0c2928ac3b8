"""The models of a run, packed so that the page can run them: base, SFT, PPO, reward model and value model.

Weights become integers, multiples of STEP, and of each model only its difference from the one it was trained from is
stored. Both make small numbers, which deflate packs well: the five models of the mini world take 10 MB of base64
instead of 29. Rounding to STEP moves a logit by less than 0.01, which fp16 does not reach.

gpt2.js unpacks and runs them. It has GPT-2's architecture alone; `pack_models` says so of any other.
"""

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.core.console import UserError, console
from rlhf_mini.models.adapters import load_model
from stages.ppo.options import names_function

if TYPE_CHECKING:  # torch takes seconds to import; mistakes on the command line are reported before that
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Weights = dict[str, Tensor]

STEP = 2.0**-15
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh")
# Which model each one is stored as the difference from; the value model was copied from the reward model.
STARTS = {"base": "", "sft": "base", "ppo": "sft", "rm": "base", "value": "rm"}
MAX_BYTES = 10_200_000  # of the packed models; with the rest of the page, less than 12 MB


@dataclass(frozen=True)
class Live:
    """What the page needs to run the models."""

    tokenizer: dict[str, Any]
    options: dict[str, Any]
    """PPO's: temperature, limit (in tokens of a response), and those that the microscope computes with."""
    room: int
    """The longest prompt, in tokens."""
    packed: dict[str, dict[str, Any]]

    def settings(self) -> dict[str, Any]:
        """All but the weights, which stand in elements of their own."""
        models = {name: {**model, "data": ""} for name, model in self.packed.items()}
        return {"tokenizer": self.tokenizer, "options": self.options, "room": self.room, "models": models}


def pack_run(run_dir: Path, base: Path, ppo: Checkpoint) -> Live | None:
    """The models of a finished run. None, and a line on why, if the page cannot run them."""
    from rlhf_mini.evaluation.microscope import ppo_options
    from rlhf_mini.models.text import load_tokenizer

    used, trained = ppo_options(ppo), ppo.info["options"]
    own = str(trained.get("reward", ""))
    kl_coef = ppo.info["metrics"].get("objective/kl_coef", used["kl_coef"])  # where it ended
    try:
        models = load_models(run_dir, base, run_dir / "rm" if not own or names_function(own) else Path(own))
        packed = pack_models(models)
        size = sum(len(model["data"]) for model in packed.values())
        if size > MAX_BYTES:
            raise UserError(f"the models take up {size / 1e6:.0f} MB, and the page has room for {MAX_BYTES / 1e6:.0f}")
        limit = int(trained.get("max_new_tokens", 48))
        return Live(
            tokenizer=pack_tokenizer(load_tokenizer(run_dir / "ppo")),
            options={name: used[name] for name in ("temperature", "missing_eos_penalty", "gamma", "gae_lambda")}
            | {"kl_coef": kl_coef, "limit": limit, "look": not names_function(own)},
            room=models["ppo"].config.n_positions - limit,
            packed=packed,
        )
    except UserError as fault:
        console.print(f'report: without "Try it": {fault}', soft_wrap=True)
        return None


def pack_models(models: Mapping[str, "PreTrainedModel"]) -> dict[str, dict[str, Any]]:
    """What gpt2.js's `unpack` reads, by name. UserError if a model is not of GPT-2's architecture."""
    stored: dict[str, Weights] = {}
    packed = {}
    for name, start in STARTS.items():
        config = config_of(name, models[name])
        packed[name], stored[name] = pack(weights_of(models[name]), stored.get(start, {}))
        packed[name] |= {"start": start, "config": config}
    return packed


def pack(weights: "Weights", start: "Weights") -> tuple[dict[str, Any], "Weights"]:
    """The packed weights, and what they are when they are unpacked again."""
    import torch

    integers, unpacked, tensors = [], {}, []
    for name, weight in weights.items():
        differs = name in start and start[name].shape == weight.shape
        tensors.append([name, weight.numel(), differs])
        before = start[name] if differs else torch.zeros_like(weight)
        rounded = ((weight - before) / STEP).round()
        integers.append(rounded.flatten().numpy().astype(np.int64))
        unpacked[name] = before + rounded * STEP
    signed = np.concatenate(integers)
    zigzag = np.where(signed < 0, -2 * signed - 1, 2 * signed)  # 0, -1, 1, -2, 2: small numbers have empty high bytes
    planes = max(1, (int(zigzag.max()).bit_length() + 7) // 8)
    data = b"".join((zigzag >> 8 * plane & 255).astype(np.uint8).tobytes() for plane in range(planes))
    return {
        "step": STEP,
        "planes": planes,
        "tensors": tensors,
        "data": base64.b64encode(zlib.compress(data, 9)).decode("ascii"),
    }, unpacked


def weights_of(model: "PreTrainedModel") -> "Weights":
    """Each parameter once, by GPT-2's names; a vocabulary head that is tied to the embedding is the embedding."""
    return {name.removeprefix("transformer."): one.detach().float() for name, one in model.named_parameters()}


def config_of(name: str, model: "PreTrainedModel") -> dict[str, Any]:
    config: Any = model.config
    plain = config.model_type == "gpt2" and config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx
    if not plain or config.activation_function not in ACTIVATIONS:
        raise UserError(f"the page can run GPT-2's architecture only, and {name} is another model")
    return {
        key: getattr(config, key)
        for key in ("n_layer", "n_head", "n_embd", "n_positions", "layer_norm_epsilon", "activation_function")
    } | {
        "n_inner": config.n_inner or 4 * config.n_embd,
        "reward_mean": getattr(config, "reward_mean", 0.0),
        "likelihood_coef": getattr(config, "likelihood_coef", 0.0),
    }


def pack_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """What gpt2.js's Tokenizer reads, and the pieces of the chat template.

    UserError if it is no byte-level BPE like GPT-2's, or if the chat template is more than text around each turn.
    """
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    pre, model = whole["pre_tokenizer"] or {}, whole["model"]
    byte_level = pre.get("type") == "ByteLevel" and pre["use_regex"] and not pre["add_prefix_space"]
    if model["type"] != "BPE" or not byte_level or whole["normalizer"]:
        raise UserError("the page can run byte-level BPE like GPT-2's only, and the tokenizer is another one")
    vocab = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "vocab": vocab,
        "merges": [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]],
        "special": {token["content"]: token["id"] for token in whole["added_tokens"] if token["special"]},
        "eos": tokenizer.eos_token_id,
        "template": template_of(tokenizer),
    }


def template_of(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """What the chat template writes: [before, after] a turn of `user` and of `assistant`, and to `start` a response.

    UserError if it is more than that, such as a line before the first turn.
    """
    contents = ["\ue000", "\ue001", "\ue002"]  # characters for private use, which no template writes
    roles = ["user", "assistant", "user"]

    def render(turns: int, start: bool) -> str:
        chat = [{"role": role, "content": text} for role, text in zip(roles[:turns], contents, strict=False)]
        text: str = tokenizer.apply_chat_template(chat, add_generation_prompt=start, tokenize=False)
        return text

    one, two, three = (render(turns, False) for turns in (1, 2, 3))
    user = one.split(contents[0])
    assistant = two.removeprefix(one).split(contents[1])
    start = render(3, True).removeprefix(three)
    rebuilt = contents[0].join(user) + contents[1].join(assistant) + contents[2].join(user) + start
    if len(user) != 2 or len(assistant) != 2 or rebuilt != render(3, True):
        raise UserError("the page can run chat templates that write a text before and after each turn only")
    return {"user": user, "assistant": assistant, "start": start}


def load_models(run_dir: Path, base: Path, rm: Path) -> dict[str, "PreTrainedModel"]:
    """The five models. UserError if the reward model reads with another model than this run's SFT."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from rlhf_mini.models.scoring import load_reward_model

    language = {"base": base, "sft": run_dir / "sft", "ppo": run_dir / "ppo"}
    models = {name: load_model(AutoModelForCausalLM, path).eval() for name, path in language.items()}
    models["rm"] = load_reward_model(rm)
    models["value"] = load_model(AutoModelForSequenceClassification, run_dir / "ppo" / "value_model").eval()
    reader = vars(models["rm"]).get("reader")
    if reader is not None:
        pairs = zip(reader.parameters(), models["sft"].parameters(), strict=True)
        if not all(torch.equal(one, other) for one, other in pairs):
            raise UserError("the reward model's reader is not this run's SFT model")
    return models
