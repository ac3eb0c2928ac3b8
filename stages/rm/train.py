"""Step 2, the reward model (Ouyang et al. 2022, section 3.5 "Reward modeling (RM)" and appendix C.2).

    python -m stages.rm                                  # runs/default/sft + data/prompts/rm.jsonl -> runs/default/rm
    python -m stages.rm --rankings my_rankings.jsonl     # people's rankings instead of simulated ones

K responses to each prompt, most of them of the SFT model (sources.py), are ranked by a labeler. A model with a scalar
head in place of the vocabulary head learns to give better responses higher scores. What to inspect: rankings.jsonl
beside the checkpoint (would you rank the responses the same way?), and the tables at the end. In the first, the reward
model should agree with the labelers about as often as they agree among themselves. Tone alone can bring it there: in
the second the manners of both responses are the same, and 50 % means that it does not read what they say.

As in the paper: all pairs of a prompt as one element of the batch (loss.py), ties dropped, one epoch, cosine to 10 %,
a constant that puts demonstrations at a mean score of 0, and a start from a model that has seen more than this run's
demonstrations (appendix C.2): here a judge that was pretrained on the votes of the web (rlhf_mini/world/judge.py).
Departures:
- the score also depends on how likely the SFT model finds the response, which is what knows facts (likelihood.py);
  `load_reward_model` in rlhf_mini/models/scoring.py loads both parts, AutoModelForSequenceClassification the scalar.
- batches of 16 prompts instead of 64: with 2,400 prompts, 64 would leave 37 steps.
- with --init sft, the head starts with a standard deviation of 1 / sqrt(d + 1) (Stiennon et al. 2020, arXiv 2009.01325,
  B.1); a learning rate of 1e-3 suits that start better.
- half of the samples are drawn at temperature 0.7, as PPO draws them: at 1, a model this small rarely makes sense.
- labelers are simulated, and each prompt is ranked by one of them.
- batches hold prompts whose longest responses have a similar length, which saves padding in attention.

Shapes: B prompts of a batch, K the most responses to one of them, M all their responses, N tokens of these end to end.
"""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from rlhf_mini.core import processes
from rlhf_mini.core.checkpoints import (
    Checkpoint,
    load_checkpoint,
    read_stage_json,
    save_checkpoint,
    save_model,
    writing,
)
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import (
    Demonstration,
    Prompt,
    Ranking,
    Response,
    read_preferences,
    read_rankings,
)
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.core.inputs import inputs_of
from rlhf_mini.core.rankings import Labeler, load_labelers, pairs
from rlhf_mini.core.resume import Resume, command_of
from rlhf_mini.data.load import collected, files_among, load
from rlhf_mini.models.adapters import add_adapter, load_model
from rlhf_mini.models.forward import forward_pass
from rlhf_mini.models.rows import Rows
from rlhf_mini.models.scoring import READER, attach_reader, score_texts, with_scalar_head
from rlhf_mini.models.text import (
    EncodedPrompt,
    Fitting,
    encode_demonstrations,
    encode_fitting_prompts,
    encode_prompts,
    load_tokenizer,
)
from rlhf_mini.training.loop import Objective, train
from stages.rm import content, likelihood
from stages.rm.agreement import Share, rankings_accuracy, score_groups, simulated_evaluation, table
from stages.rm.loss import better_pairs, k_wise_loss
from stages.rm.options import RMOptions
from stages.rm.rankings import Example, as_responses, encode_fitting, ordered, rank, split_by_prompt, that_fit
from stages.rm.sources import Models, collect, distinct, sample_groups

T = TypeVar("T")
VALIDATION_SAMPLES = 4  # to a prompt, at the temperature of PPO


