"""The options of `python -m stages.sft`."""

from dataclasses import dataclass
from pathlib import Path

from rlhf_mini.console import UserError, option


@dataclass
class SFTOptions:
    """Defaults are for the mini world and a model of a million parameters."""

    run: str = option("default", "Name of the run; the checkpoint goes to RUNS_DIR/RUN/sft.")
    runs_dir: str = option("runs", "Folder of all runs.")
    seed: int = option(0, "Seed of the order, the held-out records and the shown samples.")

    base: str = option("data/base", "The pretrained checkpoint to start from.")
    demonstrations: str = option("data/demonstrations.jsonl", "JSONL of demonstrations: prompt and completion.")
    validation_share: float = option(0.05, "Share of the demonstrations kept aside to measure the validation loss.")

    num_train_epochs: float = option(2.0, "Passes over the demonstrations (InstructGPT: 16).")
    batch_size: int = option(32, "Demonstrations in one step (InstructGPT: 32).")
    learning_rate: float = option(7e-4, "Peak learning rate; falls along a cosine to 10 %% of it, without warmup.")
    weight_decay: float = option(0.0, "AdamW's decay of the weights towards 0.")
    adam_beta1: float = option(0.9, "AdamW's decay of the mean gradient.")
    adam_beta2: float = option(0.95, "AdamW's decay of the mean squared gradient.")
    save_steps: int = option(50, "Steps between two saves to resume from, should the stage be killed (0: none).")
    dropout: float = option(0.0, "Residual dropout while training (InstructGPT: 0.2); the checkpoint has none.")

    show_every: int = option(50, "Steps between two sampled responses on the console (0: none).")
    max_new_tokens: int = option(48, "Longest response that is sampled to be shown.")

    def __post_init__(self) -> None:
        if not 0 < self.validation_share < 1:
            raise UserError(f"--validation_share must lie between 0 and 1, not {self.validation_share}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout must be at least 0 and less than 1, not {self.dropout}")
        for name in ("num_train_epochs", "batch_size", "learning_rate", "max_new_tokens"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name} must be greater than 0, not {getattr(self, name)}")
        if self.save_steps < 0:
            raise UserError(f"--save_steps must not be negative, but is {self.save_steps}")

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.run
