"""How much it counts, beside the scalar head, how likely the SFT model finds a response.

A language model of this size knows facts only in its last layer: what it would have said is clear where nothing can
compare it with what was said. So the head learns relevance, refusals and admissions from rankings, but not whether
France's capital is Paris or Lyon. The likelihood of a response under the SFT model shows it.

    score(x, y) = scalar(x, y) + likelihood_coef * mean_t log p_SFT(y_t | x, y_<t)

The coefficient is fitted on rankings, after the head was trained: a logistic regression of the order of each pair on
the differences of both features (Bradley and Terry 1952). The pairs of a ranking share the weight of one.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from rlhf_mini.core.examples import Ranking
from rlhf_mini.core.rankings import pairs
from rlhf_mini.models.scoring import mean_likelihoods, scalar_scores
from rlhf_mini.models.text import encode_prompts, encode_response

FITTED = 500  # rankings
AT_ONCE = 64  # rankings in memory


def fit_coefficient(
    reward_model: PreTrainedModel, sft_model: PreTrainedModel, tokenizer: Tokenizer, rankings: Sequence[Ranking],
    seed: int,
) -> float:  # fmt: skip
    """`likelihood_coef`, in units of the scalar per nat; 0 where likelihood does not help."""
    some = random.Random(seed).sample(list(rankings), min(FITTED, len(rankings)))
    features = [
        features_of(reward_model, sft_model, tokenizer, some[at : at + AT_ONCE]) for at in range(0, len(some), AT_ONCE)
    ]
    return coefficient([one for chunk in features for one in chunk], [ranking["ranks"] for ranking in some])


@torch.no_grad()
def features_of(
    reward_model: PreTrainedModel, sft_model: PreTrainedModel, tokenizer: Tokenizer, rankings: Sequence[Ranking]
) -> list[np.ndarray]:
    """Scalar and mean log-likelihood of each response of each ranking: (K, 2) each."""
    encoded = encode_prompts(tokenizer, [ranking["prompt"] for ranking in rankings])
    numbers = [len(ranking["responses"]) for ranking in rankings]
    prompts = [prompt.ids for prompt, number in zip(encoded, numbers, strict=True) for _ in range(number)]
    responses = [
        encode_response(tokenizer, text, ended)
        for ranking in rankings
        for text, ended in zip(ranking["responses"], ranking.get("ended", [True] * len(ranking["ranks"])), strict=True)
    ]
    scalars, likelihoods = (
        scalar_scores(reward_model, prompts, responses),
        mean_likelihoods(sft_model, prompts, responses),
    )
    both = torch.stack([scalars, likelihoods], dim=1).double().cpu().numpy()  # (M, 2)
    return np.split(both, np.cumsum(numbers)[:-1])


def coefficient(features: Sequence[np.ndarray], ranks: Sequence[Sequence[int]]) -> float:
    """The second feature's weight over the first one's. `features` (K, 2) and `ranks` (K,) of each ranking."""
    differences, weights = [], []
    for of_ranking, order in zip(features, ranks, strict=True):
        for better, worse in pairs(order):
            differences.append(of_ranking[better] - of_ranking[worse])
            weights.append(2 / (len(order) * (len(order) - 1)))
    x, w = np.array(differences), np.array(weights)  # (P, 2), (P,)
    scalar, likelihood = minimize(lambda slopes: (w * np.logaddexp(0, -x @ slopes)).sum(), np.zeros(2)).x
    return float(max(0.0, likelihood / scalar)) if scalar > 0 else 0.0