def train_rm(options: RMOptions) -> None:
    started = time.time()
    sft = load_checkpoint(options.run_dir / "sft", "sft")
    tokenizer = load_tokenizer(sft.path)
    judge = None if options.init == "sft" else judge_for(tokenizer, options.init)
    base = load_checkpoint(options.base, "base") if options.base and not options.rankings else None
    ppo = load_checkpoint(options.ppo, "ppo") if options.ppo else None
    for option, checkpoint in (("--base", base), ("--ppo", ppo)):
        if checkpoint and load_tokenizer(checkpoint.path).get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{option}: {checkpoint.path} has other tokens than the SFT model: name another, or none")
    parents = [one for one in (sft, judge, base, ppo) if one is not None]
    labelers = {
        "training": load_labelers(options.labelers),
        "heldout": load_labelers(options.heldout_labelers),
        "gold": load_labelers(options.gold_labeler),
    }
    demonstrations = load("rm", options.demonstrations, "demonstrations", options.strict)
    preferences = read_preferences(options.content) if options.content else []
    device = processes.begin(options.device, options.precision)
    sft_model = load_model(AutoModelForCausalLM, sft.path).to(device)
    people_ranked = ordered(load("rm", options.rankings, "rankings", options.strict)) if options.rankings else []
    models = Models(sft_model, language_model(base, device), language_model(ppo, device))
    fitting = Fitting(sft_model, options.too_long)
    normalizing = [each for each in drawn(demonstrations, options) if fits(sft_model, tokenizer, each)]
    if not normalizing:
        raise UserError(
            f"{options.demonstrations}: no demonstration fits the model's context of {fitting.positions} tokens"
        )
    prompts, encoded = read_prompts(sft_model, tokenizer, "" if options.rankings else options.prompts,
                                    options.num_prompts, options)  # fmt: skip
    validation, encoded_validation = read_prompts(sft_model, tokenizer, options.validation,
                                                  options.num_validation_prompts, options)  # fmt: skip

    # What would end the stage later ends it here: rankings that are too long, prompts that no labeler can judge.
    first = next(encode_fitting(tokenizer, people_ranked, Fitting(sft_model, options.too_long)), None)
    if people_ranked and first is None:
        raise UserError(f"{options.rankings}: no ranking fits the model's context of {fitting.positions} tokens")
    for labeler in labelers["training"]:
        for prompt in prompts:
            labeler.check(prompt)

    sources = [options.rankings or options.prompts, options.validation, options.demonstrations, options.content]
    made_from = inputs_of("rm", options, files_among(sources))
    command = command_of(options, made_from, parents)
    with Resume(options.run_dir, "rm", command, started) as resume, writing(options.run_dir, "rm") as folder:
        saved = resume.load(folder)
        provenance: dict[str, Any] = dict(
            tokenizer=tokenizer, options=options, seed=options.seed, started=resume.started, parents=parents,
            made_from=made_from,
        )  # fmt: skip

        # 1. Rankings: K responses to each prompt, ranked by a labeler.
        if options.rankings:
            rankings = people_ranked
        elif saved:
            rankings = read_rankings(folder / "rankings.jsonl")
        else:
            groups = collect(models, tokenizer, prompts, encoded, options)
            rankings = processes.of_first(lambda: rank(prompts, groups, labelers["training"], options.seed))
        if processes.is_first():
            write_jsonl(folder / "rankings.jsonl", rankings)
        if saved is None and options.save_steps:
            resume.save(folder, 0, {}, {})  # if the stage is killed from here on, it does not sample again
        rankings = ordered(rankings)
        # The simulated labelers can judge prompts of the mini world only. For others, some rankings are held out.
        held_out: Sequence[Ranking] = []
        if options.rankings or not all("check" in example for example in prompts):
            rankings, held_out = split_by_prompt(rankings, options.heldout_share, options.seed)

        # 2. The judge, or the SFT model with a scalar head, trained on all pairs of each prompt together.
        if judge is None:
            reward_model = with_scalar_head(sft.path, options.seed)  # in eval mode: without dropout
        else:
            reward_model = load_model(AutoModelForSequenceClassification, judge.path)
            reward_model.config.reward_mean = 0.0  # an earlier reward model's zero; it gets a new one below
        add_adapter(reward_model, options.lora_rank, sft.path if judge is None else judge.path, options.seed)
        reward_model.to(device)
        reward_model.config.pad_token_id = tokenizer.pad_token_id  # transformers finds a row's last token by it
        examples = collected(encode_fitting(tokenizer, rankings, fitting), Example)
        held_out, held_out_prompts = with_prompts(tokenizer, held_out, fitting)
        fitting.report("rm", "rankings")
        counts: dict[str, Any] = {
            "rankings": len(examples),
            "rankings_held_out": len(held_out),
            "pairs": sum(len(pairs(example.ranks)) for example in examples),
        }
        if not examples:
            raise UserError("the rankings that fit the model's context are all held out: more must be shorter")
        if options.likelihood:
            likelihood.add_coefficient(reward_model)
            examples = collected(likelihood.of_examples(sft_model, examples), Example)
        train(
            reward_model, examples, lambda batch: objective(reward_model, batch), options,
            resume=resume, saved=saved, folder=folder, metrics=counts, provenance=provenance,
        )  # fmt: skip

        # 3. What config.json keeps beside the scalar: how much the SFT model's likelihood of a response counts, and the
        # constant that puts demonstrations at a mean score of 0.
        if options.likelihood:
            coef = likelihood.take_coefficient(reward_model)
            reward_model.config.likelihood_coef = counts["likelihood_coef"] = coef
            attach_reader(reward_model, sft_model)
            save_model(sft_model, folder / READER)
        reward_mean = mean_score(reward_model, tokenizer, normalizing)
        reward_model.config.reward_mean = reward_mean

        # 4. Does it order responses as labelers do?
        shares: dict[str, Share] = {}
        scores: list[list[float]] = []
        if validation:
            sampled = sample_groups(
                sft_model, tokenizer, encoded_validation, VALIDATION_SAMPLES, options, options.seed + 1,
                options.temperature, "rm: sampling for validation",
            )  # fmt: skip
            groups = [distinct(group) for group in sampled]
            scores = score_groups(reward_model, tokenizer, encoded_validation, groups)
            shares = processes.of_first(lambda: simulated_evaluation(scores, validation, groups, labelers))
        if shares and not held_out:
            found = rankings_as_in_training(models, tokenizer, validation, labelers["training"], options)
            held_out, held_out_prompts = with_prompts(tokenizer, found, Fitting(sft_model, options.too_long))
        if held_out:
            groups = [as_responses(ranking) for ranking in held_out]
            of_rankings = score_groups(reward_model, tokenizer, held_out_prompts, groups)
            shares |= rankings_accuracy(of_rankings, held_out)
            scores = scores or of_rankings

        # 5. Does it read what is said, where the manners are the same?
        contrasts = content.encode(reward_model, tokenizer, preferences)
        contents = content.evaluation(contrasts, content.scores_of(reward_model, tokenizer, contrasts))

        metrics = {**counts, "reward_mean": reward_mean, "score_std": spread(scores), **shares, **contents}
        save_checkpoint(folder, stage="rm", model=reward_model, metrics=metrics, **provenance)

    if shares:
        console.print(table(shares))
    if contents:
        console.print(content.table(contents))
    console.print(f"rm: {options.run_dir / 'rm'} written after {time.time() - resume.started:.0f} s", soft_wrap=True)


