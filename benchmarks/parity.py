"""Records what TRL 1.12.0's PPOTrainer computes, as the expectations of tests/test_parity.py.

    make parity                 # installs TRL 1.12.0 into .trl-1.12, then rewrites tests/fixtures/trl_ppo.safetensors

The formulas stand inside `PPOTrainer.train()`, one function of 350 lines. So the real trainer runs, on random models of
a thousand parameters and in float64, and a tracing hook copies its local variables at two of its lines: where a rollout
is ready, and at the end of an optimizer step. Nothing of TRL's is written down a second time here.
"""

import inspect
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.cases import forbid
from benchmarks.worker import TRL_ON_A_CPU
from rlhf_mini.core.console import UserError, console, run
from rlhf_mini.core.files import sha256

OUT = Path("tests/fixtures/trl_ppo.safetensors")
TRL = "1.12.0"
EOS, PAD, VOCABULARY, PROMPT, RESPONSE, EPISODES = 0, 1, 12, 4, 6, 8

# What train() holds in its local variables when the rollout is ready, and at the end of an optimizer step.
ROLLOUT_LINE = "for ppo_epoch_idx in range(args.num_ppo_epochs):"
ROLLOUT = ["queries", "responses", "contain_eos_token", "padding_mask", "padding_mask_p1", "logprobs", "ref_logprobs"]
ROLLOUT += ["values", "scores", "kl", "rewards", "advantages", "returns"]
STEP_LINE = "gradient_accumulation_idx += 1"
STEP = ["micro_batch_inds", "new_logprobs", "vpred", "ratio", "pg_loss", "pg_clipfrac", "vf_loss", "vf_clipfrac"]
STEP += ["approxkl"]

# Options of the three updates recorded; of each, the third step on the same episodes: by then, ratios have left 1.
SHARED = dict(kl_coef=0.1, cliprange=0.2, cliprange_value=0.2, temperature=0.7, missing_eos_penalty=1.5)
# All three give the same responses.
CASES: dict[str, dict[str, Any]] = {
    "plain": dict(SHARED, kl_estimator="k1", whiten_rewards=False, gamma=1.0, lam=0.95),
    "whitened": dict(SHARED, kl_estimator="k3", whiten_rewards=True, gamma=0.9, lam=0.8),
    "undiscounted": dict(SHARED, kl_estimator="k1", whiten_rewards=False, gamma=1.0, lam=1.0),
}
STEPS = 3

SEED = 2  # together with these, the responses are 1 to 6 tokens long, and half of them end by themselves
MODELS = {"policy": 30, "ref_policy": 31, "reward_model": 32, "value_model": 33}


def main() -> None:
    if trl.__version__ != TRL:
        raise UserError(f"TRL {TRL} is needed, not {trl.__version__}: run `make parity`")
    tensors: dict[str, torch.Tensor] = {}
    for model in MODELS:
        weights = build(model).float().state_dict()
        tensors |= {f"{model}/{name}": weight for name, weight in weights.items() if name != "lm_head.weight"}  # tied
    sources: dict[str, str] = {}
    for case, options in CASES.items():
        recorded, sources = record(options)
        tensors |= {f"{case}/{name}": tensor for name, tensor in recorded.items()}
    provenance = {
        "command": "make parity",
        "versions": {library.__name__: library.__version__ for library in (trl, torch, transformers)},
        "file": "trl/experimental/ppo/ppo_trainer.py",
        "sha256": sha256(Path(inspect.getfile(trainer_class()))),
        "lines": sources,
        "cases": CASES,
        "models": build("policy").config.to_diff_dict(),
    }
    metadata = {"provenance": json.dumps(provenance)}  # one entry, because safetensors writes several in any order
    OUT.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, OUT, metadata=metadata)
    console.print(f"{OUT} written: {len(tensors)} tensors, {OUT.stat().st_size} bytes")


def trainer_class() -> Any:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.ppo import PPOTrainer

    return PPOTrainer


def build(name: str) -> Any:
    """One of the random models: in float64, with weights that float32 holds, and all policies unable to say PAD."""
    torch.manual_seed(MODELS[name])
    size = dict(n_embd=8, n_layer=1, n_head=2, n_inner=8, vocab_size=VOCABULARY, n_positions=PROMPT + RESPONSE)
    config = GPT2Config(
        **size, num_labels=1, initializer_range=0.5, eos_token_id=EOS, bos_token_id=EOS, pad_token_id=PAD
    )
    model = (GPT2LMHeadModel if name.endswith("policy") else GPT2ForSequenceClassification)(config)
    forbid(model, [PAD])
    return model.double()


def record(options: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """One update of the real trainer. Returns its tensors, and for each where in TRL it was computed and read."""
    from trl.experimental.ppo import PPOConfig

    words = {f"w{token}": token for token in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w2")),
        eos_token=f"w{EOS}",
        pad_token=f"w{PAD}",
        padding_side="left",
    )
    generator = torch.Generator().manual_seed(0)
    lengths = [PROMPT - row % 3 for row in range(EPISODES)]
    prompts = [torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class()(
            args=PPOConfig(
                output_dir=folder,
                **TRL_ON_A_CPU,
                total_episodes=EPISODES,
                per_device_train_batch_size=EPISODES,
                num_ppo_epochs=STEPS,
                learning_rate=0.01,
                response_length=RESPONSE,
                stop_token="eos",
                seed=SEED,
                **options,
            ),
            processing_class=tokenizer,
            model=build("policy"),
            ref_model=build("ref_policy"),
            reward_model=build("reward_model"),
            value_model=build("value_model"),
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
        )
        np.random.seed(SEED)  # TRL shuffles the episodes by numpy, and leaves it unseeded
        return traced(trainer)


def traced(trainer: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Runs `train()` with a hook that copies its local variables."""
    code = type(trainer).train.__code__
    lines, first = inspect.getsourcelines(code)
    line_of = {text.strip(): first + offset for offset, text in enumerate(lines)}
    recorded: dict[str, torch.Tensor] = {}
    sources: dict[str, str] = {}

    def copy(frame: FrameType, names: list[str], line: int) -> None:
        for name in names:
            recorded[name] = torch.as_tensor(frame.f_locals[name]).detach().clone()
            assigned = [first + at for at, text in enumerate(lines) if re.match(rf" *{name}(\[.*\])? [-+]?= ", text)]
            sources[name] = f"train(), assigned in {[at for at in assigned if at < line]}, read before {line}"

    def hook(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not code:
            return None
        if event == "line" and frame.f_lineno == line_of[ROLLOUT_LINE] and "responses" not in recorded:
            copy(frame, ROLLOUT, frame.f_lineno)
        if event == "line" and frame.f_lineno == line_of[STEP_LINE]:
            copy(frame, STEP, frame.f_lineno)  # each step overwrites the one before: the last one stays
        return hook

    sys.settrace(hook)
    try:
        trainer.train()
    finally:
        sys.settrace(None)
    return recorded, sources


if __name__ == "__main__":
    run(main)
