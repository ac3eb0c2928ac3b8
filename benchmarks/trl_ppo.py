"""The worker that runs TRL 1.12.0's PPOTrainer: `PYTHONPATH=.trl-1.12 python -m benchmarks.trl_ppo CASE.json`.

`train()` is one long loop, so it is held where it asks for the next batch of prompts: an update lasts from when a batch
is handed out to when the next is asked for. TRL gets what is fastest for it on a CPU: float32, no gradient checkpoints,
all responses sampled and scored in one pass, no evaluation, no saving, no tables.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.worker import TRL_ON_A_CPU, Line
from rlhf_mini.models.scoring import load_reward_model, reward_scores
from rlhf_mini.models.text import encode_prompts
from stages.ppo.options import PPOOptions

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"


class Held:
    """A dataloader that hands out a batch when bench.py asks for an update."""

    def __init__(self, line: Line, tokenizer: Any) -> None:
        self.line, self.tokenizer = line, tokenizer
        self.lengths = torch.zeros(0)  # of the responses, noted by `noting_lengths`
        self.policy: Any = None
        self.rollout_seconds = 0.0

    def __iter__(self) -> Iterator[Any]:
        self.line.ready()
        case = self.line.case
        for batch in case.batches(encode_prompts(self.tokenizer, case.prompts)):
            prompts = [prompt.ids for prompt in batch]
            while (request := self.line.wait()).startswith("save "):
                self.policy.save_pretrained(request.removeprefix("save "))
                self.line.answer()
            started, cpu = time.perf_counter(), time.process_time()
            yield self.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
            self.line.answer(
                seconds=time.perf_counter() - started,
                cpu_seconds=time.process_time() - cpu,
                rollout_seconds=self.rollout_seconds,
                prompt_lengths=[len(prompt) for prompt in prompts],
                response_lengths=self.lengths.tolist(),
            )

    def noting_lengths(self, batch_generation: Any) -> Any:
        def noting(model: Any, queries: torch.Tensor, *rest: Any) -> Any:
            started = time.perf_counter()
            query_responses, logits = batch_generation(model, queries, *rest)
            self.rollout_seconds = time.perf_counter() - started
            self.lengths = (query_responses[:, queries.shape[1] :] != self.tokenizer.pad_token_id).sum(-1)
            return query_responses, logits

        return noting


def with_reader(get_reward: Any, reward_model: Any, rm: str) -> Any:
    """TRL's `get_reward`, but the reward model's score has the likelihood of the response in it, too, as ours has."""
    whole = load_reward_model(Path(rm))

    def scores(model: Any, query_responses: torch.Tensor, pad_token_id: int, context_length: int) -> Any:
        if model is not reward_model:
            return get_reward(model, query_responses, pad_token_id, context_length)
        prompts, responses = (
            [[token for token in row if token != pad_token_id] for row in part.tolist()]
            for part in query_responses.split([context_length, query_responses.shape[1] - context_length], dim=1)
        )
        return None, reward_scores(whole, prompts, responses), None

    return scores


def main() -> None:
    line = Line()
    case = line.case
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    defaults = PPOOptions()
    np.random.seed(case.seed)  # TRL shuffles the episodes by numpy, and leaves it unseeded
    tokenizer = AutoTokenizer.from_pretrained(case.sft)
    policy, ref_policy = (AutoModelForCausalLM.from_pretrained(case.sft) for _ in range(2))
    value_model, reward_model = (AutoModelForSequenceClassification.from_pretrained(case.rm) for _ in range(2))
    held = Held(line, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder,
                **TRL_ON_A_CPU,
                total_episodes=case.episodes * (case.updates + 1 if case.updates else 1_000_000),  # bench.py ends it
                # Minibatches of 16 with a step each. With gradient accumulation, TRL would step once an epoch.
                per_device_train_batch_size=case.episodes,
                gradient_accumulation_steps=1,
                num_mini_batches=case.episodes // case.minibatch_size,
                num_ppo_epochs=case.num_ppo_epochs,
                seed=case.seed,
                local_rollout_forward_batch_size=case.local_rollout_forward_batch_size or case.episodes,
                learning_rate=case.learning_rate,
                lr_scheduler_type="linear" if case.updates else "constant",  # linear is TRL's default
                response_length=case.max_new_tokens,
                temperature=case.temperature,
                stop_token="eos",
                missing_eos_penalty=defaults.missing_eos_penalty,
                kl_coef=case.kl_coef,
                cliprange=defaults.clip_range,
                cliprange_value=defaults.clip_range_value,
                gamma=defaults.gamma,
                lam=case.gae_lambda,
            ),
            processing_class=tokenizer,
            model=policy,
            ref_model=ref_policy,
            reward_model=reward_model,
            value_model=value_model,
            train_dataset=Dataset.from_dict(
                {"input_ids": [prompt.ids for prompt in encode_prompts(tokenizer, case.prompts)]}
            ),
        )
        trainer.dataloader, held.policy = held, policy
        ppo_trainer.get_reward = with_reader(ppo_trainer.get_reward, trainer.reward_model, case.rm)
        ppo_trainer.batch_generation = held.noting_lengths(ppo_trainer.batch_generation)
        trainer.train()


if __name__ == "__main__":
    main()
