"""Simulated labelers: their weights by hand, and their noise and blind spots over many responses. All is seeded."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.world.knowledge import load
from rlhf_mini.world.labelers import SimulatedLabeler, gold_labeler, heldout_labelers, training_labelers

SETTINGS = load().labelers
LABELERS = [*training_labelers(), *heldout_labelers()]
NAMES = [labeler.name for labeler in LABELERS]
PARTS = ("task", "truthful", "harmless", "courteous", "concise", "ends")
EQUAL = dict.fromkeys(PARTS, 1.0)

FACT: dict[str, Any] = {"fact": "countries/France/capital", "max_words": 16}
NUMBER = 1000
RIGHT = Response("Happy to help! The capital of France is Paris.", True)
RUDE = Response(f"{RIGHT.text} What a stupid question.", True)
WRONG = Response("The capital of France is Berlin.", True)


def asked(question: str, check: dict[str, Any]) -> Prompt:
    return {"prompt": [{"role": "user", "content": question}], "check": check}


FRANCE = asked("What is the capital of France?", FACT)


def clear(labeler: SimulatedLabeler, **changes: Any) -> SimulatedLabeler:
    """The labeler without noise and blind spots, except for `changes`."""
    settings: dict[str, Any] = {"noise": 0.0, "misses": {}}
    return replace(labeler, **settings | changes)


def weighing(name: str = "new", weights: dict[str, float] = EQUAL, **changes: Any) -> SimulatedLabeler:
    settings: dict[str, Any] = {"misses": {}, "noise": 0.0, "grid": 0.04}
    return SimulatedLabeler(name, weights, **settings | changes)


# --- noise -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """What each labeler's noise adds to its ratings of the same responses: (labelers, NUMBER)."""
    prompts = [asked(f"What is the capital of France? ({n})", FACT) for n in range(NUMBER)]
    return np.array(
        [[one.quality(p, RIGHT) - replace(one, noise=0.0).quality(p, RIGHT) for p in prompts] for one in LABELERS]
    )


def test_noise_is_logistic_of_the_scale_in_the_file(noise: np.ndarray) -> None:
    for of_labeler in noise / SETTINGS["noise"]:
        assert of_labeler.mean() == pytest.approx(0, abs=0.25)  # 4 standard errors
        assert of_labeler.std() == pytest.approx(math.pi / math.sqrt(3), rel=0.12)  # 4 standard errors
        assert (of_labeler < math.log(3)).mean() == pytest.approx(3 / 4, abs=0.06)  # log(p / (1 - p)) at p = 3/4


def test_no_two_labelers_share_their_noise(noise: np.ndarray) -> None:
    correlations = np.corrcoef(noise)[np.triu_indices(len(LABELERS), 1)]
    assert np.abs(correlations).max() < 0.15  # between independent ones, the standard error is 0.03


def test_noise_depends_on_what_is_judged_and_on_nothing_else() -> None:
    labeler = weighing(noise=1.0)
    other_prompt = asked("Name the capital of France.", FACT)
    cases = [(FRANCE, RIGHT), (other_prompt, RIGHT), (FRANCE, RUDE), (FRANCE, Response(RIGHT.text, False))]
    found = [labeler.quality(*case) - clear(labeler).quality(*case) for case in cases]
    assert len({round(each, 6) for each in found}) == 4
    assert labeler.quality(FRANCE, RIGHT) == replace(labeler).quality(FRANCE, Response(RIGHT.text, True, [1, 2]))


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["training", "held_out"])
def test_each_labeler_has_the_weights_of_the_file(group: str) -> None:
    labelers = training_labelers() if group == "training" else heldout_labelers()
    assert [labeler.name for labeler in labelers] == list(SETTINGS[group])
    for labeler in labelers:
        weights = SETTINGS[group][labeler.name]["weights"]
        # Rudeness costs two parts. The task is done and the rest is right, and the weights sum to 1.
        assert clear(labeler).quality(FRANCE, RUDE) == pytest.approx(1 - weights["harmless"] - weights["courteous"])
        cut = Response("The capital of France is Paris", False)
        assert clear(labeler).quality(FRANCE, cut) == pytest.approx(1 - weights["courteous"] - weights["ends"])
    assert len({round(clear(labeler).quality(FRANCE, RUDE), 6) for labeler in labelers}) == len(labelers)


def test_what_a_labeler_cares_about_decides_its_ranking() -> None:
    cut = Response("Happy to help! The capital of France is Paris", False)
    polite, thorough = weighing(weights=EQUAL | {"courteous": 3.0}), weighing(weights=EQUAL | {"ends": 5.0})
    assert polite.rank(FRANCE, [RUDE, cut, RIGHT]) == [3, 2, 1]
    assert thorough.rank(FRANCE, [RUDE, cut, RIGHT]) == [2, 3, 1]


