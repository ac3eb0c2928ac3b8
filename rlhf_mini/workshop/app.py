"""The server: pages for phones and for the projector, and the few requests that they make.

Students' addresses begin with the class code, the teacher's with a secret. A phone is known by a cookie that no script
can read. Everything that comes in is bounded and checked here, everything that goes out is escaped by the templates, or
set as text by the scripts. Nothing is loaded from elsewhere.
"""

import argparse
import errno
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from secrets import compare_digest
from typing import Any, TypeGuard
from urllib.parse import urlsplit

import segno
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from rlhf_mini.core.texts import LANGUAGES, Language, Texts, load_texts, script_json
from rlhf_mini.workshop import figures
from rlhf_mini.workshop.beside import Work
from rlhf_mini.workshop.store import SKIPPED, Refused, Store, Student, shuffle_of
from rlhf_mini.workshop.work import STARTS

FOLDER = Path(__file__).parent
COOKIE, TEACHER = "labeler", "teacher"
KNOWN = 60 * 86_400  # seconds for which a browser is known: a course
MAX_BODY = 4_000  # bytes
GOAL = 10  # prompts after which a student may stop; there are more for those who like to go on
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_app(store: Store, options: argparse.Namespace, code: str, secret: str, address: str) -> Starlette:
    """The application for one class."""
    return Starlette(routes=Pages(store, options, code, secret, address).routes())


