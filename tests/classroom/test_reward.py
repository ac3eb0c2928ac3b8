"""The reward models of lesson 2: errors, pairs and shares by hand; a fit is the stage's training."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from rlhf_mini.classroom import reward
from rlhf_mini.classroom.reward import as_pairs, difference, errors, fit, fit_all, new_model, pool, scores_of, share
from rlhf_mini.core.rankings import Count
from rlhf_mini.models.text import encode_prompts, encode_response
from stages.rm.rankings import Example

A, B, C = [2, 3, 4], [2, 3, 5, 6], [2, 3, 7]
RANKING = Example([A, B, C], [2, 1, 2], 2)
"""B is better than A and than C, which are tied."""


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A response's score is its last token."""

    def last_token(model: PreTrainedModel, batch: list[Example]) -> torch.Tensor:
        return torch.tensor([float(ids[-1]) for example in batch for ids in example.input_ids])

    monkeypatch.setattr(reward, "score_responses", last_token)


def test_pairs_are_a_rankings_comparisons_better_first() -> None:
    assert as_pairs([RANKING]) == [Example([B, A], [1, 2], 2), Example([B, C], [1, 2], 2)]


@pytest.mark.usefixtures("scored")
def test_errors_by_hand() -> None:
    """Scores are 4, 6 and 7: B over A is right, B over C is wrong. The second ranking is right."""
    right = Example([[2, 9], [2, 3, 8]], [1, 2], 1)
    found = errors(None, [RANKING, right])
    assert found.error == pytest.approx(1 / 3)
    losses = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 3, math.log(1 + math.exp(-1))
    assert found.loss == pytest.approx(sum(losses) / 2)


@pytest.mark.usefixtures("scored")
def test_scores_keep_the_order_of_the_rankings() -> None:
    many = [
        Example([[1] * length + [token] for token in (length, length + 1)], [1, 2], 1) for length in range(40, 0, -1)
    ]
    assert scores_of(None, many) == [[length, length + 1] for length in range(40, 0, -1)]


def test_shares_and_paired_differences() -> None:
    first, second = [Count(3, 4), Count(1, 4)], [Count(1, 2), Count(0, 2)]
    assert share(first).mean == pytest.approx(4 / 8)
    assert (share(first).low, share(first).high) == (pytest.approx(1 / 4), pytest.approx(3 / 4))
    found = difference(first, second)  # by prompt 3/4 - 1/2 and 1/4 - 0: always 1/4
    assert (found.mean, found.low, found.high) == pytest.approx((1 / 4, 1 / 4, 1 / 4))
    assert pool([first, second]) == [Count(4, 6), Count(1, 6)]


# --- fits ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def examples(nano_base: Path) -> list[Example]:
    """Rankings in which politeness wins, of prompts that differ."""
    tokenizer = AutoTokenizer.from_pretrained(nano_base)
    prompts = encode_prompts(tokenizer, [[{"role": "user", "content": f"Name colour {n}."}] for n in range(24)])
    responses = [encode_response(tokenizer, text, True) for text in ("It is green.", "What", "is it?")]
    return [Example([prompt.ids + ids for ids in responses], [1, 3, 2], len(prompt.ids)) for prompt in prompts]


@pytest.mark.usefixtures("one_thread")
def test_a_fit_learns_and_measures_on_the_way(nano_base: Path, examples: list[Example]) -> None:
    training, validation = examples[:16], examples[16:]
    found = fit(new_model(nano_base, 0), training, validation, steps=20, batch_size=8, learning_rate=1e-2, measure=4)
    assert [point.epochs for point in found.points] == [2.5, 5.0, 7.5, 10.0]
    assert found.scored == 20 * 8 * 3
    assert found.validation == found.points[-1].validation == errors(found.model, validation)
    assert found.training == errors(found.model, training)
    assert found.training.loss < found.points[0].training.loss
    assert found.validation.error == 0


@pytest.mark.usefixtures("one_thread")
def test_without_steps_a_fit_is_one_epoch(nano_base: Path, examples: list[Example]) -> None:
    found = fit(new_model(nano_base, 0), examples[:20], examples[20:], batch_size=8, sample=4)
    assert found.points[-1].epochs == 1 and found.scored == 60
    assert found.training == errors(found.model, examples[:4])


@pytest.mark.usefixtures("one_thread")
def test_weight_decay_shrinks_matrices(nano_base: Path, examples: list[Example]) -> None:
    plain, decayed = (
        fit(new_model(nano_base, 0), examples[:16], examples[16:], steps=5, weight_decay=decay).model
        for decay in (0.0, 50.0)
    )
    norms = [model.transformer.h[0].mlp.c_fc.weight.norm() for model in (plain, decayed)]
    assert norms[1] < 0.9 * norms[0]


def test_a_model_of_one_block(nano_base: Path, examples: list[Example]) -> None:
    """With the other block's outputs at 0, the whole model gives the same scores."""
    small, whole = new_model(nano_base, 0, blocks=1), new_model(nano_base, 0)
    assert len(small.transformer.h) == small.config.n_layer == 1 and len(whole.transformer.h) == 2
    last = whole.transformer.h[1]
    for part in (last.attn.c_proj, last.mlp.c_proj):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
    assert scores_of(small, examples) == [pytest.approx(one, abs=1e-5) for one in scores_of(whole, examples)]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_fits_side_by_side_are_the_same_as_one_after_another(nano_base: Path, examples: list[Example]) -> None:
    models = {size: new_model(nano_base, 0) for size in (8, 16)}
    tasks = {size: partial(fit, models[size], examples[:size], examples[16:], steps=3) for size in models}
    found = fit_all(tasks)
    alone = fit(new_model(nano_base, 0), examples[:8], examples[16:], steps=3)
    assert list(found) == [8, 16]
    assert found[8].validation.loss == pytest.approx(alone.validation.loss, abs=1e-4)
