"""The token microscope: what PPO saw in each token of a response, for the report and for `/why` in the chat.

    microscope = Microscope(Path("runs/default"))
    view = microscope.look(prompt, response)          # any stage's response, or your own text
    view.tokens[0].advantage

The numbers are those of stages/ppo/train.py, from the finished run's models: the policy after PPO, the SFT model it
started from, the reward model and the value model. They are of one response at a time, so neither rewards nor
advantages are whitened.

If PPO was trained on a function, its name is in the run's stage.json. Importing it would run code because a file says
so, which someone else may have written. So the score is NaN, and with it what depends on it, unless the user names the
same function: `Microscope(run_dir, reward="stages.ppo.rewards:short")`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_mini.core.checkpoints import Checkpoint, load_checkpoint
from rlhf_mini.core.console import UserError, printable
from rlhf_mini.core.examples import Messages, Response
from rlhf_mini.core.files import is_number
from rlhf_mini.core.options import load_function
from rlhf_mini.models.adapters import load_model
from rlhf_mini.models.forward import forward_pass
from rlhf_mini.models.rows import Rows
from rlhf_mini.models.scoring import lay_out, load_reward_model, response_values
from rlhf_mini.models.text import encode_prompts, load_tokenizer, response_ids
from stages.ppo.losses import compute_rewards, gae, kl_k1, penalize_missing_eos
from stages.ppo.options import names_function
from stages.ppo.rewards import Reward, of_function, of_model

# What a token can be coloured by: the field of `Token`, its title, and how to read it.
MEASURES = {
    "shift": (
        "log-ratio to SFT",
        "log p of this token under PPO minus log p under SFT, in nats, at the temperature PPO was trained with.",
    ),
    "kl": ("KL", "KL divergence of PPO's distribution over the next token from SFT's, in nats; never negative."),
    "reward": (
        "reward",
        "-kl_coef times the log-ratio; at the last token also the score, minus a penalty if the response is truncated.",
    ),
    "value": ("value", "What the value model expects the rest of the response to earn, before this token."),
    "advantage": ("advantage", "How much better things went from here than expected; PPO whitens it over a batch."),
}


@dataclass(frozen=True)
class Token:
    """One token of a response, its end of text included."""

    text: str
    logprob: float
    """log p(token) of the PPO policy at the temperature of its training, in nats."""
    ref_logprob: float
    """The same of the SFT model."""
    kl: float
    """KL(policy || SFT) of the full next-token distributions at this position, in nats."""
    reward: float
    """-kl_coef * (logprob - ref_logprob), plus the score at the last token; in units of the score."""
    value: float
    """Of the value model, before the token."""
    advantage: float
    """GAE, not whitened."""
    instead: str
    """The token that is most likely under the SFT model here."""
    instead_logprob: float
    """log p of that token under the SFT model."""

    @property
    def shift(self) -> float:
        """logprob - ref_logprob, in nats."""
        return self.logprob - self.ref_logprob


@dataclass(frozen=True)
class View:
    """A response under the microscope."""

    tokens: list[Token]
    score: float
    """Of what PPO was trained on, usually the reward model; NaN if that is a function that the user has not named."""


def ppo_options(ppo: Checkpoint) -> dict[str, Any]:
    """Those that the microscope computes with, from PPO's stage.json. UserError if they are not there."""
    options: dict[str, Any] = ppo.info["options"]
    numbers = ("kl_coef", "temperature", "missing_eos_penalty", "gamma", "gae_lambda")
    if not isinstance(options.get("reward"), str) or not all(is_number(options.get(n)) for n in numbers):
        raise UserError(f"{ppo.path}/stage.json lacks PPO's options, so tokens have no rewards: train it again")
    return options


