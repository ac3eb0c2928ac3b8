"""The checkpoints and prompts that bench.py measures on."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from benchmarks.worker import Case
from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import read_prompts
from rlhf_mini.models.text import encode_prompts

PROMPT_TOKENS = 24


@torch.no_grad()
def forbid(model: Any, token_ids: list[int]) -> None:
    """Makes a GPT-2 unable to say these tokens: their logits are -10000, whatever it has read.

    The first number that its output layer gets becomes a constant 1, and these tokens' weight for it the logit.
    """
    model.transformer.ln_f.weight[0] = 0
    model.transformer.ln_f.bias[0] = 1
    model.transformer.wte.weight[:, 0] = 0
    model.transformer.wte.weight[token_ids, 0] = -1e4


def real(sft: Checkpoint, rm: Checkpoint, prompts_file: str, **settings: Any) -> Case:
    """The run's own checkpoints, prompts in a random order, and the lengths that its SFT model's responses have."""
    prompts = [example["prompt"] for example in read_prompts(prompts_file)]
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()
    return Case(str(sft.path), str(rm.path), [prompts[index] for index in order], **settings)


def never_ending(sft: Checkpoint, rm: Checkpoint, folder: Path, prompts_file: str, **settings: Any) -> Case:
    """Random weights in the shape of the run's models, unable to end: every response has all its tokens.

    So has every prompt: those of PROMPT_TOKENS are taken. Checkpoints are written to `folder`, where both workers load.
    """
    tokenizer = AutoTokenizer.from_pretrained(sft.path)
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sft.path))
    # A new model takes its generation settings from the config, in which training has turned the cache off: without
    # this, TRL's rollout would read the whole text again for every token, and be five times as slow.
    policy.generation_config = GenerationConfig.from_pretrained(sft.path)
    forbid(policy, [tokenizer.eos_token_id, tokenizer.pad_token_id])  # TRL ends a response at a pad token, too
    policy.save_pretrained(folder / "sft")
    tokenizer.save_pretrained(folder / "sft")
    AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(rm.path)).save_pretrained(folder / "rm")
    encoded = encode_prompts(tokenizer, [example["prompt"] for example in read_prompts(prompts_file)])
    prompts = [prompt.messages for prompt in encoded if len(prompt.ids) == PROMPT_TOKENS]
    if not prompts:
        raise UserError(f"no prompt in {prompts_file} has {PROMPT_TOKENS} tokens: name another file by --prompts")
    return Case(str(folder / "sft"), str(folder / "rm"), prompts, **settings)
