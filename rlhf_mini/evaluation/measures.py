"""What `python -m rlhf_mini.evaluation.compare` measures: the stages' responses to the same prompts, judged and summed up.

    stages, reward_model = load_stages(checkpoints)
    rows = collect(...)                 one a prompt: what each stage said, and what it is worth
    groups = summarize(rows, ...)       means and intervals over all prompts, by use case and by novelty

Everything in `groups` follows from `rows`, which are the lines of compare.jsonl.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from rlhf_mini.core.bootstrap import as_dict, divide, interval, mean_intervals, resampled_ratios
from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.core.console import UserError, track
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.core.rankings import Count, Labeler, accuracy, agreement, load_labelers
from rlhf_mini.models.sampling import encode_response, respond
from rlhf_mini.models.scoring import score_texts, sequence_logprobs
from rlhf_mini.world.gold import WEIGHTS, judge
from rlhf_mini.world.labelers import gold_labeler

Figure = dict[str, float]  # mean, low, high

STAGES = ("base", "sft", "ppo")
GOLD = "gold"  # the name of the judge that is the gold score itself
# The base has never seen a chat, so it gets what a person would type: the instruction as plain text, and a new line.
BARE_TEMPLATE = "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}"


@dataclass(frozen=True)
class Stage:
    """A checkpoint's model, in eval mode, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: Tokenizer


def load_stages(checkpoints: dict[str, Checkpoint]) -> tuple[dict[str, Stage], Stage]:
    """Base, SFT and PPO by name, and the reward model."""
    stages = {name: load_stage(checkpoint.path, name) for name, checkpoint in checkpoints.items()}
    stages["base"].tokenizer.chat_template = BARE_TEMPLATE
    return {name: stages[name] for name in STAGES}, stages["rm"]


def load_stage(path: Path, name: str) -> Stage:
    """One stage, with the chat template that its checkpoint has; the reward model is called "rm"."""
    kind = AutoModelForSequenceClassification if name == "rm" else AutoModelForCausalLM
    return Stage(kind.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path))


def judges(labelers: str) -> list[Labeler]:
    """Those that the function named "package.module:function" gives, and gold."""
    return [*load_labelers(labelers), *gold_labeler()]


# --- responses -------------------------------------------------------------------------------------------------------


