"""Beyond PPO: DPO, KTO, RLOO and GRPO by TRL's trainers, each stopped at the KL to SFT that the run's PPO has.

    dpo = train("dpo", run_dir, folder, target, BeyondOptions())   # trains, or loads what it trained before
    dpo.model, dpo.curve                                           # the policy, and (KL, gold) on the way to it

All start from the run's SFT model, learn what its PPO learned from, and differ in nothing else that can be kept equal:

    dpo, kto         pairs of SFT's responses in rm/rankings.jsonl; no reward model, no sampling
    dpo_principles   the same responses, ranked by written principles (feedback.py)
    rloo, grpo       samples, scored by the run's reward model, as in PPO; no value model
    grpo_gold        samples, scored by the gold score: a verifiable reward

A method may go as far from SFT as it likes, and most rewards rise with the distance (Gao et al. 2022, arXiv
2210.10760). So methods are compared where their KL to SFT is the same. Every few steps the policy answers validation
prompts, its KL is estimated on these answers, and training stops at the target. The learning rate is constant, because
nobody knows beforehand when that is.

TRL is made for models of billions of parameters with relative positions. Two things must be changed for a small GPT-2:
its learning rates (`LEARNING_RATES`), and the positions of prompts that are padded on the left (`with_positions`).
"""

import copy
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal, cast

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PrinterCallback, TrainerCallback
from transformers import PreTrainedTokenizerBase as Tokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from rlhf_mini.classroom.feedback import Constitution, ranked_by
from rlhf_mini.classroom.measure import MAX_NEW_TOKENS
from rlhf_mini.core.bootstrap import Estimate, mean_intervals
from rlhf_mini.core.checkpoints import Checkpoint, load_checkpoint, save_checkpoint, writing
from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Messages, Prompt, Ranking, Response, read_prompts, read_rankings
from rlhf_mini.core.inputs import changes, code_of
from rlhf_mini.core.rankings import Labeler, pairs
from rlhf_mini.evaluation.responses import rank_blind
from rlhf_mini.models.adapters import load_model
from rlhf_mini.models.sampling import respond
from rlhf_mini.models.scoring import load_reward_model, score_texts, sequence_logprobs
from rlhf_mini.models.text import encode_prompts, load_tokenizer, to_responses
from rlhf_mini.world.gold import WEIGHTS, judge

PROMPTS, VALIDATION = "data/prompts/ppo.jsonl", "data/prompts/validation.jsonl"

Method = Literal["dpo", "kto", "rloo", "grpo", "dpo_principles", "grpo_gold"]
Reward = Callable[[Sequence[int], Sequence[Response]], list[float]]
"""A number for each response to the prompts with these indices."""

# TRL's defaults are 1e-6, for models with a thousand times as many parameters: with that, nothing here would move.
LEARNING_RATES = {"dpo": 6e-5, "kto": 1e-4, "rloo": 1e-4, "grpo": 1e-4}
BETA = {"dpo": 0.1, "kto": 0.1, "rloo": 0.02, "grpo": 0.0}  # TRL's defaults, and for RLOO the kl_coef of PPO


@dataclass(frozen=True)
class BeyondOptions:
    """How the methods are trained and stopped."""

    seed: int = 0
    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.7
    """As PPO's: of all samples, and of every log-probability but those of DPO and KTO, where TRL has none: it is 1."""
    missing_eos_penalty: float = 1.0
    """As PPO's: taken off the reward of a truncated response. Gold marks it down by itself."""
    steps: int = 128
    """The most optimizer steps."""
    every: int = 8
    """Steps between two measurements of KL and gold."""
    prompts: int = 160
    """Validation prompts of such a measurement."""
    pairs: int = 32
    """Pairs in a step of DPO, single responses in one of KTO."""
    samples: int = 128
    """Responses that RLOO and GRPO sample at a time; as in PPO, four steps learn from them."""
    group: int = 4
    """Responses to the same prompt."""


@dataclass(frozen=True)
class Point:
    """Where a policy is on its way."""

    step: int
    kl: float
    """To SFT, in nats per response."""
    gold: float
    """Mean gold score of the same responses, to validation prompts."""


@dataclass(frozen=True)
class Trained:
    """A policy, and how it got there."""

    method: str
    model: PreTrainedModel
    at: Point
    """Where it was taken: of all measured points the one whose KL is nearest to the target."""
    curve: list[Point]
    seconds: float


# --- measuring -------------------------------------------------------------------------------------------------------


