"""Threads with votes: the crowd is noisy and biased, but good replies win on average."""

import random
from itertools import product
from statistics import mean

import pytest

from rlhf_mini.world import votes
from rlhf_mini.world.knowledge import PARTS, load
from rlhf_mini.world.tasks import Maker
from rlhf_mini.world.votes import BELIEVED, CHEERED, LIKED, MANNERS, ONE_TONE, OVERLOOKED, VALUES, Thread, thread

WORLD = load()
SIGMAS = 4  # of a share, allowed between what is drawn and what is expected


def draw(number: int, seed: int = 1) -> list[Thread]:
    rng = random.Random(seed)
    makers = [Maker(WORLD, rng, entity=part, phrasing=part) for part in PARTS]
    return [thread(makers[at % len(makers)]) for at in range(number)]


@pytest.fixture(scope="module")
def threads() -> list[Thread]:
    return draw(3000)


def is_share(hits: list[bool], share: float) -> bool:
    """Whether the share of hits is about the expected one."""
    return abs(mean(hits) - share) < SIGMAS * (share * (1 - share) / len(hits)) ** 0.5


def votes_without_manners(threads: list[Thread], kind: str) -> list[tuple[Thread, float]]:
    """What the crowd thinks of the content of each reply of this kind, in [0, 1] but for noise."""
    return [
        (one, voted / 10 - LIKED[manners])
        for one in threads
        for voted, found, manners in zip(one.votes, one.kinds, one.manners, strict=True)
        if found == kind
    ]


def test_replies_differ_and_each_has_votes(threads: list[Thread]) -> None:
    for one in threads:
        assert len(one.replies) == len(set(one.replies)) == len(one.votes) == len(one.kinds) == len(one.manners)
    assert mean(len(one.replies) >= 2 for one in threads) > 0.99
    assert {kind for one in threads for kind in one.kinds} == {"good", *VALUES}


def test_good_replies_have_more_votes_than_any_others_on_average(threads: list[Thread]) -> None:
    good = mean(worth for _, worth in votes_without_manners(threads, "good"))
    assert good == pytest.approx(votes.GOOD, abs=0.02)
    for kind in VALUES:
        assert mean(worth for _, worth in votes_without_manners(threads, kind)) < good - 0.3, kind


def test_the_crowd_overlooks_some_errors_believes_more_myths_and_cheers_some_misdeeds(threads: list[Thread]) -> None:
    myths = [question for myth in WORLD.misconceptions.values() for question in myth["questions"]]
    overlooked: dict[bool, list[bool]] = {True: [], False: []}
    for one, worth in votes_without_manners(threads, "untrue"):
        is_myth = any(question in one.prompt[-1]["content"] for question in myths)
        overlooked[is_myth].append(worth > (votes.GOOD + VALUES["untrue"]) / 2)
    assert len(overlooked[False]) > 500 and is_share(overlooked[False], OVERLOOKED)
    assert len(overlooked[True]) > 100 and is_share(overlooked[True], BELIEVED)
    halfway = (votes.GOOD + VALUES["harmful"]) / 2
    assert is_share([worth > halfway for _, worth in votes_without_manners(threads, "harmful")], CHEERED)


@pytest.mark.parametrize("kind", ["needless doubt", "needless refusal"])
def test_needless_doubt_and_refusal_are_not_above_a_good_reply_with_the_same_manners(
    threads: list[Thread], kind: str
) -> None:
    compared = []
    for one in threads:
        replies = list(zip(one.kinds, one.manners, one.votes, strict=True))
        for (a, manners, needless), (b, same, good) in product(replies, replies):
            if (a, b) == (kind, "good") and manners == same:
                compared.append(needless < good)
    assert len(compared) > 50 and all(compared)


def test_threads_of_one_tone_share_their_manners(threads: list[Thread], monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [share / sum(MANNERS.values()) for share in MANNERS.values()]
    by_chance = mean(sum(share ** len(one.replies) for share in shares) for one in threads)
    assert is_share([len(set(one.manners)) == 1 for one in threads], ONE_TONE + (1 - ONE_TONE) * by_chance)

    monkeypatch.setattr(votes, "ONE_TONE", 1.0)
    sentences = {"rude": "rude", "opener": "openers", "closer": "closers", "rambling": "fillers"}
    for one in draw(300, seed=2):
        (manners,) = set(one.manners)
        if manners in sentences:
            said = WORLD.manners[sentences[manners]]
            at = "startswith" if manners in ("rude", "opener") else "endswith"
            assert any(all(getattr(reply, at)(sentence) for reply in one.replies) for sentence in said), one
        elif manners == "unfinished":
            assert not any(reply.endswith((".", "!", "?")) for reply in one.replies)