class Pages:
    """What answers requests."""

    def __init__(self, store: Store, options: argparse.Namespace, code: str, secret: str, address: str) -> None:
        self.store, self.options, self.code, self.secret, self.address = store, options, code, secret, address
        self.texts = {language: load_texts(FOLDER / "texts", language) for language in LANGUAGES}
        self.environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True,
                                       lstrip_blocks=True)  # fmt: skip
        self.work = Work(store, options)

    def routes(self) -> list[Route | Mount]:
        student, teacher = f"/{self.code}", "/teacher"
        return [
            Route(f"{student}/", self.answering(self.student_page)),
            Route(f"{student}/join", self.answering(self.join), methods=["POST"]),
            Route(f"{student}/next", self.answering(self.next)),
            Route(f"{student}/label", self.answering(self.label), methods=["POST"]),
            Route(f"{student}/vote", self.answering(self.vote), methods=["POST"]),
            Route(f"{teacher}/{self.secret}", self.answering(self.enter)),
            Route(f"{teacher}/", self.answering(self.teacher_page, teacher=True)),
            Route(f"{teacher}/state", self.answering(self.state, teacher=True)),
            Route(f"{teacher}/do", self.answering(self.do, teacher=True), methods=["POST"]),
            Route(f"{teacher}/rankings.jsonl", self.answering(self.rankings, teacher=True)),
            Mount("/static", Static(directory=FOLDER / "static")),
        ]

    def answering(self, answer: Callable[..., Response], teacher: bool = False) -> Callable[..., Any]:
        """Wraps a method: bounds and checks the request, turns faults into answers. Methods run in threads."""

        async def endpoint(request: Request) -> Response:
            if not self.may_ask(request) or (teacher and not self.is_teacher(request)):
                return PlainTextResponse("not found", 404, HEADERS)
            body: dict[str, Any] = {}
            if request.method == "POST":
                raw = b""
                async for chunk in request.stream():
                    raw += chunk
                    if len(raw) > MAX_BODY:
                        return JSONResponse({"error": self.say(request, "error.too_large")}, 413, HEADERS)
                try:
                    body = json.loads(raw)
                except (ValueError, RecursionError):
                    body = {}
                if not isinstance(body, dict):
                    body = {}
            try:
                response = await run_in_threadpool(answer, request, body)
            except Refused as fault:
                response = JSONResponse({"error": self.say(request, f"error.{fault}")}, 400)
            except sqlite3.OperationalError as fault:
                key = "error.disk" if "full" in str(fault) else "error.busy"
                response = JSONResponse({"error": self.say(request, key)}, 503, {"Retry-After": "2"})
            except OSError as fault:
                key = "error.disk" if fault.errno == errno.ENOSPC else "error.fault"
                response = JSONResponse({"error": self.say(request, key)}, 500)
            response.headers.update(HEADERS)
            return response

        return endpoint

    def may_ask(self, request: Request) -> bool:
        """False if another site made the browser ask: its name stands in the address, or its script posts."""
        host = request.headers.get("host", "")
        local = urlsplit(f"//{host}").hostname in ("localhost", "127.0.0.1", urlsplit(self.address).hostname)
        if not local and self.options.host != "0.0.0.0":
            return False
        origin = request.headers.get("origin")
        return request.method != "POST" or origin is None or urlsplit(origin).netloc == host

    def is_teacher(self, request: Request) -> bool:
        return compare_digest(request.cookies.get(TEACHER, "").encode(), self.secret.encode())

    # --- languages ---------------------------------------------------------------------------------------------------

    def language(self, request: Request) -> Language:
        asked = request.query_params.get("lang") or request.cookies.get("lang") or ""
        wanted = [asked, *request.headers.get("accept-language", "").split(",")]
        return next((one for each in wanted for one in LANGUAGES if each.strip().lower().startswith(one)), "en")

    def say(self, request: Request, key: str) -> str:
        return self.texts[self.language(request)](key)

    def page(self, template: str, texts: Texts, **values: Any) -> HTMLResponse:
        script = {key.removeprefix("script."): text for key, text in texts.starting("script.").items()}
        html = self.environment.get_template(template).render(
            language=texts.language, t=texts.html, texts=script_json(script), **values
        )
        return HTMLResponse(html)

    # --- students ----------------------------------------------------------------------------------------------------

    def who(self, request: Request) -> Student | None:
        token = request.cookies.get(COOKIE, "")
        return self.store.student(token) if token else None

    @property
    def round(self) -> int:
        return int(self.store.setting("round", "1"))

    @property
    def phase(self) -> str:
        return self.store.setting("phase", "rank")

    def student_page(self, request: Request, body: dict[str, Any]) -> Response:
        texts = self.texts[self.language(request)]
        other: Language = "ko" if texts.language == "en" else "en"
        student = self.who(request)
        response = self.page("student.html.jinja", texts, student=student, other=other)
        response.set_cookie("lang", texts.language, path=f"/{self.code}", samesite="strict", max_age=KNOWN)
        return response

    def join(self, request: Request, body: dict[str, Any]) -> Response:
        """The phone has made up the token, so that a join whose answer was lost can be sent again."""
        if self.who(request):  # a second tab
            return JSONResponse({"ok": True})
        token = str(body.get("token", ""))
        self.store.join(str(body.get("nickname", "")), token)
        response = JSONResponse({"ok": True})
        response.set_cookie(COOKIE, token, path=f"/{self.code}", httponly=True, samesite="strict", max_age=KNOWN)
        return response

    def next(self, request: Request, body: dict[str, Any]) -> Response:
        """What a student does now: a prompt to rank, a pair to vote on, or to wait."""
        student = self.who(request)
        if not student:
            return JSONResponse({"join": True})
        number = self.round
        if self.phase == "vote":
            duel = self.store.next_duel(student.id, number)
            if duel is None:
                return JSONResponse({"wait": self.say(request, "student.voted")})
            both = [duel.ours, duel.theirs]
            order = shuffle_of(student.id, duel.id, 2)
            shown = [both[index] for index in order]
            goal, done = len(self.store.duels(number)), self.store.voted(student.id, number)
            return JSONResponse(
                {"duel": duel.id, "prompt": duel.prompt, "responses": shown, "done": done, "goal": goal}
            )
        item = self.store.next_item(student.id, number)
        done = self.store.done(student.id, number)
        if item is None:
            return JSONResponse({"wait": self.say(request, "student.all_done"), "done": done, "goal": GOAL})
        shown = [item.responses[index] for index in shuffle_of(student.id, item.id, len(item.responses))]
        return JSONResponse(
            {"item": item.id, "prompt": item.example["prompt"], "responses": shown, "done": done, "goal": GOAL}
        )

    def label(self, request: Request, body: dict[str, Any]) -> Response:
        """Ranks come in the order in which the responses were shown, and are kept in the order of the item."""
        student = self.who(request)
        if not student:
            return JSONResponse({"error": self.say(request, "error.join")}, 401)
        item, kind, ranks = body.get("item"), body.get("kind"), body.get("ranks")
        if not is_id(item) or not isinstance(kind, str) or not isinstance(ranks, list) or len(ranks) > 9:
            raise Refused("ranks")
        if kind != SKIPPED:
            order = shuffle_of(student.id, item, len(ranks))
            ranks = [ranks[order.index(index)] for index in range(len(ranks))]
        self.store.label(student.id, item, kind, ranks)
        return JSONResponse({"ok": True})

    def vote(self, request: Request, body: dict[str, Any]) -> Response:
        student = self.who(request)
        if not student:
            return JSONResponse({"error": self.say(request, "error.join")}, 401)
        duel, choice = body.get("duel"), body.get("choice")
        if not is_id(duel) or choice not in ("first", "second", "neither") or self.phase != "vote":
            raise Refused("ranks")
        first, second = (1.0 - index for index in shuffle_of(student.id, duel, 2))  # 1 for ours, which is number 0
        ours = {"first": first, "second": second, "neither": 0.5}[choice]
        self.store.vote(student.id, self.round, duel, ours)
        return JSONResponse({"ok": True})

    # --- the teacher -------------------------------------------------------------------------------------------------

    def enter(self, request: Request, body: dict[str, Any]) -> Response:
        """The secret becomes a cookie, so that it does not stand in the address on the projector."""
        response = RedirectResponse("/teacher/", 303)
        response.set_cookie(TEACHER, self.secret, path="/teacher", httponly=True, samesite="strict", max_age=KNOWN)
        return response

    def teacher_page(self, request: Request, body: dict[str, Any]) -> Response:
        url = f"{self.address}/{self.code}/"
        qr = segno.make(url, error="m").svg_inline(scale=6, border=2, svgclass="qr", lineclass="dark", omitsize=True)
        texts = self.texts[self.options.language]
        return self.page("teacher.html.jinja", texts, url=url, qr=Markup(qr), run=self.options.run)

    def state(self, request: Request, body: dict[str, Any]) -> Response:
        """All that the projector shows; of an earlier round with ?round=1."""
        number = self.round_of(request)
        found = figures.live(self.store, number)
        votes, names = self.store.votes(number), self.store.nicknames()
        training = self.store.training(number)
        if training and training.get("others"):
            each = training["others"]["each"]
            training["others"]["each"] = {names[int(student)]: share for student, share in each.items()}
        found |= {
            "round": number,
            "rounds": self.round,
            "students": list(names.items()),
            "phase": self.phase,
            "training": training,
            "work": self.work.state(),
            "votes": figures.verdict(votes),
            "duels": figures.side_by_side(self.store.duels(number), votes),
        }
        return JSONResponse(found)

    def round_of(self, request: Request) -> int:
        asked = request.query_params.get("round", "")
        return int(asked) if asked.isdecimal() and 0 < int(asked) <= self.round else self.round

    def do(self, request: Request, body: dict[str, Any]) -> Response:
        """A button: rank, vote, train (start: fresh or own), round, hide (a student's nickname)."""
        what, number, student = body.get("what"), self.round, body.get("student")
        if what == "rank" or (what == "vote" and self.store.duels(number)):
            self.store.set("phase", str(what))
        elif what == "hide" and is_id(student):
            self.store.hide(student)
        elif what == "train" and body.get("start") in STARTS:
            self.work.begin("train", number, body["start"])
        elif what == "round" and self.store.training(number):
            self.work.begin("round", number + 1)
        else:
            raise Refused("no_training" if what in ("vote", "round") else "button")
        return JSONResponse({"ok": True})

    def rankings(self, request: Request, body: dict[str, Any]) -> Response:
        number, hashed = self.round_of(request), bool(request.query_params.get("hashed"))
        lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in self.store.rankings(number, hashed))
        name = f"class-round-{number}.jsonl"
        return Response(
            "".join(lines), media_type="application/jsonl",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )  # fmt: skip


class Static(StaticFiles):
    """The scripts and the style, with the headers of all answers."""

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def is_id(value: Any) -> TypeGuard[int]:
    """Whether this can be the number of a row."""
    return type(value) is int and 0 < value < 2**53
