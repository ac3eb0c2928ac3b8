"""What models say about given responses: reward-model scores, per-token values, log-probabilities.

Sequences are prompt + response, right-padded, without a gap between the two. The models see their real tokens only
(packing.py), so every token has the position it has in an unpadded text, and no padding is ever computed.

Shapes: B rows, T prompt + response (right-padded), R response, N tokens of a batch, V vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_mini.core.examples import Messages, Response
from rlhf_mini.models.packing import Rows, packed
from rlhf_mini.models.parallel import in_parallel
from rlhf_mini.models.sampling import context_length, encode_prompts, encode_response

# Rows in one forward pass. On a CPU small passes stay in its caches; a GPU wants more.
BUCKET_SIZE = 16


def right_pad(sequences: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns input_ids (B, T) long and attention_mask (B, T) long, 1 on real tokens."""
    width = max(len(sequence) for sequence in sequences)
    input_ids = torch.full((len(sequences), width), pad_token_id, dtype=torch.long)  # (B, T)
    attention_mask = torch.zeros((len(sequences), width), dtype=torch.long)  # (B, T)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        attention_mask[row, : len(sequence)] = 1
    return input_ids, attention_mask


def in_length_buckets(
    forward: Callable[[torch.Tensor], torch.Tensor], attention_mask: torch.Tensor, bucket_size: int
) -> torch.Tensor:
    """Runs `forward(rows)` on rows of like length together: attention pads its rows, and a pass fits into the caches.

    Without gradients the buckets are run in parallel. With them, their caller knows better what goes together.

    Args:
        forward: takes row indices (b,), returns a tensor of b rows.
        attention_mask: (B, T), right-padded.
        bucket_size: rows in one forward pass; it changes the time and the memory, not the result.

    Returns:
        (B, ...): `forward`'s rows, put back into the order of the batch. Gradients flow through.
    """
    if not bool(attention_mask[:, 0].all()):
        raise ValueError("a row begins with padding: these sequences are to be padded on the right")
    # Longest first: in parallel, short ones then fill what is left of the time.
    order = attention_mask.sum(-1).argsort(stable=True, descending=True)  # (B,)
    tasks = [partial(forward, rows) for rows in order.split(bucket_size)]
    outputs = [task() for task in tasks] if torch.is_grad_enabled() else in_parallel(*tasks)
    return torch.cat(outputs)[order.argsort()]


def token_values(
    value_model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    wanted: torch.Tensor,
    bucket_size: int = BUCKET_SIZE,
) -> torch.Tensor:
    """The scalar head of a ...ForSequenceClassification model, read at the `wanted` positions.

    Args:
        input_ids, attention_mask: (B, T), right-padded.
        wanted: (B, T) bool, True on real tokens only.

    Returns:
        (B, T) float32, minus `config.reward_mean`, the constant that puts demonstrations at 0 (absent: 0);
        0 where not wanted.
    """
    lengths = attention_mask.sum(-1)  # (B,)
    mean = getattr(value_model.config, "reward_mean", 0.0)

    def forward(rows: torch.Tensor) -> torch.Tensor:
        layout = Rows(lengths[rows])
        keep = layout.pack(wanted[rows]).nonzero().squeeze(-1)  # (n,)
        values = read(layout.pack(input_ids[rows]), layout, keep).squeeze(-1)  # (n,)
        empty = values.new_zeros(wanted[rows].shape, dtype=torch.float32)  # (b, T)
        return empty.masked_scatter(wanted[rows], values.float() - mean)

    with packed(value_model) as read:
        return in_length_buckets(forward, attention_mask, bucket_size)


def score(
    reward_model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, bucket_size: int = BUCKET_SIZE
) -> torch.Tensor:
    """The reward model's score of each sequence: its scalar at the last real token, minus `config.reward_mean`.

    Args:
        input_ids, attention_mask: (B, T), right-padded.

    Returns:
        (B,) float32, in units of the reward model's logit.
    """
    last = attention_mask.sum(-1, keepdim=True) - 1  # (B, 1)
    wanted = torch.zeros_like(attention_mask, dtype=torch.bool).scatter(1, last, True)  # (B, T)
    return token_values(reward_model, input_ids, attention_mask, wanted, bucket_size).sum(-1)


def response_values(
    value_model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    response_mask: torch.Tensor,
    bucket_size: int = BUCKET_SIZE,
) -> torch.Tensor:
    """The value before each response token is emitted: read where that token's logits are, one position earlier.

    Args:
        input_ids, attention_mask: (B, T), right-padded; the response is the last `response_mask.sum(-1)` real tokens.
        response_mask: (B, R), True on response tokens, contiguous from column 0.

    Returns:
        (B, R) float32, 0 where masked.
    """
    lengths = attention_mask.sum(-1, keepdim=True)  # (B, 1)
    first = lengths - response_mask.sum(-1, keepdim=True) - 1  # (B, 1): the prompt's last token
    position = torch.arange(input_ids.shape[1], device=input_ids.device)  # (T,)
    wanted = (position >= first) & (position < lengths - 1)  # (B, T)
    values = token_values(value_model, input_ids, attention_mask, wanted, bucket_size)  # (B, T)
    empty = values.new_zeros(response_mask.shape)  # (B, R)
    return empty.masked_scatter(response_mask, values.masked_select(wanted))


