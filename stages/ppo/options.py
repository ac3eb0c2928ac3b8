"""The options of stage 3."""

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from rlhf_mini.core.console import WORLD_SIZE, UserError
from rlhf_mini.core.options import Seed, StageOptions, option, options

Share = Annotated[float, Ge(0), Le(1)]


def names_function(reward: str) -> bool:
    """Whether a --reward is package.module:function, and not a reward model's folder."""
    return ":" in reward and not Path(reward).is_dir()


@options
class PPOOptions(StageOptions):
    """Options of `python -m stages.ppo`. B is `episodes`, the batch of one iteration."""

    # Paths
    seed: Seed = option(0, "Seed of the order of prompts and of the sampling.")
    prompts: str = option("data/prompts/ppo.jsonl", "Prompts to train on.")
    validation_prompts: str = option(
        "data/prompts/validation.jsonl", "Prompts that the finished policy is measured on."
    )

    # Rollout
    updates: PositiveInt = option(60, "PPO iterations: each samples EPISODES responses and learns from them.")
    episodes: Annotated[int, Ge(8)] = option(
        128, "Batch size: responses sampled in one iteration; at least 8, as advantages are whitened over them."
    )
    max_new_tokens: PositiveInt = option(48, "Tokens after which a response is truncated.")
    temperature: PositiveFloat = option(
        0.7, "Divides the logits, when sampling and in every log-probability (InstructGPT: 1)."
    )

    # Reward
    reward: str = option(
        "",
        "A reward model's folder (default: RUNS_DIR/RUN/rm), or package.module:function, which takes lists of prompts "
        "and responses and returns numbers; stages.ppo.rewards has examples.",
    )
    kl_coef: NonNegativeFloat = option(
        0.02, "KL penalty: reward lost per nat of KL to the SFT model; with KL_TARGET, its initial value."
    )
    kl_target: NonNegativeFloat = option(
        0.0, "Nats per response at which a controller holds the KL (0: KL_COEF is fixed)."
    )
    kl_horizon: PositiveInt = option(2000, "Episodes in which that controller can change KL_COEF by about a fifth.")
    missing_eos_penalty: NonNegativeFloat = option(1.0, "Subtracted from the score of a truncated response.")
    whiten_rewards: bool = option(False, "Scale the per-token rewards of a batch to variance 1.")

    # Update
    num_ppo_epochs: PositiveInt = option(1, "Passes over the batch in one iteration, each in a new order.")
    num_minibatches: PositiveInt = option(4, "Optimizer steps in one pass.")
    learning_rate: PositiveFloat = option(3e-4, "Peak learning rate of the policy; follows a cosine to 10 % of it.")
    value_learning_rate: PositiveFloat = option(
        1e-3, "Peak learning rate of the value model; the same cosine, without warmup."
    )
    warmup_updates: NonNegativeInt = option(10, "Iterations of linear warmup of the policy's learning rate.")
    max_grad_norm: PositiveFloat = option(1.0, "Gradients are clipped to this norm, policy and value model separately.")
    gamma: Share = option(1.0, "Discount per token.")
    gae_lambda: Share = option(0.95, "GAE's lambda: trades bias (0) against variance (1) of the advantages.")
    clip_range: PositiveFloat = option(0.2, "eps: clips the probability ratio to [1 - eps, 1 + eps].")
    clip_range_value: PositiveFloat = option(
        0.2, "Clips new values to within this distance of those at rollout, in units of the score."
    )
    ema_decay: Annotated[float, Ge(0), Lt(1)] = option(
        0.0, "Decay of an exponential moving average of the policy's weights, which is then what is saved (0: save the "
        "last policy; InstructGPT: 0.992)."
    )  # fmt: skip

    # PPO-ptx
    ptx_coef: NonNegativeFloat = option(
        0.5, "Weight of the language-model loss on PTX_TEXTS (0: plain PPO; InstructGPT: 27.8)."
    )
    ptx_texts: str = option(
        "data/pretraining.jsonl",
        "JSONL of texts like those that the base model was trained on; a tenth of them measures what is forgotten. "
        '"" for none, with PTX_COEF 0.',
    )
    ptx_batch_size: PositiveInt = option(6, "Texts in one optimizer step.")

    # Faults
    max_kl: NonNegativeFloat = option(
        100.0, "Stop above so many nats of KL per response: the policy is lost (0: never)."
    )
    min_entropy: NonNegativeFloat = option(
        0.01, "Stop below so many nats of entropy per token: it collapsed (0: never)."
    )
    on_collapse: Literal["stop", "warn"] = option(
        "stop", "stop, or warn and go on, when MAX_KL or MIN_ENTROPY is crossed; a NaN always stops."
    )
    save_steps: NonNegativeInt = option(
        10, "Iterations between two saves to resume from if the stage is killed (0: none)."
    )

    # Logging
    snapshot_steps: NonNegativeInt = option(
        0, "Keep the policy of every SNAPSHOT_STEPS-th iteration in RUNS_DIR/RUN/ppo/snapshots (0: none)."
    )
    sample_every: PositiveInt = option(10, "Iterations between two responses shown on the console.")
    evaluation_prompts: PositiveInt = option(256, "Validation prompts that the finished policy is measured on.")

    # Speed
    bucket_size: PositiveInt = option(
        16, "Rows of similar length in one forward pass; changes the speed only. A GPU wants more."
    )

    def __post_init__(self) -> None:
        if self.snapshot_steps and self.save_steps:
            raise UserError("--snapshot_steps needs --save_steps 0: a resumed stage would lack the earlier snapshots")
        if self.ptx_coef and not self.ptx_texts:
            raise UserError("--ptx_coef needs --ptx_texts: give texts, or --ptx_coef 0")
        if self.episodes % self.num_minibatches:
            raise UserError(
                f"--episodes ({self.episodes}) must be a multiple of --num_minibatches ({self.num_minibatches})"
            )
        if self.minibatch_size < WORLD_SIZE:
            raise UserError(
                f"{WORLD_SIZE} processes cannot share the {self.minibatch_size} responses of a minibatch: raise "
                "--episodes or lower --num_minibatches"
            )
        if self.kl_target and 5 * self.kl_horizon <= self.episodes:
            raise UserError(
                f"--kl_horizon ({self.kl_horizon}) must be more than a fifth of --episodes ({self.episodes}): a single "
                "iteration could bring KL_COEF to 0 or below, where it would pay for distance from the SFT model"
            )

    @property
    def minibatch_size(self) -> int:
        """Episodes in one optimizer step."""
        return self.episodes // self.num_minibatches

    @property
    def steps(self) -> int:
        """Optimizer steps in one iteration."""
        return self.num_ppo_epochs * self.num_minibatches
