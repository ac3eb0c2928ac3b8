"""What PPO works with: its models, the trajectories of a rollout, and the batch that an update learns from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_mini.core import processes
from rlhf_mini.core.checkpoints import Checkpoint, load_checkpoint
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Response
from rlhf_mini.core.options import load_function
from rlhf_mini.models.adapters import add_adapter, load_model
from rlhf_mini.models.rows import Rows
from rlhf_mini.models.scoring import load_reward_model, with_scalar_head
from rlhf_mini.models.text import EncodedPrompt, load_tokenizer
from stages.ppo.options import PPOOptions, names_function
from stages.ppo.rewards import Reward, of_function, of_model

# --- models ----------------------------------------------------------------------------------------------------------


@dataclass
class Models:
    """The two trained models, the frozen reference, and the reward."""

    policy: Any
    value_model: Any
    ref_policy: Any
    reward: Reward
    tokenizer: Any


def find_reward_model(options: PPOOptions, sft: Checkpoint) -> Checkpoint | None:
    """The reward model's checkpoint, None if the reward is a function.

    The run's own must have been trained on responses of `sft`; one that is named may come from another SFT model.
    """
    if names_function(options.reward):
        return None
    if not options.reward:
        return load_checkpoint(options.run_dir / "rm", "rm", of=sft)
    rm = load_checkpoint(options.reward, "rm")
    if rm.info["sha256"].get("tokenizer.json") != sft.info["sha256"].get("tokenizer.json"):
        raise UserError(f"the reward model in {rm.path} has another tokenizer than the SFT model: name another")
    if not any(sft.is_parent(parent) for parent in rm.info["parents"]):
        console.print(f"ppo: {rm.path} was trained on the responses of another SFT model", soft_wrap=True)
    return rm


def load_models(sft: Checkpoint, rm: Checkpoint | None, options: PPOOptions) -> Models:
    """Policy and reference from `sft`, value model and reward from `rm`, all in eval mode: no dropout, ever."""
    device = processes.begin(options.device, options.precision)
    tokenizer = load_tokenizer(sft.path)
    policy, ref_policy = (load_model(AutoModelForCausalLM, sft.path).eval().to(device) for _ in range(2))
    add_adapter(policy, options.lora_rank, sft.path, options.seed)
    if rm is None:
        value_model = with_scalar_head(sft.path, options.seed).eval()
        reward = of_function(load_function(options.reward, "--reward"), options.reward)
    else:
        value_model = load_model(AutoModelForSequenceClassification, rm.path).eval()
        reward = of_model(load_reward_model(rm.path, device), tokenizer)
    add_adapter(value_model, options.lora_rank, rm.path if rm else sft.path, options.seed)
    return Models(policy, value_model.to(device), ref_policy, reward, tokenizer)


# --- what they produce -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """The data of a rollout of B prompts: n response tokens, end to end. No gradient flows through it."""

    prompts: list[EncodedPrompt]  # B
    responses: list[Response]  # B
    rows: Rows  # where the tokens of each response are among the n
    logprobs: Tensor  # (n,) of the policy that sampled
    ref_logprobs: Tensor  # (n,) of the SFT model
    values: Tensor  # (n,) before each token
    scores: Tensor  # (B,) of the reward model

    def __len__(self) -> int:
        return len(self.responses)

    def of_all(self, mine: processes.Share[int], prompts: list[EncodedPrompt]) -> "Trajectories":
        """Those of all processes, in the order of the prompts; these are of the rows in `mine`."""
        if processes.number() == 1:
            return self
        per_token = ("logprobs", "ref_logprobs", "values")
        columns = [self.rows.split(getattr(self, name).cpu()) for name in per_token]
        both = processes.gather(mine, list(zip(self.responses, self.scores.tolist(), *columns, strict=True)))
        responses, scores, *tokens = zip(*both, strict=True)
        device = self.scores.device
        return Trajectories(
            prompts=prompts, responses=list(responses), scores=torch.tensor(scores, device=device),
            rows=Rows([len(response.ids) for response in responses], device=device),
            **{name: torch.cat(column).to(device) for name, column in zip(per_token, tokens, strict=True)},
        )  # fmt: skip

    @property
    def prompt_ids(self) -> list[list[int]]:
        return [prompt.ids for prompt in self.prompts]

    @property
    def response_ids(self) -> list[list[int]]:
        return [response.ids for response in self.responses]

    @property
    def ended(self) -> Tensor:
        """(B,) bool: the response has its end of text."""
        return torch.tensor([response.ended for response in self.responses], device=self.scores.device)


@dataclass(frozen=True, kw_only=True)
class Batch(Trajectories):
    """Trajectories with what the update learns from."""

    rewards: Tensor  # (n,)
    advantages: Tensor  # (n,) whitened
    returns: Tensor  # (n,)
    weight: float = 1.0  # what a mean over these tokens counts in that over the minibatch which the processes share

    def minibatch(self, rows: Sequence[int]) -> "Batch":
        """The trajectories at these indices; of several processes, each gets its share of them."""
        mine = processes.share(rows)
        rows = mine.items
        per_token = ("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")
        return Batch(
            prompts=[self.prompts[row] for row in rows],
            responses=[self.responses[row] for row in rows],
            rows=Rows(self.rows.lengths[list(rows)]),
            scores=self.scores[list(rows)],
            weight=mine.weight(lambda row: len(self.responses[row].ids)),
            **{name: self.rows.take(getattr(self, name), rows) for name in per_token},
        )