def response_logprobs(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    response_mask: torch.Tensor,
    temperature: float = 1.0,
    bucket_size: int = BUCKET_SIZE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each response token, and the entropy of the distribution it was drawn from.

    Only the logits that predict a response token are computed (`logits_to_keep`): one row of V for each of them.

    Args:
        model: a causal language model, in eval mode.
        input_ids, attention_mask: (B, T), right-padded; the response is the last `response_mask.sum(-1)` real tokens.
        response_mask: (B, R), True on response tokens, contiguous from column 0.
        temperature: divides the logits, as it did when the response was sampled.

    Returns:
        logprobs (B, R) and entropy (B, R) in nats, both float32 and 0 where masked; the entropy carries no gradient.
    """
    lengths = attention_mask.sum(-1)  # (B,)
    first = lengths - response_mask.sum(-1)  # (B,): where the response begins

    def forward(rows: torch.Tensor) -> torch.Tensor:
        layout = Rows(lengths[rows])
        ids = layout.pack(input_ids[rows])  # (N,)
        # The logits that predict a token stand one position before it.
        targets = (layout.position_ids >= first[rows].repeat_interleave(lengths[rows])).nonzero().squeeze(-1)  # (n,)
        logits = read(ids, layout, keep=targets - 1)  # (n, V)
        log_distribution = (logits.float() / temperature).log_softmax(-1)  # (n, V)
        logprobs = log_distribution.gather(-1, ids[targets].unsqueeze(-1))  # (n, 1)
        with torch.no_grad():  # only looked at, never trained on
            entropy = -(log_distribution.exp() * log_distribution).sum(-1, keepdim=True)  # (n, 1)
        mask = response_mask[rows]  # (b, R)
        both = logprobs.new_zeros((*mask.shape, 2))  # (b, R, 2)
        return both.masked_scatter(mask.unsqueeze(-1), torch.cat([logprobs, entropy], dim=-1))

    with packed(model) as read:
        both = in_length_buckets(forward, attention_mask, bucket_size)  # (B, R, 2)
    return both[..., 0], both[..., 1].detach()


def encode_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Plain texts as the base model reads them: an end of text before and after each, no chat template, cut to fit."""
    eos = tokenizer.eos_token_id
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [[eos, *ids, eos][: context_length(model)] for ids in encoded]


def text_loss(model: PreTrainedModel, texts: Sequence[Sequence[int]], bucket_size: int = BUCKET_SIZE) -> torch.Tensor:
    """Mean of -log p(token | those before it) over the tokens of encoded texts, but their first: a scalar, in nats."""
    logprobs, mask = text_logprobs(model, texts, bucket_size)
    return -logprobs.sum() / mask.sum()


def text_logprobs(
    model: PreTrainedModel, texts: Sequence[Sequence[int]], bucket_size: int = BUCKET_SIZE
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of each token of B encoded texts but their first, and which of them are real: (B, T - 1) each."""
    input_ids, attention_mask = right_pad(texts, 0)  # (B, T)
    input_ids, attention_mask = input_ids.to(model.device), attention_mask.to(model.device)
    mask = attention_mask[:, 1:].bool()  # (B, T - 1): all but the first token are a response to it
    logprobs, _ = response_logprobs(model, input_ids, attention_mask, mask, bucket_size=bucket_size)
    return logprobs, mask


def with_scalar_head(path: Path, seed: int) -> PreTrainedModel:
    """A language model's checkpoint, with a linear map of its last hidden state to one number for the vocabulary's."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    head = model.score.weight  # (1, d)
    torch.nn.init.normal_(head, std=(head.shape[1] + 1) ** -0.5)
    return model


def _join(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages], responses: Sequence[Response]
) -> list[tuple[list[int], list[int]]]:
    """Prompt tokens and response tokens of each pair; a response without tokens (it came as text) is encoded."""
    encoded = encode_prompts(tokenizer, prompts)
    return [
        (prompt, response.ids or encode_response(tokenizer, response.text, response.ended))
        for prompt, response in zip(encoded, responses, strict=True)
    ]


@torch.no_grad()
def score_texts(
    reward_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    responses: Sequence[Response],
    batch_size: int = 64,
) -> list[float]:
    """The reward model's score of each response to the prompt beside it, in the order given."""
    sequences = [prompt + response for prompt, response in _join(tokenizer, prompts, responses)]
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    scores = [0.0] * len(sequences)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        input_ids, attention_mask = right_pad([sequences[index] for index in indices], tokenizer.pad_token_id)
        values = score(reward_model, input_ids.to(reward_model.device), attention_mask.to(reward_model.device))
        for index, value in zip(indices, values.tolist(), strict=True):
            scores[index] = value
    return scores


@torch.no_grad()
def sequence_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    responses: Sequence[Response],
    temperature: float = 1.0,
    batch_size: int = 64,
) -> list[float]:
    """log p(response | prompt) under the model, summed over the response's tokens, in nats, in the order given.

    The mean of the difference between a policy and its reference, over the policy's own samples, estimates their KL.
    """
    pairs = _join(tokenizer, prompts, responses)
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]) + len(pairs[index][1]))
    sums = [0.0] * len(pairs)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        input_ids, attention_mask = right_pad(
            [pairs[index][0] + pairs[index][1] for index in indices], tokenizer.pad_token_id
        )
        _, response_mask = right_pad([pairs[index][1] for index in indices], tokenizer.pad_token_id)
        logprobs, _ = response_logprobs(
            model,
            input_ids.to(model.device),
            attention_mask.to(model.device),
            response_mask.bool().to(model.device),
            temperature,
            batch_size,
        )
        for index, value in zip(indices, logprobs.sum(-1).tolist(), strict=True):
            sums[index] = value
    return sums
