"""The options of `python -m stages.rm`."""

from dataclasses import dataclass
from pathlib import Path

from rlhf_mini.console import UserError, option


@dataclass
class RMOptions:
    """Defaults are for the mini world."""

    run: str = option("default", "Name of the run: reads RUNS_DIR/RUN/sft, writes RUNS_DIR/RUN/rm.")
    runs_dir: str = option("runs", "Folder of all runs.")
    seed: int = option(0, "Seed of the samples, of who ranks what, of the head and the order.")

    rankings: str = option(
        "", "JSONL of rankings to train on, people's for example, instead of sampling and ranking anew."
    )
    prompts: str = option("data/prompts/rm.jsonl", "JSONL of prompts to sample responses to.")
    num_prompts: int = option(0, "Take only so many of the prompts, from the first (0: all).")
    num_responses: int = option(4, "K, responses to each prompt (InstructGPT: 4 to 9).")
    max_new_tokens: int = option(48, "Longest response that is sampled.")
    temperature: float = option(0.7, "Temperature of the samples (InstructGPT: 1).")
    labelers: str = option(
        "rlhf_mini.world.labelers:training_labelers",
        "package.module:function that gives the labelers who rank; one is drawn for each prompt.",
    )

    num_train_epochs: float = option(1.0, "Passes over the rankings; InstructGPT saw overfitting after one.")
    batch_size: int = option(16, "Prompts in one step, all K responses each (InstructGPT: 64).")
    learning_rate: float = option(1e-3, "Peak learning rate; falls along a cosine to 10 %% of it, without warmup.")
    weight_decay: float = option(0.0, "AdamW's decay of the weights towards 0.")
    adam_beta1: float = option(0.9, "AdamW's decay of the mean gradient.")
    adam_beta2: float = option(0.95, "AdamW's decay of the mean squared gradient.")
    save_steps: int = option(50, "Steps between two saves to resume from, should the stage be killed (0: none).")

    demonstrations: str = option(
        "data/demonstrations.jsonl", "JSONL of demonstrations, which shall score 0 on average."
    )
    normalization_size: int = option(300, "Demonstrations whose mean score becomes the zero of the scale.")
    validation: str = option("data/prompts/validation.jsonl", "JSONL of prompts on which the reward model is measured.")
    num_validation_prompts: int = option(300, "Take only so many of the validation prompts, from the first (0: all).")
    heldout_labelers: str = option(
        "rlhf_mini.world.labelers:heldout_labelers",
        "package.module:function that gives labelers whose rankings train nothing.",
    )
    gold_labeler: str = option(
        "rlhf_mini.world.labelers:gold_labeler",
        "package.module:function that gives a list of one labeler without noise.",
    )
    heldout_share: float = option(
        0.1, "Share of the rankings kept aside to measure on, if they are not the mini world's."
    )

    def __post_init__(self) -> None:
        if not 2 <= self.num_responses <= 9:
            raise UserError(f"--num_responses must lie between 2 and 9, not {self.num_responses}")
        if not 0 < self.heldout_share < 1:
            raise UserError(f"--heldout_share must lie between 0 and 1, not {self.heldout_share}")
        if self.temperature <= 0:
            raise UserError(f"--temperature must be greater than 0, or all responses are alike, not {self.temperature}")
        for name in ("num_train_epochs", "batch_size", "learning_rate", "max_new_tokens", "normalization_size"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name} must be greater than 0, not {getattr(self, name)}")
        if self.save_steps < 0:
            raise UserError(f"--save_steps must not be negative, but is {self.save_steps}")

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.run
