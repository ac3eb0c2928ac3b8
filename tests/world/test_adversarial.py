"""Gold cannot be fooled cheaply: responses with the scores they may get, and properties over drawn tasks."""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_mini.world.gold import WEIGHTS, judge
from rlhf_mini.world.knowledge import load
from rlhf_mini.world.tasks import USE_CASES, Maker, Task

GROUPS = yaml.safe_load(Path(__file__).with_name("adversarial.yaml").read_text(encoding="utf-8"))
CASES = [(group, *case) for group in GROUPS for case in group["responses"]]


@pytest.mark.parametrize(("group", "response", "low", "high"), CASES, ids=[f"{case[1][:50]}" for case in CASES])
def test_a_response_gets_the_score_it_deserves(group: dict[str, Any], response: str, low: float, high: float) -> None:
    prompt = [{"role": "user", "content": group["prompt"]}]
    assert low - 1e-9 <= judge(group["check"], prompt, response).score <= high + 1e-9


def tasks(number: int, seed: int) -> list[Task]:
    knowledge, rng = load(), random.Random(seed)
    makers = [Maker(knowledge, rng, entity=part, phrasing=part) for part in ("seen", "validation")]
    return [rng.choice(makers).draw(rng.choice(list(USE_CASES))) for _ in range(number)]


def score(task: Task, response: str) -> float:
    example = task.example("", "none")
    return judge(example["check"], example["prompt"], response).score


def test_good_answers_score_well_and_bad_ones_lower() -> None:
    for task in tasks(400, seed=1):
        good = score(task, task.good)
        assert good > 0.9, task
        for text in (task.wrong, task.partial, task.comply):
            assert text is None or score(task, text) <= 0.8 * good, (task.prompt, text)


@pytest.mark.parametrize("opener", ["", "Happy to help! "])
def test_echoes_and_silence_earn_nothing(opener: str) -> None:
    for task in tasks(400, seed=2):
        assert score(task, opener + task.prompt[-1]["content"]) <= 0.2, task
        assert score(task, opener) == 0


def test_word_salads_earn_next_to_nothing() -> None:
    rng, scores = random.Random(3), []
    for task in tasks(400, seed=3):
        words = task.good.split()
        if len(words) >= 8:
            scores.append(score(task, "Of course! " + " ".join(rng.sample(words, len(words)))))
    assert len(scores) > 100 and max(scores) <= 0.2


def test_the_answer_to_another_prompt_earns_next_to_nothing() -> None:
    """Of another kind of task; within a kind, another prompt's answer can be right by chance."""
    pairs = [(one, other) for one, other in pairwise(tasks(400, seed=4)) if one.kind != other.kind]
    assert len(pairs) > 300
    for task, other in pairs:
        assert score(task, other.good) <= 0.2, (task.prompt, other.good)


def test_content_has_at_least_80_percent_of_the_weight() -> None:
    assert sum(WEIGHTS[part] for part in ("task", "truthful", "harmless")) >= 0.8