class Meter:
    """Measures policies on the same validation prompts with the same draws, so that differences are theirs."""

    def __init__(self, run_dir: Path, options: BeyondOptions) -> None:
        self.options = options
        self.tokenizer = load_tokenizer(run_dir / "sft")
        self.sft = load_model(AutoModelForCausalLM, run_dir / "sft").eval()
        self.examples = read_prompts(VALIDATION)[: options.prompts]
        self.prompts = encode_prompts(self.tokenizer, [example["prompt"] for example in self.examples])

    def measure(self, policy: PreTrainedModel, step: int = 0) -> Point:
        """KL and gold of one response to each prompt."""
        temperature = self.options.temperature
        responses = respond(
            policy, self.tokenizer, self.prompts, max_new_tokens=MAX_NEW_TOKENS, temperature=temperature,
            seed=self.options.seed,
        )  # fmt: skip
        # log p(y|x) under the policy, which sampled y, minus that under SFT: its mean estimates the KL.
        own, of_sft = (
            sequence_logprobs(model, self.tokenizer, self.prompts, responses, temperature)
            for model in (policy, self.sft)
        )
        return Point(step, kl=mean(own) - mean(of_sft), gold=mean(golds(self.examples, responses)))


def golds(examples: Sequence[Prompt], responses: Sequence[Response]) -> list[float]:
    """The gold score of each response."""
    return [
        judge(example["check"], example["prompt"], response.text, response.ended).score
        for example, response in zip(examples, responses, strict=True)
    ]


def gold_parts(examples: Sequence[Prompt], responses: Sequence[Response]) -> dict[str, Estimate]:
    """The means of the gold score's parts, each over the prompts that it applies to."""
    parts = [
        judge(example["check"], example["prompt"], response.text, response.ended).parts
        for example, response in zip(examples, responses, strict=True)
    ]
    values = np.array([[of_one[part] for part in WEIGHTS] for of_one in parts], dtype=float)  # (n, parts), None as NaN
    return dict(zip(WEIGHTS, mean_intervals(values), strict=True))


def wins(
    examples: Sequence[Prompt], responses: Sequence[Response], rivals: Sequence[Response], labelers: Sequence[Labeler]
) -> Estimate:
    """The share of prompts at which labelers prefer a response to the rival, blind; a tie counts one half."""
    rng = random.Random(0)
    shares = []
    for example, response, rival in zip(examples, responses, rivals, strict=True):
        ranks: list[Any] = [rank_blind(labeler, example, [response, rival], rng) for labeler in labelers]
        shares.append(mean((np.sign(of_rival - own) + 1) / 2 for own, of_rival in ranks))
    return mean_intervals(np.array(shares)[:, None])[0]


# --- training --------------------------------------------------------------------------------------------------------


def train(method: Method, run_dir: Path, folder: Path, target: float, options: BeyondOptions) -> Trained:
    """The method's policy at the KL `target`: trained, or loaded from `folder`/`method` if it was trained before.

    Args:
        run_dir: a run with sft, rm and ppo.
        folder: where the checkpoints of all methods go.
        target: nats per response; training stops after the first measurement that reaches it.
    """
    sft = load_checkpoint(run_dir / "sft", "sft")
    rm = load_checkpoint(run_dir / "rm", "rm", of=sft)
    asked = Asked(**asdict(options), target=target)
    with suppress(UserError):  # none yet, or of another chain
        found = load_checkpoint(folder / method, method, of=rm)
        if found.info["options"] == asdict(asked) and not changes(found.path):
            return trained(found)
    started, meter = time.time(), Meter(run_dir, options)
    stop = StopAtKL(meter, target)
    policy = load_model(AutoModelForCausalLM, sft.path)
    with writing(folder, method) as written, quiet(), tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(method, run_dir, policy, meter.tokenizer, options, scratch, [stop])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model = load_model(AutoModelForCausalLM, sft.path)  # TRL has patched the other one
        model.load_state_dict(stop.weights)
        save_checkpoint(
            written, stage=method, model=model, tokenizer=meter.tokenizer, options=asked, seed=options.seed,
            metrics={"curve": [asdict(point) for point in stop.curve], "stopped_at": asdict(stop.at)},
            started=started, parents=[sft, rm], made_from=code_of([__name__]),
        )  # fmt: skip
    return trained(load_checkpoint(folder / method, method, of=rm))


@dataclass(frozen=True, kw_only=True)
class Asked(BeyondOptions):
    """What stage.json keeps as the options."""

    target: float


def trained(checkpoint: Checkpoint) -> Trained:
    metrics = checkpoint.info["metrics"]
    return Trained(
        method=checkpoint.stage,
        model=load_model(AutoModelForCausalLM, checkpoint.path).eval(),
        at=Point(**metrics["stopped_at"]),
        curve=[Point(**point) for point in metrics["curve"]],
        seconds=checkpoint.info["seconds"],
    )


