"""The token microscope: what PPO saw in each token of a response, for the report and for `/why` in the chat.

    microscope = Microscope(Path("runs/default"))
    view = microscope.look(prompt, response)          # of any stage's response, or of a text of one's own
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
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.examples import Messages, Response
from rlhf_mini.core.options import load_function
from rlhf_mini.models.packing import Rows, packed
from rlhf_mini.models.sampling import encode_prompts, encode_response
from rlhf_mini.models.scoring import response_values, score_texts
from stages.ppo.losses import compute_rewards, gae, penalize_missing_eos

# What a token can be coloured by: the field of `Token`, its title, and how to read it.
MEASURES = {
    "shift": ("shift since SFT", "How much likelier PPO makes this token than SFT, in nats, at PPO's temperature."),
    "kl": ("KL", "How far PPO's whole distribution over the next token is from SFT's, in nats; never below 0."),
    "reward": ("reward", "-kl_coef times the shift; at the last token the score, too, less a penalty if it was cut."),
    "value": ("value", "What the value model expects the rest of the response to earn, before this token."),
    "advantage": ("advantage", "How much better it went from here than expected; PPO standardises it over a batch."),
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
    """KL(policy || SFT) of the two whole distributions at this place, in nats."""
    reward: float
    """-kl_coef * (logprob - ref_logprob), plus the score at the last token; in units of the score."""
    value: float
    """Of the value model, before the token."""
    advantage: float
    """GAE, not whitened."""
    instead: str
    """The token that the SFT model holds likeliest here."""
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
        self.tokenizer = AutoTokenizer.from_pretrained(ppo.path)
        self.policy, self.ref_policy = (AutoModelForCausalLM.from_pretrained(p.path).eval() for p in (ppo, sft))
        self.value_model = AutoModelForSequenceClassification.from_pretrained(ppo.path / "value_model").eval()
        self.reward = self._function if ":" in self.options["reward"] else self._model
        if self.reward == self._model:
            rm = load_checkpoint(self.options["reward"] or run_dir / "rm", "rm")
            load_checkpoint(run_dir / "ppo", "ppo", of=rm)
            self.reward_model = AutoModelForSequenceClassification.from_pretrained(rm.path).eval()

    def _model(self, prompt: Messages, response: Response) -> float:
        return score_texts(self.reward_model, self.tokenizer, [prompt], [response])[0]

    def _function(self, prompt: Messages, response: Response) -> float:
        return float(load_function(self.options["reward"], "--reward")([prompt], [response.text])[0])

    @torch.no_grad()
    def look(self, prompt: Messages, response: Response) -> View:
        """What each token of `response` did, R tokens in all. A response without ids (it came as text) is encoded.

        ValueError for a response without a token, one that was cut before it began.
        """
        tokenizer, options = self.tokenizer, self.options
        (prompt_ids,) = encode_prompts(tokenizer, [prompt])
        response_ids = response.ids or encode_response(tokenizer, response.text, response.ended)
        if not response_ids:
            raise ValueError("this response has no token to look at")
        input_ids = torch.tensor([prompt_ids + response_ids])  # (1, T)
        mask = torch.ones(1, len(response_ids), dtype=torch.bool)  # (1, R)
        targets = torch.tensor(response_ids).unsqueeze(1)  # (R, 1)

        distribution = self._log_distribution(self.policy, input_ids[0], len(response_ids))  # (R, V)
        reference = self._log_distribution(self.ref_policy, input_ids[0], len(response_ids))  # (R, V)
        logprobs, ref_logprobs = distribution.gather(1, targets).T, reference.gather(1, targets).T  # (1, R) each
        kl = (distribution.exp() * (distribution - reference)).sum(-1)  # (R,)
        likeliest = reference.max(-1)  # (R,): log-probabilities and tokens

        score = self.reward(prompt, response)
        ended = torch.tensor([response_ids[-1] == tokenizer.eos_token_id])
        penalized = penalize_missing_eos(torch.tensor([score]), ended, options["missing_eos_penalty"])  # (1,)
        rewards = compute_rewards(penalized, logprobs - ref_logprobs, mask, self.kl_coef)  # (1, R)
        values = response_values(self.value_model, input_ids, torch.ones_like(input_ids), mask)  # (1, R)
        advantages, _ = gae(rewards, values, mask, options["gamma"], options["gae_lambda"])  # (1, R)

        columns = [tokenizer.batch_decode(targets), logprobs[0].tolist(), ref_logprobs[0].tolist(), kl.tolist()]
        columns += [rewards[0].tolist(), values[0].tolist(), advantages[0].tolist()]
        columns += [tokenizer.batch_decode(likeliest.indices.unsqueeze(1)), likeliest.values.tolist()]
        return View([Token(*row) for row in zip(*columns, strict=True)], score)

    def _log_distribution(self, model: Any, ids: Tensor, response_length: int) -> Tensor:
        """log p(next token) at the temperature of training, where each response token was chosen: (R, V)."""
        end = len(ids) - 1
        with packed(model) as read:
            logits = read(ids, Rows(torch.tensor([len(ids)])), keep=torch.arange(end - response_length, end))  # (R, V)
        return (logits.float() / self.options["temperature"]).log_softmax(-1)
