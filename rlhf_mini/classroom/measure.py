"""What a lesson measures of policies: responses to the same prompts, judged by gold, references and a reward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import numpy as np
from transformers import AutoModelForCausalLM

from rlhf_mini.core.bootstrap import Estimate, mean_intervals
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.evaluation.responses import gold_of
from rlhf_mini.models.adapters import load_model
from rlhf_mini.models.sampling import respond
from rlhf_mini.models.scoring import sequence_logprobs
from rlhf_mini.models.text import encode_prompts, load_tokenizer
from rlhf_mini.world.references import score
from stages.ppo.rewards import Reward

Name = TypeVar("Name")
MAX_NEW_TOKENS = 48


@dataclass(frozen=True)
class Measured:
    """One policy's responses to n prompts, with what judges say of each; NaN where a judge cannot tell."""

    responses: list[Response]
    golds: list[float]
    references: list[float]
    rewards: list[float]  # NaN without a reward
    kls: list[float]  # nats from the SFT model, by one sample each

    @cached_property
    def _estimates(self) -> list[Estimate]:
        return mean_intervals(np.array([self.golds, self.references, self.rewards, self.kls]).T)

    @property
    def gold(self) -> Estimate:
        """Mean gold score with its 95 % interval over prompts."""
        return self._estimates[0]

    @property
    def reference(self) -> Estimate:
        """Mean similarity to reference answers: a second judge, which knows nothing of gold's rules."""
        return self._estimates[1]

    @property
    def reward(self) -> Estimate:
        return self._estimates[2]

    @property
    def kl(self) -> Estimate:
        return self._estimates[3]

    @property
    def length(self) -> float:
        """Mean number of tokens."""
        return mean(len(response.ids) for response in self.responses)

    @property
    def finished(self) -> float:
        """Share of the responses that end by themselves."""
        return mean(response.ended for response in self.responses)


def measure_policies(
    policies: Mapping[Name, Any], examples: Sequence[Prompt], sft: Path, reward: Reward | None = None,
    temperature: float = 0.7, seed: int = 0,
) -> dict[Name, Measured]:  # fmt: skip
    """Samples a response of each policy to each prompt, with the same draws, and judges it.

    Args:
        policies: folders of checkpoints or snapshots, or models.
        sft: the SFT checkpoint, whose tokenizer all of them share, and from which the KL is measured.
        reward: what stages.ppo.rewards makes of a reward model or of a function.
    """
    tokenizer = load_tokenizer(sft)
    prompts = encode_prompts(tokenizer, [example["prompt"] for example in examples])
    reference = load_model(AutoModelForCausalLM, sft).eval()
    found = {}
    for name, policy in policies.items():
        model = load_model(AutoModelForCausalLM, policy).eval() if isinstance(policy, Path) else policy
        responses = respond(
            model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, temperature=temperature, seed=seed
        )
        new, old = (sequence_logprobs(one, tokenizer, prompts, responses, temperature) for one in (model, reference))
        golds = map(gold_of, examples, responses)
        found[name] = Measured(
            responses=responses,
            golds=[gold.score if gold else np.nan for gold in golds],
            references=[
                score(example, response.text) if example.get("references") else np.nan
                for example, response in zip(examples, responses, strict=True)
            ],
            rewards=reward(prompts, responses) if reward else [np.nan] * len(responses),
            kls=[n - o for n, o in zip(new, old, strict=True)],
        )
    return found
