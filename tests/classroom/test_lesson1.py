"""Lesson 1: losses and parts of gold, and the checks of its exercises."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_mini.classroom.checks.lesson1 import check_epochs, check_labels, check_wrong_share
from rlhf_mini.classroom.imitation import demonstration_loss, gold_parts
from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.examples import Demonstration, Prompt, Response


def demonstration(asked: str, answered: str) -> Demonstration:
    return {
        "prompt": [{"role": "user", "content": asked}],
        "completion": [{"role": "assistant", "content": answered}],
    }


def test_the_loss_is_that_of_transformers_with_prompt_labels_masked(nano_base: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(nano_base).eval(), AutoTokenizer.from_pretrained(nano_base)
    demonstrations = [demonstration("Name the capital of France.", "It is Paris."), demonstration("What?", "Green.")]
    expected = []
    for one in demonstrations:
        prompt = tokenizer.apply_chat_template(one["prompt"], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template([*one["prompt"], *one["completion"]], tokenize=False)
        ids = tokenizer(whole, return_tensors="pt")["input_ids"]
        labels = ids.clone()
        labels[0, : len(tokenizer(prompt)["input_ids"])] = -100
        with torch.no_grad():
            expected.append(model(ids, labels=labels).loss.item())
    assert demonstration_loss(nano_base, demonstrations).mean == pytest.approx(sum(expected) / 2, abs=1e-5)


def test_parts_of_gold_are_means_over_the_prompts_they_apply_to() -> None:
    fact: Prompt = {
        "prompt": [{"role": "user", "content": "What is the capital of France?"}],
        "check": {"fact": "countries/France/capital", "max_words": 15},
    }
    word: Prompt = {
        "prompt": [{"role": "user", "content": "Say cat two times."}],
        "check": {"repeat": {"word": "cat", "n": 2}, "max_words": 15},
    }
    said = [Response("Of course! The capital of France is Rome.", ended=True), Response("cat cat", ended=False)]
    found = gold_parts([fact, word], said)
    assert found["truthful"].mean == 0.0  # the repeated word is neither true nor false
    assert found["courteous"].mean == 0.5
    assert found["ends"].mean == 0.5
    assert found["task"].mean == 0.5


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (lambda p, c: ..., "Not done yet"),
        (lambda p, c: [-100] * len(p) + c, "✓ Right"),
        (lambda p, c: torch.tensor([-100] * len(p) + c), "✓ Right"),
        (lambda p, c: p + c, "the prompt's tokens count, too"),
        (lambda p, c: p + [-100] * len(c), "the other way round"),
        (lambda p, c: [-100] * len(p) + c[:-1] + [-100], "learns to stop"),
        (lambda p, c: [-100] * (len(p) - 1) + c + [-100], "one place too early"),
        (lambda p, c: c, "it gave 4 labels"),
        (lambda p, c: [-100] * (len(p) + len(c)), "0 tokens count"),
        (lambda p, c: [-100] * len(p) + c[::-1], "it gave"),
        (lambda p, c: 5, "must return a list"),
        (lambda p, c: c[9], "IndexError"),
    ],
)
def test_check_labels(labels: Callable[..., Any], says: str) -> None:
    assert says in repr(check_labels(labels))


LOSSES = {
    0: Estimate(0.7, 0.6, 0.8),
    1: Estimate(0.5, 0.4, 0.6),
    2: Estimate(0.4, 0.3, 0.5),
    8: Estimate(0.9, 0.8, 1.0),
}
GOLDS = {0: Estimate(0.1, 0.0, 0.2), 1: Estimate(0.5, 0.4, 0.6), 2: Estimate(0.6, 0.5, 0.7), 8: Estimate(0.3, 0.2, 0.4)}


@pytest.mark.parametrize(
    ("by_loss", "by_gold", "golds", "says"),
    [
        (..., ..., GOLDS, "Not done yet"),
        (2, ..., GOLDS, "Not done yet"),
        (2, 2, GOLDS, "both choose the same run"),
        (2, 8, GOLDS | {8: Estimate(0.65, 0.6, 0.8)}, "overlap"),
        (2, 8, GOLDS | {8: Estimate(0.9, 0.8, 1.0)}, "as in the paper"),
        (1, 2, GOLDS, "loss after 1 epochs is 0.500; another one is lower"),
        (8, 2, GOLDS, "another one is lower"),
        (2, 1, GOLDS, "gold after 1 epochs is 0.500; another one is higher"),
        (3, 2, GOLDS, "by_loss = 3 is none of the runs"),
        (0, 2, GOLDS, "by_loss = 0 is none of the runs"),
        (0.4, 2, GOLDS, "by_loss = 0.4 is none of the runs: choose one of 1, 2, 8"),
    ],
)
def test_check_epochs(by_loss: Any, by_gold: Any, golds: dict[int, Estimate], says: str) -> None:
    assert says in repr(check_epochs(by_loss, by_gold, LOSSES, golds))


def test_the_last_run_is_no_excuse_for_the_base() -> None:
    """The base may have a lower loss than an overfitted run; it is not among the choices."""
    assert "✓ Right" in repr(check_epochs(2, 2, LOSSES | {0: Estimate(0.1, 0.0, 0.2)}, GOLDS))


@pytest.mark.parametrize(
    ("share", "says"),
    [
        (..., "Not done yet"),
        (0.261, "✓ Right"),
        (0.255, "plain mean"),
        (0.739, "share of right answers"),
        (26.1, "not in per cent"),
        (1.53, "weigh each"),
        (0.1, "not the mean"),
        ("a lot", "your code stopped"),
    ],
)
def test_check_wrong_share(share: Any, says: str) -> None:
    """0.2*0.03 + 0.2*0.15 + 0.15*0.2 + 0.2*0.6 + 0.1*0.15 + 0.15*0.4 = 0.261."""
    assert says in repr(check_wrong_share(share))
