"""What `python -m rlhf_mini.evaluation.overopt` measures on a policy, best-of-n without bias, and the fits of Gao et al. 2022.

Shapes: P prompts, S samples of each, n the number chosen from.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_mini.core.bootstrap import mean_intervals
from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.core.console import track
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.evaluation.measures import Figure
from rlhf_mini.evaluation.overopt import N, OveroptOptions
from rlhf_mini.models.sampling import respond
from rlhf_mini.models.scoring import score_texts, sequence_logprobs
from rlhf_mini.world.gold import judge

AT_ONCE = 16  # prompts whose samples are drawn together, so that a progress bar moves


class Measurer:
    """Policies, measured by reward models and gold on the same prompts, as gains over the SFT model."""

    def __init__(
        self, sft: Checkpoint, proxies: dict[str, Checkpoint], records: Sequence[Prompt], options: OveroptOptions,
        ppo_options: dict[str, Any],
    ) -> None:  # fmt: skip
        """Samples `best_of` responses of the SFT model to each prompt, scores them by all proxies and judges them.

        `ppo_options`, those of the run's PPO, say how all responses are sampled.
        """
        self.records, self.options = records, options
        self.sampling = {key: ppo_options[key] for key in ("max_new_tokens", "temperature")}
        self.threads = torch.get_num_threads()
        self.tokenizer = AutoTokenizer.from_pretrained(sft.path)
        self.sft = AutoModelForCausalLM.from_pretrained(sft.path).eval()
        self.reward_models = {
            name: AutoModelForSequenceClassification.from_pretrained(proxy.path).eval()
            for name, proxy in proxies.items()
        }
        scores: dict[str, list[float]] = {name: [] for name in proxies}
        gold: list[float] = []
        chunks = [records[start : start + AT_ONCE] for start in range(0, len(records), AT_ONCE)]
        for number, chunk in enumerate(track(chunks, f"overopt: sampling and judging {options.best_of} each")):
            prompts, responses = self._sample(self.sft, chunk, options.best_of, seed=options.seed + 1000 * number)
            for name, model in self.reward_models.items():
                scores[name] += score_texts(model, self.tokenizer, prompts, responses)
            gold += self._judge(chunk, responses)
        shape = len(records), options.best_of  # (P, S)
        self.proxy = {name: np.array(of_model).reshape(shape) for name, of_model in scores.items()}
        self.gold = np.array(gold).reshape(shape)

    def start(self, name: str) -> dict[str, float]:
        """The SFT model's mean score and gold, from which all gains count."""
        return {"proxy": float(self.proxy[name].mean()), "gold": float(self.gold.mean())}

    def best_of_n(self, name: str) -> list[dict[str, Any]]:
        """For each n its KL to the SFT model, in nats, and what the best of n by the proxy is worth.

        The KL is log n - (n - 1) / n (Gao et al. 2022, arXiv 2210.10760, section 3.1); with responses that repeat, at
        most that.
        """
        proxy, gold, points = self.proxy[name], self.gold, []
        for n in [n for n in N if n <= self.options.best_of]:
            values = {"proxy": best_of(proxy, proxy, n), "gold": best_of(proxy, gold, n)}  # (P,) each
            points.append({"n": n, "kl": math.log(n) - (n - 1) / n, **self._gains(name, values)})
        return points

    def policy(self, folder: Path, name: str) -> dict[str, Any]:
        """KL in nats a response, and gains in proxy and gold, of the policy in `folder`."""
        policy, options = AutoModelForCausalLM.from_pretrained(folder).eval(), self.options
        prompts, responses = self._sample(policy, self.records, options.responses, seed=options.seed)
        new, old = (
            sequence_logprobs(model, self.tokenizer, prompts, responses, self.sampling["temperature"])
            for model in (policy, self.sft)
        )
        shape = len(self.records), options.responses
        scores = score_texts(self.reward_models[name], self.tokenizer, prompts, responses)
        values = {
            "proxy": np.array(scores).reshape(shape).mean(1),
            "gold": np.array(self._judge(self.records, responses)).reshape(shape).mean(1),
        }
        tokens = float(np.mean([len(response.ids) for response in responses]))
        return {"kl": float(np.mean(new) - np.mean(old)), "tokens": tokens, **self._gains(name, values)}

    def _sample(
        self, model: Any, records: Sequence[Prompt], number: int, seed: int
    ) -> tuple[list[Any], list[Response]]:
        """`number` responses to each prompt, and the prompt beside each."""
        prompts = [record["prompt"] for record in records for _ in range(number)]
        return prompts, respond(model, self.tokenizer, prompts, **self.sampling, seed=seed)

    def _judge(self, records: Sequence[Prompt], responses: Sequence[Response]) -> list[float]:
        """Gold of the responses, as many to each record."""
        number = len(responses) // len(records)
        known: dict[tuple[int, str, bool], float] = {}  # the SFT model repeats itself
        gold = []
        for index, response in enumerate(responses):
            record, key = records[index // number], (index // number, response.text, response.ended)
            if key not in known:
                known[key] = judge(record["check"], record["prompt"], response.text, response.ended).score
            gold.append(known[key])
        return gold

    def _gains(self, name: str, values: dict[str, np.ndarray]) -> dict[str, Any]:
        """values (P,) less the SFT model's mean for the same prompt: their means, and gold of each prompt."""
        start = {"proxy": self.proxy[name], "gold": self.gold}
        columns = np.stack([values[key] - start[key].mean(1) for key in ("proxy", "gold")], axis=1)  # (P, 2)
        figures = dict(zip(("proxy", "gold"), mean_intervals(columns, self.options.seed), strict=True))
        return figures | {"gold_by_prompt": columns[:, 1].tolist()}


def shown(point: dict[str, Any]) -> dict[str, Any]:
    """A point without gold of each prompt, which only `fall` needs."""
    return {key: value for key, value in point.items() if key != "gold_by_prompt"}


def summed_up(points: Sequence[dict[str, Any]], form: Callable[[np.ndarray], np.ndarray], seed: int) -> dict[str, Any]:
    """A curve as overopt.json has it: its points, the fall from its peak, and the fits of `form`."""
    gold_by_prompt = [point["gold_by_prompt"] for point in points]
    return {"points": [shown(p) for p in points], "fall": fall(gold_by_prompt, seed), "fit": fits(points, form)}


def fall(gold_by_prompt: Sequence[Sequence[float]], seed: int) -> Figure:
    """How much gold lies lower at the end of a curve than at its peak, in units of gold; above 0, it fell.

    The peak is looked for on every other prompt and the difference read on the others, as the highest of many noisy
    points is too high by chance. The curve begins at the SFT model, where all gains are 0.

    Args:
        gold_by_prompt: gains of each point of the curve, (P,) each.
    """
    gains = np.array(gold_by_prompt)  # (m, P)
    gains = np.concatenate([np.zeros((1, gains.shape[1])), gains])  # (1 + m, P)
    peak = gains[:, ::2].mean(1).argmax()
    return mean_intervals((gains[peak] - gains[-1])[1::2, None], seed)[0]


def best_of(proxy: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """The expected value of the response that has the highest proxy among n, without bias, for each prompt: (P,).

    Over all choices of n among the S samples of a prompt (Nakano et al. 2021, arXiv 2112.09332, appendix I): the one
    that is i-th from below is the best of its n in C(i - 1, n - 1) of C(S, n) choices. Equal proxies share their value.

    Args:
        proxy, values: (P, S).
    """
    samples = proxy.shape[1]
    logs = [
        math.lgamma(i) - math.lgamma(n) - math.lgamma(i - n + 1) if i >= n else -math.inf for i in range(1, samples + 1)
    ]
    total = math.lgamma(samples + 1) - math.lgamma(n + 1) - math.lgamma(samples - n + 1)
    chances = np.exp(np.array(logs) - total)  # (S,): C(i - 1, n - 1) / C(S, n)
    expected = []
    for of_prompt, worth in zip(proxy, values, strict=True):
        order = np.argsort(of_prompt, kind="stable")
        _, place, count = np.unique(of_prompt[order], return_inverse=True, return_counts=True)
        of_level = np.bincount(place, weights=chances) / count  # each of those that tie has an equal chance
        expected.append(float((of_level[place] * worth[order]).sum()))
    return np.array(expected)


# --- fits ------------------------------------------------------------------------------------------------------------


def best_of_n_form(d: np.ndarray) -> np.ndarray:
    """R(d) = d (a - b d): the columns that a and b multiply, (m, 2)."""
    return np.stack([d, -d * d], axis=1)


def rl_form(d: np.ndarray) -> np.ndarray:
    """R(d) = d (a - b log d): the columns that a and b multiply, (m, 2)."""
    return np.stack([d, -d * np.log(d)], axis=1)


def fits(points: Sequence[dict[str, Any]], form: Callable[[np.ndarray], np.ndarray]) -> dict[str, dict[str, float]]:
    """Least squares of proxy and gold gains on d = sqrt(KL) (Gao et al. 2022, arXiv 2210.10760, section 3.1).

    Returns:
        By "proxy" and "gold": a, b, rmse, the root mean squared error in units of the gain, and r2, the share of the
        gains' variance that the form explains: near 0 or below, it says nothing. NaN of too few points.
    """
    points = [point for point in points if point["kl"] > 1e-3]
    d = np.sqrt([point["kl"] for point in points])
    found = {}
    for key in ("proxy", "gold"):
        gains = np.array([point[key]["mean"] for point in points])
        if len(points) < 3:
            found[key] = {"a": math.nan, "b": math.nan, "rmse": math.nan, "r2": math.nan}
            continue
        columns = form(d)
        (a, b), *_ = np.linalg.lstsq(columns, gains, rcond=None)
        error = np.mean((columns @ [a, b] - gains) ** 2)
        r2 = 1 - error / gains.var() if gains.var() > 0 else math.nan
        found[key] = {"a": float(a), "b": float(b), "rmse": math.sqrt(error), "r2": float(r2)}
    return found
