"""The options of stage 3."""

from dataclasses import dataclass
from pathlib import Path

from rlhf_mini.console import UserError, option

MAY_BE_0 = ("seed", "kl_coef", "missing_eos_penalty", "warmup_updates", "gamma", "gae_lambda", "whiten_rewards")


@dataclass
class PPOOptions:
    """Options of `python -m stages.ppo`. B is `episodes`, the batch of one update."""

    # Where things are
    run: str = option("default", "Name of the run; its checkpoints are in RUNS_DIR/RUN.")
    runs_dir: str = option("runs", "Folder of all runs.")
    prompts: str = option("data/prompts/ppo.jsonl", "Prompts to train on.")
    validation_prompts: str = option(
        "data/prompts/validation.jsonl", "Prompts that the finished policy is measured on."
    )
    seed: int = option(0, "Seed of the prompts' order and of the sampling.")
    device: str = option("cpu", "cpu, or auto for the best device that is there.")

    # The rollout
    updates: int = option(60, "Updates: each samples EPISODES responses and learns from them.")
    episodes: int = option(64, "Responses sampled for one update.")
    max_new_tokens: int = option(48, "Tokens after which a response is cut.")
    temperature: float = option(0.7, "Divides the logits, when sampling and in every log-probability (InstructGPT: 1).")

    # The reward
    kl_coef: float = option(0.07, "Reward lost per nat of KL to the SFT model.")
    missing_eos_penalty: float = option(1.0, "Subtracted from the score of a response that was cut.")
    whiten_rewards: bool = option(False, "Scale the per-token rewards of a batch to variance 1.")

    # The update
    num_ppo_epochs: int = option(1, "Passes over the episodes of an update.")
    num_minibatches: int = option(4, "Optimizer steps in one pass.")
    learning_rate: float = option(2e-4, "Of the policy: its peak; falls along a cosine to 10 %% of it.")
    value_learning_rate: float = option(2e-4, "Of the value model, likewise.")
    warmup_updates: int = option(10, "Updates over which both learning rates rise, before they fall.")
    max_grad_norm: float = option(1.0, "Longer gradients are shortened to this, policy and value model each by itself.")
    gamma: float = option(1.0, "Discount per token.")
    gae_lambda: float = option(0.95, "Bias (0) against variance (1) of the advantages.")
    clip_range: float = option(0.2, "How far the probability ratio may move before its gain stops counting.")
    clip_range_value: float = option(0.2, "The same for values, in units of the score.")

    # Looking on
    sample_every: int = option(10, "Updates between two responses shown on the console.")
    evaluation_prompts: int = option(256, "Validation prompts that the finished policy is measured on.")

    # Speed
    bucket_size: int = option(16, "Rows of like length in one forward pass; changes the speed only. A GPU wants more.")

    def __post_init__(self) -> None:
        for name in ("kl_coef", "missing_eos_penalty", "warmup_updates", "seed"):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{name} must not be negative, but is {getattr(self, name)}")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} must lie between 0 and 1, not at {getattr(self, name)}")
        for name, value in vars(self).items():  # every other number
            if isinstance(value, (int, float)) and name not in MAY_BE_0 and not value > 0:
                raise UserError(f"--{name} must be greater than 0, not {value}")
        if self.device not in ("cpu", "auto"):
            raise UserError(f"--device must be cpu or auto, not {self.device}")
        if self.episodes < 8:
            raise UserError(f"--episodes must be at least 8, not {self.episodes}: advantages are whitened among them")
        if self.episodes % self.num_minibatches:
            raise UserError(
                f"--episodes ({self.episodes}) must be a multiple of --num_minibatches ({self.num_minibatches})"
            )

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.run

    @property
    def minibatch_size(self) -> int:
        """Episodes in one optimizer step."""
        return self.episodes // self.num_minibatches
