"""Sampling responses from a causal language model: the rollout of PPO, and `respond` for everything else.

Works with the causal models of transformers that have its attention interface. It saves time over `model.generate` in
four ways: prompts are not padded, finished rows leave the batch, a draw is one uniform number and one search in the
cumulative probabilities, and each drawn token's log-probability is kept, so that PPO needs no second pass for it.

Shapes: B rows, R = max_new_tokens, n tokens of all responses end to end, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_mini.core import processes
from rlhf_mini.core.console import track
from rlhf_mini.core.examples import Response
from rlhf_mini.models.forward import forward_pass
from rlhf_mini.models.rows import Cache, Rows
from rlhf_mini.models.text import EncodedPrompt, check_prompt_lengths, to_responses

# Removing rows copies the cache, so it waits until this share of the rows in the batch has finished.
COMPACT_SHARE = 0.125


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Sampled responses to B prompts."""

    response_ids: list[list[int]]
    """The tokens of each response, through its end of text."""
    logprobs: Tensor
    """(n,) float32, of the responses end to end: each token under the full softmax of logits / temperature."""


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draws from softmax(logits) (B, V) by inverting its cumulative probabilities at `uniforms` (B,) in [0, 1).

    The token is the first one whose cumulative probability exceeds u, so a token of probability 0 is never drawn.
    Float64 where the device has it, because a float32 sum over a large vocabulary loses the rare tokens at its end.

    Returns:
        (B,) long.
    """
    precise = torch.float32 if logits.device.type == "mps" else torch.float64
    weights = (logits - logits.amax(-1, keepdim=True)).exp()  # (B, V), the probabilities up to a factor
    cumulative = weights.cumsum(-1, dtype=precise)  # (B, V)
    thresholds = (uniforms.to(precise) * cumulative[:, -1]).unsqueeze(-1)  # (B, 1)
    return torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    eos_token_id: int,
    generator: torch.Generator | None = None,
    uniforms: Tensor | None = None,
    on_tokens: Callable[[Tensor, Tensor], None] | None = None,
) -> Rollout:
    """Samples a response to each prompt from the model's full distribution (top-k or top-p would bias the KL).

    Args:
        model: a causal language model, in eval mode (dropout would sample from another model than the one scored).
        prompts: B encoded prompts, of any lengths.
        max_new_tokens: R; a response that has not ended by then is truncated.
        temperature: divides the logits; 0 takes the most likely token, with its log-probability at temperature 1.
        generator: a CPU generator for the draws, torch's global one by default.
        uniforms: (B, max_new_tokens) in [0, 1), the draws themselves, instead of `generator`.
        on_tokens: called after each step with the unfinished rows (b,) and the token each of them drew (b,).

    Each row has a uniform number for each of its tokens, drawn beforehand, so a row's response depends neither on when
    other rows finish nor on when they leave the batch.
    """
    device, batch = model.device, len(prompts)
    if uniforms is None:
        uniforms = torch.rand((batch, max_new_tokens), generator=generator)
    uniforms = uniforms.to(device)

    drawn = torch.zeros((batch, max_new_tokens), dtype=torch.long, device=device)  # (B, R)
    logprobs = torch.zeros((batch, max_new_tokens), dtype=torch.float32, device=device)  # (B, R)

    # The batch holds `rows` of the output, fewer and fewer of them; `running` marks the unfinished ones.
    rows = torch.arange(batch, device=device)  # (b,)
    running = torch.ones(batch, dtype=torch.bool, device=device)  # (b,)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # (B,)
    ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)  # (N,)
    cache = Cache(lengths, max_new_tokens)
    prompt_rows = Rows(lengths, cache)

    with forward_pass(model) as forward:
        logits = forward(ids, prompt_rows, keep=prompt_rows.last)  # (B, V)
        for step in range(max_new_tokens):
            logits = logits.float()
            if temperature > 0:
                logits = logits / temperature
                tokens = draw(logits, uniforms[rows, step])  # (b,)
            else:
                tokens = logits.argmax(-1)  # (b,)
            token_logprobs = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)  # (b,)
            drawn[rows, step] = tokens  # of finished rows, too: what comes after an end of text is dropped below
            logprobs[rows, step] = token_logprobs
            if on_tokens:
                on_tokens(rows[running], tokens[running])

            running = running & (tokens != eos_token_id)
            left = int(running.sum())
            if left == 0 or step == max_new_tokens - 1:
                break
            if len(rows) - left >= COMPACT_SHARE * len(rows):
                kept = running.nonzero().squeeze(-1)
                cache.keep(kept)
                rows, running, tokens = rows[kept], running[kept], tokens[kept]
            cache.grow()
            logits = forward(tokens, cache)  # (b, V)

    drawn, logprobs = drawn[:, : step + 1], logprobs[:, : step + 1]
    ends = drawn == eos_token_id
    of_response = ends.cumsum(-1) - ends.long() == 0  # (B, step + 1): True through the first end of text
    lengths = of_response.sum(-1)
    return Rollout(
        response_ids=[row[:length] for row, length in zip(drawn.tolist(), lengths.tolist(), strict=True)],
        logprobs=logprobs[of_response],
    )


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
    description: str | None = None,
) -> list[Response]:
    """Samples one response to each prompt, in the order of the prompts. Repeat a prompt for several responses to it.

    Several processes share the work: all of them have to call this, with the same arguments.

    Args:
        temperature: 0 decodes greedily.
        seed: the same seed gives the same responses, whatever the batch size (up to rounding).
        batch_size: 256 take a quarter less CPU time than 64.
        description: shows a progress bar under this name.

    Raises:
        UserError: a prompt does not leave `max_new_tokens` of the model's context free.
    """
    check_prompt_lengths(model, prompts, max_new_tokens)
    uniforms = torch.rand((len(prompts), max_new_tokens), generator=torch.Generator().manual_seed(seed))
    # Prompts of similar length share a batch, longest first: running out of memory shows at once.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index].ids))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    sampled: list[list[int]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    for indices in track(batches, description, total=len(batches)) if description else batches:
        mine = processes.share(indices)
        rollout = sample(
            model, [prompts[index].ids for index in mine.items], max_new_tokens=max_new_tokens, temperature=temperature,
            eos_token_id=tokenizer.eos_token_id, uniforms=uniforms[mine.items],
        )  # fmt: skip
        for index, ids in zip(indices, processes.gather(mine, rollout.response_ids), strict=True):
            sampled[index] = ids
    model.train(was_training)
    return to_responses(tokenizer, sampled)
