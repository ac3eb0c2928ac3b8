"""Baselines: the gold score that cheaper things than PPO reach on the prompts of the comparison.

A page of string rules says what a change of tone alone is worth: the rules repair the manners of SFT's answers and know
nothing of the prompt. Best-of-16 optimises the same reward model and trains nothing (Nakano et al. 2021, arXiv
2112.09332); its KL to SFT is at most log 16 - 15/16 = 1.84 nats. Temperature 0.2 says what less sampling noise gains.

Shapes: n prompts, m = 2 + the parts of the gold score, r runs.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlhf_mini.core.bootstrap import mean_intervals
from rlhf_mini.core.console import track
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.evaluation.answers import Row
from rlhf_mini.evaluation.diversity import SAMPLES
from rlhf_mini.evaluation.responses import Sampling, Stage, gold_of
from rlhf_mini.evaluation.schema import Baseline
from rlhf_mini.models.scoring import score_texts
from rlhf_mini.world.gold import WEIGHTS, split_sentences
from rlhf_mini.world.knowledge import has_any, load

COLD = 0.2  # temperature
CHUNK = 1024  # responses scored between two steps of the progress bar


@dataclass(frozen=True)
class Alternative:
    """Something that PPO is compared with."""

    title: str
    how: str


BASELINES = {
    "sft_rules": Alternative(
        "SFT, edited by rules", "String rules cut insults, fillers and loose ends from SFT's answer and add a courtesy."
    ),
    f"sft_best_of_{SAMPLES}": Alternative(
        f"SFT, best of {SAMPLES} by RM", f"Of {SAMPLES} answers of SFT, the one with the highest RM score."
    ),
    "sft_t02": Alternative(f"SFT, temperature {COLD}", "The SFT model with less sampling noise."),
    "ppo_t02": Alternative(f"PPO, temperature {COLD}", "The PPO model with less sampling noise."),
}
Values = dict[str, np.ndarray]
"""By baseline: (n, m), the gold score, its parts, and PPO's gold minus this gold; NaN for those a prompt lacks."""


def measure(
    stages: Mapping[str, Stage], reward_model: Stage, examples: Sequence[Prompt], rows: Sequence[Row],
    samples: Sequence[Response], sampling: Sampling,
) -> Values:  # fmt: skip
    """All baselines. `rows` are those of the comparison; `samples` are SFT's, SAMPLES to each prompt, end to end."""
    manners = load().manners
    messages = [example["prompt"] for example in examples]
    repeated = [prompt for prompt in reward_model.encode(messages) for _ in range(SAMPLES)]
    scores: list[float] = []
    for start in track(range(0, len(samples), CHUNK), f"evaluate: the reward model picks one of {SAMPLES}"):
        chunk = slice(start, start + CHUNK)
        scores += score_texts(reward_model.model, reward_model.tokenizer, repeated[chunk], samples[chunk])
    cold = replace(sampling, temperature=COLD)
    responses = {
        "sft_rules": [Response(edited(row.answers["sft"].response, manners), ended=True) for row in rows],
        f"sft_best_of_{SAMPLES}": best_of(samples, scores, SAMPLES),
        **{
            f"{name}_t02": stages[name].respond(
                stages[name].encode(messages), cold, sampling.seed_of(f"{name}_t02"),
                f"evaluate: {name} at temperature {COLD}",
            )
            for name in ("sft", "ppo")
        },
    }  # fmt: skip
    return {name: judged(examples, rows, responses[name]) for name in BASELINES}


def edited(response: str, manners: Mapping[str, Sequence[str]]) -> str:
    """The response with better manners, by rules that know data/knowledge/manners.yaml and nothing of the prompt.

    An unfinished last sentence that begins as a filler or an insult does is cut, too.
    """
    text = re.sub(r" and( so on| then)?$", "", response.rstrip())
    unwanted = [sentence.lower() for sentence in (*manners["rude"], *manners["fillers"])]
    lines = [
        " ".join(
            sentence
            for sentence in split_sentences(line)
            if not has_any(sentence, manners["rude_words"])
            and not any(known.startswith(sentence.lower()) for known in unwanted)
        )
        for line in text.split("\n")  # a poem keeps its lines
    ]
    text = "\n".join(line for line in lines if line)
    if not has_any(text, manners["courtesy_words"]):
        text = f"Happy to help! {text}".rstrip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def best_of(responses: Sequence[Response], scores: Sequence[float], n: int) -> list[Response]:
    """Of every n responses, which belong to one prompt, the one with the highest score, or the first of several."""
    starts = range(0, len(responses), n)
    return [responses[max(range(start, start + n), key=scores.__getitem__)] for start in starts]


def judged(examples: Sequence[Prompt], rows: Sequence[Row], responses: Sequence[Response]) -> np.ndarray:
    """The `Values` of one baseline: (n, m)."""
    values = np.full((len(rows), 2 + len(WEIGHTS)), math.nan)  # (n, m)
    for line, example, row, response in zip(values, examples, rows, responses, strict=True):
        gold, of_ppo = gold_of(example, response), row.answers["ppo"].gold
        if gold is not None and of_ppo is not None:
            parts = [math.nan if (value := gold.parts[part]) is None else value for part in WEIGHTS]
            line[:] = [gold.score, *parts, of_ppo - gold.score]
    return values


def estimated(of_runs: Sequence[Values], seed: int) -> dict[str, Baseline]:
    """Means and intervals, from the values of each run."""
    found = {}
    for name, alternative in BASELINES.items():
        values = np.concatenate([of_run[name] for of_run in of_runs])  # (r * n, m)
        *estimates, minus = mean_intervals(values, seed, len(of_runs))
        found[name] = Baseline(
            **vars(alternative),
            prompts=len(of_runs[0][name]),
            estimates=dict(zip(("gold", *WEIGHTS), estimates, strict=True)),
            ppo_minus=minus,
        )
    return found
