"""Step 2, the reward model (Ouyang et al. 2022, section 3.5 "Reward modeling (RM)" and appendix C.2).

    python -m stages.rm                                  # runs/default/sft + data/prompts/rm.jsonl -> runs/default/rm
    python -m stages.rm --rankings my_rankings.jsonl     # people's rankings instead of simulated ones

K responses to each prompt are sampled from the SFT model, a labeler ranks them, and a model with a scalar head in the
place of the vocabulary learns to give the better ones the higher scores. What to inspect: rankings.jsonl beside the
checkpoint, to see what was ranked and whether you would agree; the table at the end, to see that the reward model errs
about as often as the labelers disagree.

As in the paper: the SFT model as the backbone, all pairs of a prompt as one element of the batch (loss.py), ties
dropped, one epoch, cosine to 10 %, a constant that puts demonstrations at a mean score of 0.
Departures:
- batches of 16 prompts instead of 64: with 2,400 prompts, 64 would leave 37 steps.
- the head starts with a standard deviation of 1 / sqrt(d + 1), as in Stiennon et al. 2020 (arXiv 2009.01325), B.1.
- responses are sampled at temperature 0.7, as PPO does: at 1, a model of a million parameters babbles.
- labelers are simulated, and each prompt is ranked by one of them.

TRL's RewardTrainer does the padding token, dropout, optimizer and loop. It knows pairs only (chosen, rejected), so the
preparation of the data, the batches and the loss are replaced by ours for K responses.
"""

import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from trl import RewardConfig, RewardTrainer

from rlhf_mini.core.checkpoints import finish, load_checkpoint, writing
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import (
    Demonstration,
    Prompt,
    Ranking,
    Response,
    read_demonstrations,
    read_prompts,
    read_rankings,
)
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.core.rankings import Labeler, load_labelers, pairs
from rlhf_mini.core.resume import Resume, command_of
from rlhf_mini.models.packing import Rows, packed
from rlhf_mini.models.sampling import context_length, encode_prompts, encode_response, respond
from rlhf_mini.models.scoring import right_pad, score_texts, with_scalar_head
from rlhf_mini.training.trainer import Progress, StageTrainer, train, trainer_settings
from stages.rm.agreement import rankings_evaluation, score_groups, simulated_evaluation, table
from stages.rm.loss import k_wise_loss
from stages.rm.options import RMOptions


class KWiseTrainer(StageTrainer, RewardTrainer):
    """TRL's RewardTrainer for K ranked responses a prompt instead of one chosen and one rejected."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # `encode` below has done it

    def _lengths(self) -> list[int]:
        return [max(len(ids) for ids in responses) for responses in self.train_dataset["input_ids"]]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        mask, ranks = inputs["mask"], inputs["ranks"]  # (B, K)
        # N forward passes for the N = mask.sum() responses of the batch, in one call, each read at its last token.
        lengths = inputs["attention_mask"].sum(-1)  # (N,)
        rows = Rows(lengths)
        with packed(model) as read:
            flat = read(rows.pack(inputs["input_ids"]), rows, keep=lengths.cumsum(0) - 1)  # (N, 1)
        scores = torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, flat.squeeze(-1).float())  # (B, K)
        with torch.no_grad():
            better = (ranks[:, :, None] < ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]  # (B, K, K)
            right = (scores[:, :, None] > scores[:, None, :])[better].float().mean()
        self._metrics["train"]["accuracy"].append(right.item())
        return k_wise_loss(scores, ranks, mask)


class KWiseCollator:
    """Makes a batch of B prompts with up to K responses each; N counts all the responses."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        input_ids, attention_mask = right_pad([ids for e in examples for ids in e["input_ids"]], self.pad_token_id)
        ranks, mask = right_pad([example["ranks"] for example in examples], 0)
        # (N, T), (N, T), (B, K), (B, K)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "ranks": ranks, "mask": mask.bool()}


