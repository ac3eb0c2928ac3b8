"""The server as a phone, a second tab, a stranger and a teacher meet it."""

import argparse
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from test_store import item

from rlhf_mini.core.texts import load_texts, read_texts, read_translated, text_problems
from rlhf_mini.workshop import app as module
from rlhf_mini.workshop.app import make_app
from rlhf_mini.workshop.beside import last_line
from rlhf_mini.workshop.store import Store

CODE, SECRET, ADDRESS = "abc234", "secret-of-the-teacher", "http://127.0.0.1:8000"
TEXTS = Path(module.__file__).parent / "texts"
EVIL = "<script>alert(1)</script>"

Connect = Callable[..., TestClient]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "class.sqlite")
    made.begin_round(1, [item(number) for number in range(12)], common=3)
    return made


@pytest.fixture
def connect(store: Store, tmp_path: Path) -> Iterator[Connect]:
    """A new phone each time."""
    options = argparse.Namespace(
        host="127.0.0.1", run="r", runs_dir=tmp_path, language="en", name="ours", prompts=12, common=3, responses=3
    )
    app = make_app(store, options, CODE, SECRET, ADDRESS)
    yield lambda **more: TestClient(app, base_url=ADDRESS, **more)


def join(client: TestClient, nickname: str = "Ana") -> TestClient:
    body = {"nickname": nickname, "token": secrets.token_hex(20)}
    assert client.post(f"/{CODE}/join", json=body).json() == {"ok": True}
    return client


def enter(client: TestClient) -> TestClient:
    assert client.get(f"/teacher/{SECRET}").url.path == "/teacher/"
    return client


def test_a_phone_joins_ranks_and_goes_on_after_a_reload(connect: Connect, store: Store) -> None:
    phone = connect()
    assert phone.get(f"/{CODE}/next").json() == {"join": True}
    join(phone)
    cookie = phone.cookies.jar
    assert all(one.path == f"/{CODE}" for one in cookie)
    first = phone.get(f"/{CODE}/next").json()
    assert phone.get(f"/{CODE}/next").json() == first and len(first["responses"]) == 3
    best = first["responses"].index("0 2")  # its third response, wherever it is shown
    ranks = [1 if place == best else 2 for place in range(3)]
    assert phone.post(f"/{CODE}/label", json={"item": first["item"], "kind": "ranked", "ranks": ranks}).json()["ok"]
    assert [label.ranks for label in store.labels(1)] == [[2, 2, 1]]  # in the order of the item
    second = phone.get(f"/{CODE}/next").json()
    assert second["item"] != first["item"] and second["done"] == 1


def test_two_tabs_of_one_phone_are_one_student(connect: Connect, store: Store) -> None:
    phone = join(connect())
    task = phone.get(f"/{CODE}/next").json()
    body = {"item": task["item"], "kind": "ranked", "ranks": [1, 2, 3]}
    assert phone.post(f"/{CODE}/label", json=body).json() == phone.post(f"/{CODE}/label", json=body).json()
    assert phone.post(f"/{CODE}/join", json={"nickname": "Ana again"}).json() == {"ok": True}
    assert len(store.nicknames()) == 1 and len(store.labels(1)) == 1


def test_one_student_never_acts_for_another(connect: Connect, store: Store) -> None:
    ana, bo = join(connect()), join(connect(), "Bo")
    task = ana.get(f"/{CODE}/next").json()
    answer = bo.post(f"/{CODE}/label", json={"item": task["item"], "kind": "ranked", "ranks": [1, 2, 3]})
    assert answer.status_code == 400 and "not yours" in answer.json()["error"]
    forged = connect(cookies={"labeler": "forged"})
    assert forged.get(f"/{CODE}/next").json() == {"join": True}
    assert forged.post(f"/{CODE}/label", json={"item": 1, "kind": "skipped", "ranks": []}).status_code == 401
    assert store.labels(1) == []


