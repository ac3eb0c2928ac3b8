"""What the tests of PPO share."""

import torch

from rlhf_mini.core.examples import Messages
from rlhf_mini.models.text import encode_prompts
from stages.ppo import train
from stages.ppo.models import Batch, Models
from stages.ppo.options import PPOOptions


def collect(models: Models, prompts: list[Messages], options: PPOOptions, generator: torch.Generator) -> Batch:
    """The first three steps of an iteration of train_ppo, at the options' kl_coef."""
    trajectories = train.rollout(models, encode_prompts(models.tokenizer, prompts), options, generator)
    rewards = train.kl_penalized_rewards(trajectories, options, options.kl_coef)
    return train.with_advantages(trajectories, rewards, options)