def train_rm(options: RMOptions) -> None:
    started = time.time()
    disable_progress_bars()
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

    files = [options.rankings or options.prompts, options.validation, options.demonstrations]
    with (
        Resume(options.run_dir, "rm", command_of(options, files, parents=[sft]), started) as resume,
        writing(options.run_dir, "rm") as folder,
        Progress(folder, "rm: training") as progress,
    ):
        # 1. Rankings: K responses to each prompt from the SFT model, ranked by a labeler.
        saved = resume.load(folder)
        started = resume.started  # earlier, if it goes on
        if saved or options.rankings:
            rankings = read_rankings(folder / "rankings.jsonl" if saved else options.rankings)
        else:
            groups = sample_groups(sft_model, tokenizer, prompts, options, options.seed, "rm: sampling responses")
            rankings = rank(prompts, groups, labelers["training"], options.seed)
        write_jsonl(folder / "rankings.jsonl", rankings)
        if not saved and options.save_steps:
            resume.save(folder, 0, {}, {})  # killed from here on, it does not sample again
        # The labelers of the mini world judge its prompts only; for others, some rankings are kept aside to measure on.
        own_world = not options.rankings and all("check" in prompt for prompt in prompts)
        aside: list[Ranking] = []
        if not own_world:
            rankings, aside = split_by_prompt(rankings, options.heldout_share, options.seed)

        # 2. The SFT model with a scalar head, trained on all pairs of each prompt together.
        reward_model = with_scalar_head(sft.path, options.seed)
        trainer = KWiseTrainer(
            model=reward_model,
            args=RewardConfig(**trainer_settings(options, folder), remove_unused_columns=False),
            train_dataset=Dataset.from_list(encode(reward_model, tokenizer, rankings)),
            data_collator=KWiseCollator(tokenizer.pad_token_id),
            processing_class=tokenizer,
            callbacks=[progress],
        )
        metrics: dict[str, Any] = {"rankings": len(rankings), "rankings_kept_aside": len(aside)}
        metrics["pairs"] = sum(len(pairs(ranking["ranks"])) for ranking in rankings)
        what: dict[str, Any] = dict(
            tokenizer=tokenizer, options=options, seed=options.seed, started=started, parents=[sft], metrics=metrics
        )
        train(trainer, resume, saved, **what)
        reward_model.eval()

        # 3. The constant that puts demonstrations at a mean score of 0, saved in config.json.
        reward_model.config.reward_mean = mean_score(reward_model, tokenizer, demonstrations, options)
        metrics["reward_mean"] = reward_model.config.reward_mean

        # 4. Does it order responses as labelers do?
        if aside:
            groups = [as_responses(ranking) for ranking in aside]
            metrics.update(rankings_evaluation(score_groups(reward_model, tokenizer, aside, groups), aside))
        groups = sample_groups(
            sft_model, tokenizer, validation, options, options.seed + 1, "rm: sampling for validation"
        )
        scores = score_groups(reward_model, tokenizer, validation, groups)
        metrics["score_std"] = torch.tensor([score for group in scores for score in group]).std().item()
        metrics.update(simulated_evaluation(scores, validation, groups, labelers))
        finish(folder, stage="rm", model=reward_model, **what)

    console.print(table(metrics))
    console.print(f"rm: {options.run_dir / 'rm'} written after {time.time() - started:.0f} s", soft_wrap=True)


# --- rankings --------------------------------------------------------------------------------------------------------


def first(records: list[Prompt], number: int) -> list[Prompt]:
    return records[:number] if number > 0 else records


def sample_groups(
    model: PreTrainedModel, tokenizer: Tokenizer, prompts: list[Prompt], options: RMOptions, seed: int, description: str
) -> list[list[Response]]:
    """For each prompt the different ones of its K sampled responses; two that are alike cannot be ranked."""
    responses = respond(
        model,
        tokenizer,
        [record["prompt"] for record in prompts for _ in range(options.num_responses)],
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=seed,
        batch_size=256,  # a quarter less CPU time than 64
        description=description,
    )
    starts = range(0, len(responses), options.num_responses)
    groups = [responses[start : start + options.num_responses] for start in starts]
    return [list({(one.text, one.ended): one for one in group}.values()) for group in groups]


