"""Rankings: made by labelers, divided into those to train on and those held out, and in tokens."""

import random
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Prompt, Ranking, Response, contents
from rlhf_mini.core.rankings import Labeler, pairs
from rlhf_mini.models.text import context_length, encode_prompts, response_ids


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


def ordered(rankings: Sequence[Ranking]) -> list[Ranking]:
    """Those that order a pair of responses. The others, all ties, teach nothing and measure nothing.

    Raises:
        UserError: there are none.
    """
    found = [ranking for ranking in rankings if pairs(ranking["ranks"])]
    if not found:
        raise UserError("there is nothing to learn from: in all rankings the responses are alike or tied")
    if len(found) < len(rankings):
        console.print(f"rm: {len(rankings) - len(found)} of {len(rankings)} rankings are left out: all ties")
    return found


def split_by_prompt(rankings: list[Ranking], share: float, seed: int) -> tuple[list[Ranking], list[Ranking]]:
    """Rankings to train on and held-out rankings. All rankings of one prompt are on the same side.

    Raises:
        UserError: there is only one prompt.
    """
    texts = [contents(ranking["prompt"]) for ranking in rankings]
    prompts = list(dict.fromkeys(texts))
    if len(prompts) < 2:
        raise UserError(
            "the rankings are all of one prompt: rank responses to at least two, one is held out for evaluation"
        )
    held_out = set(random.Random(seed).sample(prompts, max(1, round(share * len(prompts)))))
    train_on = [ranking for ranking, text in zip(rankings, texts, strict=True) if text not in held_out]
    measure_on = [ranking for ranking, text in zip(rankings, texts, strict=True) if text in held_out]
    return train_on, measure_on


def encode(model: PreTrainedModel, tokenizer: Tokenizer, rankings: Sequence[Ranking]) -> list[Example]:
    """The rankings in tokens. UserError if a response is longer than the model's context."""
    examples = []
    positions = context_length(model)
    prompts = encode_prompts(tokenizer, [ranking["prompt"] for ranking in rankings])
    encoded = iter(response_ids(tokenizer, [each for ranking in rankings for each in as_responses(ranking)]))
    for ranking, prompt in zip(rankings, prompts, strict=True):
        responses = list(islice(encoded, len(ranking["responses"])))
        example = Example([prompt.ids + ids for ids in responses], ranking["ranks"], len(prompt.ids))
        if positions is not None and example.length > positions:
            beginning = ranking["prompt"][-1]["content"][:60]
            raise UserError(
                f"the ranking whose prompt begins {beginning!r} has a response that makes {example.length} tokens with "
                f"the prompt, but the model's context has {positions}: shorten it"
            )
        examples.append(example)
    return examples
