"""What PPO works with: its four models, and the episodes that a rollout leaves behind."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_mini import scoring
from rlhf_mini.checkpoints import Parent


class Actor(torch.nn.Module):
    """What learns, in one module, so that accelerate wraps both models at once."""

    def __init__(self, policy: Any, value_model: Any) -> None:
        super().__init__()
        self.policy, self.value_model = policy, value_model

    def forward(self, batch: "Episodes", temperature: float, bucket_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, values and entropy (without gradient) of the response tokens, each (B, R)."""
        inputs = (batch.input_ids, batch.attention_mask, batch.response_mask)
        logprobs, entropy = scoring.response_logprobs(self.policy, *inputs, temperature, bucket_size)
        return logprobs, scoring.response_values(self.value_model, *inputs, bucket_size), entropy


@dataclass
class Models:
    """Two models that learn and two that stay as they are."""

    actor: Actor
    ref_policy: Any
    reward_model: Any
    tokenizer: Any


def load(sft: Parent, rm: Parent, device: torch.device) -> Models:
    """Policy and reference from `sft`, value model and reward model from `rm`, without dropout (eval mode) for good."""
    policy, ref_policy = (AutoModelForCausalLM.from_pretrained(sft.path).eval().to(device) for _ in range(2))
    value_model, reward_model = (
        AutoModelForSequenceClassification.from_pretrained(rm.path).eval().to(device) for _ in range(2)
    )
    return Models(Actor(policy, value_model), ref_policy, reward_model, AutoTokenizer.from_pretrained(sft.path))


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

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Tensor) -> "Episodes":
        return Episodes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})