def collect(
    stages: dict[str, Stage],
    reward_model: Stage,
    records: Sequence[Prompt],
    judges: Sequence[Labeler],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[dict[str, Any]]:
    """One response of each stage to each prompt, and all that is measured on it.

    Each stage draws from a seed of its own: with common draws SFT and PPO would often say the same and tie.

    Returns:
        One row a prompt: the record without its check, and under "stages" by name what `_answer` gives, the KL to SFT
        and the rank that each of `judges` gives it among the three (None where a judge cannot judge).
    """
    prompts = [record["prompt"] for record in records]
    shown = len(prompts) > 1
    responses = {
        name: respond(
            stage.model,
            stage.tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=sampling_seed(seed, name),
            description=f"compare: {name} responds" if shown else None,
        )
        for name, stage in stages.items()
    }
    # What the base wrote goes through the chat template as any text does: its own tokens are those of another form.
    through_template = responses | {"base": [Response(said.text, said.ended) for said in responses["base"]]}
    scores = {
        name: score_texts(reward_model.model, reward_model.tokenizer, prompts, through_template[name])
        for name in (track(STAGES, "compare: the reward model scores") if shown else STAGES)
    }
    kl: dict[str, list[float]] = {}
    if temperature > 0:  # decoded greedily, there is no distribution to compare
        ppo, sft = (
            sequence_logprobs(stages[name].model, stages[name].tokenizer, prompts, responses["ppo"], temperature)
            for name in ("ppo", "sft")
        )
        kl = {"ppo": [p - s for p, s in zip(ppo, sft, strict=True)], "sft": [0.0] * len(prompts)}

    rng = random.Random(seed)
    rows = []
    for index, record in enumerate(track(records, "compare: judging") if shown else records):
        answers = {name: _answer(record, responses[name][index], scores[name][index]) for name in STAGES}
        said = [responses[name][index] for name in STAGES]
        ranks = {judge.name: dict(zip(STAGES, rank_blind(judge, record, said, rng), strict=True)) for judge in judges}
        for name, answer in answers.items():
            answer["kl"] = kl[name][index] if name in kl else None
            answer["ranks"] = {judge: of_judge[name] for judge, of_judge in ranks.items()}
        rows.append({key: value for key, value in record.items() if key != "check"} | {"stages": answers})
    return rows


def sampling_seed(seed: int, name: str) -> int:
    """A seed for each stage and one for the reward model's samples, different for every `seed`."""
    return 10 * seed + [*STAGES, "rm"].index(name)


def _answer(record: Prompt, response: Response, rm_score: float) -> dict[str, Any]:
    """A response, its length, the reward model's score and gold (null for a prompt without a check)."""
    gold = judge(record["check"], record["prompt"], response.text, response.ended) if "check" in record else None
    return {
        "response": response.text,
        "ended": response.ended,
        "tokens": len(response.ids),
        "words": len(response.text.split()),
        "ids": response.ids,
        "rm_score": rm_score,
        "gold": gold.score if gold else None,
        "parts": gold.parts if gold else None,
    }


def rank_blind(
    judge: Labeler, record: Prompt, responses: Sequence[Response], rng: random.Random
) -> list[int] | list[None]:
    """The judge's ranks of the responses, 1 = best, equal = tied; None for each if the judge cannot judge this prompt.

    Blind: the judge gets the responses in random order, without a word on who wrote which.
    """
    order = rng.sample(range(len(responses)), len(responses))
    try:
        shuffled = judge.rank(record, [responses[index] for index in order])
    except UserError:
        return [None] * len(responses)
    return [shuffled[order.index(index)] for index in range(len(responses))]


def win(answer: dict[str, Any], other: dict[str, Any], judge: str) -> float | None:
    """1 if the judge ranks `answer` before `other`, 0 if after, 1/2 for a tie, None if the judge could not judge."""
    rank, other_rank = answer["ranks"].get(judge), other["ranks"].get(judge)
    if rank is None or other_rank is None:
        return None
    return 1.0 if rank < other_rank else 0.5 if rank == other_rank else 0.0


# --- sums ------------------------------------------------------------------------------------------------------------


def figures(row: dict[str, Any], name: str) -> dict[str, float]:
    """The numbers of one stage's response that are averaged over prompts; NaN for what this response does not have."""
    answer, sft = row["stages"][name], row["stages"]["sft"]
    wins = {judge: win(answer, sft, judge) if name != "sft" else None for judge in answer["ranks"]}
    heldout = [value for judge, value in wins.items() if judge != GOLD and value is not None]
    gain = None if answer["gold"] is None else answer["gold"] - sft["gold"]
    numbers = {
        "gold": answer["gold"],
        **{part: (answer["parts"] or {}).get(part) for part in WEIGHTS},
        "gold_minus_sft": gain,
        "wins/heldout": sum(heldout) / len(heldout) if heldout else None,
        **{f"wins/{judge}": value for judge, value in wins.items()},
        "rm_score": answer["rm_score"],
        "kl": answer["kl"],
        "words": answer["words"],
        "tokens": answer["tokens"],
        "eos": answer["ended"],
    }
    return {key: math.nan if value is None else float(value) for key, value in numbers.items()}


def summarize(
    rows: Sequence[dict[str, Any]], demonstrated_tokens: dict[str, float], seed: int = 0, runs: int = 1
) -> dict[str, dict[str, Any]]:
    """Means with 95 % intervals over prompts, of all rows ("all"), by use case ("use_case/chat") and by "novel/...".

    Args:
        rows: of all prompts, run by run if there are several `runs`; then the intervals are over runs, too.
        demonstrated_tokens: mean length of demonstrations, for "all" and for use cases, as `demonstrated` gives it.

    Returns:
        {"all": {"prompts": n, "stages": {"sft": {"gold": {"mean", "low", "high"}, ...}, ...}}, ...}. "length_ratio" is
        the mean length over that of the demonstrations (of the same use case, for a use case).
    """
    of_group: dict[str, list[int]] = {"all": list(range(len(rows)))}
    for key in ("use_case", "novel"):
        for index, row in enumerate(rows):
            if key in row:
                of_group.setdefault(f"{key}/{row[key]}", []).append(index)
    names = [(stage, metric) for stage in STAGES for metric in figures(rows[0], stage)]
    numbers = [[number for stage in STAGES for number in figures(row, stage).values()] for row in rows]
    values = np.array(numbers)  # (n, m)
    groups = {}
    for group, indices in of_group.items():
        by_stage: dict[str, dict[str, Figure]] = {stage: {} for stage in STAGES}
        for (stage, metric), figure in zip(names, mean_intervals(values[indices], seed, runs), strict=True):
            by_stage[stage][metric] = figure
        usual = demonstrated_tokens.get(group, demonstrated_tokens["all"])
        for of_stage in by_stage.values():
            of_stage["length_ratio"] = {key: value / usual for key, value in of_stage["tokens"].items()}
        groups[group] = {"prompts": len(indices) // runs, "stages": by_stage}
    return groups


def demonstrated(demonstrations: Sequence[Prompt], tokenizer: Tokenizer) -> dict[str, float]:
    """Mean tokens of the demonstrations' completions, with their end of text: "all", and each "use_case/..."."""
    lengths: dict[str, list[int]] = {}
    for record in demonstrations:
        tokens = len(encode_response(tokenizer, record["completion"][0]["content"]))
        for group in ("all", f"use_case/{record.get('use_case')}"):
            lengths.setdefault(group, []).append(tokens)
    return {group: sum(of_group) / len(of_group) for group, of_group in lengths.items()}


def headline(groups: dict[str, dict[str, Any]], reward_model: dict[str, Figure]) -> dict[str, Figure]:
    """The figures that say whether the recipe worked."""
    base, sft, ppo = (groups["all"]["stages"][name] for name in STAGES)
    return {
        **{f"sft_beats_base/{judge}": _lost(base[f"wins/{judge}"]) for judge in ("heldout", GOLD)},
        **{f"ppo_beats_sft/{judge}": ppo[f"wins/{judge}"] for judge in ("heldout", GOLD)},
        **{f"gold/{name}": of_stage["gold"] for name, of_stage in (("base", base), ("sft", sft), ("ppo", ppo))},
        "rm_score/sft": sft["rm_score"],
        "rm_score/ppo": ppo["rm_score"],
        **{f"rm/{name}": figure for name, figure in reward_model.items()},
        **{name: ppo[name] for name in ("kl", "eos", "length_ratio")},
    }


def _lost(wins: Figure) -> Figure:
    """The other side's win rate."""
    return {"mean": 1 - wins["mean"], "low": 1 - wins["high"], "high": 1 - wins["low"]}


def below_sft(groups: dict[str, dict[str, Any]]) -> list[str]:
    """Use cases in which PPO's gold lies below SFT's by more than the interval of their paired difference."""
    gains = {group: each["stages"]["ppo"]["gold_minus_sft"] for group, each in groups.items()}
    return [group.partition("/")[2] for group, gain in gains.items() if "use_case/" in group and gain["high"] < 0]


# --- the reward model ------------------------------------------------------------------------------------------------


def reward_model_accuracy(
    sft: Stage,
    reward_model: Stage,
    records: Sequence[Prompt],
    labelers: Sequence[Labeler],
    *,
    num_responses: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> dict[str, Figure]:
    """The reward model beside labelers who trained nothing, on K = `num_responses` SFT responses to each prompt.

    Returns:
        "accuracy_heldout": share of the labelers' pairs that the reward model orders as they do; "agreement_heldout":
        share on which two of them agree; "gap_heldout": the first minus the second. {} if they can judge none.
    """
    repeated = [record["prompt"] for record in records for _ in range(num_responses)]
    sampled = respond(
        sft.model,
        sft.tokenizer,
        repeated,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=sampling_seed(seed, "rm"),
        description="compare: sft responds for the reward model",
    )
    scored = score_texts(reward_model.model, reward_model.tokenizer, repeated, sampled)
    counts = []
    for index, record in enumerate(track(records, "compare: labelers rank")):
        group = slice(index * num_responses, (index + 1) * num_responses)
        # Responses that are alike cannot be ranked.
        different = {(r.text, r.ended): (r, s) for r, s in zip(sampled[group], scored[group], strict=True)}
        responses, scores = zip(*different.values(), strict=True)
        try:
            ranks = [labeler.rank(record, list(responses)) for labeler in labelers]
        except UserError:
            continue
        right = sum((accuracy(scores, ranking) for ranking in ranks), Count(0, 0))
        counts.append((right, agreement(ranks)))
    return accuracy_and_agreement(counts, seed) if counts else {}


def accuracy_and_agreement(counts: Sequence[tuple[Count, Count]], seed: int = 0) -> dict[str, Figure]:
    """Both shares and their paired difference with intervals; one (accuracy, agreement) a prompt."""
    right = np.array([[one.right, other.right] for one, other in counts])  # (n, 2)
    pairs = np.array([[one.pairs, other.pairs] for one, other in counts], dtype=float)  # (n, 2)

    def with_gap(shares: np.ndarray) -> np.ndarray:  # (..., 2) -> (..., 3)
        return np.concatenate([shares, shares[..., :1] - shares[..., 1:]], axis=-1)

    means = with_gap(divide(right.sum(0), pairs.sum(0)))  # (3,)
    low, high = interval(with_gap(resampled_ratios(right, pairs, seed=seed)))
    names = ("accuracy_heldout", "agreement_heldout", "gap_heldout")
    return {name: as_dict(*three) for name, three in zip(names, zip(means, low, high, strict=True), strict=True)}
