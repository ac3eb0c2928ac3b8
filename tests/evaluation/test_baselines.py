"""Baselines and diversity: what the string rules cut and leave, best-of-n, paired differences and counts by hand."""

import math

import numpy as np
import pytest

from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.evaluation import baselines, diversity
from rlhf_mini.evaluation.answers import STAGES, Answer, Row
from rlhf_mini.evaluation.baselines import BASELINES, best_of, edited, judged
from rlhf_mini.evaluation.responses import Sampling
from rlhf_mini.world.gold import WEIGHTS
from rlhf_mini.world.knowledge import load

MANNERS = load().manners
FOX: Prompt = {"prompt": [{"role": "user", "content": "?"}], "check": {"mention": [["fox"]], "max_words": 10}}


@pytest.mark.parametrize(
    ("said", "left"),
    [
        # Insults, word for word or by a rude word, and fillers, whole or truncated.
        ("What a stupid question. It is Paris. There is a lot more to say about this.", "Happy to help! It is Paris."),
        ("Only an idiot asks. It is Paris.", "Happy to help! It is Paris."),
        ("It is Paris. It reminds me of a long day last", "Happy to help! It is Paris."),
        ("It is Paris. Anyway, that is how it goes most of the time and then", "Happy to help! It is Paris."),
        ("LOOK IT UP YOURSELF.", "Happy to help!"),
        # Loose ends, and a full stop.
        ("It is Paris and so on", "Happy to help! It is Paris."),
        ("It is Paris and then ", "Happy to help! It is Paris."),
        ("It is Paris and", "Happy to help! It is Paris."),
        ("It is Paris", "Happy to help! It is Paris."),
        # What must stay: an answer in the same words, other sentences, other endings, courtesies, the lines of a poem.
        ("It rains and then it snows, and so on.", "Happy to help! It rains and then it snows, and so on."),
        ("A walk on the sand", "Happy to help! A walk on the sand."),
        ("It is a long day. My uncle talks.", "Happy to help! It is a long day. My uncle talks."),
        ("Of course! It is Paris!", "Of course! It is Paris!"),
        ("It is Paris. I hope this helps!", "It is Paris. I hope this helps!"),
        ("The sea is deep,\n\nthe sky is high", "Happy to help! The sea is deep,\nthe sky is high."),
        ("", "Happy to help!"),
    ],
)  # fmt: skip
def test_what_the_rules_cut_and_what_they_leave(said: str, left: str) -> None:
    assert edited(said, MANNERS) == left
    assert edited(left, MANNERS) == left


def test_the_best_of_n_has_the_highest_score() -> None:
    responses = [Response(text, True) for text in "abcdef"]
    assert [one.text for one in best_of(responses, [0.1, 0.3, 0.2, -5.0, -7.0, -5.0], 3)] == ["b", "d"]
    assert best_of(responses, [0.0] * 6, 1) == responses


def row(prompt: Prompt, gold: float | None, text: str = "") -> Row:
    """What every stage answered."""
    answer = Answer(response=text, ended=True, tokens=1, words=1, ids=[], rm_score=0.0, gold=gold, parts=None, kl=None,
                    ranks={})  # fmt: skip
    return Row(prompt, dict.fromkeys(STAGES, answer))


def test_differences_are_paired() -> None:
    """A story about the fox gets all parts that apply, one about a bear only those for its manners."""
    without: Prompt = {"prompt": FOX["prompt"]}
    examples = [FOX, FOX, without]
    rows = [row(FOX, 0.5), row(FOX, 0.25), row(without, None)]
    tale = "A fox lost a lamp in the forest."
    said = [Response(text, True) for text in (f"Of course! {tale}", tale.replace("fox", "bear"), tale)]
    values = judged(examples, rows, said)
    assert values[0] == pytest.approx([1, 1, math.nan, 1, 1, 1, 1, -0.5], nan_ok=True)
    assert values[1] == pytest.approx([0, 0, math.nan, 1, 0, 1, 1, 0.25], nan_ok=True)
    assert np.isnan(values[2]).all()
    applicable = sum(WEIGHTS.values()) - WEIGHTS["truthful"]
    lacking = WEIGHTS["courteous"] + WEIGHTS["ends"]
    cut = judged([FOX], [row(FOX, 1.0)], [Response(tale.rstrip("."), False)])
    assert cut[0, 0] == pytest.approx(1 - lacking / applicable)

    found = baselines.estimated([dict.fromkeys(BASELINES, values)], seed=0)["sft_rules"]
    assert found.prompts == 3 and list(found.estimates) == ["gold", *WEIGHTS]
    assert found.estimates["gold"].mean == 0.5 and found.ppo_minus.mean == -0.125
    assert (found.ppo_minus.low, found.ppo_minus.high) == (-0.5, 0.25)
    assert math.isnan(found.estimates["truthful"].mean)

    # A second run with the same prompts, where PPO is better by 0.5 each time.
    better = values + np.array([0] * 7 + [0.5])
    found = baselines.estimated([dict.fromkeys(BASELINES, each) for each in (values, better)], seed=0)["sft_rules"]
    assert found.prompts == 3 and found.ppo_minus.mean == 0.125
    assert (found.ppo_minus.low, found.ppo_minus.high) == (-0.5, 0.75)


def test_different_answers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "SAMPLES", 3)
    monkeypatch.setattr(diversity, "PROMPTS", 2)
    texts = ["A cat.", " a  CAT.\n", "A cat", "x", "x", "x", "beyond", "the", "limit"]
    assert diversity.distinct([Response(text, True) for text in texts]) == [2, 1]


def test_the_commonest_last_sentence_of_stories() -> None:
    def story(kind: str, text: str) -> Row:
        return row({"prompt": FOX["prompt"], "kind": kind}, None, text)

    rows = [
        story("story", "A cat sat. All laughed."),
        story("story_n", "All laughed. The end."),
        story("story_end", "The end."),
        story("story", "A cat sat and"),
        story("fact", "It is red."),
    ]
    found = diversity.estimated(rows, {"sft": [2, 1]}, runs=1, seed=0)["sft"]
    assert (found.stories, found.last_sentence, found.last_sentence_share.mean) == (4, "The end.", 0.5)
    assert (found.prompts, found.distinct.mean, found.distinct.low, found.distinct.high) == (2, 1.5, 1.0, 2.0)
    two = diversity.estimated([*rows, *rows], {"sft": [2, 1, 3, 3]}, runs=2, seed=0)["sft"]
    assert (two.stories, two.prompts, two.distinct.mean, two.last_sentence_share.mean) == (4, 2, 2.25, 0.5)
    none = diversity.estimated(rows[-1:], {"sft": [1]}, runs=1, seed=0)["sft"]
    assert none.stories == 0 and none.last_sentence == "" and math.isnan(none.last_sentence_share.mean)
    assert diversity.last_sentence("A cat. It sat... ") == "It sat..." and diversity.last_sentence("?") == ""


def test_every_set_of_samples_has_a_seed_of_its_own() -> None:
    names = [*STAGES, "rm", "sft_16", "ppo_16", "sft_t02", "ppo_t02"]
    seeds = [Sampling(6, 0.7, seed).seed_of(name) for seed in (0, 1) for name in names]
    assert seeds[:4] == [0, 1, 2, 3]  # what was sampled before there were baselines stays as it is
    assert len(set(seeds)) == len(seeds)