class Microscope:
    """The models of a finished run that PPO worked with."""

    def __init__(self, run_dir: Path, reward: str = "") -> None:
        """Loads the models.

        Args:
            reward: the function that PPO was trained on, if it may be imported: "package.module:function".

        Raises:
            UserError: a checkpoint is missing or broken, or `reward` is not what PPO was trained on.
        """
        sft = load_checkpoint(run_dir / "sft", "sft")
        ppo = load_checkpoint(run_dir / "ppo", "ppo", of=sft)
        self.options = ppo_options(ppo)
        trained_on: str = self.options["reward"]
        if reward and reward != trained_on:
            used = printable(trained_on) if trained_on else "its reward model"
            raise UserError(f"--reward {reward} is not what this run's PPO was trained on, {used}: leave it out")
        kl_coef = ppo.info["metrics"].get("objective/kl_coef")  # where it ended
        self.kl_coef: float = kl_coef if is_number(kl_coef) else self.options["kl_coef"]
        self.note = ""
        """What to tell the user if the score is not shown."""
        self.tokenizer = load_tokenizer(ppo.path)
        self.policy, self.ref_policy = (load_model(AutoModelForCausalLM, p.path).eval() for p in (ppo, sft))
        self.value_model = load_model(AutoModelForSequenceClassification, ppo.path / "value_model").eval()
        self.reward: Reward | None = None
        if reward:
            self.reward = of_function(load_function(reward, "--reward"), reward)
        elif names_function(trained_on):
            self.note = (
                "The score, the last reward and the advantages are not shown, as they take code that this run names: "
                f"--reward {printable(trained_on)} runs it, if you trust this run."
            )
        else:
            rm = load_checkpoint(trained_on or run_dir / "rm", "rm")
            load_checkpoint(run_dir / "ppo", "ppo", of=rm)
            self.reward = of_model(load_reward_model(rm.path), self.tokenizer)

    @torch.no_grad()
    def look(self, prompt: Messages, response: Response) -> View:
        """What each of the R tokens of `response` did. A response without ids (it came as text) is encoded.

        ValueError for a response without tokens, truncated before it began.
        """
        tokenizer, options = self.tokenizer, self.options
        (encoded,) = encode_prompts(tokenizer, [prompt])
        (ids,) = response_ids(tokenizer, [response])
        if not ids:
            raise ValueError("this response has no token to look at")
        if not all(0 <= token < self.policy.config.vocab_size for token in ids):
            raise UserError("a response has tokens that the model does not have: compare the run again")
        rows, targets = Rows([len(ids)]), torch.tensor(ids).unsqueeze(1)  # (R, 1)

        distribution = self._log_distribution(self.policy, encoded.ids, ids)  # (R, V)
        reference = self._log_distribution(self.ref_policy, encoded.ids, ids)  # (R, V)
        logprobs, ref_logprobs = (each.gather(1, targets)[:, 0] for each in (distribution, reference))  # (R,) each
        kl = (distribution.exp() * (distribution - reference)).sum(-1)  # (R,)
        likeliest = reference.max(-1)  # (R,): log-probabilities and tokens

        score = self.reward([encoded], [response])[0] if self.reward else math.nan
        ended = torch.tensor([ids[-1] == tokenizer.eos_token_id])
        penalized = penalize_missing_eos(torch.tensor([score]), ended, options["missing_eos_penalty"])  # (1,)
        rewards = compute_rewards(penalized, kl_k1(logprobs, ref_logprobs), rows, self.kl_coef)  # (R,)
        values = response_values(self.value_model, [encoded.ids], [ids])  # (R,)
        advantages = gae(rewards, values, rows, options["gamma"], options["gae_lambda"]).advantages  # (R,)

        tokens = [
            Token(
                text=tokenizer.decode(ids[t]),
                logprob=logprobs[t].item(),
                ref_logprob=ref_logprobs[t].item(),
                kl=kl[t].item(),
                reward=rewards[t].item(),
                value=values[t].item(),
                advantage=advantages[t].item(),
                instead=tokenizer.decode(likeliest.indices[t]),
                instead_logprob=likeliest.values[t].item(),
            )
            for t in range(len(ids))
        ]
        return View(tokens, score)

    def _log_distribution(self, model: Any, prompt: list[int], response: list[int]) -> Tensor:
        """log p(next token) at the temperature of training, where each response token was chosen: (R, V)."""
        ids, rows, of_response = lay_out([prompt], [response], model.device)
        with forward_pass(model) as forward:
            logits = forward(ids, rows, keep=of_response - 1)  # (R, V)
        return (logits.float() / self.options["temperature"]).log_softmax(-1)
