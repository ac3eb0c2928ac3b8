"""Rows end to end against the same rows, each alone: values, gradients, and what must not be silently wrong."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlhf_mini.core.console import UserError
from rlhf_mini.models.forward import forward_pass
from rlhf_mini.models.rows import Cache, Rows

ROWS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16], [17, 18, 19]]
LENGTHS = torch.tensor([len(row) for row in ROWS])
IDS = torch.tensor([token for row in ROWS for token in row])  # (N,)
SMALL: dict[str, Any] = dict(
    vocab_size=24, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.4, pad_token_id=0, bos_token_id=None, eos_token_id=None,
)  # fmt: skip


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL)).eval()


def test_where_the_tokens_are() -> None:
    rows = Rows(torch.tensor([2, 1, 3]))
    padded = torch.tensor([[1, 2, 0], [3, 0, 0], [4, 5, 6]])
    assert rows.position_ids.tolist() == [0, 1, 0, 0, 1, 2]
    assert rows.pack(padded).tolist() == [1, 2, 3, 4, 5, 6]
    assert (rows.first.tolist(), rows.last.tolist()) == ([0, 2, 3], [1, 2, 5])
    assert torch.equal(rows.unpack(rows.pack(padded)), padded)
    x = rows.pack(padded)
    assert [row.tolist() for row in rows.split(x)] == [[1, 2], [3], [4, 5, 6]]
    assert rows.take(x, [2, 0]).tolist() == [4, 5, 6, 1, 2]
    assert rows.sum(x).tolist() == [3, 3, 15]


def test_rows_see_only_themselves() -> None:
    """Values and gradients are those of each row alone; a rotary model with fewer keys than queries."""
    model = llama()
    rows = Rows(LENGTHS)
    weights = torch.randn(len(IDS), 24)
    with forward_pass(model) as forward:
        logits = forward(IDS, rows)  # (N, V)
        some = forward(IDS, rows, keep=torch.tensor([0, 7]))  # (2, V)
    (logits * weights).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    alone = torch.cat([model(torch.tensor([row])).logits[0] for row in ROWS])
    (alone * weights).sum().backward()
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(some, alone[[0, 7]], atol=1e-5, rtol=0)
    for one, other in zip(gradients, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_decoding_continues_each_row_where_it_ends() -> None:
    model = llama()
    cache = Cache(LENGTHS, room=3)
    rows = Rows(LENGTHS, cache)
    more = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12], [13, 14, 15]])  # tokens that follow each row
    with forward_pass(model) as forward:
        forward(IDS, rows)
        kept = torch.arange(5)
        for step in range(3):
            cache.grow()
            logits = forward(more[kept, step], cache)  # (b, V)
            for row, got in zip(kept.tolist(), logits, strict=True):
                whole = torch.tensor([ROWS[row] + more[row, : step + 1].tolist()])
                torch.testing.assert_close(got, unpacked(model, whole)[0, -1], atol=1e-5, rtol=0)
            if step == 1:  # the longest row and another leave
                keep = torch.tensor([0, 1, 4])
                cache.keep(keep)
                kept = kept[keep]


def unpacked(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    logits = model(ids).logits
    model.set_attn_implementation(before)
    return logits


def test_the_model_comes_back_as_it_was() -> None:
    model = llama()
    expected = model(IDS.unsqueeze(0)).logits
    with pytest.raises(RuntimeError), forward_pass(model):
        raise RuntimeError
    assert torch.equal(model(IDS.unsqueeze(0)).logits, expected)


@pytest.mark.parametrize(
    ("model_type", "config", "sentence"),
    [
        ("mistral", {"sliding_window": 2}, "the architecture mistral attends within a sliding window, which"),
        ("gemma2", {}, "the architecture gemma2 attends within a sliding window, which"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "the architecture gemma2 caps its attention logits, which"),
        ("mamba", {}, "the architecture mamba does not take its attention from transformers' attention interface"),
        ("mpt", {}, "the architecture mpt does not take its attention from transformers' attention interface"),
    ],
)
def test_an_architecture_that_would_be_computed_wrongly_is_refused(
    model_type: str, config: dict[str, Any], sentence: str
) -> None:
    """It would attend to more than it was trained with, or from row to row, and nobody would notice."""
    sizes = dict(vocab_size=64, d_model=32, n_layers=2, n_heads=4, max_seq_len=64) if model_type == "mpt" else SMALL
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes, **config)).eval()
    rows = Rows(LENGTHS)
    with pytest.raises(UserError) as refused, forward_pass(model) as forward:
        forward(IDS, rows)
    assert str(refused.value).startswith(sentence) and str(refused.value).endswith("such as GPT-2, Llama or Qwen 2")
