"""Reward-model scores, per-token values and log-probabilities of given responses.

A row is a prompt and its response, without a gap. The models see rows laid end to end (rows.py), so every token has the
position it has in a text of its own, and no padding is computed.

Shapes: B rows, n tokens of their responses end to end, N tokens of prompts and responses, V vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_mini.core import processes
from rlhf_mini.core.examples import Response
from rlhf_mini.models.adapters import CONFIG, load_model, with_scalar
from rlhf_mini.models.forward import Forward, forward_pass
from rlhf_mini.models.parallel import in_parallel
from rlhf_mini.models.rows import Rows
from rlhf_mini.models.text import EncodedPrompt, response_ids

# Rows in one forward pass. On a CPU small passes stay in its caches; a GPU wants more.
BUCKET_SIZE = 16
READER = "reader"  # folder of the language model in a reward model's checkpoint
ROWS_AT_ONCE = 64  # texts scored before the next ones are laid out, which bounds the memory

Ids = Sequence[int]


class Inputs(NamedTuple):
    """Prompts and responses, as a forward pass takes them."""

    ids: Tensor  # (N,)
    rows: Rows
    response: Tensor  # (n,): where the response tokens are among the N


class Logprobs(NamedTuple):
    """Of each response token under a model, responses end to end."""

    logprobs: Tensor  # (n,) in nats
    entropy: Tensor  # (n,) in nats, of the distribution that the token was drawn from; without gradient


def lay_out(prompts: Sequence[Ids], responses: Sequence[Ids], device: torch.device) -> Inputs:
    """Lays the rows end to end."""
    both = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    rows = Rows([len(row) for row in both], device=device)
    prompt_lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # (B,)
    is_response = rows.position_ids >= prompt_lengths.repeat_interleave(rows.lengths)  # (N,)
    return Inputs(
        torch.tensor([token for row in both for token in row], device=device), rows, is_response.nonzero()[:, 0]
    )


def in_buckets(
    one_pass: Callable[[Sequence[Ids], Sequence[Ids]], Sequence[Tensor]],
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    bucket_size: int,
) -> list[Tensor]:
    """Runs `one_pass(prompts, responses)` on `bucket_size` rows of similar length at a time.

    Attention pads its rows, and a small pass fits into the caches. Without gradients the passes run in parallel; with
    them, the caller decides what runs in parallel.

    Returns:
        B tensors, what `one_pass` gives for each row, in the order of the rows. Gradients flow through.
    """
    # Longest first: in parallel, short ones then fill the gaps at the end.
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]) - len(responses[row]))
    size = max(bucket_size, 2) if processes.in_parts() else bucket_size  # so that one can be divided, below
    buckets = [order[start : start + size] for start in range(0, len(order), size)]
    if torch.is_grad_enabled() and processes.most(len(buckets)) > len(buckets):  # by one, as shares differ by one row
        buckets[:1] = [buckets[0][:1], buckets[0][1:]]
    passes = [partial(one_pass, [prompts[r] for r in bucket], [responses[r] for r in bucket]) for bucket in buckets]
    outputs = [each() for each in passes] if torch.is_grad_enabled() else in_parallel(*passes)
    by_row = dict(zip(order, (row for output in outputs for row in output), strict=True))
    return [by_row[row] for row in range(len(prompts))]


# --- log-probabilities -----------------------------------------------------------------------------------------------


def response_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    temperature: float = 1.0,
    bucket_size: int = BUCKET_SIZE,
) -> Logprobs:
    """Log-probability of each response token, and the entropy of the distribution it was drawn from.

    Args:
        model: a causal language model, in eval mode.
        prompts, responses: B lists of token ids each.
        temperature: divides the logits, as it did when the response was sampled.
        bucket_size: rows in one forward pass; it changes the time and the memory, not the result.
    """
    with forward_pass(model) as forward:
        one_pass = partial(_logprobs_of_rows, forward, model.device, temperature)
        both = torch.cat(in_buckets(one_pass, prompts, responses, bucket_size))  # (n, 2)
    return Logprobs(logprobs=both[:, 0], entropy=both[:, 1].detach())


def _logprobs_of_rows(
    forward: Forward, device: torch.device, temperature: float, prompts: Sequence[Ids], responses: Sequence[Ids]
) -> Sequence[Tensor]:
    """One forward pass: (r, 2) for each row of r response tokens, log-probability and entropy."""
    ids, rows, response = lay_out(prompts, responses, device)
    logits = forward(ids, rows, keep=response - 1)  # (n, V): what predicts a token is one position before it
    log_distribution = (logits.float() / temperature).log_softmax(-1)  # (n, V)
    logprobs = log_distribution.gather(-1, ids[response].unsqueeze(-1))  # (n, 1)
    with torch.no_grad():  # for logging only
        entropy = -(log_distribution.exp() * log_distribution).sum(-1, keepdim=True)  # (n, 1)
    return torch.cat([logprobs, entropy], dim=-1).split([len(row) for row in responses])


def sequence_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    responses: Sequence[Response],
    temperature: float = 1.0,
) -> list[float]:
    """log p(response | prompt) of each response, summed over its tokens, in nats.

    The mean difference between a policy and its reference, over the policy's own samples, estimates their KL.
    """
    if not responses:
        return []
    encoded = response_ids(tokenizer, responses)
    with torch.no_grad():
        found = response_logprobs(model, [prompt.ids for prompt in prompts], encoded, temperature)
    return Rows([len(ids) for ids in encoded], device=model.device).sum(found.logprobs).tolist()


def text_loss(model: PreTrainedModel, texts: Sequence[Ids]) -> Tensor:
    """LM loss: the mean of -log p(token | those before it) over all tokens but the first of each text, in nats."""
    return -text_logprobs(model, texts).mean()


def text_logprobs(model: PreTrainedModel, texts: Sequence[Ids]) -> Tensor:
    """log p of each token of B encoded texts but their first, texts end to end: (n,)."""
    first, rest = [text[:1] for text in texts], [text[1:] for text in texts]  # all tokens are a response to the first
    return response_logprobs(model, first, rest).logprobs


# --- scores and values -----------------------------------------------------------------------------------------------


def load_reward_model(path: Path, device: torch.device | str = "cpu") -> PreTrainedModel:
    """A reward model's checkpoint in eval mode, ready to score.

    Its scalar part loads through AutoModelForSequenceClassification, too. Where config.json has a `likelihood_coef`,
    the score also depends on a language model in the folder `reader`, which this function loads beside it.
    """
    model: PreTrainedModel = load_model(AutoModelForSequenceClassification, path).eval().to(device)
    if getattr(model.config, "likelihood_coef", 0.0):
        attach_reader(model, load_model(AutoModelForCausalLM, path / READER).eval().to(device))
    return model


def attach_reader(reward_model: PreTrainedModel, reader: PreTrainedModel) -> None:
    """Lets `reward_scores` ask `reader` how likely a response is. It is no part of the reward model's own weights."""
    vars(reward_model)["reader"] = reader  # past Module's own __setattr__, which would make it a submodule


