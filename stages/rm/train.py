"""Step 2, the reward model (Ouyang et al. 2022, section 3.5 "Reward modeling (RM)" and appendix C.2).

    python -m stages.rm                                  # runs/default/sft + data/prompts/rm.jsonl -> runs/default/rm
    python -m stages.rm --rankings my_rankings.jsonl     # people's rankings instead of simulated ones

K responses to each prompt are sampled from the SFT model and ranked by a labeler. A model with a scalar head in place
of the vocabulary head learns to give better responses higher scores. What to inspect: rankings.jsonl beside the
checkpoint (would you rank the responses the same way?), and the tables at the end. In the first, the reward model
should agree with the labelers about as often as they agree among themselves. Tone alone can bring it there: in the
second the manners of both responses are the same, and 50 % means that it does not read what they say.

As in the paper: the SFT model as the backbone, all pairs of a prompt as one element of the batch (loss.py), ties
dropped, one epoch, cosine to 10 %, a constant that puts demonstrations at a mean score of 0.
Departures:
- batches of 16 prompts instead of 64: with 2,400 prompts, 64 would leave 37 steps.
- the head starts with a standard deviation of 1 / sqrt(d + 1), as in Stiennon et al. 2020 (arXiv 2009.01325), B.1.
- responses are sampled at temperature 0.7, as PPO does: at 1, a model this small rarely makes sense.
- labelers are simulated, and each prompt is ranked by one of them.
- batches hold prompts whose longest responses have a similar length, which saves padding in attention.

Shapes: B prompts of a batch, K the most responses to one of them, M all their responses, N tokens of these end to end.
"""

import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from rlhf_mini.core.checkpoints import load_checkpoint, save_checkpoint, writing
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import (
    Demonstration,
    Prompt,
    Ranking,
    Response,
    read_demonstrations,
    read_preferences,
    read_prompts,
    read_rankings,
)
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.core.rankings import Labeler, load_labelers, pairs
from rlhf_mini.core.resume import Resume, command_of
from rlhf_mini.models.forward import forward_pass
from rlhf_mini.models.rows import Rows
from rlhf_mini.models.sampling import respond
from rlhf_mini.models.scoring import score_texts, with_scalar_head
from rlhf_mini.models.text import EncodedPrompt, context_length, encode_prompts, encode_response
from rlhf_mini.training.loop import Objective, train
from stages.rm import content
from stages.rm.agreement import Share, rankings_evaluation, score_groups, simulated_evaluation, table
from stages.rm.loss import better_pairs, k_wise_loss
from stages.rm.options import RMOptions

T = TypeVar("T")


class Example(NamedTuple):
    """A ranking in tokens."""

    input_ids: list[list[int]]
    """(K, tokens): each response after its prompt."""
    ranks: list[int]
    """(K,)."""

    @property
    def length(self) -> int:
        return max(len(ids) for ids in self.input_ids)


