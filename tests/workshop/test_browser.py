"""The class in real browsers: several phones at once, a killed server, texts that are not what they seem."""

import json
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import launched
from test_store import item

from benchmarks.phones import CODE, SERVER
from rlhf_mini.core.examples import Response
from rlhf_mini.workshop.store import Store

pytestmark = pytest.mark.lessons
EVIL = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


class Server:
    """The application in a process of its own, which can be killed and started again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port = 20_000 + secrets.randbelow(20_000)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", SERVER, str(self.path), str(self.port)])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                import urllib.request

                urllib.request.urlopen(f"{self.address}/{CODE}/", timeout=1)
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    store = Store(tmp_path / "ours.sqlite")
    items = [item(number) for number in range(9)]
    items[0][1][0] = Response(EVIL, True)
    store.begin_round(1, items, common=3)
    running = Server(store.path)
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as chromium:
        yield chromium


def phone(browser: Any, server: Server, nickname: str, **more: Any) -> Any:
    """A phone that has joined, and is shown its first prompt."""
    page = browser.new_context(viewport={"width": 360, "height": 740}, **more).new_page()
    page.faults = []
    page.on("dialog", lambda dialog: (page.faults.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(f"{server.address}/{CODE}/")
    page.fill("#nickname", nickname)
    page.click("#join button")
    page.locator("#responses button").nth(2).wait_for()
    return page


def rank(page: Any, *keys: str) -> None:
    """Ranks by keyboard and waits for the next prompt."""
    before = page.locator("#prompt").inner_text()
    page.wait_for_timeout(450)  # what comes faster is taken for a double tap
    for key in keys:
        page.keyboard.press(key)
    page.click("#send")
    for _ in range(100):
        if page.locator("#prompt").inner_text() != before or page.locator("#wait").is_visible():
            return
        page.wait_for_timeout(50)
    raise AssertionError("no next prompt")


def test_three_phones_at_once_are_three_students(browser: Any, server: Server) -> None:
    phones = {name: phone(browser, server, name) for name in ("Ana", "Bo", EVIL[:24])}
    for _ in range(3):
        for page in phones.values():
            rank(page, "2", "1", "3")
    store = Store(server.path)
    labels = store.labels(1)
    assert len(labels) == 9 and len({label.student for label in labels}) == 3
    teacher = browser.new_context().new_page()
    teacher.goto(f"{server.address}/teacher/the-secret")
    assert teacher.url == f"{server.address}/teacher/"
    teacher.locator("#rankings", has_text="9").wait_for()
    assert teacher.locator("#labelers").inner_text() == "3" and teacher.locator(".qr").is_visible()
    assert "InstructGPT" in teacher.locator("#agreement").inner_text()
    assert all(page.faults == [] for page in phones.values())
    assert teacher.locator("img").count() == 0


def test_what_a_student_ranked_is_what_is_kept(browser: Any, server: Server) -> None:
    page = phone(browser, server, "Ana")
    shown = page.locator("#responses button span:last-child").all_inner_texts()
    page.wait_for_timeout(450)
    page.locator("#responses button").nth(2).click()
    page.locator("#responses button").nth(0).click()
    assert page.locator("#send").is_disabled()
    page.click("#tie")
    page.locator("#responses button").nth(1).click()
    assert page.locator(".place").all_inner_texts() == ["2", "2", "1"]
    page.click("#undo")
    page.click("#tie")
    page.keyboard.press("2")
    page.click("#send")
    page.locator("#progress", has_text="2 of 10").wait_for()
    store = Store(server.path)
    (label,), (first, *_) = store.labels(1), store.items(1)
    by_text = dict(zip(first.responses, label.ranks, strict=True))
    assert [by_text[text] for text in shown] == [2, 2, 1]


def test_a_phone_that_reloads_goes_on_and_the_server_may_be_killed(browser: Any, server: Server) -> None:
    page = phone(browser, server, "Ana")
    rank(page, "1", "2", "3")
    prompt = page.locator("#prompt").inner_text()
    page.reload()
    page.locator("#responses button").nth(2).wait_for()
    assert page.locator("#prompt").inner_text() == prompt
    server.kill()
    assert len(Store(server.path).labels(1)) == 1
    page.wait_for_timeout(450)
    for key in "321":
        page.keyboard.press(key)
    page.click("#send")
    page.locator("#fault", has_text="No connection").wait_for()
    server.start()
    page.locator("#progress", has_text="3 of 10").wait_for()
    assert len(Store(server.path).labels(1)) == 2 and page.faults == []


def test_a_first_look_that_is_answered_late_does_not_hold_up_who_has_joined(browser: Any, server: Server) -> None:
    page = browser.new_page()
    held: list[Any] = []
    page.route("**/next", lambda route: held.append(route) if not held else route.continue_())
    page.goto(f"{server.address}/{CODE}/")
    page.fill("#nickname", "Ana")
    with page.expect_response("**/join"):
        page.click("#join button")
    held[0].fulfill(json={"join": True})  # what the server had said before
    page.locator("#responses button").nth(2).wait_for()
    assert page.locator("#join").is_hidden()


def test_an_earlier_round_is_to_look_at(browser: Any, server: Server) -> None:
    Store(server.path).begin_round(2, [item(number) for number in range(5)], common=3)
    teacher = browser.new_context().new_page()
    teacher.goto(f"{server.address}/teacher/the-secret")
    teacher.click("#rounds >> text=Round 1")
    teacher.locator("#rounds [aria-current=page]", has_text="Round 1").wait_for()
    assert teacher.locator("[data-what]:disabled").count() == 5
    assert "round=1" in (teacher.locator("#export").get_attribute("href") or "")
    teacher.click("#rounds >> text=Round 2")
    teacher.locator("#prompts", has_text="0/5").wait_for()
    assert teacher.locator("[data-what]:disabled").count() == 2  # no vote and no third round without a training


def test_two_tabs_are_one_student(browser: Any, server: Server) -> None:
    page = phone(browser, server, "Ana")
    other = page.context.new_page()
    other.goto(f"{server.address}/{CODE}/")
    other.locator("#responses button").nth(2).wait_for()
    assert other.locator("#prompt").inner_text() == page.locator("#prompt").inner_text()
    rank(page, "1", "2", "3")
    rank(other, "3", "2", "1")  # too late: the first answer counts, and both go on
    store = Store(server.path)
    assert len(store.nicknames()) == 1 and len(store.labels(1)) == 1


def test_texts_are_only_texts_nothing_is_wider_than_a_phone_and_targets_are_large(browser: Any, server: Server) -> None:
    page = phone(browser, server, "Ana", locale="ko-KR", color_scheme="dark")
    assert EVIL in page.locator("#responses").inner_text() and page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.lang") == "ko"
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    heights = page.locator("#rank button:visible").evaluate_all("(all) => all.map((one) => one.offsetHeight)")
    assert min(heights) >= 44 and page.faults == []
    assert re.fullmatch(r"rgb\(\d\d?, \d\d?, \d\d?\)", page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_the_blind_vote(browser: Any, server: Server) -> None:
    page = phone(browser, server, "Ana")
    store = Store(server.path)
    store.add_duels(1, [([{"role": "user", "content": f"Q{n}"}], "ours", "theirs") for n in range(2)])
    teacher = browser.new_context().new_page()
    teacher.goto(f"{server.address}/teacher/the-secret")
    with teacher.expect_response("**/do"):
        teacher.click("[data-what=vote]")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # as if it woke up: it looks at once
    page.locator("#neither").wait_for()
    page.wait_for_timeout(450)
    page.locator("#responses button", has_text="ours").click()
    page.locator("#prompt", has_text="Q").wait_for()
    for _ in range(100):
        if len(store.votes(1)) == 1:
            break
        page.wait_for_timeout(50)
    page.wait_for_timeout(450)
    page.click("#neither")
    page.locator("#wait").wait_for()
    assert sorted(ours for *_, ours in store.votes(1)) == [0.5, 1.0]
    teacher.locator("#votes", has_text="2").wait_for()
    assert not teacher.locator("#verdict").is_visible()  # the tally would sway those who have not voted yet
    teacher.click("#winner summary")
    teacher.locator("#verdict", has_text="75 %").wait_for()
    assert not teacher.locator("#both").is_visible()  # the vote stays blind until the teacher opens it
    teacher.click("#policies summary")
    shown = teacher.locator("#both .number").all_inner_texts()
    assert sorted(shown) == ["default, 0", "default, 0.5", "ours, 0.5", "ours, 1"]
    teacher.on("dialog", lambda dialog: dialog.accept())
    teacher.click("text=Names")
    teacher.click("#names button")
    teacher.locator("#names button", has_text="no. 1").wait_for()
    assert json.loads(teacher.evaluate("JSON.stringify(document.cookie)")) == ""  # no script can read it
