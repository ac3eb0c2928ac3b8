"""The options of `python -m stages.sft`."""

from typing import Annotated

from annotated_types import Ge, Gt, Lt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from rlhf_mini.core.options import Seed, StageOptions, option, options


@options
class SFTOptions(StageOptions):
    """Defaults are for the mini world and a model of a million parameters."""

    seed: Seed = option(0, "Seed of the split, the order of examples and the shown samples.")

    base: str = option(
        "data/base", "The pretrained model to start from: a folder, or a name in the local cache, such as gpt2."
    )
    demonstrations: str = option(
        "data/demonstrations.jsonl", "Demonstrations, or conversations, or rankings, whose best responses are taken."
    )
    validation_share: Annotated[float, Gt(0), Lt(1)] = option(
        0.05, "Share of the demonstrations held out to measure the validation loss."
    )

    num_train_epochs: PositiveFloat = option(2.0, "Passes over the demonstrations (InstructGPT: 16).")
    batch_size: PositiveInt = option(32, "Demonstrations in one step (InstructGPT: 32).")
    learning_rate: PositiveFloat = option(7e-4, "Peak learning rate; follows a cosine to 10 % of it, without warmup.")
    weight_decay: NonNegativeFloat = option(0.0, "AdamW's weight decay.")
    adam_beta1: Annotated[float, Ge(0), Lt(1)] = option(0.9, "AdamW's decay rate of the mean gradient.")
    adam_beta2: Annotated[float, Ge(0), Lt(1)] = option(0.95, "AdamW's decay rate of the mean squared gradient.")
    save_steps: NonNegativeInt = option(50, "Steps between two saves to resume from if the stage is killed (0: none).")
    dropout: Annotated[float, Ge(0), Lt(1)] = option(
        0.0, "Residual dropout while training (InstructGPT: 0.2); the checkpoint has none."
    )

    # Pretraining mix (Ouyang et al. 2022, appendix C.4)
    ptx_coef: NonNegativeFloat = option(
        0.3, "Weight of the language-model loss on PTX_TEXTS in each step (0: demonstrations alone)."
    )
    ptx_texts: str = option("data/pretraining.jsonl", "JSONL of texts like those that the base model was trained on.")
    ptx_batch_size: PositiveInt = option(8, "Texts in one step, beside BATCH_SIZE demonstrations.")

    show_every: int = option(50, "Steps between two sampled responses on the console (0: none).")
    max_new_tokens: PositiveInt = option(48, "Longest response that is sampled to be shown.")