def train_rm(options: RMOptions) -> None:
    started = time.time()
    sft = load_checkpoint(options.run_dir / "sft", "sft")
    tokenizer = AutoTokenizer.from_pretrained(sft.path)
    sft_model = AutoModelForCausalLM.from_pretrained(sft.path)
    labelers = {
        "training": load_labelers(options.labelers),
        "heldout": load_labelers(options.heldout_labelers),
        "gold": load_labelers(options.gold_labeler),
    }
    demonstrations = read_demonstrations(options.demonstrations)
    prompts = [] if options.rankings else first(read_prompts(options.prompts), options.num_prompts)
    validation = first(read_prompts(options.validation), options.num_validation_prompts)
    preferences = read_preferences(options.content) if options.content else []

    files = [options.rankings or options.prompts, options.validation, options.demonstrations]
    files += [options.content] if options.content else []
    command = command_of(options, files, parents=[sft])
    with Resume(options.run_dir, "rm", command, started) as resume, writing(options.run_dir, "rm") as folder:
        saved = resume.load(folder)
        provenance: dict[str, Any] = dict(
            tokenizer=tokenizer, options=options, seed=options.seed, started=resume.started, parents=[sft]
        )

        # 1. Rankings: K responses to each prompt from the SFT model, ranked by a labeler.
        if saved:
            rankings = read_rankings(folder / "rankings.jsonl")
        elif options.rankings:
            rankings = read_rankings(options.rankings)
        else:
            encoded = encode_prompts(tokenizer, [example["prompt"] for example in prompts])
            groups = sample_groups(sft_model, tokenizer, encoded, options, options.seed, "rm: sampling responses")
            rankings = rank(prompts, groups, labelers["training"], options.seed)
        write_jsonl(folder / "rankings.jsonl", rankings)
        if saved is None and options.save_steps:
            resume.save(folder, 0, {}, {})  # if the stage is killed from here on, it does not sample again
        # The simulated labelers can judge prompts of the mini world only. For others, some rankings are held out.
        held_out: list[Ranking] = []
        if options.rankings or not all("check" in example for example in prompts):
            rankings, held_out = split_by_prompt(rankings, options.heldout_share, options.seed)

        # 2. The SFT model with a scalar head, trained on all pairs of each prompt together.
        reward_model = with_scalar_head(sft.path, options.seed)  # in eval mode: without dropout
        reward_model.config.pad_token_id = tokenizer.pad_token_id  # transformers finds a row's last token by it
        counts = {
            "rankings": len(rankings),
            "rankings_held_out": len(held_out),
            "pairs": sum(len(pairs(ranking["ranks"])) for ranking in rankings),
        }
        train(
            reward_model, encode(reward_model, tokenizer, rankings), lambda batch: objective(reward_model, batch),
            options, resume=resume, saved=saved, folder=folder, metrics=counts, provenance=provenance,
        )  # fmt: skip

        # 3. The constant that puts demonstrations at a mean score of 0, saved in config.json.
        reward_mean = mean_score(reward_model, tokenizer, demonstrations, options)
        reward_model.config.reward_mean = reward_mean

        # 4. Does it order responses as labelers do?
        shares: dict[str, Share] = {}
        if held_out:
            encoded = encode_prompts(tokenizer, [ranking["prompt"] for ranking in held_out])
            groups = [as_responses(ranking) for ranking in held_out]
            shares |= rankings_evaluation(score_groups(reward_model, tokenizer, encoded, groups), held_out)
        encoded = encode_prompts(tokenizer, [example["prompt"] for example in validation])
        groups = sample_groups(sft_model, tokenizer, encoded, options, options.seed + 1, "rm: sampling for validation")
        scores = score_groups(reward_model, tokenizer, encoded, groups)
        shares |= simulated_evaluation(scores, validation, groups, labelers)

        # 5. Does it read what is said, where the manners are the same?
        contrasts = content.encode(reward_model, tokenizer, preferences)
        contents = content.evaluation(contrasts, content.scores_of(reward_model, tokenizer, contrasts))

        score_std = torch.tensor([score for group in scores for score in group]).std().item()
        metrics = {**counts, "reward_mean": reward_mean, "score_std": score_std, **shares, **contents}
        save_checkpoint(folder, stage="rm", model=reward_model, metrics=metrics, **provenance)

    console.print(table(shares))
    if contents:
        console.print(content.table(contents))
    console.print(f"rm: {options.run_dir / 'rm'} written after {time.time() - resume.started:.0f} s", soft_wrap=True)


def objective(model: PreTrainedModel, batch: Sequence[Example]) -> Objective:
    """The K-wise loss of B rankings, and the share of their pairs that the scores order right."""
    groups = Rows([len(example.ranks) for example in batch], device=model.device)  # the M responses, by prompt
    scores = groups.unpack(score_responses(model, batch))  # (B, K)
    ranks = groups.unpack(torch.tensor([rank for example in batch for rank in example.ranks], device=model.device))
    mask = torch.arange(ranks.shape[1], device=model.device) < groups.lengths.unsqueeze(1)  # (B, K)
    with torch.no_grad():
        margins = scores[:, :, None] - scores[:, None, :]  # (B, K, K)
        accuracy = (margins[better_pairs(ranks, mask)] > 0).float().mean()
    return Objective(k_wise_loss(scores, ranks, mask), {"accuracy": accuracy})


def score_responses(model: PreTrainedModel, batch: Sequence[Example]) -> Tensor:
    """The score of each of the M responses of a batch: the scalar at its last token. (M,)."""
    responses = [ids for example in batch for ids in example.input_ids]
    rows = Rows([len(ids) for ids in responses], device=model.device)
    input_ids = torch.tensor([token for ids in responses for token in ids], device=model.device)  # (N,)
    with forward_pass(model) as forward:
        return forward(input_ids, rows, keep=rows.last).squeeze(-1).float()


# --- rankings --------------------------------------------------------------------------------------------------------


