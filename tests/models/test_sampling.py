"""Sampling against slow, plain ways of doing the same: model.generate, and a full pass over each row by itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig
from transformers import LlamaForCausalLM as Llama

from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Response
from rlhf_mini.models import sampling
from rlhf_mini.models.rows import Cache, Rows
from rlhf_mini.models.sampling import draw, respond, sample
from rlhf_mini.models.text import encode_prompts, encode_response, excerpt

PAD, VOCAB = 0, 24
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16], [17, 18, 19], [20], [21, 22, 23, 5], [6, 6]]


def gpt2(vocab_size: int = VOCAB) -> GPT2LMHeadModel:
    """Random, with weights large enough that its distributions are far from uniform."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab_size, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4, pad_token_id=PAD,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def llama() -> Llama:
    """Another architecture: relative positions, grouped keys and values."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4, pad_token_id=PAD,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return Llama(config).eval()


def full_logits(model: torch.nn.Module, prompt: list[int], response: list[int]) -> torch.Tensor:
    """(R, V): what predicts each response token, in one pass over the unpadded row alone."""
    ids = torch.tensor([prompt + response])
    with torch.no_grad():
        return model(ids).logits[0, len(prompt) - 1 : -1]


def lengths(rollout: sampling.Rollout) -> list[int]:
    return [len(ids) for ids in rollout.response_ids]


def logprobs_by_row(rollout: sampling.Rollout) -> tuple[torch.Tensor, ...]:
    return Rows(lengths(rollout)).split(rollout.logprobs)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_greedy_is_what_generate_says(make: Callable[[], torch.nn.Module]) -> None:
    model = make()
    width = max(map(len, PROMPTS))  # generate wants padding on the left
    prompt_ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    free = model.generate(prompt_ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=PAD)  # type: ignore[operator]
    said = free[:, prompt_ids.shape[1] :]
    # Any token can play the end of text: take one with which the rows end at the most different times.
    eos = max(range(1, VOCAB), key=lambda token: len({(row == token).nonzero()[:1].sum().item() for row in said}))
    expected = model.generate(  # type: ignore[operator]
        prompt_ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=PAD, eos_token_id=eos
    )[:, prompt_ids.shape[1] :]

    rollout = sample(model, PROMPTS, max_new_tokens=12, temperature=0, eos_token_id=eos)

    assert len(set(lengths(rollout))) >= 3  # the rows do end at different times
    whole = [row[: row.index(eos) + 1] if eos in row else row for row in expected.tolist()]
    assert rollout.response_ids == whole
    for row, prompt, response in zip(logprobs_by_row(rollout), PROMPTS, rollout.response_ids, strict=True):
        expected_row = full_logits(model, prompt, response).log_softmax(-1).max(-1).values  # at temperature 1
        torch.testing.assert_close(row, expected_row, atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_a_full_pass(
    make: Callable[[], torch.nn.Module], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With prompts of different lengths, and with rows that leave the batch on the way."""
    selected: list[int] = []
    original = Cache.keep

    def keep(self: Cache, rows: torch.Tensor) -> None:
        selected.append(len(rows))
        original(self, rows)

    monkeypatch.setattr(Cache, "keep", keep)
    model = make()
    rollout = sample(
        model,
        PROMPTS,
        max_new_tokens=12,
        temperature=temperature,
        eos_token_id=3,
        generator=torch.Generator().manual_seed(1),
    )
    assert selected, "no row has left the batch, so this tests nothing"
    assert selected == sorted({*selected} - {len(PROMPTS)}, reverse=True)  # fewer each time, and not before one ends
    for row, prompt, response in zip(logprobs_by_row(rollout), PROMPTS, rollout.response_ids, strict=True):
        assert 3 not in response[:-1]
        assert len(response) == 12 or response[-1] == 3
        logprobs = (full_logits(model, prompt, response) / temperature).log_softmax(-1)
        expected = logprobs.gather(-1, torch.tensor(response).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=0)
    assert len(set(lengths(rollout))) >= 2 and len(rollout.logprobs) == sum(lengths(rollout))