@pytest.mark.parametrize(
    "body",
    [
        {}, {"item": 1}, [1], "x", {"item": "1", "kind": "ranked", "ranks": [1, 2, 3]},
        {"item": 1, "kind": "ranked", "ranks": "123"},
        {"item": 1, "kind": "ranked", "ranks": [1] * 10}, {"item": 1, "kind": ["ranked"], "ranks": [1, 2, 3]},
        {"item": 1, "kind": "ranked", "ranks": [1, None, 3]}, {"item": 10**30, "kind": "skipped", "ranks": []},
    ],
)  # fmt: skip
def test_nonsense_is_refused_in_a_sentence(connect: Connect, store: Store, body: Any) -> None:
    phone = join(connect())
    phone.get(f"/{CODE}/next")
    answer = phone.post(f"/{CODE}/label", json=body)
    assert answer.status_code == 400 and answer.json()["error"] and store.labels(1) == []


def test_much_is_too_much(connect: Connect) -> None:
    answer = connect().post(f"/{CODE}/join", json={"nickname": "x" * 100_000})
    assert answer.status_code == 413
    assert connect().post(f"/{CODE}/join", content=b"[" * 3000).status_code == 400


def test_without_code_or_secret_there_is_nothing(connect: Connect) -> None:
    client = connect()
    for path in ("/", "/wrong1/", "/teacher/", f"/teacher/{SECRET}x", "/teacher/state", "/docs", "/static/"):
        assert client.get(path).status_code == 404, path
    assert client.get("/static/../app.py").status_code == 404
    assert client.post("/teacher/do", json={"what": "vote"}).status_code == 404


def test_another_site_cannot_post_and_another_name_finds_nothing(connect: Connect, store: Store) -> None:
    client = connect()
    evil = client.post(f"/{CODE}/join", json={"nickname": "E"}, headers={"Origin": "http://evil.example"})
    assert evil.status_code == 404 and store.nicknames() == {}
    assert client.get(f"/{CODE}/", headers={"Host": "evil.example:8000"}).status_code == 404  # DNS rebinding
    fine = client.post(f"/{CODE}/join", json={"nickname": "E", "token": "t" * 40}, headers={"Origin": ADDRESS})
    assert fine.status_code == 200