class StopAtKL(TrainerCallback):
    """Measures the policy every few steps, keeps the weights whose KL is nearest to the target, and stops there."""

    def __init__(self, meter: Meter, target: float) -> None:
        self.meter, self.target = meter, target
        self.probe = copy.deepcopy(meter.sft)  # plain: TRL patches the policy's own forward pass
        self.curve: list[Point] = []
        self.at: Point
        self.weights: dict[str, Tensor]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.meter.options.every and state.global_step < state.max_steps:
            return
        self.probe.load_state_dict(model.state_dict())
        point = self.meter.measure(self.probe, state.global_step)
        if not self.curve or abs(point.kl - self.target) < abs(self.at.kl - self.target):
            self.at, self.weights = point, copy.deepcopy(self.probe.state_dict())
        self.curve.append(point)
        control.should_training_stop |= point.kl >= self.target


def make_trainer(
    method: Method, run_dir: Path, model: PreTrainedModel, tokenizer: Tokenizer, options: BeyondOptions,
    scratch: str, callbacks: list[TrainerCallback],
) -> Any:  # fmt: skip
    """TRL's trainer of this method, ready for `.train()`."""
    name = method.partition("_")[0]
    shared: dict[str, Any] = dict(
        output_dir=scratch, seed=options.seed, max_steps=options.steps, learning_rate=LEARNING_RATES[name],
        lr_scheduler_type="constant", beta=BETA[name], max_grad_norm=1.0, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    if name in ("dpo", "kto"):
        rankings = on_policy(run_dir)
        if method == "dpo_principles":
            rankings = ranked_by(Constitution(), rankings)
        data = preferences(rankings, options.steps * options.pairs, options.seed)
        shared |= dict(max_length=None, remove_unused_columns=False)  # a collator below needs one of these columns
        pad = tokenizer.pad_token_id
        if name == "dpo":
            trainer = DPOTrainer(
                model, args=DPOConfig(**shared, per_device_train_batch_size=options.pairs), train_dataset=data,
                processing_class=tokenizer, callbacks=callbacks, data_collator=Pairs(pad, tokenizer.eos_token_id),
            )  # fmt: skip
        else:
            trainer = KTOTrainer(
                model, args=KTOConfig(**shared, per_device_train_batch_size=options.pairs),
                train_dataset=apart(data, options.seed), processing_class=tokenizer, callbacks=callbacks,
                data_collator=Singles(pad, tokenizer.eos_token_id),
            )  # fmt: skip
        return trainer
    examples = read_prompts(PROMPTS)
    data = Dataset.from_list([{"prompt": each["prompt"], "index": at} for at, each in enumerate(examples)])
    shared |= dict(
        max_completion_length=options.max_new_tokens, temperature=options.temperature, top_k=0, top_p=1.0,
        num_generations=options.group, per_device_train_batch_size=options.samples // 4, steps_per_generation=4,
    )  # fmt: skip
    config, trainer_of = (RLOOConfig, RLOOTrainer) if name == "rloo" else (GRPOConfig, GRPOTrainer)
    trainer = trainer_of(
        model, reward_funcs=reward_of(method, run_dir, tokenizer, examples, options), args=config(**shared),
        train_dataset=data, processing_class=tokenizer, callbacks=callbacks,
    )  # fmt: skip
    for each in (trainer.model, trainer.ref_model):
        if each is not None:
            with_positions(each)
    return trainer


# --- what DPO and KTO learn from -------------------------------------------------------------------------------------


def on_policy(run_dir: Path) -> list[Ranking]:
    """The run's rankings of the SFT model's own responses.

    A response of the base and one to another prompt stand at the end of a ranking, if the options say so. A pair with
    one of them tells the reward model what a response is. DPO would spend its KL on what SFT hardly ever says.
    """
    made = load_checkpoint(run_dir / "rm", "rm").info["options"]
    others = 0 if made["rankings"] else bool(made["base"]) + made["exchange"]
    found = []
    for ranking in read_rankings(run_dir / "rm" / "rankings.jsonl"):
        own = slice(len(ranking["responses"]) - others)
        kept = {"responses": ranking["responses"][own], "ranks": ranking["ranks"][own], "ended": ended(ranking)[own]}
        found.append(cast(Ranking, ranking | kept))
    return found


def ended(ranking: Ranking) -> list[bool]:
    """Which of the responses reached their end of text."""
    return ranking.get("ended", [True] * len(ranking["responses"]))


def preferences(rankings: Sequence[Ranking], number: int, seed: int) -> Dataset:
    """`number` pairs of the rankings, or all, shuffled, in TRL's conversational preference format."""
    rows = []
    for ranking in rankings:
        finished = ended(ranking)
        for better, worse in pairs(ranking["ranks"]):
            rows.append(
                {
                    "prompt": ranking["prompt"],
                    "chosen": as_reply(ranking["responses"][better]),
                    "rejected": as_reply(ranking["responses"][worse]),
                    "ended": [finished[better], finished[worse]],
                }
            )
    return Dataset.from_list(random.Random(seed).sample(rows, min(number, len(rows))))


def apart(pairs_of: Any, seed: int) -> Dataset:
    """The same pairs torn apart, for KTO: each response alone, with a thumb up (chosen) or down (rejected)."""
    rows = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen", "ended": ended}
        for pair in pairs_of
        for side, ended in zip(("chosen", "rejected"), pair["ended"], strict=True)
    ]
    return Dataset.from_list(random.Random(seed).sample(rows, len(rows)))


