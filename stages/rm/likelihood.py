"""The second part of the score: how likely the SFT model finds the response.

A language model of this size knows facts only in its last layer: what it would have said is clear where nothing can
compare it with what was said. So the head learns relevance, refusals and admissions from rankings, but not whether
France's capital is Paris or Lyon. The likelihood of a response under the SFT model shows it.

    score(x, y) = scalar(x, y) + likelihood_coef * mean_t log p_SFT(y_t | x, y_<t)

The coefficient is learned with the head, by the same loss, so that the head learns what likelihood does not say.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_mini.core import processes
from rlhf_mini.core.console import track
from rlhf_mini.models.scoring import mean_likelihoods
from stages.rm.rankings import Example

NAME = "likelihood"  # of the reward model's parameter, while it trains
# Adam moves each parameter by about the learning rate, whatever its size. That is too little for a coefficient of about
# 1, so the parameter is in hundreds.
UNIT = 100.0
START = 1.0  # a few rankings do not move it far
ROWS_AT_ONCE = 1024  # of a pass, in which rows of similar length share a batch


def of_examples(sft_model: PreTrainedModel, examples: Sequence[Example]) -> Iterator[Example]:
    """The examples with the mean log-likelihood of their responses."""
    rows = (
        (ids[: example.prompt_length], ids[example.prompt_length :])
        for example in examples
        for ids in example.input_ids
    )

    def likelihoods() -> Iterator[float]:
        while some := list(islice(rows, ROWS_AT_ONCE)):
            mine = processes.share(some)
            prompts, responses = zip(*mine.items, strict=True)
            yield from processes.gather(mine, mean_likelihoods(sft_model, prompts, responses).tolist())

    found = likelihoods()
    for example in track(examples, "rm: likelihood of the responses"):
        yield example._replace(likelihoods=list(islice(found, len(example.ranks))))


def add_coefficient(reward_model: PreTrainedModel) -> None:
    """Gives the reward model a parameter for the coefficient, which goes on from that of an earlier reward model."""
    start = getattr(reward_model.config, "likelihood_coef", START)
    parameter = nn.Parameter(torch.tensor([start / UNIT], device=reward_model.device))  # DeepSpeed wants a dimension
    parameter.register_hook(lambda gradient: gradient / UNIT)  # that of the coefficient, so that clipping sees no other
    reward_model.register_parameter(NAME, parameter)
    reward_model._keys_to_ignore_on_save = [NAME]  # no class of transformers knows it: config.json has it


def take_coefficient(reward_model: PreTrainedModel) -> float:
    """Removes that parameter and returns the coefficient; negative if labelers like what is unlikely."""
    coef = UNIT * reward_model.get_parameter(NAME).item()
    delattr(reward_model, NAME)
    return coef


def term(reward_model: PreTrainedModel, batch: Sequence[Example]) -> Tensor:
    """What likelihood adds to the scores of the M responses of a batch, 0 without `add_coefficient`: (M,)."""
    likelihoods = [each for example in batch for each in example.likelihoods or [0.0] * len(example.ranks)]
    coef = UNIT * getattr(reward_model, NAME, torch.zeros(()))
    return coef * torch.tensor(likelihoods, device=reward_model.device)