@pytest.mark.parametrize("share", [0.01, 0.5, 2.0])
def test_rows_leaving_the_batch_change_nothing(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = dict(max_new_tokens=16, eos_token_id=3)
    uniforms = torch.rand((len(PROMPTS), 16), generator=torch.Generator().manual_seed(2))
    expected = sample(gpt2(), PROMPTS, uniforms=uniforms, **arguments)  # type: ignore[arg-type]
    monkeypatch.setattr(sampling, "COMPACT_SHARE", share)
    rollout = sample(gpt2(), PROMPTS, uniforms=uniforms, **arguments)  # type: ignore[arg-type]
    assert rollout.response_ids == expected.response_ids
    torch.testing.assert_close(rollout.logprobs, expected.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", [0.01, 2.0])
def test_tokens_are_told_as_they_are_drawn(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row's tokens through its end of text, one a step, whether rows that have ended leave the batch or stay."""
    monkeypatch.setattr(sampling, "COMPACT_SHARE", share)
    heard: list[list[int]] = [[] for _ in PROMPTS]
    steps: list[int] = []

    def on_tokens(rows: torch.Tensor, tokens: torch.Tensor) -> None:
        steps.append(len(rows))
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            assert len(heard[row]) == len(steps) - 1
            heard[row].append(token)

    uniforms = torch.rand((len(PROMPTS), 16), generator=torch.Generator().manual_seed(2))
    arguments = dict(max_new_tokens=16, eos_token_id=3, uniforms=uniforms)
    rollout = sample(gpt2(), PROMPTS, on_tokens=on_tokens, **arguments)  # type: ignore[arg-type]
    assert heard == rollout.response_ids
    assert len(set(steps)) >= 3  # the rows do end at different times
    assert rollout.response_ids == sample(gpt2(), PROMPTS, **arguments).response_ids  # type: ignore[arg-type]


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities * counts.sum()
    return ((counts - expected).square() / expected).sum().item()


def test_draw_inverts_the_cumulated_probabilities() -> None:
    logits = torch.tensor([[0.5, 0.0, 0.3, 0.2]]).log()  # cumulated: 0.5, 0.5, 0.8, 1
    for uniform, token in [(0.0, 0), (0.499, 0), (0.501, 2), (0.799, 2), (0.801, 3), (0.999999, 3)]:
        assert draw(logits, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]
        assert draw(logits + 1000, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]  # exp overflows
    zero_first = torch.tensor([[0.0, 1.0]]).log()
    assert draw(zero_first, torch.tensor([0.0], dtype=torch.float64)).tolist() == [1]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_softmax(temperature: float) -> None:
    """Two tokens in a row over a vocabulary of 6, against the 36 exact probabilities, after two prompts."""
    model, count = gpt2(vocab_size=6), 30_000
    prompts = [[1, 2], [3]] * (count // 3)
    prompts += [[1, 2]] * (count - len(prompts))
    rollout = sample(
        model,
        prompts,
        max_new_tokens=2,
        temperature=temperature,
        eos_token_id=99,
        generator=torch.Generator().manual_seed(0),
    )
    for prompt in ([1, 2], [3]):
        pairs = torch.tensor([ids for p, ids in zip(prompts, rollout.response_ids, strict=True) if p == prompt])
        counts = torch.bincount(pairs[:, 0] * 6 + pairs[:, 1], minlength=36).double()
        exact = torch.zeros(6, 6, dtype=torch.float64)
        for first in range(6):
            logits = full_logits(model, prompt, [first, 0]).double() / temperature
            exact[first] = logits[0].softmax(-1)[first] * logits[1].softmax(-1)
        assert exact.sum().item() == pytest.approx(1, abs=1e-6)
        likely = exact.flatten() * counts.sum() >= 5  # the rest together, as the test's approximation requires
        pooled = torch.cat([counts[likely], counts[~likely].sum().reshape(1)])
        expected = torch.cat([exact.flatten()[likely], exact.flatten()[~likely].sum().reshape(1)])
        # 99.99 % of the chi-square distribution with at most 36 degrees of freedom lies below 76.
        assert chi_square(pooled[expected > 0], expected[expected > 0]) < 76
        # and the test notices another temperature
        wrong = (exact.flatten() ** 0.9) / (exact.flatten() ** 0.9).sum()
        assert chi_square(counts[likely], wrong[likely]) > 76


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_prompts_and_responses_are_encoded_as_the_chat_template_says(nano_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(nano_base)
    conversation = [*ask("Hi"), {"role": "assistant", "content": "Paris"}]
    whole = tokenizer.apply_chat_template(conversation, tokenize=False)
    (prompt,) = encode_prompts(tokenizer, [ask("Hi")])
    assert prompt.messages == ask("Hi")
    assert prompt.ids + encode_response(tokenizer, "Paris") == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(prompt.ids) == "<|user|> Hi\n<|assistant|>"
    assert encode_response(tokenizer, "Paris")[-1] == tokenizer.eos_token_id
    assert encode_response(tokenizer, "Paris", ended=False) == encode_response(tokenizer, "Paris")[:-1]
    assert encode_prompts(tokenizer, []) == []
    tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    encoded = encode_prompts(tokenizer, [ask("Hi"), ask("Ho"), ask("Hi")])
    assert [each.ids for each in encoded] == tokenizer(["Hi!", "Ho!", "Hi!"])["input_ids"]


def test_an_excerpt_is_one_line_each_without_control_characters() -> None:
    said = excerpt(ask("One\ntwo " + "x" * 200), Response("a\x1b[31mb", ended=False), width=20)
    assert said == "    user: One two xxxxxxxxx...\n    model: a\N{REPLACEMENT CHARACTER}[31mb ..."


def test_respond(nano_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The responses come in the order of the prompts and do not depend on the batches; the seed decides them."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(nano_base), AutoTokenizer.from_pretrained(nano_base)
    prompts = encode_prompts(tokenizer, [ask("word " * count) for count in (3, 1, 7, 2, 5)])
    one = respond(model, tokenizer, prompts, max_new_tokens=6, seed=3, batch_size=1)
    assert respond(model, tokenizer, prompts, max_new_tokens=6, seed=3, batch_size=3) == one
    assert respond(model, tokenizer, prompts, max_new_tokens=6, seed=4) != one
    for response in one:
        assert response.text == tokenizer.decode(response.ids, skip_special_tokens=True)
        assert response.ended == (response.ids[-1] == tokenizer.eos_token_id)
        assert response.ended or len(response.ids) == 6
    batches: list[list[int]] = []

    def recorded(model: torch.nn.Module, prompts: list[list[int]], **arguments: Any) -> sampling.Rollout:
        batches.append([len(ids) for ids in prompts])
        return sample(model, prompts, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "sample", recorded)
        respond(model, tokenizer, prompts, max_new_tokens=6, batch_size=2)
    lengths = sorted((len(prompt.ids) for prompt in prompts), reverse=True)
    assert batches == [lengths[:2], lengths[2:4], lengths[4:]]  # of similar length, the longest first
    greedy = respond(model, tokenizer, prompts, max_new_tokens=4, temperature=0)
    for prompt, response in zip(prompts, greedy, strict=True):
        assert response.ids == full_logits(model, prompt.ids, response.ids).argmax(-1).tolist()
    assert respond(model, tokenizer, [], max_new_tokens=4) == []
    # A model in training comes back as it was, and its dropout is off meanwhile.
    model.train()
    assert respond(model, tokenizer, prompts, max_new_tokens=6, seed=3, batch_size=1) == one
    assert model.training


def test_a_response_that_is_only_the_end_of_text(nano_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(nano_base), AutoTokenizer.from_pretrained(nano_base)
    eos = tokenizer.eos_token_id
    monkeypatch.setattr(sampling, "draw", lambda logits, uniforms: torch.full(uniforms.shape, eos))
    prompts = encode_prompts(tokenizer, [ask("Hi")])
    assert respond(model, tokenizer, prompts, max_new_tokens=4) == [Response("", True, [eos])]


def test_a_prompt_longer_than_the_context_is_told_with_numbers(nano_base: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(nano_base), AutoTokenizer.from_pretrained(nano_base)
    positions = model.config.n_positions
    (overhead,) = encode_prompts(tokenizer, [ask("")])
    room = positions - 8 - len(overhead.ids)
    fits, longer = encode_prompts(tokenizer, [ask("1" * room), ask("1" * (room + 1))])  # each digit is a token
    assert (len(fits.ids), len(longer.ids)) == (positions - 8, positions - 7)
    respond(model, tokenizer, [fits], max_new_tokens=8)
    with pytest.raises(UserError, match=rf"has {positions - 7} tokens.*context of {positions} leaves {positions - 8} "):
        respond(model, tokenizer, [fits, longer], max_new_tokens=8)
