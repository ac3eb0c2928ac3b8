"""GPT-2 written out against transformers' own: values, gradients, decoding, and the models that it leaves alone."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf_mini.models import gpt2
from rlhf_mini.models.forward import forward_pass
from rlhf_mini.models.rows import Cache, Rows

ROWS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16], [17, 18, 19]]
LENGTHS = torch.tensor([len(row) for row in ROWS])
IDS = torch.tensor([token for row in ROWS for token in row])  # (N,)
KEEP = torch.tensor([2, 3, 7, 14])


def new(kind: type, **changes: Any) -> Any:
    """Random in all its weights, biases and norms, too."""
    torch.manual_seed(0)
    config: dict[str, Any] = dict(vocab_size=24, n_positions=16, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
    config |= dict(bos_token_id=None, eos_token_id=None, num_labels=1, activation_function="gelu")
    model = kind(GPT2Config(**config | changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def by_itself(model: Any) -> torch.Tensor:
    """(N, V) or (N, 1), row by row and without padding, by transformers' own forward pass."""
    outputs = []
    for row in ROWS:
        hidden = model.transformer(torch.tensor([row])).last_hidden_state[0]
        outputs.append(model.score(hidden) if hasattr(model, "score") else model.lm_head(hidden))
    return torch.cat(outputs)


@pytest.mark.parametrize("keep", [None, KEEP], ids=["all", "some"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "gelu_new"])
@pytest.mark.parametrize("kind", [GPT2LMHeadModel, GPT2ForSequenceClassification])
def test_values_and_gradients_are_the_models_own(kind: type, activation: str, keep: torch.Tensor | None) -> None:
    model = new(kind, activation_function=activation)
    assert gpt2.fits(model)
    expected = by_itself(model)
    expected = expected if keep is None else expected[keep]
    weights = torch.randn(expected.shape)
    (expected * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with forward_pass(model) as forward:
        logits = forward(IDS, Rows(LENGTHS), keep)
    (logits * weights).sum().backward()
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-4, rtol=1e-4, msg=name)


@torch.no_grad()
def test_decoding_continues_each_row_where_it_ends() -> None:
    model = new(GPT2LMHeadModel)
    more = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12], [13, 14, 15]])
    cache, kept = Cache(LENGTHS, room=3), torch.arange(5)
    with forward_pass(model) as forward:
        forward(IDS, Rows(LENGTHS, cache))
        for step in range(3):
            cache.grow()
            logits = forward(more[kept, step], cache)  # (b, V)
            for row, got in zip(kept.tolist(), logits, strict=True):
                whole = torch.tensor([ROWS[row] + more[row, : step + 1].tolist()])
                torch.testing.assert_close(got, model(whole).logits[0, -1], atol=1e-5, rtol=1e-5)
            if step == 0:  # the longest row and another leave
                kept = torch.tensor([0, 1, 4])
                cache.keep(kept)


def hooked(model: Any) -> None:
    model.transformer.h[0].mlp.register_forward_hook(lambda module, args, output: 2 * output)


def adapted(model: Any) -> None:
    class Doubled(type(model.lm_head)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model.lm_head.__class__ = Doubled


def thinned(model: Any) -> None:
    model.train()


@pytest.mark.parametrize("change", [hooked, adapted, thinned])
def test_a_model_that_does_more_than_gpt2_is_read_as_it_is(change: Callable[[Any], None]) -> None:
    """The way for any model does what the change says; only with dropout is that random."""
    model = new(GPT2LMHeadModel)
    plain = copy.deepcopy(model)
    change(model)
    assert gpt2.fits(plain) and not gpt2.fits(model)
    with torch.no_grad(), forward_pass(model) as forward:
        logits = forward(IDS, Rows(LENGTHS))
    assert not torch.allclose(logits, by_itself(plain), atol=0.1)
    if change is not thinned:
        with torch.no_grad():
            expected = torch.cat([model(torch.tensor([row])).logits[0] for row in ROWS])
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("setting", ["scale_attn_by_inverse_layer_idx", "add_cross_attention"])
def test_unusual_gpt2s_are_left_alone(setting: str) -> None:
    assert not gpt2.fits(new(GPT2LMHeadModel, **{setting: True}))


def test_training_without_dropout_fits() -> None:
    model = new(GPT2LMHeadModel, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    assert gpt2.fits(model.train())
