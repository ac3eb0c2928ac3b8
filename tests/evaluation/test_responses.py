"""Who draws what: the seeds of the samples, which no two purposes share."""

from itertools import combinations
from typing import Any

import pytest
from conftest import PROMPTS

from rlhf_mini.evaluation import diversity
from rlhf_mini.evaluation.answers import STAGES
from rlhf_mini.evaluation.compare import CompareOptions
from rlhf_mini.evaluation.responses import Sampling, Stage, collect, load_stages
from rlhf_mini.evaluation.runs import find_checkpoints

Loaded = tuple[dict[str, Stage], Stage]
PURPOSES = (*STAGES, "rm", "sft_16", "ppo_16", "sft_t02", "ppo_t02")


@pytest.fixture
def alike(nano_run: CompareOptions) -> Loaded:
    """Stages that have one and the same model, so that the draws alone tell their responses apart."""
    stages, reward_model = load_stages(find_checkpoints(nano_run.run_dir, nano_run.base))
    return dict.fromkeys(STAGES, stages["sft"]), reward_model


def test_no_two_purposes_share_a_seed_and_neither_do_the_commands() -> None:
    seeds = [Sampling(6, 1.0, seed).seed_of(name) for seed in range(3) for name in PURPOSES]
    assert len(set(seeds)) == len(seeds) == 24


@pytest.mark.parametrize("seed", [0, 1])
def test_stages_with_the_same_model_draw_differently(alike: Loaded, seed: int) -> None:
    """With common draws SFT and PPO would often say the same, and tie."""
    rows = collect(*alike, PROMPTS, [], Sampling(6, 1.0, seed))
    for one, other in combinations(STAGES, 2):
        assert all(row.answers[one].ids != row.answers[other].ids for row in rows), (one, other)
    greedy = collect(*alike, PROMPTS, [], Sampling(6, 0.0, seed))  # the models are the same
    assert all(row.answers["sft"].ids == row.answers["ppo"].ids for row in greedy)


def test_the_samples_of_two_stages_are_drawn_differently(alike: Loaded) -> None:
    samples = diversity.sample(alike[0], PROMPTS, Sampling(6, 1.0, 0))
    same = [one.ids == other.ids for one, other in zip(samples["sft"], samples["ppo"], strict=True)]
    assert len(same) == 16 * len(PROMPTS) and not any(same)


def test_each_command_draws_by_its_own_seed(alike: Loaded) -> None:
    said: list[Any] = [
        [row.answers["ppo"].ids for row in collect(*alike, PROMPTS, [], Sampling(6, 1.0, seed))] for seed in (0, 0, 1)
    ]
    assert said[0] == said[1] and all(one != other for one, other in zip(said[0], said[2], strict=True))
