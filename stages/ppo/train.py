"""Step 3, PPO (Ouyang et al. 2022, section 3.5 "Reinforcement learning (RL)" and appendix C.4).

    python -m stages.ppo                      # runs/default/sft + runs/default/rm -> runs/default/ppo
    python -m stages.ppo --kl_coef 0.01       # a longer leash: the score rises, the responses degenerate

Each update samples responses to a batch of prompts, scores them with the reward model, charges every token for leaving
the SFT model, and moves policy and value model by clipped gradient steps. It is a bandit: one prompt, one response, one
score. What to inspect (metrics.jsonl): objective/scores rises, objective/kl stays below 15 nats, response/eos_rate
stays near 1.

Departures:
- no pretraining gradients yet ("PPO" in the paper, not "PPO-ptx").
- kl_coef is 0.07, not 0.02: it has to fit the scale of the reward model's scores.
- temperature 0.7, not 1, in sampling and in every log-probability: at 1, a model of a million parameters babbles.
- the learning rates fall along a cosine to 10 % instead of staying constant, which does without an average of the
  weights. Mean gold of three seeds on validation prompts: 0.87, constant for 45 updates 0.83, constant for 90 0.81.
- policy and value model are two networks with a learning rate each, so there is no vf_coef: Adam would cancel it.

Dropout is off throughout, and each token's log-probability is kept from when it was sampled.
B episodes, P prompt, R response, T = prompt + response (right-padded).
"""

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from rlhf_mini import sampling, scoring
from rlhf_mini.checkpoints import check_parent, finish, save_last_good, writing
from rlhf_mini.console import MetricsLog, UserError, console
from rlhf_mini.records import read_prompts
from rlhf_mini.training import copy_weights, warmup_cosine
from stages.ppo import losses, report
from stages.ppo.models import Actor, Episodes, Models, load
from stages.ppo.options import PPOOptions


@torch.no_grad()
def collect(models: Models, prompts: Sequence[list[int]], options: PPOOptions, generator: torch.Generator) -> Episodes:
    """Rollout -> scores -> rewards -> advantages, for B encoded prompts."""
    policy, tokenizer = models.actor.policy, models.tokenizer

    # Rollout: one response a prompt, from the full distribution.
    prompt_ids, prompt_mask = sampling.left_pad(prompts, tokenizer.pad_token_id)  # (B, P)
    rollout = sampling.sample(
        policy,
        prompt_ids.to(policy.device),
        prompt_mask.to(policy.device),
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        generator=generator,
    )
    mask, logprobs = rollout.response_mask, rollout.logprobs  # (B, R)
    ended = ((rollout.response_ids == tokenizer.eos_token_id) & mask).any(-1)  # (B,)

    # From here on the response follows its prompt directly and padding comes last: less of it, and positions are right.
    sequences = [prompt + response for prompt, response in zip(prompts, rollout.token_lists(), strict=True)]
    input_ids, attention_mask = scoring.right_pad(sequences, tokenizer.pad_token_id)  # (B, T)
    inputs = (input_ids.to(policy.device), attention_mask.to(policy.device), mask)

    # What the SFT model, the value model as it is now, and the reward model say about them.
    ref_logprobs, _ = scoring.response_logprobs(models.ref_policy, *inputs, options.temperature, options.bucket_size)
    values = scoring.response_values(models.actor.value_model, *inputs, options.bucket_size)  # (B, R)
    scores = scoring.score(models.reward_model, *inputs[:2], options.bucket_size)  # (B,)

    # Rewards: r_t = -kl_coef * kl_t, plus the score at the last token.
    kl = losses.kl_k1(logprobs, ref_logprobs)  # (B, R)
    penalized = losses.penalize_missing_eos(scores, ended, options.missing_eos_penalty)  # (B,)
    rewards = losses.compute_rewards(penalized, kl, mask, options.kl_coef)  # (B, R)
    if options.whiten_rewards:
        rewards = losses.masked_whiten(rewards, mask, shift_mean=False)

    # Advantages, whitened only after the returns were taken from them.
    advantages, returns = losses.gae(rewards, values, mask, options.gamma, options.gae_lambda)  # (B, R)
    advantages = losses.masked_whiten(advantages, mask)
    return Episodes(*inputs, ended, logprobs, ref_logprobs, values, scores, rewards, advantages, returns)


