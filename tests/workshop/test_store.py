"""What the class said stays said: one label a student and prompt, on the disk before it is acknowledged."""

import json
import secrets
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from rlhf_mini.core.examples import Response, read_rankings
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.workshop import figures
from rlhf_mini.workshop.store import Refused, Store, check_label, shuffle_of


def item(number: int, responses: int = 3) -> Any:
    prompt = [{"role": "user", "content": f"Say {number}."}]
    texts = [Response(f"{number} {n}", ended=n != 1) for n in range(responses)]
    return {"prompt": prompt, "id": f"p-{number}"}, texts, [[1, 2, 3], [1, 3, 2]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "class.sqlite")
    made.begin_round(1, [item(number) for number in range(6)], common=2)
    return made


def joined(store: Store, name: str) -> int:
    token = secrets.token_hex(20)
    store.join(name, token)
    student = store.student(token)
    assert student is not None
    return student.id


def test_a_token_joins_once_and_only_its_digest_is_kept(store: Store) -> None:
    token = "t" * 40
    store.join("Ana", token)
    store.join("Ana", token)
    student = store.student(token)
    assert student and student.nickname == "Ana" and list(store.nicknames().values()) == ["Ana"]
    assert store.student(token + "x") is None
    files = [path.read_bytes() for path in store.path.parent.iterdir()]
    assert not any(token.encode() in content for content in files)
    with pytest.raises(Refused, match="join"):
        store.join("Bo", "short")


def test_two_of_the_same_name_are_told_apart(store: Store) -> None:
    for _ in range(3):
        joined(store, "Minji")
    assert list(store.nicknames().values()) == ["Minji", "Minji 2", "Minji 3"]


@pytest.mark.parametrize("name", ["", "   ", "\x1b[2J", "a\u202eb"])
def test_a_nickname_is_printable(store: Store, name: str) -> None:
    with pytest.raises(Refused, match="nickname"):
        store.join(name, "t" * 40)


def test_common_prompts_and_own_ones_take_turns_and_coverage_is_even(store: Store) -> None:
    shown: dict[str, list[int]] = {}
    for name in ("Ana", "Bo", "Cy"):
        student = joined(store, name)
        for _ in range(4):
            found = store.next_item(student, 1)
            assert found is not None
            assert store.next_item(student, 1) == found  # a reload changes nothing
            shown.setdefault(name, []).append(found.id)
            store.label(student, found.id, "ranked", [1, 2, 3])
    assert all(of_one[::2] == [1, 2] for of_one in shown.values())
    assert sorted(own for of_one in shown.values() for own in of_one[1::2]) == [3, 3, 4, 4, 5, 6]


def test_a_round_ends_when_everything_is_ranked(store: Store) -> None:
    student = joined(store, "Ana")
    seen = set()
    while (found := store.next_item(student, 1)) is not None:
        seen.add(found.id)
        store.label(student, found.id, "skipped", [])
    assert len(seen) == 6 and store.done(student, 1) == 6 and list(store.rankings(1)) == []


def test_the_first_answer_counts(store: Store) -> None:
    student = joined(store, "Ana")
    found = store.next_item(student, 1)
    assert found is not None
    store.label(student, found.id, "ranked", [1, 2, 3])
    store.label(student, found.id, "ranked", [3, 2, 1])  # the other tab
    assert [label.ranks for label in store.labels(1)] == [[1, 2, 3]]


