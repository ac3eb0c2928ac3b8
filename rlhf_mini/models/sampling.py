"""Sampling responses from a causal language model: the rollout of PPO, and a text-level helper for everything else.

Works with the causal models of transformers that have its attention interface. Next to `model.generate` it saves time
in four ways: prompts are not padded, rows that have ended leave the batch, a draw is one uniform number and one search
in the cumulated probabilities, and each drawn token's log-probability is kept, so that PPO needs no second pass for it.

Shapes: B rows, R response tokens (right-padded), V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_mini.core.console import UserError, printable, track
from rlhf_mini.core.examples import Messages, Response
from rlhf_mini.models.packing import Cache, Rows, packed

# Removing rows copies the cache, so it waits until this share of the rows in the batch has ended.
COMPACT_SHARE = 0.125

# By tokenizer, its chat template and the prompt. A stage meets a prompt many times: sampled, scored, and again.
_encoded: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[Any, ...], list[int]]] = WeakKeyDictionary()


@dataclass
class Rollout:
    """A batch of sampled responses, as tensors."""

    response_ids: torch.Tensor
    """(B, R) long, right-padded with the pad token."""
    response_mask: torch.Tensor
    """(B, R) bool, True through the end of text, inclusive."""
    logprobs: torch.Tensor
    """(B, R) float32, of each sampled token under the full softmax of logits / temperature; 0 where masked."""

    def token_lists(self) -> list[list[int]]:
        """The B responses without padding."""
        lengths = self.response_mask.sum(-1).tolist()
        return [row[:length] for row, length in zip(self.response_ids.tolist(), lengths, strict=True)]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages]) -> list[list[int]]:
    """Tokens of each prompt through the chat template, up to where the assistant's turn begins."""
    known = _encoded.setdefault(tokenizer, {})
    keys = [(tokenizer.chat_template, *((m["role"], m["content"]) for m in prompt)) for prompt in prompts]
    new = {key: list(prompt) for key, prompt in zip(keys, prompts, strict=True) if key not in known}
    if new:
        texts = tokenizer.apply_chat_template(list(new.values()), add_generation_prompt=True, tokenize=False)
        known.update(zip(new, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True))
    return [known[key] for key in keys]


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str, ended: bool = True) -> list[int]:
    """Tokens of a response that comes as text (a person's, or one of a rankings file), with the end of text if `ended`.

    The chat template says what stands around it: whether a space comes first, and how the turn ends.
    """
    question = [{"role": "user", "content": "?"}]
    start = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    turn = tokenizer.apply_chat_template([*question, {"role": "assistant", "content": text}], tokenize=False)
    ids: list[int] = tokenizer(turn[len(start) :], add_special_tokens=False)["input_ids"]
    ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]  # some templates go on after the end of text
    return ids if ended else ids[:-1]