def test_every_answer_forbids_everything_foreign(connect: Connect) -> None:
    client = enter(connect())
    for path in (f"/{CODE}/", "/teacher/", "/teacher/state", "/static/student.js"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
    page = client.get("/teacher/").text
    assert SECRET not in page
    assert not re.search(r'(src|href)="https?://', page) and "onclick" not in page


def test_the_disk_and_the_lock_are_told_and_the_phone_may_send_again(
    connect: Connect, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = join(connect())
    task = phone.get(f"/{CODE}/next").json()
    body = {"item": task["item"], "kind": "ranked", "ranks": [1, 2, 3]}
    label = Store.label
    for fault, said in (("database or disk is full", "disk is full"), ("database is locked", "busy")):

        def fail(*_: Any, fault: str = fault) -> None:
            raise sqlite3.OperationalError(fault)

        monkeypatch.setattr(Store, "label", fail)
        answer = phone.post(f"/{CODE}/label", json=body)
        assert answer.status_code == 503 and said in answer.json()["error"] and answer.headers["retry-after"]
    monkeypatch.setattr(Store, "label", label)
    assert phone.post(f"/{CODE}/label", json=body).status_code == 200 and len(store.labels(1)) == 1


def test_in_korean_for_a_korean_phone(connect: Connect) -> None:
    korean = load_texts(TEXTS, "ko")
    page = connect(headers={"Accept-Language": "ko-KR,ko;q=0.9"}).get(f"/{CODE}/").text
    assert '<html lang="ko">' in page and korean("student.how") in page
    assert load_texts(TEXTS, "en")("student.how") in connect().get(f"/{CODE}/").text
    assert text_problems(read_texts(TEXTS / "en.yaml"), read_translated(TEXTS / "ko.yaml")) == []


def test_the_teacher_sees_figures_opens_the_vote_and_takes_the_rankings(connect: Connect, store: Store) -> None:
    phone, teacher = join(connect()), enter(connect())
    task = phone.get(f"/{CODE}/next").json()
    phone.post(f"/{CODE}/label", json={"item": task["item"], "kind": "ranked", "ranks": [1, 2, 3]})
    state = teacher.get("/teacher/state").json()
    assert (state["students"], state["rankings"], state["phase"]) == ([[1, "Ana"]], 1, "rank")
    assert len(teacher.get("/teacher/rankings.jsonl").text.splitlines()) == 1
    assert "Ana" not in teacher.get("/teacher/rankings.jsonl?hashed=1").text
    assert "Train on the rankings" in teacher.post("/teacher/do", json={"what": "vote"}).json()["error"]
    store.add_duels(1, [([{"role": "user", "content": "Hi"}], "ours", "theirs")])
    assert teacher.post("/teacher/do", json={"what": "vote"}).status_code == 200
    duel = phone.get(f"/{CODE}/next").json()
    choice = ["first", "second"][duel["responses"].index("ours")]
    for wrong in (0, 1.0, None, "third"):
        assert phone.post(f"/{CODE}/vote", json={"duel": duel["duel"], "choice": wrong}).status_code == 400
    assert phone.post(f"/{CODE}/vote", json={"duel": duel["duel"], "choice": choice}).status_code == 200
    state = teacher.get("/teacher/state").json()
    assert state["votes"]["share"] == 1.0
    (duel,) = state["duels"]
    assert (duel["ours"], duel["theirs"]) == (["ours", 1.0], ["theirs", 0.0])
    assert "wait" in phone.get(f"/{CODE}/next").json()
    assert teacher.post("/teacher/do", json={"what": "dance"}).status_code == 400
    assert "Train on the rankings" in teacher.post("/teacher/do", json={"what": "round"}).json()["error"]


def test_a_nickname_can_be_hidden_everywhere(connect: Connect, store: Store) -> None:
    join(connect(), "Rude")
    teacher = enter(connect())
    store.set_training(1, "r-ours-1", "fresh", {"others": {"each": {"1": None}}})
    assert teacher.post("/teacher/do", json={"what": "hide", "student": 1}).status_code == 200
    text = teacher.get("/teacher/state").text
    assert "Rude" not in text and text.count('"no. 1"') == 2
    for nobody in (2, -1, "1", None):
        assert teacher.post("/teacher/do", json={"what": "hide", "student": nobody}).status_code == 400


def test_an_earlier_round_can_be_looked_at(connect: Connect, store: Store) -> None:
    teacher = enter(connect())
    store.begin_round(2, [item(number) for number in range(5)], common=3)
    asked = {"": 2, "?round=1": 1, "?round=3": 2, "?round=x": 2}
    assert {query: teacher.get(f"/teacher/state{query}").json()["round"] for query in asked} == asked


def test_the_page_shows_the_last_line_and_not_the_sample_below_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("rm: done\nppo: update 5/60  score +0.3\n    user: Hi\n    model: Ho\n\n", encoding="utf-8")
    assert last_line(log) == "ppo: update 5/60  score +0.3"
    assert last_line(tmp_path / "none") == ""


def test_training_is_started_once_and_a_failure_is_shown(connect: Connect, store: Store) -> None:
    """The work itself fails soon: there is no such class."""
    teacher = enter(connect())
    start = {"what": "train", "start": "fresh"}
    assert teacher.post("/teacher/do", json=start).status_code == 200
    assert "still at work" in teacher.post("/teacher/do", json=start).json()["error"]
    for _ in range(300):
        work = teacher.get("/teacher/state").json()["work"]
        if work["status"] != "running":
            break
        time.sleep(0.1)
    assert work["status"] == "failed" and work["line"].startswith("error: there is no ")


def test_every_text_is_used() -> None:
    folder = Path(module.__file__).parent
    sources = [*folder.glob("*.py"), *folder.glob("*.jinja"), *(folder / "static").iterdir()]
    used = set(re.findall(r"""["'`]([\w.]+)["'`]""", "\n".join(path.read_text(encoding="utf-8") for path in sources)))
    used |= {f"script.{key}" for key in used} | {f"error.{key}" for key in used}
    assert set(read_texts(TEXTS / "en.yaml")) <= used
