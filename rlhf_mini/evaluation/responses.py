"""The stages answer the same prompts, and judges rank the answers blind.

stages, reward_model = load_stages(checkpoints)
rows = collect(stages, reward_model, examples, judges, ...)     # one per prompt
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.core.console import UserError, track
from rlhf_mini.core.examples import Demonstration, Messages, Prompt, Response
from rlhf_mini.core.rankings import Count, Labeler, accuracy, agreement, load_labelers
from rlhf_mini.evaluation.answers import STAGES, Answer, Row
from rlhf_mini.models.adapters import load_model
from rlhf_mini.models.sampling import respond
from rlhf_mini.models.scoring import load_reward_model, score_texts, sequence_logprobs
from rlhf_mini.models.text import EncodedPrompt, encode_prompts, encode_responses, load_tokenizer
from rlhf_mini.world.gold import Gold, judge
from rlhf_mini.world.labelers import gold_labeler
from rlhf_mini.world.references import reference_judge, score

# The base has never seen a chat, so it gets what a person would type: the instruction as plain text, and a new line.
BARE_TEMPLATE = "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}"


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled. `seed` is the command's; each stage and purpose draws from a seed of its own."""

    max_new_tokens: int
    temperature: float
    seed: int

    def seed_of(self, name: str) -> int:
        """A seed for each stage's responses to the prompts, and for each other set of samples, by its name."""
        return 10 * self.seed + [*STAGES, "rm", "sft_16", "ppo_16", "sft_t02", "ppo_t02"].index(name)


@dataclass(frozen=True)
class Stage:
    """A checkpoint's model, in eval mode, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: Tokenizer

    def encode(self, prompts: Sequence[Messages]) -> list[EncodedPrompt]:
        return encode_prompts(self.tokenizer, prompts)

    def respond(
        self, prompts: Sequence[EncodedPrompt], sampling: Sampling, seed: int, description: str | None = None
    ) -> list[Response]:
        return respond(
            self.model, self.tokenizer, prompts, max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature, seed=seed, description=description,
        )  # fmt: skip


def load_stages(checkpoints: dict[str, Checkpoint]) -> tuple[dict[str, Stage], Stage]:
    """Base, SFT and PPO by name, and the reward model."""
    stages = {name: load_stage(checkpoint.path, name) for name, checkpoint in checkpoints.items()}
    stages["base"].tokenizer.chat_template = BARE_TEMPLATE
    return {name: stages[name] for name in STAGES}, stages["rm"]


def load_stage(path: Path, name: str) -> Stage:
    """One stage, with its checkpoint's chat template; the reward model is called "rm"."""
    model = load_reward_model(path) if name == "rm" else load_model(AutoModelForCausalLM, path).eval()
    return Stage(model, load_tokenizer(path))


def load_judges(labelers: str) -> list[Labeler]:
    """Those that the function named "package.module:function" returns, gold, and the judge by references."""
    return [*load_labelers(labelers), *gold_labeler(), *reference_judge()]


# --- answers ---------------------------------------------------------------------------------------------------------


def collect(
    stages: dict[str, Stage],
    reward_model: Stage,
    examples: Sequence[Prompt],
    judges: Sequence[Labeler],
    sampling: Sampling,
) -> list[Row]:
    """One response of each stage to each prompt, scored, judged and ranked.

    Each stage draws from a seed of its own: with common draws SFT and PPO would often say the same and tie.
    """
    messages = [example["prompt"] for example in examples]
    shown = len(messages) > 1  # progress
    prompts = {name: stage.encode(messages) for name, stage in stages.items()}
    responses = {
        name: stage.respond(
            prompts[name], sampling, sampling.seed_of(name), f"compare: {name} responds" if shown else None
        )
        for name, stage in stages.items()
    }
    # The base's response goes through the chat template as any text does: its own tokens are those of another form.
    through_template = responses | {"base": [Response(said.text, said.ended) for said in responses["base"]]}
    rm_prompts = reward_model.encode(messages)
    scores = {
        name: score_texts(reward_model.model, reward_model.tokenizer, rm_prompts, through_template[name])
        for name in (track(STAGES, "compare: the reward model scores") if shown else STAGES)
    }
    kl: dict[str, list[float]] = {}
    if sampling.temperature > 0:  # decoded greedily, there is no distribution to compare
        ppo, sft = (
            sequence_logprobs(
                stages[name].model, stages[name].tokenizer, prompts[name], responses["ppo"], sampling.temperature
            )
            for name in ("ppo", "sft")
        )
        kl = {"ppo": [p - s for p, s in zip(ppo, sft, strict=True)], "sft": [0.0] * len(messages)}

    rng = random.Random(sampling.seed)
    rows = []
    for index, example in enumerate(track(examples, "compare: judging") if shown else examples):
        said = [responses[name][index] for name in STAGES]
        ranks = {judge.name: rank_blind(judge, example, said, rng) for judge in judges}
        answers = {
            name: answer(
                example,
                said[at],
                rm_score=scores[name][index],
                kl=kl[name][index] if name in kl else None,
                ranks={judge: of_judge[at] for judge, of_judge in ranks.items()},
            )
            for at, name in enumerate(STAGES)
        }
        as_asked: Prompt = {**example}
        as_asked.pop("check", None)
        as_asked.pop("references", None)
        as_asked.pop("mistakes", None)
        rows.append(Row(as_asked, answers))
    return rows


