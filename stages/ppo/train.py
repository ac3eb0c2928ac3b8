"""Step 3, PPO (Ouyang et al. 2022, section 3.5 "Reinforcement learning (RL)" and appendix C.4).

    python -m stages.ppo                      # runs/default/sft + runs/default/rm -> runs/default/ppo
    python -m stages.ppo --kl_coef 0.01       # a longer leash: the score rises, the responses degenerate
    python -m stages.ppo --ptx_coef 0.3       # PPO-ptx: keeps what the base model knew of the web
    python -m stages.ppo --reward stages.ppo.rewards:short    # any function of prompts and responses

Each update samples responses to a batch of prompts, scores them with the reward model, charges every token for leaving
the SFT model, and moves policy and value model by clipped gradient steps. What to inspect (metrics.jsonl):
objective/scores rises, objective/kl stays below 15 nats, response/eos_rate near 1. docs/ppo.md: what is to get right.

Departures:
- kl_coef is 0.07, not 0.02, and there is no pretraining mix by default: both depend on the scale of score and loss.
- temperature 0.7, not 1, in sampling and in every log-probability: at 1, a model of a million parameters babbles.
- the learning rates fall along a cosine to 10 % instead of staying constant, which does without an average of the
  weights. Mean gold of three seeds on validation prompts: 0.87, constant for 45 updates 0.83, constant for 90 0.81.
- policy and value model are two networks with a learning rate each, so there is no vf_coef: Adam would cancel it.
- dropout is off throughout, and each token's log-probability is kept from when it was sampled.
Shapes: B episodes, b of one optimizer step, R response, T = prompt + response (right-padded).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from rlhf_mini.core.checkpoints import finish, load_checkpoint, writing
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Messages, read_prompts, read_texts
from rlhf_mini.core.files import MetricsLog
from rlhf_mini.core.resume import Resume, command_of
from rlhf_mini.models import sampling, scoring
from rlhf_mini.models.parallel import in_parallel
from rlhf_mini.training.schedule import warmup_cosine
from stages.ppo import losses
from stages.ppo import metrics as report
from stages.ppo.faults import Fault, Guard
from stages.ppo.models import Episodes, Learner, Models, batches, check_reward_model, load
from stages.ppo.options import PPOOptions

Scalars = dict[str, torch.Tensor]
Objective = tuple[torch.Tensor, Scalars]  # a loss, and what to log of it
Texts = Iterator[list[list[int]]]


@torch.no_grad()
def collect(
    models: Models, prompts: Sequence[Messages], options: PPOOptions, kl_coef: float, generator: torch.Generator
) -> Episodes:
    """Rollout -> scores -> rewards -> advantages, for B prompts."""
    policy, tokenizer = models.policy, models.tokenizer

    # Rollout: one response a prompt, from the full distribution.
    prompt_ids = sampling.encode_prompts(tokenizer, prompts)
    rollout = sampling.sample(
        policy, prompt_ids, max_new_tokens=options.max_new_tokens, temperature=options.temperature,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, generator=generator,
    )  # fmt: skip
    mask, logprobs = rollout.response_mask, rollout.logprobs  # (B, R)
    ended = ((rollout.response_ids == tokenizer.eos_token_id) & mask).any(-1)  # (B,)
    scores = torch.tensor(models.reward(prompts, sampling.to_responses(tokenizer, rollout)), device=mask.device)  # (B,)

    # What the SFT model and the value model as it is now say about them. The response follows its prompt directly.
    sequences = [prompt + response for prompt, response in zip(prompt_ids, rollout.token_lists(), strict=True)]
    input_ids, attention_mask = scoring.right_pad(sequences, tokenizer.pad_token_id)  # (B, T)
    inputs = (input_ids.to(mask.device), attention_mask.to(mask.device), mask)
    ref_logprobs, _ = scoring.response_logprobs(models.ref_policy, *inputs, options.temperature, options.bucket_size)
    values = scoring.response_values(models.value_model, *inputs, options.bucket_size)  # (B, R)

    # Rewards: r_t = -kl_coef * kl_t, plus the score at the last token.
    kl = losses.kl_k1(logprobs, ref_logprobs)  # (B, R)
    penalized = losses.penalize_missing_eos(scores, ended, options.missing_eos_penalty)  # (B,)
    rewards = losses.compute_rewards(penalized, kl, mask, kl_coef)  # (B, R)
    if options.whiten_rewards:
        rewards = losses.masked_whiten(rewards, mask, shift_mean=False)

    # Advantages, whitened only after the returns were taken from them.
    advantages, returns = losses.gae(rewards, values, mask, options.gamma, options.gae_lambda)  # (B, R)
    advantages = losses.masked_whiten(advantages, mask)
    return Episodes(*inputs, ended, logprobs, ref_logprobs, values, scores, rewards, advantages, returns)


def policy_objective(policy: Any, options: PPOOptions, texts: Texts, batch: Episodes) -> Objective:
    """The policy's loss on b episodes."""
    new_logprobs, entropy = scoring.response_logprobs(policy, *batch.inputs, options.temperature, options.bucket_size)
    loss, clip_fraction = losses.policy_loss(
        new_logprobs, batch.logprobs, batch.advantages, batch.response_mask, options.clip_range
    )
    scalars = {"loss/policy": loss, "policy/clip_fraction": clip_fraction}
    scalars |= report.of_step(new_logprobs, batch.logprobs, entropy, batch.response_mask)
    if options.ptx_coef > 0:  # InstructGPT's equation 2, last term: the language-model loss on the base model's texts
        scalars["loss/ptx"] = scoring.text_loss(policy, next(texts))
        loss = loss + options.ptx_coef * scalars["loss/ptx"]
    return loss, scalars


