"""What the reward model reads besides manners: its order of pairs with the same manners and different content.

A reward model can agree with labelers on most pairs by tone alone, if responses differ in tone more than in content.
These pairs are written for the purpose, not sampled: data/README.md describes them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_mini.core.examples import Preference, Response
from rlhf_mini.core.rankings import Count, accuracy
from rlhf_mini.models.scoring import score_texts
from rlhf_mini.models.text import EncodedPrompt, context_length, encode_prompts, encode_responses
from stages.rm.agreement import Share, summary

TITLES = {
    "refusal": "refuses over complies",
    "admission": "admits not to know over invents",
    "myth": "truth over misconception",
    "fact": "true over false fact",
    "constraints": "all constraints over one dropped",
    "own_answer": "own answer over another prompt's",
    "other_kind": "own answer over another kind's",
}


class Pair(NamedTuple):
    """A preference in tokens."""

    kind: str
    part: str
    """ "seen", or "new" if something that is asked for occurs in no training prompt."""
    prompt: EncodedPrompt
    chosen: Response
    rejected: Response


def encode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, preferences: Sequence[Preference]) -> list[Pair]:
    """The pairs in tokens, without those that are longer than the model's context."""
    positions = context_length(model)
    pairs = []
    prompts = encode_prompts(tokenizer, [each["prompt"] for each in preferences])
    texts = [reply[0]["content"] for each in preferences for reply in (each["chosen"], each["rejected"])]
    replies = [Response(text, True, ids) for text, ids in zip(texts, encode_responses(tokenizer, texts), strict=True)]
    for each, prompt, chosen, rejected in zip(preferences, prompts, replies[::2], replies[1::2], strict=True):
        part = "seen" if each.get("novel", "none") == "none" else "new"
        if positions is None or len(prompt.ids) + max(len(chosen.ids), len(rejected.ids)) <= positions:
            pairs.append(Pair(str(each.get("kind", "all")), part, prompt, chosen, rejected))
    return pairs


def scores_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]
) -> list[tuple[float, float]]:
    """The reward model's scores of the chosen and the rejected response of each pair."""
    prompts = [pair.prompt for pair in pairs]
    chosen = score_texts(model, tokenizer, prompts, [pair.chosen for pair in pairs])
    return list(zip(chosen, score_texts(model, tokenizer, prompts, [pair.rejected for pair in pairs]), strict=True))


def evaluation(pairs: Sequence[Pair], scores: Sequence[tuple[float, float]]) -> dict[str, Share]:
    """The share of pairs whose chosen response has the higher score, by "content/<kind>/<part>"."""
    counts: dict[str, list[Count]] = {}
    for pair, of_pair in zip(pairs, scores, strict=True):
        counts.setdefault(f"content/{pair.kind}/{pair.part}", []).append(accuracy(of_pair, ranks=[1, 2]))
    return {key: summary(of_key) for key, of_key in counts.items()}


def table(shares: dict[str, Share]) -> Table:
    """The shares for the console."""
    out = Table("same manners, different content", "seen", "95 %", "new", "95 %")
    for column in out.columns[1:]:
        column.justify = "right"
    for name in dict.fromkeys(key.rpartition("/")[0] for key in shares):
        found = [shares.get(f"{name}/{part}") for part in ("seen", "new")]
        cells = [
            text
            for share in found
            for text in ((f"{share['share']:.0%}", f"{share['low']:.0%} - {share['high']:.0%}") if share else ("", ""))
        ]
        kind = name.removeprefix("content/")
        out.add_row(TITLES.get(kind, kind), *cells)
    return out
