"""Rankings: made by labelers, divided into those to train on and those held out, and in tokens."""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Prompt, Ranking, Response, contents
from rlhf_mini.core.rankings import Labeler, pairs
from rlhf_mini.data.load import Selected
from rlhf_mini.models.text import AT_ONCE, EncodedPrompt, Fitting, encode_prompts, response_ids


class Example(NamedTuple):
    """A ranking in tokens."""

    input_ids: list[list[int]]
    """(K, tokens): each response after its prompt."""
    ranks: list[int]
    """(K,)."""
    prompt_length: int
    likelihoods: list[float] | None = None
    """(K,): the mean log-probability of a response's tokens under the SFT model, in nats (likelihood.py)."""

    @property
    def length(self) -> int:
        return max(len(ids) for ids in self.input_ids)


def rank(
    prompts: Sequence[Prompt], groups: Sequence[list[Response]], labelers: Sequence[Labeler], seed: int
) -> list[Ranking]:
    """The groups ranked, each by one labeler drawn by `seed`. A prompt with fewer than two responses is left out."""
    rng = random.Random(seed)
    rankings: list[Ranking] = []
    for prompt, responses in zip(prompts, groups, strict=True):
        labeler = rng.choice(labelers)
        if len(responses) < 2:
            continue
        rankings.append(
            {
                **prompt,
                "responses": [response.text for response in responses],
                "ended": [response.ended for response in responses],
                "ranks": labeler.rank(prompt, responses),
                "labeler": labeler.name,
            }
        )
    return rankings


def as_responses(ranking: Ranking) -> list[Response]:
    """A ranking's texts, without tokens: training uses what rankings.jsonl says, wherever it comes from."""
    ended = ranking.get("ended", [True] * len(ranking["responses"]))
    return [Response(text, end) for text, end in zip(ranking["responses"], ended, strict=True)]


def ordered(rankings: Sequence[Ranking]) -> Sequence[Ranking]:
    """Those that order a pair of responses. The others, all ties, teach nothing and measure nothing.

    Raises:
        UserError: there are none.
    """
    found = Selected(rankings, [index for index, ranking in enumerate(rankings) if pairs(ranking["ranks"])])
    if not found:
        raise UserError("there is nothing to learn from: in all rankings the responses are alike or tied")
    if len(found) < len(rankings):
        console.print(f"rm: {len(rankings) - len(found)} of {len(rankings)} rankings are left out: all ties")
    return found


def split_by_prompt(
    rankings: Sequence[Ranking], share: float, seed: int
) -> tuple[Sequence[Ranking], Sequence[Ranking]]:
    """Rankings to train on and held-out rankings. All rankings of one prompt are on the same side.

    Raises:
        UserError: there is only one prompt.
    """
    texts = [hash(contents(ranking["prompt"])) for ranking in rankings]  # not all of them in memory
    prompts = list(dict.fromkeys(texts))
    if len(prompts) < 2:
        raise UserError(
            "the rankings are all of one prompt: rank responses to at least two, one is held out for evaluation"
        )
    held_out = set(random.Random(seed).sample(prompts, max(1, round(share * len(prompts)))))
    train_on, measure_on = (
        Selected(rankings, [index for index, text in enumerate(texts) if (text in held_out) == wanted])
        for wanted in (False, True)
    )
    return train_on, measure_on


def encode(model: PreTrainedModel, tokenizer: Tokenizer, rankings: Sequence[Ranking]) -> list[Example]:
    """The rankings in tokens. UserError if one is longer than the model's context."""
    fitting = Fitting(model, "drop")
    examples = list(encode_fitting(tokenizer, rankings, fitting))
    if fitting.dropped:
        raise UserError(
            f"{fitting.dropped} rankings are longer than the model's context of {fitting.positions}: shorten them"
        )
    return examples


def encode_fitting(tokenizer: Tokenizer, rankings: Sequence[Ranking], fitting: Fitting) -> Iterator[Example]:
    """The rankings in tokens, of those that `fitting` lets pass."""
    for ranking, prompt, responses in that_fit(tokenizer, rankings, fitting):
        yield Example([prompt.ids + response for response in responses], ranking["ranks"], len(prompt.ids))


def that_fit(
    tokenizer: Tokenizer, rankings: Sequence[Ranking], fitting: Fitting
) -> Iterator[tuple[Ranking, EncodedPrompt, list[list[int]]]]:
    """The rankings that `fitting` lets pass, with their prompts and responses in tokens."""
    for start in range(0, len(rankings), AT_ONCE):
        chunk = rankings[start : start + AT_ONCE]
        prompts = encode_prompts(tokenizer, [ranking["prompt"] for ranking in chunk])
        encoded = iter(response_ids(tokenizer, [each for ranking in chunk for each in as_responses(ranking)]))
        for ranking, prompt in zip(chunk, prompts, strict=True):
            responses = list(islice(encoded, len(ranking["responses"])))
            if ids := fitting(prompt.ids, max(map(len, responses))):
                yield ranking, EncodedPrompt(prompt.messages, ids), responses