def test_nobody_labels_what_they_were_not_shown(store: Store) -> None:
    ana, bo = joined(store, "Ana"), joined(store, "Bo")
    store.next_item(ana, 1)
    for student, number in ((bo, 1), (ana, 5), (ana, 99), (99, 1)):
        with pytest.raises(Refused, match="not_yours"):
            store.label(student, number, "ranked", [1, 2, 3])


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [
        ("ranked", [1, 2]), ("ranked", [1, 2, 4]), ("ranked", [2, 3, 4]), ("ranked", [1, 1, 2]), ("ranked", [0, 1, 2]),
        ("ranked", [1, 2, True]), ("ranked", [1, 2, 3.0]), ("ranked", ["1", 2, 3]), ("all_bad", [1, 2, 3]),
        ("skipped", [1]), ("other", [1, 2, 3]), ("ranked", []),
    ],
)  # fmt: skip
def test_ranks_that_make_no_sense_are_refused(kind: str, ranks: list[Any]) -> None:
    with pytest.raises(Refused, match="ranks"):
        check_label(kind, ranks, 3)


@pytest.mark.parametrize(
    ("kind", "ranks"), [("ranked", [1, 1, 3]), ("ranked", [3, 1, 1]), ("all_bad", [1, 1, 1]), ("skipped", [])]
)
def test_ties_all_bad_and_skipping_are_allowed(kind: str, ranks: list[int]) -> None:
    check_label(kind, ranks, 3)


def test_each_student_sees_an_order_of_their_own() -> None:
    orders = {tuple(shuffle_of(student, 1, 4)) for student in range(50)}
    assert len(orders) > 10 and all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert shuffle_of(7, 1, 4) == shuffle_of(7, 1, 4)


def test_rankings_leave_as_the_projects_own_and_come_in_again(store: Store, tmp_path: Path) -> None:
    for name, ranks in (("Ana", [1, 2, 3]), ("Bo", [2, 1, 2])):
        student = joined(store, name)
        found = store.next_item(student, 1)
        assert found is not None
        store.label(student, found.id, "ranked", ranks)
    write_jsonl(tmp_path / "class.jsonl", list(store.rankings(1)))
    left = read_rankings(tmp_path / "class.jsonl")
    assert [(one["labeler"], one["ranks"], one["id"]) for one in left] == [
        ("Ana", [1, 2, 3], "p-0"), ("Bo", [2, 1, 2], "p-0")
    ]  # fmt: skip
    other = Store(tmp_path / "other.sqlite")
    assert other.take_in(1, left) == 2 and other.take_in(1, left) == 0
    assert list(other.rankings(1)) == list(store.rankings(1))
    for guess in ("imported: Ana", "imported Ana", "Ana"):
        assert other.student(guess) is None
    hashed = [one["labeler"] for one in store.rankings(1, hashed=True)]
    assert len(set(hashed)) == 2 and not set(hashed) & {"Ana", "Bo"}
    assert hashed == [one["labeler"] for one in store.rankings(1, hashed=True)]


def test_rounds_are_kept_apart(store: Store) -> None:
    store.begin_round(2, [item(number) for number in range(10, 13)], common=1)
    store.begin_round(2, [item(number) for number in range(20, 23)], common=1)  # a second sampler comes too late
    assert [one.responses[0] for one in store.items(2)] == ["10 0", "11 0", "12 0"] and store.setting("round") == "2"
    student = joined(store, "Ana")
    first, second = store.next_item(student, 1), store.next_item(student, 2)
    assert first and second and first.round == 1 and second.round == 2
    store.label(student, second.id, "ranked", [1, 2, 3])
    assert store.labels(1) == [] and len(store.labels(2)) == 1


def test_votes_are_counted_once(store: Store) -> None:
    store.add_duels(1, [([{"role": "user", "content": "Hi"}], "ours", "theirs")] * 2)
    student = joined(store, "Ana")
    first = store.next_duel(student, 1)
    assert first and store.next_duel(student, 1) == first
    store.vote(student, 1, first.id, 1.0)
    store.vote(student, 1, first.id, 0.0)
    second = store.next_duel(student, 1)
    assert second and second.id != first.id
    store.vote(student, 1, second.id, 0.5)
    assert store.next_duel(student, 1) is None and [ours for *_, ours in store.votes(1)] == [1.0, 0.5]
    found = figures.verdict(store.votes(1))
    assert found and found["share"] == 0.75 and found["low"] == 0.5 and found["high"] == 1.0 and found["votes"] == 2
    store.add_duels(1, [([{"role": "user", "content": "Hi"}], "new", "theirs")])
    for old in (first.id, second.id):
        with pytest.raises(Refused, match="not_yours"):  # it is no number of a new one
            store.vote(student, 1, old, 1.0)
    assert store.votes(1) == []