def as_reply(text: str) -> Messages:
    return [{"role": "assistant", "content": text}]


class Pairs(DataCollatorForPreference):
    """As TRL's, but a truncated response has no end of text: the chat template gives every response one."""

    def __init__(self, pad_token_id: int, eos_token_id: int) -> None:
        super().__init__(pad_token_id=pad_token_id)
        self.eos_token_id = eos_token_id

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return super().torch_call(
            [
                {
                    "prompt_ids": each["prompt_ids"],
                    "chosen_ids": as_sampled(each["chosen_ids"], each["ended"][0], self.eos_token_id),
                    "rejected_ids": as_sampled(each["rejected_ids"], each["ended"][1], self.eos_token_id),
                }
                for each in examples
            ]
        )


class Singles(DataCollatorForUnpairedPreference):
    """The same for KTO. Its `KL_completion_ids` are those of the example before, the last one's for the first."""

    def __init__(self, pad_token_id: int, eos_token_id: int) -> None:
        super().__init__(pad_token_id=pad_token_id)
        self.eos_token_id = eos_token_id

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return super().torch_call(
            [
                each
                | {
                    "completion_ids": as_sampled(each["completion_ids"], each["ended"], self.eos_token_id),
                    "KL_completion_ids": as_sampled(each["KL_completion_ids"], before["ended"], self.eos_token_id),
                }
                for before, each in zip([examples[-1], *examples], examples, strict=False)
            ]
        )


def as_sampled(ids: list[int], ended: bool, eos_token_id: int) -> list[int]:
    """The tokens through the chat template, without its end of text if the response never reached one."""
    return ids if ended or ids[-1] != eos_token_id else ids[:-1]


# --- what RLOO and GRPO learn from -----------------------------------------------------------------------------------


def reward_of(
    method: Method, run_dir: Path, tokenizer: Tokenizer, examples: Sequence[Prompt], options: BeyondOptions
) -> Callable[..., list[float]]:
    """The reward as TRL calls it: by the run's reward model, or by gold."""
    if method.endswith("_gold"):

        def by_gold(index: list[int], completion_ids: list[list[int]], **_: Any) -> list[float]:
            return golds([examples[at] for at in index], to_responses(tokenizer, completion_ids))

        return by_gold

    reward_model = load_reward_model(run_dir / "rm")
    prompts = encode_prompts(tokenizer, [example["prompt"] for example in examples])

    def by_reward_model(index: list[int], completion_ids: list[list[int]], **_: Any) -> list[float]:
        responses = to_responses(tokenizer, completion_ids)
        scores = score_texts(reward_model, tokenizer, [prompts[at] for at in index], responses)
        lost = [0.0 if response.ended else options.missing_eos_penalty for response in responses]
        return [score - penalty for score, penalty in zip(scores, lost, strict=True)]

    return by_reward_model


def with_positions(model: Any) -> Any:
    """Lets the model count positions from a row's first real token. Returns the hook's handle.

    RLOO and GRPO pad prompts on the left and give the model a mask, but no positions. Those of GPT-2 are absolute, and
    transformers counts them from the padding on: without this, the log-probabilities are those of another model than
    the one that sampled. Models with rotary positions, for which TRL is made, do not notice. huggingface/trl#6800
    reports the same of three other trainers.
    """

    def count(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mask: Tensor | None = kwargs.get("attention_mask")
        if kwargs.get("position_ids") is None and mask is not None:
            kwargs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
        return args, kwargs

    return model.transformer.register_forward_pre_hook(count, with_kwargs=True)


@torch.no_grad()
def left_padded(model: Any, tokenizer: Tokenizer, prompt: Sequence[int], padding: int) -> tuple[float, float]:
    """The log-probability of the likeliest first token of a response when `padding` tokens stand before the prompt.

    As transformers' GPT-2 gives it with a mask alone, and `with_positions`.
    """
    ids = torch.tensor([[tokenizer.pad_token_id] * padding + list(prompt)])  # (1, P)
    mask = (torch.arange(ids.shape[1]) >= padding).long()[None]  # (1, P)

    def last() -> Tensor:
        return model(ids, attention_mask=mask).logits[0, -1].log_softmax(-1)  # (V,)

    without, hook = last(), with_positions(model)
    counted = last()
    hook.remove()
    token = counted.argmax()
    return without[token].item(), counted[token].item()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of datasets, and without warnings of what TRL and transformers changed."""
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        enable_progress_bars()