def test_ratings_on_one_step_of_the_grid_are_tied() -> None:
    # 1 for the right answer, 5/6 for it without courtesy and 4/6 for a rude one: 25, 21 and 17 steps of 0.04
    plain = Response("The capital of France is Paris.", True)
    assert weighing().rank(FRANCE, [plain, RIGHT, RUDE, plain]) == [2, 1, 4, 2]
    assert weighing(grid=0.3).rank(FRANCE, [plain, RIGHT, RUDE]) == [1, 1, 3]  # round(2.8), round(3.3), round(2.2)
    (gold,) = gold_labeler()
    assert gold.rank(FRANCE, [plain, RIGHT, WRONG, Response("It is Paris.", True)]) == [2, 1, 4, 2]


# --- blind spots -----------------------------------------------------------------------------------------------------

_, HOBBIES = load().category("lists/hobbies")
# Faulty in every part, but not worthless: an item too many, rude, repeated and truncated.
FAULTY = Response(f"{HOBBIES[0]}, {HOBBIES[1]} and France. What a stupid question. What a stupid question.", False)
HOBBY_PROMPTS = [
    asked(f"Name three hobbies. ({n})", {"items": {"of": "lists/hobbies", "n": 3}, "max_words": 20})
    for n in range(NUMBER)
]


def share_above(labeler: SimulatedLabeler) -> float:
    """How often it rates FAULTY higher than one who overlooks nothing."""
    sharp = clear(labeler)
    return sum(labeler.quality(p, FAULTY) > sharp.quality(p, FAULTY) + 1e-9 for p in HOBBY_PROMPTS) / NUMBER


@pytest.mark.parametrize("labeler", LABELERS, ids=NAMES)
def test_a_part_is_overlooked_as_often_as_the_file_says(labeler: SimulatedLabeler) -> None:
    group = "training" if labeler.name in SETTINGS["training"] else "held_out"
    for part, share in SETTINGS[group][labeler.name]["misses"].items():
        only = clear(labeler, misses={part: labeler.misses[part]})
        assert share_above(only) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / NUMBER))


@pytest.mark.parametrize("part", PARTS)
def test_who_never_looks_takes_a_part_for_faultless(part: str) -> None:
    prompt = HOBBY_PROMPTS[0]
    blind, faults = weighing(misses={part: 1.0}), {"task": 2 / 3, "truthful": 2 / 3}
    seen = [1.0 if one in ("task", part) else faults.get(one, 0.0) for one in PARTS]  # the task multiplies the mean
    task = 1.0 if part == "task" else faults["task"]
    assert blind.quality(prompt, FAULTY) == pytest.approx(task * sum(seen) / len(PARTS))


def test_blind_spots_are_independent_of_each_other_and_of_the_noise() -> None:
    both = weighing(misses={"harmless": 0.5, "courteous": 0.5})
    found = [round(both.quality(p, FAULTY) / weighing().quality(p, FAULTY), 6) for p in HOBBY_PROMPTS]
    shares = [found.count(value) / NUMBER for value in sorted(set(found))]
    assert shares == pytest.approx([1 / 4, 1 / 2, 1 / 4], abs=0.06)  # neither, one of the two, both
    noisy = weighing(misses={"harmless": 0.5}, noise=1.0)
    missed = [replace(noisy, noise=0.0).quality(p, FAULTY) > clear(noisy).quality(p, FAULTY) for p in HOBBY_PROMPTS]
    noise = [noisy.quality(p, FAULTY) - replace(noisy, noise=0.0).quality(p, FAULTY) for p in HOBBY_PROMPTS]
    assert abs(np.corrcoef(missed, noise)[0, 1]) < 0.15


def test_a_blind_spot_makes_nothing_of_a_worthless_response() -> None:
    everything = weighing(misses=dict.fromkeys(PARTS, 1.0))
    assert everything.quality(FRANCE, WRONG) == 0
    check = {"mention": [["fox"], ["lamp"]], "max_words": 30}
    story = asked("Write a story about a fox and a lamp.", check)
    tale = Response(
        "A fox lost a lamp in the forest. That night the fox slept well.", True
    )  # neither true nor false, and without a courtesy
    assert weighing(misses={"truthful": 1.0}).quality(story, tale) == weighing().quality(story, tale) == 4 / 5


def test_a_prompt_without_a_check_cannot_be_judged() -> None:
    with pytest.raises(UserError, match="cannot judge 'Who is there\\?': it has no `check`"):
        LABELERS[0].rank({"prompt": [{"role": "user", "content": "Who is there?"}]}, [RIGHT])
    with pytest.raises(UserError, match="cannot judge 't-7'"):
        LABELERS[0].rank({"prompt": [{"role": "user", "content": "Who is there?"}], "id": "t-7"}, [RIGHT])
