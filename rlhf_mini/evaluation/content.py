"""What the reward model reads besides manners, next to what the models it comes from know.

All of them order the same pairs, which have the same manners and different content: the reward model by its score, the
base and SFT by the log-likelihood of the response. What a model would rather say can be right where the judge that
grew out of it cannot tell.
"""

from collections.abc import Sequence

import numpy as np

from rlhf_mini.core.examples import Preference, Response
from rlhf_mini.core.rankings import accuracy
from rlhf_mini.evaluation.responses import Stage
from rlhf_mini.models.scoring import sequence_logprobs
from rlhf_mini.models.text import encode_plain
from stages.rm import content

Values = dict[str, dict[str, dict[str, np.ndarray]]]
"""By kind, part ("seen", "new") and judge ("rm", "base", "sft"): for each pair whether the chosen response comes first,
one half for a tie, and 1: (n, 2)."""


def measure(stages: dict[str, Stage], reward_model: Stage, preferences: Sequence[Preference]) -> Values:
    """Which of the pairs that fit into the context each judge orders right."""
    pairs = content.encode(reward_model.model, reward_model.tokenizer, preferences)
    judged = {
        "rm": content.scores_of(reward_model.model, reward_model.tokenizer, pairs),
        "base": logprobs_of(stages["base"], bare(pairs, stages["base"])),
        "sft": logprobs_of(stages["sft"], pairs),  # the reward model has SFT's tokenizer
    }
    values: Values = {}
    for kind in dict.fromkeys(pair.kind for pair in pairs):
        values[kind] = {}
        for part in ("seen", "new"):
            rows = [row for row, pair in enumerate(pairs) if (pair.kind, pair.part) == (kind, part)]
            right = {
                judge: [accuracy(of_judge[row], [1, 2]).right for row in rows] for judge, of_judge in judged.items()
            }
            values[kind][part] = {
                judge: np.array([[one, 1.0] for one in ones]).reshape(-1, 2) for judge, ones in right.items()
            }
    return values


def bare(pairs: Sequence[content.Pair], base: Stage) -> list[content.Pair]:
    """The pairs as the base gets them: the bare instruction, and no end of text, where it would go on."""

    def plain(response: Response) -> Response:
        (ids,) = encode_plain(base.tokenizer, [response.text])
        return Response(response.text, ended=False, ids=ids)

    prompts = base.encode([pair.prompt.messages for pair in pairs])
    return [
        pair._replace(prompt=prompt, chosen=plain(pair.chosen), rejected=plain(pair.rejected))
        for pair, prompt in zip(pairs, prompts, strict=True)
    ]


def logprobs_of(stage: Stage, pairs: Sequence[content.Pair]) -> list[tuple[float, float]]:
    """log p(response | prompt) of the chosen and the rejected response of each pair, in nats."""
    prompts = [pair.prompt for pair in pairs]
    both = [
        sequence_logprobs(stage.model, stage.tokenizer, prompts, responses)
        for responses in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    ]
    return list(zip(*both, strict=True))