def draw(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draws from softmax(logits) (B, V) by inverting its cumulated probabilities at `uniforms` (B,) in [0, 1).

    The token is the first one whose cumulated probability exceeds u, so a token of probability 0 is never drawn.
    Float64 where the device has it, because a float32 sum over a large vocabulary loses the rare tokens at its end.

    Returns:
        (B,) long.
    """
    precise = torch.float32 if logits.device.type == "mps" else torch.float64
    weights = (logits - logits.amax(-1, keepdim=True)).exp()  # (B, V), the probabilities up to a factor
    cumulated = weights.cumsum(-1, dtype=precise)  # (B, V)
    thresholds = (uniforms.to(precise) * cumulated[:, -1]).unsqueeze(-1)  # (B, 1)
    return torch.searchsorted(cumulated, thresholds, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    eos_token_id: int,
    pad_token_id: int,
    generator: torch.Generator | None = None,
    uniforms: torch.Tensor | None = None,
    on_tokens: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
) -> Rollout:
    """Samples a response to each prompt from the model's full distribution (top-k or top-p would bias the KL).

    Args:
        model: a causal language model, in eval mode (dropout would sample from another model than the one scored).
        prompts: B encoded prompts, of any lengths.
        max_new_tokens: a response that has not ended by then is cut.
        temperature: divides the logits; 0 takes the likeliest token, with the log-probability it has at temperature 1.
        generator: a CPU generator for the draws, torch's global one by default.
        uniforms: (B, max_new_tokens) in [0, 1), the draws themselves, instead of `generator`.
        on_tokens: called after each step with the rows that had not ended (b,) and the token each of them said (b,).

    Each row has a uniform number for each of its tokens, drawn beforehand: what a row says depends neither on when
    other rows end nor on when they leave the batch.
    """
    device, batch = model.device, len(prompts)
    if uniforms is None:
        uniforms = torch.rand((batch, max_new_tokens), generator=generator)
    uniforms = uniforms.to(device)

    response_ids = torch.full((batch, max_new_tokens), pad_token_id, dtype=torch.long, device=device)  # (B, R)
    logprobs = torch.zeros((batch, max_new_tokens), dtype=torch.float32, device=device)  # (B, R)

    # The batch holds `rows` of the output, fewer and fewer of them; `running` marks those that have not ended.
    rows = torch.arange(batch, device=device)  # (b,)
    running = torch.ones(batch, dtype=torch.bool, device=device)  # (b,)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # (B,)
    ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)  # (N,)
    cache = Cache(lengths, max_new_tokens)

    with packed(model) as read:
        # After the last token of each prompt: (B, V)
        logits = read(ids, Rows(lengths, cache), keep=lengths.cumsum(0) - 1)
        for step in range(max_new_tokens):
            logits = logits.float()
            if temperature > 0:
                logits = logits / temperature
                tokens = draw(logits, uniforms[rows, step])  # (b,)
            else:
                tokens = logits.argmax(-1)  # (b,)
            token_logprobs = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)  # (b,)
            response_ids[rows, step] = tokens  # of rows that have ended too: see below
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
            logits = read(tokens, cache)  # (b, V)

    response_ids, logprobs = response_ids[:, : step + 1], logprobs[:, : step + 1]
    ends = response_ids == eos_token_id
    response_mask = ends.cumsum(-1) - ends.long() == 0  # through the first end of text; what a row said later is erased
    return Rollout(response_ids.masked_fill(~response_mask, pad_token_id), response_mask, logprobs * response_mask)


def context_length(model: PreTrainedModel) -> int | None:
    """The number of positions the model has, None when it states none."""
    config: Any = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    description: str | None = None,
) -> list[Response]:
    """Samples one response to each prompt, in the order of the prompts. Repeat a prompt for several responses to it.

    Args:
        prompts: lists of messages, the last one the user's.
        temperature: 0 decodes greedily.
        seed: the same seed gives the same responses, whatever the batch size (up to rounding).
        description: shows a progress bar under this name.

    Raises:
        UserError: a prompt does not leave `max_new_tokens` of the model's context free.
    """
    sequences = encode_prompts(tokenizer, prompts)
    check_prompt_lengths(model, sequences, max_new_tokens)
    uniforms = torch.rand((len(sequences), max_new_tokens), generator=torch.Generator().manual_seed(seed))
    # Prompts of like length share a batch, longest first: running out of memory shows at once.
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    responses: list[Response | None] = [None] * len(sequences)
    was_training = model.training
    model.eval()
    for indices in track(batches, description, total=len(batches)) if description else batches:
        rollout = sample(
            model,
            [sequences[index] for index in indices],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            uniforms=uniforms[indices],
        )
        for index, response in zip(indices, to_responses(tokenizer, rollout), strict=True):
            responses[index] = response
    model.train(was_training)
    return [response for response in responses if response is not None]


def to_responses(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> list[Response]:
    """The rollout's rows as text, without the space with which a template may begin a turn."""
    ids = rollout.token_lists()
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    ended = [row[-1] == tokenizer.eos_token_id for row in ids]
    return [Response(text.removeprefix(" "), *rest) for text, *rest in zip(texts, ended, ids, strict=True)]


def excerpt(prompt: Messages, response: Response | str, width: int = 100) -> str:
    """A prompt's last message and a response to it, each on one line and without control characters."""
    text = response if isinstance(response, str) else response.text + ("" if response.ended else " ...")
    lines = [printable(" ".join(part.split())) for part in (prompt[-1]["content"], text)]
    question, answer = [line if len(line) <= width else line[: width - 3] + "..." for line in lines]
    return f"    user: {question}\n    model: {answer}"


def check_prompt_lengths(model: PreTrainedModel, sequences: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises a UserError when a prompt and a response of `max_new_tokens` would not fit into the model's context."""
    positions = context_length(model)
    longest = max((len(sequence) for sequence in sequences), default=0)
    if positions is not None and longest + max_new_tokens > positions:
        raise UserError(
            f"a prompt has {longest} tokens, but the model's context of {positions} leaves "
            f"{positions - max_new_tokens} beside max_new_tokens={max_new_tokens}: "
            "shorten the prompt or lower max_new_tokens"
        )
