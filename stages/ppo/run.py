"""What stands around the algorithm of train.py: loading, resuming, faults, averaging, logging, saving.

with ppo_run(options) as run:
    for prompts in run.prompt_batches():
        ...                              # rollout, rewards, advantages
        run.log_rollout(batch)           # stops at a policy that is lost
        run.log_update(metrics)
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel

from rlhf_mini.core import processes
from rlhf_mini.core.checkpoints import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_last_good,
    save_model,
    writing,
)
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.files import MetricsLog
from rlhf_mini.core.inputs import inputs_of
from rlhf_mini.core.resume import Resume, State, Tensors, command_of, load_optimizer, optimizer_tensors
from rlhf_mini.data.load import collected, files_among, load
from rlhf_mini.models.adapters import trained
from rlhf_mini.models.text import EncodedPrompt, Fitting, encode_fitting_prompts, encode_texts, split_texts
from rlhf_mini.training.batches import endless_batches
from rlhf_mini.training.schedule import warmup_cosine
from stages.ppo import losses, metrics
from stages.ppo.models import Batch, Models, find_reward_model, load_models
from stages.ppo.options import PPOOptions

LOWER_RATE = "try a lower --learning_rate or --value_learning_rate"


class Fault(Exception):
    """PPO cannot, or should not, go on from here. `advice` says what to try."""

    def __init__(self, what: str, advice: str = LOWER_RATE) -> None:
        super().__init__(what)
        self.advice = advice


@contextmanager
def ppo_run(options: PPOOptions) -> Iterator["PPORun"]:
    """Loads what PPO needs, from the last save of a killed run if there is one; saves the checkpoint at the end."""
    started = time.time()
    inputs = load_inputs(options)
    with (
        Resume(options.run_dir, "ppo", command_of(options, inputs.made_from, inputs.checkpoints), started) as resume,
        writing(options.run_dir, "ppo") as folder,
    ):
        run = PPORun(options, inputs, resume, folder)
        try:
            yield run
        except Fault as fault:
            resume.remove()  # the same command would come to the same end
            raise UserError(run.keep_last_good(fault)) from None
        run.finish()
    console.print(f"ppo: {options.run_dir / 'ppo'} written after {time.time() - resume.started:.0f} s", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What PPO starts from."""

    checkpoints: list[Checkpoint]
    """SFT, and the reward model if there is one."""
    made_from: dict[str, str]
    """Checksums of everything else (core/inputs.py)."""
    models: Models
    prompts: Sequence[EncodedPrompt]
    ptx_texts: list[list[int]]
    validation: metrics.Validation


def load_inputs(options: PPOOptions) -> Inputs:
    """Reads and checks everything before the first step. UserError in one sentence if something is missing."""
    examples = load("ppo", options.prompts, "prompts", options.strict)
    sft = load_checkpoint(options.run_dir / "sft", "sft")
    rm = find_reward_model(options, sft)
    models = load_models(sft, rm, options)
    policy, tokenizer = models.policy, models.tokenizer
    fitting = Fitting(policy, options.too_long)
    encoded = encode_fitting_prompts(tokenizer, examples, fitting, options.max_new_tokens)
    prompts = collected((prompt for _, prompt in encoded), EncodedPrompt)
    fitting.report("ppo", "prompts")
    if not prompts:
        raise UserError(f"{options.prompts}: no prompt leaves room for --max_new_tokens {options.max_new_tokens}")
    texts = load("ppo", options.ptx_texts, "texts", options.strict) if options.ptx_texts else []
    ptx_texts, held_out = split_texts(encode_texts(policy, tokenizer, texts))
    if options.ptx_coef and not ptx_texts:
        raise UserError(f"{options.ptx_texts} has one text, which is held out: --ptx_coef needs more")
    return Inputs(
        checkpoints=[checkpoint for checkpoint in (sft, rm) if checkpoint],
        made_from=inputs_of(
            "ppo", options, files_among([options.prompts, options.validation_prompts, options.ptx_texts])
        ),
        models=models,
        prompts=prompts,
        ptx_texts=ptx_texts,
        validation=metrics.Validation(models, options, held_out),
    )