def objective(model: PreTrainedModel, batch: Sequence[Example]) -> Objective:
    """The K-wise loss of B rankings, and the share of their pairs that the scores order right."""
    mine = processes.share(batch)
    batch = mine.items
    groups = Rows([len(example.ranks) for example in batch], device=model.device)  # the M responses, by prompt
    scores = groups.unpack(score_responses(model, batch))  # (B, K)
    ranks = groups.unpack(torch.tensor([rank for example in batch for rank in example.ranks], device=model.device))
    mask = torch.arange(ranks.shape[1], device=model.device) < groups.lengths.unsqueeze(1)  # (B, K)
    with torch.no_grad():
        margins = scores[:, :, None] - scores[:, None, :]  # (B, K, K)
        accuracy = (margins[better_pairs(ranks, mask)] > 0).float().mean()
    accuracy *= mine.weight(lambda example: len(pairs(example.ranks)))
    return Objective(k_wise_loss(scores, ranks, mask) * mine.weight(), {"accuracy": accuracy})


def score_responses(model: PreTrainedModel, batch: Sequence[Example]) -> Tensor:
    """The score of each of the M responses of a batch: the scalar at its last token, and its likelihood. (M,)."""
    responses = [ids for example in batch for ids in example.input_ids]
    rows = Rows([len(ids) for ids in responses], device=model.device)
    input_ids = torch.tensor([token for ids in responses for token in ids], device=model.device)  # (N,)
    with forward_pass(model) as forward:
        scalars = forward(input_ids, rows, keep=rows.last).squeeze(-1).float()
    return scalars + likelihood.term(model, batch)


