"""What PPO works with: its models, what one rollout leaves behind, and all that an update changes."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain, count, islice, repeat
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_mini.core.checkpoints import Checkpoint, load_checkpoint
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.options import load_function
from rlhf_mini.core.resume import State, Tensors, load_optimizer, optimizer_tensors
from rlhf_mini.models.scoring import with_scalar_head
from stages.ppo.options import PPOOptions
from stages.ppo.rewards import Reward, of_function, of_model

T = TypeVar("T")


@dataclass
class Models:
    """Two models that learn, one that stays as it is, and what judges."""

    policy: Any
    value_model: Any
    ref_policy: Any
    reward: Reward
    tokenizer: Any


def check_reward_model(options: PPOOptions, sft: Checkpoint) -> Checkpoint | None:
    """The reward model's checkpoint, None if the reward is a function. Another SFT model's is taken only if named."""
    if ":" in options.reward:
        return None
    if not options.reward:
        return load_checkpoint(options.run_dir / "rm", "rm", of=sft)
    rm = load_checkpoint(options.reward, "rm")
    if rm.info["sha256"].get("tokenizer.json") != sft.info["sha256"].get("tokenizer.json"):
        raise UserError(f"the reward model in {rm.path} has another tokenizer than the SFT model: name another")
    if all(parent["sha256"] != sft.sha256 for parent in rm.info["parents"]):
        console.print(f"ppo: {rm.path} has learned from the responses of another SFT model", soft_wrap=True)
    return rm


def load(sft: Checkpoint, rm: Checkpoint | None, options: PPOOptions) -> Models:
    """Policy and reference from `sft`, value model and reward from `rm`, without dropout (eval mode) for good."""
    device = torch.accelerator.current_accelerator(check_available=True) if options.device == "auto" else None
    tokenizer = AutoTokenizer.from_pretrained(sft.path)
    policy, ref_policy = (AutoModelForCausalLM.from_pretrained(sft.path).eval().to(device or "cpu") for _ in range(2))
    if rm is None:
        value_model = with_scalar_head(sft.path, options.seed).eval()
        reward = of_function(load_function(options.reward, "--reward"), options.reward)
    else:
        value_model, reward_model = (
            AutoModelForSequenceClassification.from_pretrained(rm.path).eval().to(device or "cpu") for _ in range(2)
        )
        reward = of_model(reward_model, tokenizer)
    return Models(policy, value_model.to(device or "cpu"), ref_policy, reward, tokenizer)


@dataclass
class Episodes:
    """What one rollout leaves behind. No gradient flows through any of it."""

    input_ids: Tensor  # (B, T) prompt + response
    attention_mask: Tensor  # (B, T)
    response_mask: Tensor  # (B, R) True through the eos
    ended: Tensor  # (B,) True if there is an eos
    logprobs: Tensor  # (B, R) of the policy that sampled
    ref_logprobs: Tensor  # (B, R)
    values: Tensor  # (B, R) before each token
    scores: Tensor  # (B,) of the reward model
    rewards: Tensor  # (B, R)
    advantages: Tensor  # (B, R) whitened
    returns: Tensor  # (B, R)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the models need to look at the responses."""
        return self.input_ids, self.attention_mask, self.response_mask

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Tensor) -> "Episodes":
        return Episodes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


class Learner:
    """All that changes from update to update, and so all that a killed run needs to go on as if it had not been."""

    def __init__(self, models: Models, options: PPOOptions) -> None:
        self.models = {"policy": models.policy, "value_model": models.value_model}
        self.ema = None
        if options.ema_decay > 0:
            self.ema = AveragedModel(models.policy, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay))
            self.models["ema"] = self.ema
        # Adam as in the paper (betas) and in OpenAI's code (eps).
        self.optimizers = [
            torch.optim.Adam(model.parameters(), betas=(0.9, 0.95), eps=1e-5, fused=True)
            for model in (models.policy, models.value_model)
        ]
        self.peaks = options.learning_rate, options.value_learning_rate
        self.generator = torch.Generator().manual_seed(options.seed)
        self.kl_coef = options.kl_coef

    def set_rates(self, share: float) -> None:
        """The learning rates of the next update: a share of their peaks."""
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = share * peak

    def average(self) -> None:
        """Takes the policy as it is now into the average, if there is one."""
        if self.ema is not None:
            self.ema.update_parameters(self.models["policy"])

    def take_average(self) -> None:
        """Makes the policy the average, if there is one."""
        if self.ema is not None:
            self.models["policy"].load_state_dict(self.ema.module.state_dict())

    def tensors(self) -> Tensors:
        return {
            **{name: model.state_dict() for name, model in self.models.items()},
            "policy_optimizer": optimizer_tensors(self.optimizers[0]),
            "value_optimizer": optimizer_tensors(self.optimizers[1]),
            "generator": {"state": self.generator.get_state()},
        }

    def restore(self, saved: State) -> None:
        for name, model in self.models.items():
            model.load_state_dict(saved.tensors[name])
        for optimizer, name in zip(self.optimizers, ("policy_optimizer", "value_optimizer"), strict=True):
            load_optimizer(optimizer, saved.tensors[name])
        self.generator.set_state(saved.tensors["generator"]["state"])
        self.kl_coef = saved.state["kl_coef"]


def batches(items: Sequence[T], size: int, seed: int, skip: int) -> Iterator[list[T]]:
    """Batches without end, after the first `skip`: pass after pass over all items, each pass in a new order."""
    rng = random.Random(seed)
    order = chain.from_iterable(rng.sample(items, len(items)) for _ in count())
    return (list(islice(order, size)) for order in repeat(islice(order, skip * size, None)))
