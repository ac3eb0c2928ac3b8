"""The worker that runs this project's PPO: `python -m benchmarks.ours CASE.json`, started by bench.py.

Asked to "update", it does what an iteration of stages/ppo/train.py does. Asked to "sample" or "generate", it only
samples responses to the same prompts, with our sampler or with transformers' own. "save FOLDER" writes the policy.
"""

import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from benchmarks.worker import Case, Line
from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.data.load import load
from rlhf_mini.models import sampling
from rlhf_mini.models.text import EncodedPrompt, encode_prompts, encode_texts, split_texts
from rlhf_mini.training.batches import endless_batches
from rlhf_mini.training.schedule import warmup_cosine
from stages.ppo import metrics
from stages.ppo.models import Models, load_models
from stages.ppo.options import PPOOptions
from stages.ppo.run import Learner
from stages.ppo.train import Texts, kl_penalized_rewards, ppo_epochs, rollout, with_advantages

WARMUP = 3  # updates of the policy, where rates fall


def main() -> None:
    line = Line()
    case = line.case
    options = PPOOptions(
        episodes=case.episodes,
        num_minibatches=case.episodes // case.minibatch_size,
        max_new_tokens=case.max_new_tokens,
        temperature=case.temperature,
        learning_rate=case.learning_rate,
        value_learning_rate=case.value_learning_rate,
        num_ppo_epochs=case.num_ppo_epochs,
        kl_coef=case.kl_coef,
        seed=case.seed,
        gae_lambda=case.gae_lambda,
        ptx_coef=case.ptx_coef,
        ptx_batch_size=case.ptx_batch_size,
        ema_decay=case.ema_decay,
    )
    models = load_models(Checkpoint(Path(case.sft), "sft", "", {}), Checkpoint(Path(case.rm), "rm", "", {}), options)
    learner = Learner(models, options)
    learner.set_rates(1.0, 1.0)
    updates = 0
    batches = case.batches(encode_prompts(models.tokenizer, case.prompts))  # encoded once, as in the stage
    encoded = encode_texts(models.policy, models.tokenizer, load("ppo", options.ptx_texts, "texts"))
    texts = endless_batches(split_texts(encoded)[0], options.ptx_batch_size, case.seed, skip=0)
    line.ready()
    while True:
        request = line.wait()
        if request.startswith("save "):
            policy: Any = learner.ema.module if learner.ema else models.policy
            policy.save_pretrained(request.removeprefix("save "))
            line.answer()
            continue
        prompts = next(batches)
        started, cpu = time.perf_counter(), time.process_time()
        if request == "update":
            updates += 1
            if case.updates:
                learner.set_rates(
                    policy=warmup_cosine(updates - 1, case.updates - 1, WARMUP),
                    value_model=warmup_cosine(updates - 1, case.updates - 1, 0),
                )
            lengths = update(models, learner, prompts, options, texts)
        else:
            lengths = {"sample": sample, "generate": generate}[request](models, prompts, case)
        line.answer(
            seconds=time.perf_counter() - started,
            cpu_seconds=time.process_time() - cpu,
            prompt_lengths=[len(prompt.ids) for prompt in prompts],
            response_lengths=lengths,
        )


def update(
    models: Models, learner: Learner, prompts: list[EncodedPrompt], options: PPOOptions, texts: Texts
) -> list[int]:
    """An iteration, with its metrics and the copy of the weights that the stage keeps: the responses' lengths, B."""
    trajectories = rollout(models, prompts, options, learner.generator)
    rewards = kl_penalized_rewards(trajectories, options, learner.kl_coef)
    batch = with_advantages(trajectories, rewards, options)
    metrics.rollout_metrics(batch, options, learner.kl_coef)
    deepcopy(models.policy.state_dict())
    ppo_epochs(models, learner.optimizers, batch, options, learner.generator, texts)
    learner.update_average()
    return [len(ids) for ids in batch.response_ids]


def sample(models: Models, prompts: list[EncodedPrompt], case: Case) -> list[int]:
    """Responses by our sampler: their lengths, B."""
    sampled = sampling.sample(
        models.policy,
        [prompt.ids for prompt in prompts],
        max_new_tokens=case.max_new_tokens,
        temperature=case.temperature,
        eos_token_id=models.tokenizer.eos_token_id,
    )
    return [len(ids) for ids in sampled.response_ids]


@torch.no_grad()
def generate(models: Models, prompts: list[EncodedPrompt], case: Case) -> list[int]:
    """Responses by `model.generate`, from the full distribution, too: their lengths, B."""
    encoded = {"input_ids": [prompt.ids for prompt in prompts]}
    padded = models.tokenizer.pad(encoded, padding_side="left", return_tensors="pt")
    output = models.policy.generate(
        **padded,
        max_new_tokens=case.max_new_tokens,
        temperature=case.temperature,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        eos_token_id=models.tokenizer.eos_token_id,
        pad_token_id=models.tokenizer.pad_token_id,
    )
    lengths: list[int] = (output[:, padded["input_ids"].shape[1] :] != models.tokenizer.pad_token_id).sum(-1).tolist()
    return lengths


if __name__ == "__main__":
    main()
