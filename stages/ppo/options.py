"""The options of stage 3."""

from dataclasses import dataclass
from pathlib import Path

from rlhf_mini.console import UserError, option

MAY_BE_0 = (
    "seed", "kl_coef", "kl_target", "missing_eos_penalty", "whiten_rewards", "ptx_coef", "warmup_updates", "gamma",
    "gae_lambda", "ema_decay", "max_kl", "min_entropy", "save_steps", "snapshot_steps",
)  # fmt: skip


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
    reward: str = option(
        "",
        "A reward model's folder (default: RUNS_DIR/RUN/rm), or package.module:function, which takes lists of prompts "
        "and responses and returns numbers; stages.ppo.rewards has examples.",
    )
    kl_coef: float = option(0.07, "Reward lost per nat of KL to the SFT model; where it starts, if KL_TARGET is given.")
    kl_target: float = option(0.0, "Nats per response at which a controller holds the KL (0: KL_COEF stays fixed).")
    kl_horizon: int = option(2000, "Episodes in which that controller can change KL_COEF by about a fifth.")
    missing_eos_penalty: float = option(1.0, "Subtracted from the score of a response that was cut.")
    whiten_rewards: bool = option(False, "Scale the per-token rewards of a batch to variance 1.")

    # The update
    num_ppo_epochs: int = option(1, "Passes over the episodes of an update, each in a new order.")
    num_minibatches: int = option(4, "Optimizer steps in one pass.")
    learning_rate: float = option(2e-4, "Of the policy: its peak; falls along a cosine to 10 %% of it.")
    value_learning_rate: float = option(2e-4, "Of the value model, likewise.")
    warmup_updates: int = option(10, "Updates over which both learning rates rise, before they fall.")
    max_grad_norm: float = option(1.0, "Longer gradients are shortened to this, policy and value model each by itself.")
    gamma: float = option(1.0, "Discount per token.")
    gae_lambda: float = option(0.95, "Bias (0) against variance (1) of the advantages.")
    clip_range: float = option(0.2, "How far the probability ratio may move before its gain stops counting.")
    clip_range_value: float = option(0.2, "The same for values, in units of the score.")
    ema_decay: float = option(
        0.0, "Save the average of the policies of all updates, each weighing so much less than the next (0: the last "
        "policy; InstructGPT: 0.992)."
    )  # fmt: skip

    # PPO-ptx
    ptx_coef: float = option(0.0, "Weight of the language-model loss on PTX_TEXTS (0: plain PPO; InstructGPT: 27.8).")
    ptx_texts: str = option("data/pretraining.jsonl", "JSONL of texts like those that the base model was trained on.")
    ptx_batch_size: int = option(16, "Texts in one optimizer step.")

    # Faults
    max_kl: float = option(100.0, "Nats of KL per response at which the policy counts as lost (0: never).")
    min_entropy: float = option(0.01, "Nats of entropy per token below which it counts as collapsed (0: never).")
    on_collapse: str = option("stop", "stop, or warn and go on, when one of the two happens; a NaN always stops.")
    save_steps: int = option(10, "Updates between two saves to resume from, should the stage be killed (0: none).")

    # Looking on
    snapshot_steps: int = option(0, "Keep the policy of every such update in RUNS_DIR/RUN/ppo/snapshots (0: none).")
    sample_every: int = option(10, "Updates between two responses shown on the console.")
    evaluation_prompts: int = option(256, "Validation prompts that the finished policy is measured on.")

    # Speed
    bucket_size: int = option(16, "Rows of like length in one forward pass; changes the speed only. A GPU wants more.")

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} must lie between 0 and 1, not at {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"--ema_decay must be at least 0 and less than 1, not {self.ema_decay}")
        for name, value in vars(self).items():
            if isinstance(value, (int, float)):
                if name in MAY_BE_0 and not value >= 0:
                    raise UserError(f"--{name} must not be negative, but is {value}")
                if name not in MAY_BE_0 and not value > 0:
                    raise UserError(f"--{name} must be greater than 0, not {value}")
        for name, choices in (("device", ("cpu", "auto")), ("on_collapse", ("stop", "warn"))):
            if getattr(self, name) not in choices:
                raise UserError(f"--{name} must be {' or '.join(choices)}, not {getattr(self, name)}")
        if self.snapshot_steps and self.save_steps:
            raise UserError("--snapshot_steps needs --save_steps 0: a stage that goes on has no snapshots from before")
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

    @property
    def steps(self) -> int:
        """Optimizer steps in one update."""
        return self.num_ppo_epochs * self.num_minibatches