def rankings_as_in_training(
    models: Models, tokenizer: Tokenizer, validation: Sequence[Prompt], labelers: Sequence[Labeler], options: RMOptions
) -> list[Ranking]:
    """Rankings of validation prompts, which tell overfitting: all else is as in training.

    Responses are from the same sources, and no prompt is about a new entity or in a new phrasing. [] if the labelers
    cannot rank these responses.
    """
    prompts = [example for example in validation if example.get("novel", "none") == "none"]
    encoded = encode_prompts(tokenizer, [example["prompt"] for example in prompts])
    groups = collect(models, tokenizer, prompts, encoded, options, "rm: sampling for validation")

    def ranked() -> list[Ranking]:
        try:
            return rank(prompts, groups, labelers, options.seed)
        except UserError as fault:
            console.print(f"rm: no accuracy on rankings of validation prompts: {fault}", soft_wrap=True)
            return []

    return processes.of_first(ranked)


# --- inputs ----------------------------------------------------------------------------------------------------------


def with_prompts(
    tokenizer: Tokenizer, rankings: Sequence[Ranking], fitting: Fitting
) -> tuple[list[Ranking], list[EncodedPrompt]]:
    """The rankings that `fitting` lets pass, and their prompts in tokens."""
    both = [(ranking, prompt) for ranking, prompt, _ in that_fit(tokenizer, rankings, fitting)]
    return [ranking for ranking, _ in both], [prompt for _, prompt in both]


def read_prompts(
    model: PreTrainedModel, tokenizer: Tokenizer, source: str, number: int, options: RMOptions
) -> tuple[list[Prompt], list[EncodedPrompt]]:
    """The first `number` prompts of a file (0: all) that leave room for a response, with their tokens; or none."""
    if not source:
        return [], []
    found = load("rm", source, "prompts", options.strict)
    fitting = Fitting(model, options.too_long)
    both = list(encode_fitting_prompts(tokenizer, found[: number or len(found)], fitting, options.max_new_tokens))
    fitting.report("rm", "prompts")
    if not both:
        raise UserError(f"{source}: no prompt leaves room for --max_new_tokens {options.max_new_tokens}: lower it")
    prompts, encoded = zip(*both, strict=True)
    return list(prompts), list(encoded)


def fits(model: PreTrainedModel, tokenizer: Tokenizer, demonstration: Demonstration) -> bool:
    return any(True for _ in encode_demonstrations(model, tokenizer, [demonstration]))


def judge_for(tokenizer: Tokenizer, path: str) -> Checkpoint:
    """The judge or reward model to start from. UserError if it was trained with other tokens than the SFT model."""
    judge = load_checkpoint(path, "rm" if read_stage_json(Path(path)).get("stage") == "rm" else "judge")
    if AutoTokenizer.from_pretrained(judge.path).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"--init: the judge in {path} has other tokens than the SFT model: use --init sft")
    return judge


def language_model(checkpoint: Checkpoint | None, device: torch.device) -> PreTrainedModel | None:
    return load_model(AutoModelForCausalLM, checkpoint.path).to(device) if checkpoint else None


def spread(scores: Sequence[Sequence[float]]) -> float:
    """The standard deviation of all scores, by which PPO's KL_COEF can be judged; 0 if there are none."""
    together = [score for group in scores for score in group]
    return torch.tensor(together).std().item() if len(together) > 1 else 0.0


# --- normalization ---------------------------------------------------------------------------------------------------


def drawn(demonstrations: Sequence[Demonstration], options: RMOptions) -> list[Demonstration]:
    """A random part of the demonstrations, whose mean score becomes the zero of the scale."""
    return random.Random(options.seed).sample(demonstrations, min(options.normalization_size, len(demonstrations)))


def mean_score(model: PreTrainedModel, tokenizer: Tokenizer, demonstrations: Sequence[Demonstration]) -> float:
    prompts = encode_prompts(tokenizer, [example["prompt"] for example in demonstrations])
    responses = [Response(example["completion"][0]["content"], ended=True) for example in demonstrations]
    scores = score_texts(model, tokenizer, prompts, responses)
    return sum(scores) / len(scores)