def first(examples: list[T], number: int) -> list[T]:
    return examples[:number] if number > 0 else examples


def sample_groups(
    model: PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[EncodedPrompt], options: RMOptions, seed: int,
    description: str,
) -> list[list[Response]]:  # fmt: skip
    """The distinct responses among each prompt's K samples; two that are alike cannot be ranked."""
    responses = respond(
        model,
        tokenizer,
        [prompt for prompt in prompts for _ in range(options.num_responses)],
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=seed,
        batch_size=256,  # takes a quarter less CPU time than 64
        description=description,
    )
    starts = range(0, len(responses), options.num_responses)
    groups = [responses[start : start + options.num_responses] for start in starts]
    return [list({(one.text, one.ended): one for one in group}.values()) for group in groups]


def rank(
    prompts: Sequence[Prompt], groups: Sequence[list[Response]], labelers: Sequence[Labeler], seed: int
) -> list[Ranking]:
    """The groups ranked, each by one labeler drawn by `seed`. A prompt with fewer than two responses is left out."""
    rng = random.Random(seed)
    rankings: list[Ranking] = []
    for prompt, responses in zip(prompts, groups, strict=True):
        labeler = rng.choice(labelers)
        if len(responses) < 2:
            continue
        rankings.append(
            {
                **prompt,
                "responses": [response.text for response in responses],
                "ended": [response.ended for response in responses],
                "ranks": labeler.rank(prompt, responses),
                "labeler": labeler.name,
            }
        )
    return rankings


def as_responses(ranking: Ranking) -> list[Response]:
    """A ranking's texts, without tokens: training uses what rankings.jsonl says, wherever it comes from."""
    ended = ranking.get("ended", [True] * len(ranking["responses"]))
    return [Response(text, end) for text, end in zip(ranking["responses"], ended, strict=True)]


def split_by_prompt(rankings: list[Ranking], share: float, seed: int) -> tuple[list[Ranking], list[Ranking]]:
    """Rankings to train on and held-out rankings. All rankings of one prompt are on the same side.

    Raises:
        UserError: there is only one prompt.
    """
    texts = ["\n".join(message["content"] for message in ranking["prompt"]) for ranking in rankings]
    prompts = list(dict.fromkeys(texts))
    if len(prompts) < 2:
        raise UserError(
            "the rankings are all of one prompt: rank responses to at least two, one is held out for evaluation"
        )
    held_out = set(random.Random(seed).sample(prompts, max(1, round(share * len(prompts)))))
    train_on = [ranking for ranking, text in zip(rankings, texts, strict=True) if text not in held_out]
    measure_on = [ranking for ranking, text in zip(rankings, texts, strict=True) if text in held_out]
    return train_on, measure_on


def encode(model: PreTrainedModel, tokenizer: Tokenizer, rankings: Sequence[Ranking]) -> list[Example]:
    """The rankings in tokens. Those that order no pair are left out.

    Raises:
        UserError: a response is longer than the model's context, or there is no pair at all.
    """
    examples = []
    positions = context_length(model)
    prompts = encode_prompts(tokenizer, [ranking["prompt"] for ranking in rankings])
    for ranking, prompt in zip(rankings, prompts, strict=True):
        if not pairs(ranking["ranks"]):
            continue
        responses = [encode_response(tokenizer, each.text, each.ended) for each in as_responses(ranking)]
        example = Example([prompt.ids + ids for ids in responses], ranking["ranks"])
        if positions is not None and example.length > positions:
            beginning = ranking["prompt"][-1]["content"][:60]
            raise UserError(
                f"the ranking whose prompt begins {beginning!r} has a response that makes {example.length} tokens with "
                f"the prompt, but the model's context has {positions}: shorten it"
            )
        examples.append(example)
    if not examples:
        raise UserError("there is nothing to learn from: in all rankings the responses are alike or tied")
    return examples


# --- normalization ---------------------------------------------------------------------------------------------------


def mean_score(
    model: PreTrainedModel, tokenizer: Tokenizer, demonstrations: list[Demonstration], options: RMOptions
) -> float:
    """The mean score of a random part of the demonstrations."""
    size = min(options.normalization_size, len(demonstrations))
    some = random.Random(options.seed).sample(demonstrations, size)
    prompts = encode_prompts(tokenizer, [example["prompt"] for example in some])
    responses = [Response(example["completion"][0]["content"], ended=True) for example in some]
    scores = score_texts(model, tokenizer, prompts, responses)
    return sum(scores) / len(scores)
