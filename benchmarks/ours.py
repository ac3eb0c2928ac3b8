"""The worker that runs this project's PPO: `python -m benchmarks.ours CASE.json`, started by bench.py.

Asked "update", it does what the loop of stages/ppo/train.py does: collect, measure, keep the weights, learn. Asked
"sample" or "generate", it only samples responses to the same prompts, by our sampler or by transformers' own.
"""

import time
from pathlib import Path

import torch

from benchmarks.worker import Case, Line
from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.core.examples import Messages
from rlhf_mini.models import sampling
from rlhf_mini.training.schedule import copy_weights
from stages.ppo import metrics as report
from stages.ppo.models import Learner, Models, load
from stages.ppo.options import PPOOptions
from stages.ppo.train import collect, learn


def main() -> None:
    line = Line()
    case = line.case
    options = PPOOptions(
        episodes=case.episodes,
        num_minibatches=case.episodes // case.minibatch_size,
        max_new_tokens=case.max_new_tokens,
        temperature=case.temperature,
        learning_rate=case.learning_rate,
        value_learning_rate=case.learning_rate,
    )
    models = load(Checkpoint(Path(case.sft), "sft", "", {}), Checkpoint(Path(case.rm), "rm", "", {}), options)
    learner = Learner(models, options)
    learner.set_rates(1.0)
    sampling.encode_prompts(models.tokenizer, case.prompts)  # beforehand, as the stage does to check their lengths
    batches = case.batches()
    line.ready()
    while True:
        request = line.wait()
        prompts = next(batches)
        started, cpu = time.perf_counter(), time.process_time()
        if request == "update":
            episodes = collect(models, prompts, options, learner.kl_coef, learner.generator)
            report.of_rollout(episodes, options, learner.kl_coef)
            copy_weights(models.policy)
            learn(models, learner.optimizers, episodes, options, learner.generator, iter(()))
            lengths = episodes.response_mask.sum(-1)
        else:
            lengths = {"sample": sample, "generate": generate}[request](models, prompts, case)
        line.answer(
            seconds=time.perf_counter() - started,
            cpu_seconds=time.process_time() - cpu,
            prompt_lengths=[len(ids) for ids in sampling.encode_prompts(models.tokenizer, prompts)],
            response_lengths=lengths.tolist(),
        )


def sample(models: Models, prompts: list[Messages], case: Case) -> torch.Tensor:
    """Responses by our sampler: their lengths (B,)."""
    rollout = sampling.sample(
        models.policy,
        sampling.encode_prompts(models.tokenizer, prompts),
        max_new_tokens=case.max_new_tokens,
        temperature=case.temperature,
        eos_token_id=models.tokenizer.eos_token_id,
        pad_token_id=models.tokenizer.pad_token_id,
    )
    return rollout.response_mask.sum(-1)


@torch.no_grad()
def generate(models: Models, prompts: list[Messages], case: Case) -> torch.Tensor:
    """Responses by `model.generate`, from the full distribution, too: their lengths (B,)."""
    encoded = sampling.encode_prompts(models.tokenizer, prompts)
    padded = models.tokenizer.pad({"input_ids": encoded}, padding_side="left", return_tensors="pt")
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
    lengths: torch.Tensor = (output[:, padded["input_ids"].shape[1] :] != models.tokenizer.pad_token_id).sum(-1)
    return lengths


if __name__ == "__main__":
    main()