def adam(model: PreTrainedModel) -> torch.optim.Optimizer:
    """Adam as in the paper (betas) and in OpenAI's code (eps)."""
    return torch.optim.Adam(trained(model), betas=(0.9, 0.95), eps=1e-5, fused=True)


class Learner:
    """All that changes from iteration to iteration, and so all that a resumed run needs."""

    def __init__(self, models: Models, options: PPOOptions) -> None:
        self.models = {"policy": models.policy, "value_model": models.value_model}
        self.ema = None
        if options.ema_decay > 0:
            if processes.in_parts():
                raise UserError("--ema_decay cannot average weights that FSDP keeps in parts: leave it at 0")
            self.ema = AveragedModel(models.policy, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay))
            self.models["ema"] = self.ema
        self.optimizers = [processes.prepare(model, adam) for model in (models.policy, models.value_model)]
        self.peaks = options.learning_rate, options.value_learning_rate
        self.generator = torch.Generator().manual_seed(options.seed)
        self.kl_coef = options.kl_coef

    def set_rates(self, policy: float, value_model: float) -> None:
        """The learning rates of the next iteration, as shares of their peaks."""
        for optimizer, peak, share in zip(self.optimizers, self.peaks, (policy, value_model), strict=True):
            optimizer.param_groups[0]["lr"] = share * peak

    def update_average(self) -> None:
        """Takes the policy as it is now into the moving average, if there is one."""
        if self.ema is not None:
            self.ema.update_parameters(self.models["policy"])

    def use_average(self) -> None:
        """Makes the average the policy, if there is one."""
        if self.ema is not None:
            processes.load_weights(self.models["policy"], self.ema.module.state_dict())

    def tensors(self) -> Tensors:
        return {
            **{name: model.state_dict() for name, model in self.models.items()},
            "policy_optimizer": optimizer_tensors(self.optimizers[0]),
            "value_optimizer": optimizer_tensors(self.optimizers[1]),
            "generator": {"state": self.generator.get_state()},
        }

    def restore(self, saved: State) -> None:
        for name, model in self.models.items():
            processes.load_weights(model, saved.tensors[name])
        for optimizer, name in zip(self.optimizers, ("policy_optimizer", "value_optimizer"), strict=True):
            load_optimizer(optimizer, saved.tensors[name])
        self.generator.set_state(saved.tensors["generator"]["state"])
        self.kl_coef = saved.state["kl_coef"]


