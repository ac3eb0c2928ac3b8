"""The responses that labelers rank: from several sources, and of many samples the most different ones.

A reward model learns only from what tells the ranked responses apart. A few samples of one model at one temperature
differ in manners more than in content, and none of them answers another prompt, so all three are added here: more
temperatures, the base, and responses to other prompts. InstructGPT's labelers ranked outputs of several models, too.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.models.sampling import respond
from rlhf_mini.models.text import EncodedPrompt
from stages.rm.options import RMOptions


class Models(NamedTuple):
    """Whose responses are ranked."""

    sft: PreTrainedModel
    base: PreTrainedModel | None
    ppo: PreTrainedModel | None
    """Of an earlier round."""


def collect(
    models: Models, tokenizer: Tokenizer, examples: Sequence[Prompt], prompts: Sequence[EncodedPrompt],
    options: RMOptions, description: str = "rm: sampling responses",
) -> list[list[Response]]:  # fmt: skip
    """K different responses to each prompt, or fewer if its samples are alike.

    One is the base's and one answers another prompt, if the options say so; the rest are the most different ones among
    the samples of the SFT model, the second half of which are drawn at the wide temperature. An earlier policy, if
    there is one, gives the first half.
    """
    half, seed = options.num_samples // 2, 3 * options.seed

    def sampled(model: PreTrainedModel, number: int, seed: int, temperature: float) -> list[list[Response]]:
        return sample_groups(model, tokenizer, prompts, number, options, seed, temperature, description)

    samples = sampled(models.ppo or models.sft, options.num_samples - half, seed, options.temperature)
    wide = sampled(models.sft, half, seed + 1, options.wide_temperature)
    others: list[list[Response]] = [[] for _ in prompts]
    if models.base is not None:
        others = sampled(models.base, 1, seed + 2, options.temperature)
    if options.exchange:
        exchanged = exchange(examples, [group[0] for group in samples], options.seed)
        others = [[*group, response] for group, response in zip(others, exchanged, strict=True)]
    groups = []
    for own, also, rest in zip(samples, wide, others, strict=True):
        number = options.num_responses - len(rest)
        groups.append(distinct([*most_different(distinct([*own, *also]), number), *rest]))
    return groups


def distinct(responses: Sequence[Response]) -> list[Response]:
    """Without those that are alike, which cannot be ranked."""
    return list({(one.text, one.ended): one for one in responses}.values())


def most_different(responses: Sequence[Response], number: int) -> list[Response]:
    """The first response, then always the one whose words differ most from the nearest one that was taken."""
    words = [set(one.text.lower().split()) | {f"ended={one.ended}"} for one in responses]
    taken = [0] if responses else []
    nearest = [1.0] * len(responses)  # distance to the nearest that is taken
    while taken and len(taken) < min(number, len(responses)):
        last = words[taken[-1]]
        nearest = [min(old, 1 - len(own & last) / len(own | last)) for old, own in zip(nearest, words, strict=True)]
        taken.append(max(set(range(len(responses))) - set(taken), key=lambda index: (nearest[index], -index)))
    return [responses[index] for index in taken]


def exchange(examples: Sequence[Prompt], responses: Sequence[Response], seed: int) -> list[Response]:
    """For each prompt the response to another one, of the same kind if the prompts name kinds."""
    kinds: dict[str, list[int]] = {}
    for index in random.Random(seed).sample(range(len(examples)), len(examples)):
        kinds.setdefault(str(examples[index].get("kind")), []).append(index)
    source = list(range(len(examples)))
    for indices in kinds.values():  # in a circle, so that each response is used once
        for index, following in zip(indices, [*indices[1:], indices[0]], strict=True):
            source[index] = following
    return [responses[index] for index in source]


def sample_groups(
    model: PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[EncodedPrompt], number: int, options: RMOptions,
    seed: int, temperature: float, description: str,
) -> list[list[Response]]:  # fmt: skip
    """`number` responses to each prompt, some of which may be alike."""
    responses = respond(
        model, tokenizer, [prompt for prompt in prompts for _ in range(number)],
        max_new_tokens=options.max_new_tokens, temperature=temperature, seed=seed,
        description=description,
    )  # fmt: skip
    return [responses[start : start + number] for start in range(0, len(responses), max(1, number))]
