"""Weak-to-strong: a teacher of fewer layers, its labels, and the gap that its student closes."""

import math
from pathlib import Path

import pytest
import torch

from rlhf_mini.classroom.weak import MODELS, first_layers, fit, gap_recovered, labelled
from rlhf_mini.core.examples import Ranking
from rlhf_mini.core.rankings import Count
from rlhf_mini.models.scoring import reward_scores, with_scalar_head
from rlhf_mini.models.text import load_tokenizer
from stages.rm.options import RMOptions

PROMPT = [{"role": "user", "content": "What colour is a kiwi inside?"}]
RANKING: Ranking = {"prompt": PROMPT, "responses": ["It is green.", "It is Paris.", "Green"], "ranks": [1, 2, 3]}


def test_the_teacher_is_the_first_layers(nano_base: Path) -> None:
    """A hand-made pass: embeddings, one block, the last norm, the head at the last token."""
    model, whole, ids = first_layers(nano_base, 1, seed=3), with_scalar_head(nano_base, seed=3).eval(), [5, 6, 7, 8]
    trunk = whole.transformer
    with torch.no_grad():
        x = trunk.wte(torch.tensor([ids])) + trunk.wpe(torch.arange(4))[None]
        x = trunk.h[0](x, attention_mask=torch.full((4, 4), -math.inf).triu(1)[None, None])
        expected = whole.score(trunk.ln_f(x[0] if isinstance(x, tuple) else x))[0, -1]
        found = reward_scores(model, [ids[:2]], [ids[2:]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_model_learns_the_order_and_passes_it_on(nano_base: Path) -> None:
    tokenizer, model = load_tokenizer(nano_base), first_layers(nano_base, 1, seed=0)
    options = RMOptions(num_train_epochs=30, batch_size=1, learning_rate=1e-2)
    fit(model, tokenizer, [RANKING], options)
    unknown = RANKING | {"ranks": [3, 1, 2]}
    assert labelled(model, tokenizer, [unknown]) == [RANKING]


def test_gap_recovered() -> None:
    """Ten prompts of ten pairs each: 50, 65 and 70 of 100 right, so three quarters of the gap."""
    right = dict(zip(MODELS, ((5,) * 10, (6, 7) * 5, (7,) * 10), strict=True))
    found = gap_recovered({name: [Count(n, 10) for n in of] for name, of in right.items()})
    assert [found[name].mean for name in (*MODELS, "PGR")] == pytest.approx([0.5, 0.65, 0.7, 0.75])
    assert found["weak"].low == found["weak"].high == 0.5  # all prompts alike
    assert 0.5 <= found["PGR"].low < 0.75 < found["PGR"].high <= 1.0  # the student's accuracy lies between 0.6 and 0.7