def answer(
    example: Prompt, response: Response, *, rm_score: float, kl: float | None, ranks: dict[str, int | None]
) -> Answer:
    """A response with its scores by gold and by references, where the prompt has them, and what is known of it."""
    gold = gold_of(example, response)
    return Answer(
        response=response.text,
        ended=response.ended,
        tokens=len(response.ids),
        words=len(response.text.split()),
        ids=response.ids,
        rm_score=rm_score,
        gold=gold.score if gold else None,
        parts=gold.parts if gold else None,
        kl=kl,
        ranks=ranks,
        reference_score=score(example, response.text) if example.get("references") else None,
    )


def gold_of(example: Prompt, response: Response) -> Gold | None:
    """None for a prompt without a check."""
    return judge(example["check"], example["prompt"], response.text, response.ended) if "check" in example else None


def rank_blind(
    judge: Labeler, example: Prompt, responses: Sequence[Response], rng: random.Random
) -> list[int] | list[None]:
    """The judge's ranks of the responses, 1 = best, equal = tied; None for each if the judge cannot judge this prompt.

    Blind: the judge gets the responses in random order and is not told who wrote which.
    """
    order = rng.sample(range(len(responses)), len(responses))
    try:
        shuffled = judge.rank(example, [responses[index] for index in order])
    except UserError:
        return [None] * len(responses)
    return [shuffled[order.index(index)] for index in range(len(responses))]


def demonstration_lengths(demonstrations: Sequence[Demonstration], tokenizer: Tokenizer) -> dict[str, float]:
    """Mean tokens of the demonstrations' completions, with their end of text: "all", and each "use_case/..."."""
    lengths: dict[str, list[int]] = {}
    completions = encode_responses(tokenizer, [example["completion"][0]["content"] for example in demonstrations])
    for example, tokens in zip(demonstrations, map(len, completions), strict=True):
        for group in ("all", f"use_case/{example.get('use_case')}"):
            lengths.setdefault(group, []).append(tokens)
    return {group: sum(of_group) / len(of_group) for group, of_group in lengths.items()}


# --- the reward model ------------------------------------------------------------------------------------------------


def reward_model_counts(
    sft: Stage,
    reward_model: Stage,
    examples: Sequence[Prompt],
    labelers: Sequence[Labeler],
    sampling: Sampling,
    num_responses: int,
) -> list[tuple[Count, Count, Count]]:
    """The reward model next to labelers whose rankings trained nothing, on `num_responses` SFT responses per prompt.

    Returns:
        For each prompt that the labelers can judge: the pairs that the reward model orders as they do, the pairs that
        gold does (none without a check), and the pairs that two of them order alike.
    """
    prompts = sft.encode([example["prompt"] for example in examples])
    repeated = [prompt for prompt in prompts for _ in range(num_responses)]
    sampled = sft.respond(repeated, sampling, sampling.seed_of("rm"), "compare: sft responds for the reward model")
    scored = score_texts(reward_model.model, reward_model.tokenizer, repeated, sampled)
    (gold,) = gold_labeler()
    counts = []
    for index, example in enumerate(track(examples, "compare: labelers rank")):
        group = slice(index * num_responses, (index + 1) * num_responses)
        # Identical responses cannot be ranked.
        different = {(r.text, r.ended): (r, s) for r, s in zip(sampled[group], scored[group], strict=True)}
        responses, scores = zip(*different.values(), strict=True)
        try:
            ranks = [labeler.rank(example, list(responses)) for labeler in labelers]
        except UserError:
            continue
        right = sum((accuracy(scores, ranking) for ranking in ranks), Count(0, 0))
        ceiling = Count(0, 0)
        if "check" in example:
            golds = [-rank for rank in gold.rank(example, list(responses))]
            ceiling = sum((accuracy(golds, ranking) for ranking in ranks), ceiling)
        counts.append((right, ceiling, agreement(ranks)))
    return counts