def learn(
    learner: Actor,
    optimizer: Any,
    accelerator: Accelerator,
    episodes: Episodes,
    options: PPOOptions,
    generator: torch.Generator,
) -> dict[str, float]:
    """The inner epochs: clipped steps on policy and value model. Returns the metrics, averaged over the steps.

    FloatingPointError, before the weights are touched, if a loss or a gradient is not finite.
    """
    steps = []
    for _ in range(options.num_ppo_epochs):
        for rows in torch.randperm(len(episodes), generator=generator).split(options.minibatch_size):
            batch = episodes[rows.to(episodes.scores.device)]
            mask = batch.response_mask  # (b, R)
            new_logprobs, new_values, entropy = learner(batch, options.temperature, options.bucket_size)  # (b, R)

            policy_loss, clip_fraction = losses.policy_loss(
                new_logprobs, batch.logprobs, batch.advantages, mask, options.clip_range
            )
            value_loss, value_clip_fraction = losses.value_loss(
                new_values, batch.values, batch.returns, mask, options.clip_range_value
            )
            accelerator.backward(policy_loss + value_loss)  # two networks: each gets the gradient of its own loss only
            norms = [accelerator.clip_grad_norm_(g["params"], options.max_grad_norm) for g in optimizer.param_groups]
            if not all(torch.isfinite(x) for x in (policy_loss, value_loss, *norms)):
                raise FloatingPointError("the loss or its gradient was not a finite number")
            optimizer.step()
            optimizer.zero_grad()

            scalars = {
                "loss/policy": policy_loss,
                "loss/value": value_loss,
                "policy/clip_fraction": clip_fraction,
                "value/clip_fraction": value_clip_fraction,
                "policy/grad_norm": norms[0],
                "value/grad_norm": norms[1],
            }
            steps.append(scalars | report.of_step(new_logprobs, batch.logprobs, entropy, mask))
    return report.of_update(steps)


def train_ppo(options: PPOOptions) -> None:
    started = time.time()
    records, validation = read_prompts(options.prompts), read_prompts(options.validation_prompts)
    sft = check_parent(options.run_dir / "sft", "sft")
    rm = check_parent(options.run_dir / "rm", "rm", of=sft)

    accelerator = Accelerator(cpu=options.device == "cpu")
    models = load(sft, rm, accelerator.device)
    policy, value_model, tokenizer = models.actor.policy, models.actor.value_model, models.tokenizer
    prompts = sampling.encode_prompts(tokenizer, [record["prompt"] for record in records])
    kept_aside = random.Random(0).sample(validation, min(options.evaluation_prompts, len(validation)))  # for any seed
    questions = [record["prompt"] for record in kept_aside]
    encoded = prompts + sampling.encode_prompts(tokenizer, questions)
    sampling.check_prompt_lengths(policy, encoded, options.max_new_tokens)

    # Adam as in the paper (betas) and in OpenAI's code (eps).
    rates = [options.learning_rate, options.value_learning_rate]
    groups = [{"params": list(model.parameters()), "lr": 0.0} for model in (policy, value_model)]
    learner, optimizer = accelerator.prepare(models.actor, torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-5))
    generator = torch.Generator().manual_seed(options.seed + 7919 * accelerator.process_index)
    order = prompt_order(len(prompts), random.Random(options.seed))
    metrics: dict[str, Any] = {}
    what: dict[str, Any] = dict(
        tokenizer=tokenizer, options=options, seed=options.seed, started=started, parents=[sft, rm], metrics=metrics
    )

    with writing(options.run_dir, "ppo") as folder:
        log = MetricsLog(folder / "metrics.jsonl")
        last_good = copy_weights(policy)
        for update in range(1, options.updates + 1):
            clock = time.perf_counter()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * warmup_cosine(update - 1, options.updates - 1, options.warmup_updates)
            batch = [next(order) for _ in range(options.episodes)]
            try:
                episodes = collect(models, [prompts[index] for index in batch], options, generator)
                metrics |= report.of_rollout(episodes, options)
                last_good = copy_weights(policy)  # whatever the gradient will be: the rollout was finite
                metrics |= learn(learner, optimizer, accelerator, episodes, options, generator)
            except FloatingPointError as fault:
                policy.load_state_dict(last_good)
                kept = save_last_good(
                    options.run_dir, "ppo", reason=f"{fault} in update {update}", model=policy, **what
                )
                raise UserError(
                    f"{fault} in update {update}: try a lower --learning_rate (it was {options.learning_rate:g}) or "
                    f"--value_learning_rate ({options.value_learning_rate:g}); the policy from before is in {kept}"
                ) from None
            metrics["learning_rate"] = optimizer.param_groups[0]["lr"]
            metrics["episodes_per_second"] = options.episodes / (time.perf_counter() - clock)
            log.log(update, **metrics)
            report.show(update, metrics, options, records[batch[0]]["prompt"], episodes, tokenizer)

        metrics |= report.evaluate(models, questions, options)
        value_model.save_pretrained(folder / "value_model")
        finish(folder, stage="ppo", model=policy, **what)
    console.print(f"ppo: {options.run_dir / 'ppo'} written after {time.time() - started:.0f} s")


def prompt_order(count: int, rng: random.Random) -> Iterator[int]:
    """Indices of prompts without end: pass after pass over all of them, each in a new order."""
    while True:
        yield from rng.sample(range(count), count)