def test_many_threads_lose_nothing(store: Store) -> None:
    def rank(name: str) -> None:
        student = joined(store, name)
        while (found := store.next_item(student, 1)) is not None:
            store.label(student, found.id, "ranked", [1, 2, 3])

    threads = [threading.Thread(target=rank, args=(f"s{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    labels = store.labels(1)
    assert len(labels) == 8 * 6 and len({(one.student, one.item) for one in labels}) == 8 * 6


def test_what_was_acknowledged_survives_sigkill(store: Store) -> None:
    """A process labels and says so, line by line, until it is killed; each line it said is in the file."""
    store.begin_round(2, [item(number) for number in range(100, 400)], common=1)
    assert store._db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL: safe from a power cut, too
    code = f"""
from pathlib import Path
from rlhf_mini.workshop.store import Store
store = Store(Path({str(store.path)!r}))
store.join("Ana", "t" * 40)
student = store.student("t" * 40).id
while (found := store.next_item(student, 2)) is not None:
    store.label(student, found.id, "ranked", [1, 2, 3])
    print(found.id, flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    said = [int(child.stdout.readline()) for _ in range(25)]
    child.kill()
    said += [int(line) for line in child.stdout.read().split("\n") if line.strip()]
    child.wait()
    kept = {label.item for label in Store(store.path).labels(2)}
    assert set(said) <= kept and len(said) >= 25


def test_a_locked_file_is_an_error_and_no_label(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_mini.workshop.store.WAIT", 0.1)
    student = joined(store, "Ana")
    found = store.next_item(student, 1)
    assert found is not None
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    fresh = Store.__new__(Store)
    fresh.path, fresh._local = store.path, threading.local()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        fresh.label(student, found.id, "ranked", [1, 2, 3])
    other.execute("ROLLBACK")
    fresh.label(student, found.id, "ranked", [1, 2, 3])
    assert len(store.labels(1)) == 1


def test_a_full_disk_is_an_error_and_no_label(store: Store) -> None:
    student = joined(store, "Ana")
    found = store.next_item(student, 1)
    assert found is not None
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.begin_round(2, [item(number) for number in range(1000, 1200)], common=0)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        for number in range(10_000):  # labels fill the last page, too
            joined(store, f"s{number}")
    store._db.execute("PRAGMA max_page_count = 100000")
    store.label(student, found.id, "ranked", [1, 2, 3])
    assert store.items(2) == [] and store.setting("round") == "1" and len(store.labels(1)) == 1


# --- figures, by hand ------------------------------------------------------------------------------------------------


def test_the_figures_of_a_round(store: Store) -> None:
    for name, ranks in (("Ana", [1, 2, 3]), ("Bo", [1, 3, 2]), ("Cy", [1, 1, 1])):
        student = joined(store, name)
        found = store.next_item(student, 1)
        assert found is not None
        store.label(student, found.id, "all_bad" if name == "Cy" else "ranked", ranks)
    live = figures.live(store, 1)
    assert (live["labelers"], live["rankings"], live["all_bad"], live["prompts"]) == (3, 3, 1, 1)
    # Ana and Bo order A over B and A over C alike, and B and C differently; Cy ties all.
    assert live["agreement"]["share"] == pytest.approx(2 / 3) and live["agreement"]["pairs"] == 3
    # With the simulated ones, each of which agrees with one of the two on all three and with the other on two.
    assert live["with_simulated"]["share"] == pytest.approx(10 / 12)
    (split,) = live["split"]
    assert split["responses"] == [["0 1", 1], ["0 2", 1]]
    assert json.dumps(live)
