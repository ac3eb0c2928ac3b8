"""Models and data that are not this project's: random models of any architecture, and a file like hh-rlhf's."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rlhf_mini.core.files import write_jsonl

LLAMA = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=128)  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=128, activation_function="gelu_new"),
    "opt": dict(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
                word_embed_proj_dim=32),
    "gpt_neox": dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                     max_position_embeddings=128),
    "llama": LLAMA,
    "mistral": LLAMA | dict(sliding_window=None),
    "qwen2": LLAMA,
    "qwen3": LLAMA | dict(head_dim=8),
    "gemma": LLAMA | dict(head_dim=8),
}  # fmt: skip
TEXTS = ["Human: How are you? Assistant: I am well, thank you.", "What is a kiwi? It is a bird.", "Say it again."]


def make_tokenizer(folder: Path, **special: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with an end of text and nothing else, as GPT-2's."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=["<|endoftext|>"],
                                                       initial_alphabet=alphabet, show_progress=False))  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>", **special)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_model(folder: Path, name: str, **changes: Any) -> Path:
    tokenizer = make_tokenizer(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        name,
        vocab_size=len(tokenizer),
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        **{**SHAPES[name], **changes},
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def hh(folder: Path) -> str:
    """A file like hh-rlhf's, with a line that is none and a prompt that is too long."""

    def transcript(n: int, answer: str) -> str:
        return f"\n\nHuman: What is kiwi {n}?\n\nAssistant: {answer}"

    records = [{"chosen": transcript(n, "It is a bird."), "rejected": transcript(n, "Look it up!")} for n in range(200)]
    records.append({"chosen": transcript(9, "It is" * 200), "rejected": transcript(9, "No")})
    write_jsonl(folder / "hh.jsonl", records)
    with (folder / "hh.jsonl").open("a") as file:
        file.write('{"chosen": "\\n\\nHuman: cut')
    return str(folder / "hh.jsonl")