def reward_scores(reward_model: PreTrainedModel, prompts: Sequence[Ids], responses: Sequence[Ids]) -> Tensor:
    """The reward model's score of each response: its scalar at the last token: (B,).

    Where the reward model has a reader, plus `config.likelihood_coef` times `mean_likelihoods`.
    """
    scores = scalar_scores(reward_model, prompts, responses)
    reader = vars(reward_model).get("reader")
    if reader is None:
        return scores
    return scores + reward_model.config.likelihood_coef * mean_likelihoods(reader, prompts, responses)


@torch.no_grad()
def mean_likelihoods(reader: PreTrainedModel, prompts: Sequence[Ids], responses: Sequence[Ids]) -> Tensor:
    """log p(response | prompt) under a language model, per token, in nats: (B,)."""
    found = response_logprobs(reader, prompts, responses).logprobs
    rows = Rows([len(ids) for ids in responses], device=reader.device)
    return rows.sum(found) / rows.lengths


def scalar_scores(reward_model: PreTrainedModel, prompts: Sequence[Ids], responses: Sequence[Ids]) -> Tensor:
    """The scalar at the last token of each response: (B,)."""

    def scores_of_rows(prompts: Sequence[Ids], responses: Sequence[Ids]) -> Sequence[Tensor]:
        inputs = lay_out(prompts, responses, reward_model.device)
        return _scalars(forward, reward_model, inputs, inputs.rows.last).split(1)

    with forward_pass(reward_model) as forward:
        return torch.cat(in_buckets(scores_of_rows, prompts, responses, BUCKET_SIZE))


def response_values(
    value_model: PreTrainedModel, prompts: Sequence[Ids], responses: Sequence[Ids], bucket_size: int = BUCKET_SIZE
) -> Tensor:
    """The value before each response token, responses end to end: read one position earlier, like its logits: (n,)."""

    def values_of_rows(prompts: Sequence[Ids], responses: Sequence[Ids]) -> Sequence[Tensor]:
        inputs = lay_out(prompts, responses, value_model.device)
        values = _scalars(forward, value_model, inputs, inputs.response - 1)
        return values.split([len(response) for response in responses])

    with forward_pass(value_model) as forward:
        return torch.cat(in_buckets(values_of_rows, prompts, responses, bucket_size))


def _scalars(forward: Forward, model: PreTrainedModel, inputs: Inputs, keep: Tensor) -> Tensor:
    """The scalar head's output at k of the N positions, less `config.reward_mean` (absent: 0): (k,).

    That constant puts demonstrations at a mean score of 0.
    """
    scalars = forward(inputs.ids, inputs.rows, keep=keep).squeeze(-1).float()
    return scalars - getattr(model.config, "reward_mean", 0.0)


def score_texts(
    reward_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    responses: Sequence[Response],
) -> list[float]:
    """The reward model's score of each response to its prompt, a few rows of similar length at a time.

    A response that came as text is encoded.
    """
    pairs = list(zip([prompt.ids for prompt in prompts], response_ids(tokenizer, responses), strict=True))
    order = sorted(range(len(pairs)), key=lambda row: len(pairs[row][0]) + len(pairs[row][1]))
    scores = [0.0] * len(pairs)
    for start in range(0, len(order), ROWS_AT_ONCE):
        rows = order[start : start + ROWS_AT_ONCE]
        with torch.no_grad():
            batch = reward_scores(reward_model, [pairs[row][0] for row in rows], [pairs[row][1] for row in rows])
        for row, score in zip(rows, batch.tolist(), strict=True):
            scores[row] = score
    return scores


def with_scalar_head(path: Path, seed: int) -> PreTrainedModel:
    """A language model's checkpoint with its vocabulary head replaced by a linear map to one number.

    The head starts with a standard deviation of 1 / sqrt(d + 1) (Stiennon et al. 2020, arXiv 2009.01325, B.1).
    """
    torch.manual_seed(seed)
    if (path / CONFIG).is_file():  # an adapter to a language model
        model = with_scalar(load_model(AutoModelForCausalLM, path), AutoConfig.from_pretrained(path, num_labels=1))
    else:
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    head = model.score.weight  # (1, d)
    torch.nn.init.normal_(head, std=(head.shape[1] + 1) ** -0.5)
    return model
