"""Measures policies against reward models and the gold score on the same prompts.

Shapes: P prompts, S samples of each.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from rlhf_mini.core.bootstrap import Estimate, mean_intervals
from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.core.console import track
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.evaluation.overopt.curves import N, best_of
from rlhf_mini.evaluation.schema import Point, Start
from rlhf_mini.models.adapters import load_model
from rlhf_mini.models.sampling import respond
from rlhf_mini.models.scoring import load_reward_model, score_texts, sequence_logprobs
from rlhf_mini.models.text import EncodedPrompt, encode_prompts, load_tokenizer
from rlhf_mini.world.gold import judge

AT_ONCE = 16  # prompts whose samples are drawn together, so that a progress bar moves


class Measurer:
    """Measures policies as gains over the SFT model."""

    def __init__(
        self,
        sft: Checkpoint,
        proxies: dict[str, Checkpoint],
        examples: Sequence[Prompt],
        *,
        best_of: int,
        responses: int,
        seed: int,
        max_new_tokens: int,
        temperature: float,
    ) -> None:
        """Samples `best_of` responses of the SFT model to each prompt, scores them by all proxies and judges them.

        Each policy will be measured on `responses` responses to each prompt.
        """
        self.examples, self.samples, self.responses, self.seed = examples, best_of, responses, seed
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.threads = torch.get_num_threads()  # they decide how sums are rounded
        self.tokenizer = load_tokenizer(sft.path)
        self.prompts = encode_prompts(self.tokenizer, [example["prompt"] for example in examples])
        self.sft = load_model(AutoModelForCausalLM, sft.path).eval()
        self.reward_models = {name: load_reward_model(proxy.path) for name, proxy in proxies.items()}
        scores: dict[str, list[float]] = {name: [] for name in proxies}
        gold: list[float] = []
        chunks = [range(start, min(start + AT_ONCE, len(examples))) for start in range(0, len(examples), AT_ONCE)]
        for number, chunk in enumerate(track(chunks, f"overopt: sampling and judging {best_of} each")):
            prompts, responses_of_sft = self._sample(self.sft, chunk, best_of, seed=seed + 1000 * number)
            for name, model in self.reward_models.items():
                scores[name] += score_texts(model, self.tokenizer, prompts, responses_of_sft)
            gold += self._judge(chunk, responses_of_sft)
        shape = len(examples), best_of  # (P, S)
        self.proxy = {name: np.array(of_model).reshape(shape) for name, of_model in scores.items()}
        self.gold = np.array(gold).reshape(shape)

    def start(self, name: str) -> Start:
        """The SFT model's means, by this proxy."""
        return Start(proxy=float(self.proxy[name].mean()), gold=float(self.gold.mean()))

    def best_of_n(self, name: str) -> list[Point]:
        """For each n its KL to the SFT model, in nats, and the gains of the best of n by the proxy.

        The KL is log n - (n - 1) / n (Gao et al. 2022, arXiv 2210.10760, section 3.1); with responses that repeat, at
        most that.
        """
        proxy, gold, points = self.proxy[name], self.gold, []
        for n in [n for n in N if n <= self.samples]:
            gains = self._gains(name, best_of(proxy, proxy, n), best_of(proxy, gold, n))
            points.append(Point(n=n, kl=math.log(n) - (n - 1) / n, **gains))
        return points

    def policy(self, folder: Path, name: str, update: int | None = None) -> Point:
        """KL in nats per response, and gains in proxy and gold, of the policy in `folder`."""
        policy, everything = load_model(AutoModelForCausalLM, folder).eval(), range(len(self.examples))
        prompts, responses = self._sample(policy, everything, self.responses, seed=self.seed)
        new, old = (
            sequence_logprobs(model, self.tokenizer, prompts, responses, self.temperature)
            for model in (policy, self.sft)
        )
        shape = len(self.examples), self.responses  # (P, responses)
        scores = np.array(score_texts(self.reward_models[name], self.tokenizer, prompts, responses))
        gold = np.array(self._judge(everything, responses))
        gains = self._gains(name, scores.reshape(shape).mean(1), gold.reshape(shape).mean(1))
        tokens = float(np.mean([len(response.ids) for response in responses]))
        return Point(update=update, kl=float(np.mean(new) - np.mean(old)), tokens=tokens, **gains)

    def _sample(self, model: Any, chunk: range, number: int, seed: int) -> tuple[list[EncodedPrompt], list[Response]]:
        """`number` responses to each prompt of the chunk, and the prompt of each."""
        prompts = [self.prompts[index] for index in chunk for _ in range(number)]
        responses = respond(
            model, self.tokenizer, prompts, max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=seed
        )
        return prompts, responses

    def _judge(self, chunk: range, responses: Sequence[Response]) -> list[float]:
        """Gold of the responses, the same number for each prompt of the chunk."""
        number = len(responses) // len(chunk)
        known: dict[tuple[int, str, bool], float] = {}  # the SFT model repeats itself
        gold = []
        for at, response in enumerate(responses):
            index = chunk[at // number]
            example, key = self.examples[index], (index, response.text, response.ended)
            if key not in known:
                known[key] = judge(example["check"], example["prompt"], response.text, response.ended).score
            gold.append(known[key])
        return gold

    def _gains(self, name: str, proxy: np.ndarray, gold: np.ndarray) -> dict[str, Any]:
        """proxy and gold (P,) minus the SFT model's mean for the same prompt: their means, and gold of each prompt."""
        columns = np.stack([proxy - self.proxy[name].mean(1), gold - self.gold.mean(1)], axis=1)  # (P, 2)
        estimates: list[Estimate] = mean_intervals(columns, self.seed)
        return dict(proxy=estimates[0], gold=estimates[1], gold_by_prompt=columns[:, 1].tolist())
