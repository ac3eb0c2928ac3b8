"""The options of `python -m stages.rm`."""

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from rlhf_mini.core.console import UserError
from rlhf_mini.core.options import Seed, StageOptions, option, options


@options
class RMOptions(StageOptions):
    """Defaults are for the mini world."""

    seed: Seed = option(0, "Seed of the samples, of who ranks what, of the head and of the order.")

    rankings: str = option("", "Rankings to train on, for example people's; replaces sampling and ranking.")
    prompts: str = option("data/prompts/rm.jsonl", "Prompts to sample responses to.")
    num_prompts: NonNegativeInt = option(0, "Use only the first NUM_PROMPTS of them (0: all).")
    num_responses: Annotated[int, Ge(2), Le(9)] = option(6, "K, ranked responses to each prompt (InstructGPT: 4 to 9).")
    num_samples: Annotated[int, Ge(2)] = option(6, "Samples for each prompt, of which the most different are ranked.")
    max_new_tokens: PositiveInt = option(48, "Longest response that is sampled.")
    temperature: PositiveFloat = option(0.7, "Temperature of the first half of the samples (InstructGPT: 1).")
    wide_temperature: PositiveFloat = option(1.0, "Temperature of the second half, which differ more.")
    base: str = option("data/base", 'Checkpoint that gives one of the ranked responses; "" for none.')
    exchange: bool = option(True, "One of the ranked responses answers another prompt.")
    ppo: str = option(
        "", "An earlier PPO checkpoint, such as runs/default/ppo, that gives the first half of the samples: a second "
        "round of rankings."
    )  # fmt: skip
    labelers: str = option(
        "rlhf_mini.world.labelers:training_labelers",
        "package.module:function that returns the labelers who rank; one is drawn for each prompt.",
    )

    init: str = option(
        "data/judge",
        "Checkpoint that the reward model starts from: a judge, pretrained on the web's votes; an earlier reward "
        "model, such as runs/default/rm; or sft for this run's SFT model.",
    )
    num_train_epochs: PositiveFloat = option(1.0, "Passes over the rankings; InstructGPT saw overfitting after one.")
    batch_size: PositiveInt = option(16, "Prompts in one step, all K responses each (InstructGPT: 64).")
    learning_rate: PositiveFloat = option(3e-4, "Peak learning rate; follows a cosine to 10 % of it, without warmup.")
    weight_decay: NonNegativeFloat = option(0.0, "AdamW's weight decay.")
    adam_beta1: Annotated[float, Ge(0), Lt(1)] = option(0.9, "AdamW's decay rate of the mean gradient.")
    adam_beta2: Annotated[float, Ge(0), Lt(1)] = option(0.95, "AdamW's decay rate of the mean squared gradient.")
    likelihood: bool = option(True, "The score also depends on how likely the SFT model finds the response.")
    save_steps: NonNegativeInt = option(50, "Steps between two saves to resume from if the stage is killed (0: none).")

    demonstrations: str = option("data/demonstrations.jsonl", "Demonstrations, whose mean score is shifted to 0.")
    normalization_size: PositiveInt = option(300, "Demonstrations whose mean score becomes the zero of the scale.")
    validation: str = option(
        "data/prompts/validation.jsonl",
        'Prompts of the mini world, on which simulated labelers measure the reward model; "" for none.',
    )
    num_validation_prompts: NonNegativeInt = option(300, "Use only the first NUM_VALIDATION_PROMPTS of them (0: all).")
    content: str = option(
        "data/content/validation.jsonl",
        'JSONL of pairs with the same manners and different content, to measure the reward model on; "" for none.',
    )
    heldout_labelers: str = option(
        "rlhf_mini.world.labelers:heldout_labelers",
        "package.module:function that returns labelers whose rankings train nothing.",
    )
    gold_labeler: str = option(
        "rlhf_mini.world.labelers:gold_labeler",
        "package.module:function that returns a list of one labeler without noise.",
    )
    heldout_share: Annotated[float, Gt(0), Lt(1)] = option(
        0.1, "Share of the rankings held out for evaluation, if they are not the mini world's."
    )

    def __post_init__(self) -> None:
        others = bool(self.base) + self.exchange
        if self.num_responses <= others:
            raise UserError(
                f"--num_responses {self.num_responses} leaves no room for the SFT model beside the base's response and "
                f"the one to another prompt: use at least {others + 1}"
            )
