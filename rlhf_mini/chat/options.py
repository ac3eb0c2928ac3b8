"""The options of the chat, and the names of the stages that can answer."""

from pathlib import Path

from pydantic import NonNegativeFloat, PositiveInt

from rlhf_mini.core.console import UserError, printable
from rlhf_mini.core.options import RunOptions, Seed, option, options

STAGES = ("base", "sft", "ppo")


@options
class ChatOptions(RunOptions):
    """Options of `python -m rlhf_mini.chat`."""

    base: str = option("data/base", "The pretrained checkpoint that SFT started from.")

    stage: str = option("ppo", "The stage that answers: base, sft or ppo. /stage switches in the chat.")
    side_by_side: str = option("", "Several stages that answer side by side, such as base,sft,ppo.")

    reward: str = option(
        "",
        "For /why, if PPO was trained on a function: its package.module:function again, which allows to run its code.",
    )

    max_new_tokens: PositiveInt = option(48, "Tokens after which an answer is truncated.")
    temperature: NonNegativeFloat = option(0.7, "Sampling temperature; 0 decodes greedily.")
    seed: Seed = option(0, "Seed of the answers: the same lines to the same seed get the same answers.")

    def __post_init__(self) -> None:
        parse_stages(self.stage)
        parse_stages(self.side_by_side or self.stage)

    @property
    def stages(self) -> list[str]:
        """The stages that answer first."""
        return parse_stages(self.side_by_side or self.stage)

    def checkpoint(self, name: str) -> Path:
        """The folder of a stage, or of the reward model "rm"."""
        return Path(self.base) if name == "base" else self.run_dir / name


def parse_stages(text: str) -> list[str]:
    """The stages in a list such as "base,sft". UserError for an unknown name or a repeated one."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in STAGES:
            raise UserError(f"there is no stage {printable(name)!r} to chat with: name base, sft or ppo")
    if len(set(names)) < len(names):
        raise UserError(f"{text} names a stage twice: name each once")
    return names