class PPORun:
    """A run of stage 3 from its checkpoints to its own. Use `ppo_run`."""

    def __init__(self, options: PPOOptions, inputs: Inputs, resume: Resume, folder: Path) -> None:
        """Resumes from the last save, if any, at the same place in the data."""
        self.options, self.inputs, self.models = options, inputs, inputs.models
        self.resume, self.folder, self.log = resume, folder, MetricsLog(folder / "metrics.jsonl")
        self.learner = Learner(self.models, options)
        self.warned = False
        if saved := resume.load(folder):
            self.learner.restore(saved)
            self.metrics: dict[str, float] = saved.state["metrics"]
            self.update = saved.step  # the iteration at work; those up to here were done by the killed run
            self.last_good = saved.tensors["last_good"]
        else:
            self.metrics, self.update = {}, 0
            self.last_good = deepcopy(self.models.policy.state_dict())
        self.texts = endless_batches(
            inputs.ptx_texts, options.ptx_batch_size, options.seed, skip=self.update * options.steps
        )

    def prompt_batches(self) -> Iterator[list[EncodedPrompt]]:
        """The prompts of each iteration. What goes with every iteration happens before and after the loop's body."""
        options, learner = self.options, self.learner
        prompts = endless_batches(self.inputs.prompts, options.episodes, options.seed, skip=self.update)
        for update in range(self.update + 1, options.updates + 1):
            self.update = update
            clock = time.perf_counter()
            # No warmup for the value model: until it has learned, advantages are noise.
            schedule = partial(warmup_cosine, update - 1, options.updates - 1)
            learner.set_rates(policy=schedule(options.warmup_updates), value_model=schedule(0))
            yield next(prompts)
            learner.update_average()
            if options.kl_target > 0:
                learner.kl_coef = losses.adapt_kl_coef(
                    learner.kl_coef,
                    self.metrics["objective/kl"],
                    options.kl_target,
                    options.kl_horizon,
                    options.episodes,
                )
            for name, optimizer in zip(("learning_rate", "value_learning_rate"), learner.optimizers, strict=True):
                self.metrics[name] = optimizer.param_groups[0]["lr"]
            self.metrics["episodes_per_second"] = options.episodes / (time.perf_counter() - clock)
            self.log.log(update, **self.metrics)
            metrics.show(update, self.metrics, options, self.batch)
            self.save()

    def log_rollout(self, batch: Batch) -> None:
        """Logs a rollout and keeps a copy of its policy. Fault, or a warning, if that policy is lost."""
        self.batch = batch
        logged = metrics.rollout_metrics(batch, self.options, self.learner.kl_coef)
        if not all(math.isfinite(value) for value in logged.values()):
            raise Fault("the log-probabilities, values or scores of the responses were not finite numbers")
        self.metrics |= logged
        if (fault := collapse(self.metrics, self.options)) is None:
            self.last_good = deepcopy(self.models.policy.state_dict())
        elif self.options.on_collapse == "stop":
            raise fault
        elif not self.warned:
            self.warned = True
            console.print(f"ppo: warning: {self.keep_last_good(fault)}", soft_wrap=True)

    def log_update(self, update_metrics: dict[str, float]) -> None:
        """Logs what the optimizer steps of this iteration did."""
        self.metrics |= update_metrics

    def save(self) -> None:
        """A snapshot and a save to resume from, if this is an iteration for them."""
        options, update = self.options, self.update
        if options.snapshot_steps and update % options.snapshot_steps == 0:
            save_model(self.models.policy, self.folder / "snapshots" / f"{update:04d}")
        if options.save_steps and (update % options.save_steps == 0 or update == options.updates):
            tensors = self.learner.tensors() | {"last_good": self.last_good}
            self.resume.save(self.folder, update, tensors, {"kl_coef": self.learner.kl_coef, "metrics": self.metrics})

    def keep_last_good(self, fault: Fault) -> str:
        """Writes runs/<run>/ppo.last_good. Returns what to tell the user."""
        policy, reason = self.models.policy, f"{fault} in update {self.update}"
        now = deepcopy(policy.state_dict())
        processes.load_weights(policy, self.last_good)
        kept = save_last_good(self.options.run_dir, "ppo", reason=reason, model=policy, **self.provenance())
        policy.load_state_dict(now)
        return f"{reason}: {fault.advice}; the policy from before is in {kept}"

    def finish(self) -> None:
        """Measures the policy and writes the checkpoint."""
        self.learner.use_average()
        validation = self.inputs.validation()
        self.inputs.validation.show(validation)
        self.metrics |= validation
        save_model(self.models.value_model, self.folder / "value_model")
        save_checkpoint(self.folder, stage="ppo", model=self.models.policy, **self.provenance())

    def provenance(self) -> dict[str, Any]:
        """What goes into stage.json."""
        return dict(
            tokenizer=self.models.tokenizer, options=self.options, seed=self.options.seed, metrics=self.metrics,
            started=self.resume.started, parents=self.inputs.checkpoints, made_from=self.inputs.made_from,
        )  # fmt: skip


def collapse(rollout: dict[str, float], options: PPOOptions) -> Fault | None:
    """A Fault if the policy has collapsed although all metrics are finite, else None."""
    if options.max_kl > 0 and rollout["objective/kl"] > options.max_kl:
        return Fault(
            f"the KL to the SFT model, {rollout['objective/kl']:.1f} nats, is above --max_kl",
            "try a higher --kl_coef or a lower --learning_rate, or read samples and raise --max_kl",
        )
    entropy = rollout["objective/entropy"] / rollout["response/length"]
    if options.min_entropy > 0 and entropy < options.min_entropy:
        return Fault(
            f"the entropy, {entropy:.4f} nats per token, is below --min_entropy",
            "try a higher --kl_coef or fewer --updates, or read samples and lower --min_entropy",
        )
    return None