def value_objective(value_model: Any, options: PPOOptions, batch: Episodes) -> Objective:
    """The same for the value model."""
    new_values = scoring.response_values(value_model, *batch.inputs, options.bucket_size)  # (b, R)
    loss, clip_fraction = losses.value_loss(
        new_values, batch.values, batch.returns, batch.response_mask, options.clip_range_value
    )
    return loss, {"loss/value": loss, "value/clip_fraction": clip_fraction}


def descend(
    name: str, optimizer: Optimizer, objective: Callable[[Episodes], Objective], minibatches: Sequence[Episodes],
    max_grad_norm: float,
) -> list[Scalars]:  # fmt: skip
    """A step against the gradient on each minibatch. Fault, before this step, if a loss or gradient is not finite."""
    parameters, steps = optimizer.param_groups[0]["params"], []
    for batch in minibatches:
        loss, scalars = objective(batch)
        loss.backward()
        scalars[f"{name}/grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        if not all(torch.isfinite(scalar) for scalar in scalars.values()):
            raise Fault("the loss or its gradient was not a finite number")
        optimizer.step()
        optimizer.zero_grad()
        steps.append({key: scalar.detach() for key, scalar in scalars.items()})
    return steps


def learn(
    models: Models, optimizers: Sequence[Optimizer], episodes: Episodes, options: PPOOptions,
    generator: torch.Generator, texts: Texts,
) -> dict[str, float]:  # fmt: skip
    """The inner epochs: clipped steps on policy and value model. Returns the metrics, averaged over the steps."""
    orders = [torch.randperm(len(episodes), generator=generator) for _ in range(options.num_ppo_epochs)]
    minibatches = [episodes[rows] for order in orders for rows in order.split(options.minibatch_size)]
    of_policy = partial(policy_objective, models.policy, options, texts)
    of_values = partial(value_objective, models.value_model, options)
    steps = in_parallel(  # two networks that share nothing: each goes through all minibatches at its own pace
        partial(descend, "policy", optimizers[0], of_policy, minibatches, options.max_grad_norm),
        partial(descend, "value", optimizers[1], of_values, minibatches, options.max_grad_norm),
    )
    return report.of_update([policy | value for policy, value in zip(*steps, strict=True)])


def train_ppo(options: PPOOptions) -> None:
    started = time.time()
    prompts = [record["prompt"] for record in read_prompts(options.prompts)]
    sft = load_checkpoint(options.run_dir / "sft", "sft")
    rm = check_reward_model(options, sft)
    parents = [parent for parent in (sft, rm) if parent]
    models = load(sft, rm, options)
    learner, policy, tokenizer = Learner(models, options), models.policy, models.tokenizer
    sampling.check_prompt_lengths(policy, sampling.encode_prompts(tokenizer, prompts), options.max_new_tokens)
    texts, aside = report.split_texts(scoring.encode_texts(policy, tokenizer, read_texts(options.ptx_texts)))
    evaluation = report.Evaluation(models, options, aside)
    files = [options.prompts, options.validation_prompts, options.ptx_texts]
    with (
        Resume(options.run_dir, "ppo", command_of(options, files, parents), started) as resume,
        writing(options.run_dir, "ppo") as folder,
    ):
        log, metrics, done = MetricsLog(folder / "metrics.jsonl"), {}, 0
        if saved := resume.load(folder):
            learner.restore(saved)
            metrics, done = saved.state["metrics"], saved.step
        what: dict[str, Any] = dict(tokenizer=tokenizer, options=options, seed=options.seed, parents=parents)
        what |= dict(started=resume.started, metrics=metrics)
        # Where an undisturbed run would be in the data.
        prompt_batches = batches(prompts, options.episodes, options.seed, skip=done)
        text_batches = batches(texts, options.ptx_batch_size, options.seed, skip=done * options.steps)
        guard = Guard(policy, options, saved.tensors["last_good"] if saved else None, what)

        for update in range(done + 1, options.updates + 1):
            clock = time.perf_counter()
            learner.set_rates(warmup_cosine(update - 1, options.updates - 1, options.warmup_updates))
            batch = next(prompt_batches)
            try:
                episodes = collect(models, batch, options, learner.kl_coef, learner.generator)
                metrics |= report.of_rollout(episodes, options, learner.kl_coef)
                guard.check(metrics, update)
                metrics |= learn(models, learner.optimizers, episodes, options, learner.generator, text_batches)
            except Fault as fault:
                resume.remove()
                raise UserError(guard.save(fault, update)) from None
            learner.average()
            if options.kl_target > 0:
                learner.kl_coef = losses.adapt_kl_coef(
                    learner.kl_coef, metrics["objective/kl"], options.kl_target, options.kl_horizon, options.episodes
                )
            metrics["learning_rate"] = learner.optimizers[0].param_groups[0]["lr"]
            metrics["episodes_per_second"] = options.episodes / (time.perf_counter() - clock)
            log.log(update, **metrics)
            report.show(update, metrics, options, batch[0], episodes, tokenizer)
            if options.snapshot_steps and update % options.snapshot_steps == 0:
                policy.save_pretrained(folder / "snapshots" / f"{update:04d}")
            if options.save_steps and (update % options.save_steps == 0 or update == options.updates):
                tensors = learner.tensors() | {"last_good": guard.last_good}
                resume.save(folder, update, tensors, {"kl_coef": learner.kl_coef, "metrics": metrics})

        learner.take_average()
        metrics |= evaluation()
        models.value_model.save_pretrained(folder / "value_model")
        finish(folder, stage="ppo", model=policy, **what)
    console.print(f"ppo: {options.run_dir / 'ppo'} written after {time.time() - resume.started:.0f} s")
