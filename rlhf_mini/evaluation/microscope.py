"""The token microscope: what PPO saw in each token of a response, for the report and for `/why` in the chat.

    microscope = Microscope(Path("runs/default"))
    view = microscope.look(prompt, response)          # any stage's response, or your own text
    view.tokens[0].advantage

The numbers are those of stages/ppo/train.py, from the finished run's models: the policy after PPO, the SFT model it
started from, the reward model and the value model. They are of one response at a time, so neither rewards nor
advantages are whitened.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.examples import Messages, Response
from rlhf_mini.core.options import load_function
from rlhf_mini.models.forward import forward_pass
from rlhf_mini.models.rows import Rows
from rlhf_mini.models.scoring import lay_out, load_reward_model, response_values, score_texts
from rlhf_mini.models.text import encode_prompts, load_tokenizer, response_ids
from stages.ppo.losses import compute_rewards, gae, kl_k1, penalize_missing_eos

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
    """Of what PPO was trained on, usually the reward model."""


class Microscope:
    """The models of a finished run that PPO worked with."""

    def __init__(self, run_dir: Path) -> None:
        """UserError if a checkpoint is missing or broken, in one sentence that says what to run."""
        sft = load_checkpoint(run_dir / "sft", "sft")
        ppo = load_checkpoint(run_dir / "ppo", "ppo", of=sft)
        self.options: dict[str, Any] = ppo.info["options"]
        self.kl_coef: float = ppo.info["metrics"].get("objective/kl_coef", self.options["kl_coef"])  # where it ended
        self.tokenizer = load_tokenizer(ppo.path)
        self.policy, self.ref_policy = (AutoModelForCausalLM.from_pretrained(p.path).eval() for p in (ppo, sft))
        self.value_model = AutoModelForSequenceClassification.from_pretrained(ppo.path / "value_model").eval()
        if ":" in self.options["reward"]:
            self.reward = self._function
        else:
            self.reward = self._model
            rm = load_checkpoint(self.options["reward"] or run_dir / "rm", "rm")
            load_checkpoint(run_dir / "ppo", "ppo", of=rm)
            self.reward_model = load_reward_model(rm.path)

    def _model(self, prompt: Messages, response: Response) -> float:
        return score_texts(self.reward_model, self.tokenizer, encode_prompts(self.tokenizer, [prompt]), [response])[0]

    def _function(self, prompt: Messages, response: Response) -> float:
        return float(load_function(self.options["reward"], "--reward")([prompt], [response.text])[0])

    @torch.no_grad()
    def look(self, prompt: Messages, response: Response) -> View:
        """What each of the R tokens of `response` did. A response without ids (it came as text) is encoded.

        ValueError for a response without tokens, truncated before it began.
        """
        tokenizer, options = self.tokenizer, self.options
        (encoded,) = encode_prompts(tokenizer, [prompt])
        ids = response_ids(tokenizer, response)
        if not ids:
            raise ValueError("this response has no token to look at")
        rows, targets = Rows([len(ids)]), torch.tensor(ids).unsqueeze(1)  # (R, 1)

        distribution = self._log_distribution(self.policy, encoded.ids, ids)  # (R, V)
        reference = self._log_distribution(self.ref_policy, encoded.ids, ids)  # (R, V)
        logprobs, ref_logprobs = (each.gather(1, targets)[:, 0] for each in (distribution, reference))  # (R,) each
        kl = (distribution.exp() * (distribution - reference)).sum(-1)  # (R,)
        likeliest = reference.max(-1)  # (R,): log-probabilities and tokens

        score = self.reward(prompt, response)
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