def rank(prompts: list[Prompt], groups: list[list[Response]], labelers: Sequence[Labeler], seed: int) -> list[Ranking]:
    """Ranking records: each prompt with its responses, ranked by one labeler. Without two different responses: none."""
    rng = random.Random(seed)
    rankings = []
    for record, responses in zip(prompts, groups, strict=True):
        labeler = rng.choice(labelers)
        if len(responses) < 2:
            continue
        rankings.append(
            {
                **record,
                "responses": [response.text for response in responses],
                "ended": [response.ended for response in responses],
                "ranks": labeler.rank(record, responses),
                "labeler": labeler.name,
            }
        )
    return rankings


def as_responses(ranking: Ranking) -> list[Response]:
    """A ranking's texts. They are encoded anew: we train on what rankings.jsonl says, wherever it comes from."""
    ended = ranking.get("ended", [True] * len(ranking["responses"]))
    return [Response(text, end) for text, end in zip(ranking["responses"], ended, strict=True)]


def split_by_prompt(rankings: list[Ranking], share: float, seed: int) -> tuple[list[Ranking], list[Ranking]]:
    """Rankings to train on and rankings to measure on. All rankings of one prompt are on the same side."""
    texts = ["\n".join(message["content"] for message in ranking["prompt"]) for ranking in rankings]
    prompts = list(dict.fromkeys(texts))
    if len(prompts) < 2:
        raise UserError(
            "the rankings are all of one prompt: rank responses to at least two, one is kept aside to measure on"
        )
    aside = set(random.Random(seed).sample(prompts, max(1, round(share * len(prompts)))))
    train_on = [ranking for ranking, text in zip(rankings, texts, strict=True) if text not in aside]
    measure_on = [ranking for ranking, text in zip(rankings, texts, strict=True) if text in aside]
    return train_on, measure_on


def encode(model: PreTrainedModel, tokenizer: Tokenizer, rankings: list[Ranking]) -> list[dict[str, Any]]:
    """Tokens (prompt + response) of each response and the ranks, for rankings that order at least one pair.

    UserError names a ranking that is longer than the model's context.
    """
    examples = []
    positions = context_length(model)
    for ranking, prompt_ids in zip(rankings, encode_prompts(tokenizer, [r["prompt"] for r in rankings]), strict=True):
        if not pairs(ranking["ranks"]):
            continue
        input_ids = [prompt_ids + encode_response(tokenizer, r.text, r.ended) for r in as_responses(ranking)]
        longest = max(len(ids) for ids in input_ids)
        if positions is not None and longest > positions:
            beginning = ranking["prompt"][-1]["content"][:60]
            raise UserError(
                f"the ranking whose prompt begins {beginning!r} has a response that makes {longest} tokens with the "
                f"prompt, but the model's context has {positions}: shorten it"
            )
        examples.append({"input_ids": input_ids, "ranks": ranking["ranks"]})
    if not examples:
        raise UserError("there is nothing to learn from: in all rankings the responses are alike or tied")
    return examples


# --- model -----------------------------------------------------------------------------------------------------------


def mean_score(
    model: PreTrainedModel, tokenizer: Tokenizer, demonstrations: list[Demonstration], options: RMOptions
) -> float:
    """The mean score of a random part of the demonstrations."""
    size = min(options.normalization_size, len(demonstrations))
    some = random.Random(options.seed).sample(demonstrations, size)
    responses = [Response(record["completion"][0]["content"], ended=True) for record in some]
    scores = score_texts(model, tokenizer, [record["prompt"] for record in some], responses)
    return sum(scores) / len(scores)
