"""Diversity: how many different answers SFT and PPO give to one prompt, and how many of their stories end alike.

Shapes: p prompts, r runs. What belongs to several runs lies end to end, run by run.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from rlhf_mini.core.bootstrap import mean_intervals
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.evaluation.answers import Row
from rlhf_mini.evaluation.responses import Sampling, Stage
from rlhf_mini.evaluation.schema import Diversity
from rlhf_mini.world.gold import split_sentences

SAMPLES = 16  # of each prompt
PROMPTS = 100  # the first ones; SFT responds to all of them SAMPLES times, for best-of-n
STORIES = ("story", "story_n", "story_end")  # kinds of prompts


def sample(stages: Mapping[str, Stage], examples: Sequence[Prompt], sampling: Sampling) -> dict[str, list[Response]]:
    """SAMPLES responses to each prompt, end to end: of SFT to all prompts, of PPO to the first PROMPTS."""
    sampled = {}
    for name, asked in (("sft", examples), ("ppo", examples[:PROMPTS])):
        prompts = stages[name].encode([example["prompt"] for example in asked])
        repeated = [prompt for prompt in prompts for _ in range(SAMPLES)]
        seed = sampling.seed_of(f"{name}_{SAMPLES}")
        sampled[name] = stages[name].respond(repeated, sampling, seed, f"evaluate: {name} responds {SAMPLES} times")
    return sampled


def distinct(responses: Sequence[Response]) -> list[int]:
    """How many of the SAMPLES responses to each prompt differ in more than case and whitespace, at most PROMPTS."""
    texts = [" ".join(response.text.lower().split()) for response in responses[: PROMPTS * SAMPLES]]
    return [len(set(texts[start : start + SAMPLES])) for start in range(0, len(texts), SAMPLES)]


def last_sentence(text: str) -> str:
    """ "" for a text without a word."""
    return next(reversed(split_sentences(text)), "")


def estimated(rows: Sequence[Row], counts: Mapping[str, Sequence[int]], runs: int, seed: int) -> dict[str, Diversity]:
    """By stage, from the rows of all runs and what `distinct` counted: (r * p,) for each stage."""
    stories = [row for row in rows if row.example.get("kind") in STORIES]
    found = {}
    for name, of_stage in counts.items():
        endings = [last_sentence(row.answers[name].response) for row in stories]
        ((commonest, _),) = Counter(endings).most_common(1) or [("", 0)]
        (mean,) = mean_intervals(np.array(of_stage, dtype=float)[:, None], seed, runs)
        (share,) = mean_intervals(np.array([[ending == commonest] for ending in endings]).reshape(-1, 1), seed, runs)
        found[name] = Diversity(
            samples=SAMPLES,
            prompts=len(of_stage) // runs,
            distinct=mean,
            stories=len(stories) // runs,
            last_sentence=commonest,
            last_sentence_share=share,
        )
    return found
