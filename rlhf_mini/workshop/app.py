"""The server: pages for phones and for the projector, and the few requests that they make.

Students' addresses begin with the class code, the teacher's with a secret. A phone is known by a cookie that no script
can read. Everything that comes in is bounded and checked here, everything that goes out is escaped by the templates, or
set as text by the scripts. Nothing is loaded from elsewhere.
"""

import argparse
import json
import sqlite3
import subprocess
import sys
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
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from rlhf_mini.core.texts import LANGUAGES, Language, Texts, load_texts, script_json
from rlhf_mini.workshop import figures
from rlhf_mini.workshop.store import SKIPPED, Refused, Store, Student, shuffle_of

FOLDER = Path(__file__).parent
COOKIE = "labeler"
MAX_BODY = 4_000  # bytes
GOAL = 10  # prompts after which a student may stop; there are more for those who like to go on
PHASES = ("rank", "vote")
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
        self.training: subprocess.Popen[bytes] | None = None

    def routes(self) -> list[Route | Mount]:
        student, teacher = f"/{self.code}", "/teacher/{secret}"
        return [
            Route(f"{student}/", self.answering(self.student_page)),
            Route(f"{student}/join", self.answering(self.join), methods=["POST"]),
            Route(f"{student}/next", self.answering(self.next)),
            Route(f"{student}/label", self.answering(self.label), methods=["POST"]),
            Route(f"{student}/vote", self.answering(self.vote), methods=["POST"]),
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
        return compare_digest(request.path_params["secret"].encode(), self.secret.encode())

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

    def student_page(self, request: Request, body: dict[str, Any]) -> Response:
        texts = self.texts[self.language(request)]
        other: Language = "ko" if texts.language == "en" else "en"
        student = self.who(request)
        response = self.page("student.html.jinja", texts, student=student, other=other)
        response.set_cookie("lang", texts.language, path=f"/{self.code}", samesite="strict", max_age=86_400)
        return response

    def join(self, request: Request, body: dict[str, Any]) -> Response:
        if self.who(request):  # a second tap, or a second tab
            return JSONResponse({"ok": True})
        token = self.store.join(str(body.get("nickname", "")))
        response = JSONResponse({"ok": True})
        response.set_cookie(COOKIE, token, path=f"/{self.code}", httponly=True, samesite="strict", max_age=86_400)
        return response

    def next(self, request: Request, body: dict[str, Any]) -> Response:
        """What a student does now: a prompt to rank, a pair to vote on, or to wait."""
        student = self.who(request)
        if not student:
            return JSONResponse({"join": True})
        number = self.round
        if self.store.setting("phase", "rank") == "vote":
            duel = self.store.next_duel(student.id, number)
            if duel is None:
                return JSONResponse({"wait": self.say(request, "student.voted")})
            both = [duel.ours, duel.theirs]
            order = shuffle_of(student.id, duel.id, 2)
            shown = [both[index] for index in order]
            return JSONResponse({"duel": duel.id, "prompt": duel.prompt, "responses": shown})
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
        if not is_id(duel) or choice not in (0, 1, None):
            raise Refused("ranks")
        ours = 0.5 if choice is None else 1.0 - shuffle_of(student.id, duel, 2)[choice]
        self.store.vote(student.id, duel, ours)
        return JSONResponse({"ok": True})

    # --- the teacher -------------------------------------------------------------------------------------------------

    def teacher_page(self, request: Request, body: dict[str, Any]) -> Response:
        url = f"{self.address}/{self.code}/"
        language: Language = request.query_params.get("lang") or self.options.language  # type: ignore[assignment]
        texts = self.texts[language if language in LANGUAGES else "en"]
        qr = segno.make(url, error="m").svg_inline(scale=6, border=2, svgclass="qr", lineclass="dark", omitsize=True)
        return self.page("teacher.html.jinja", texts, url=url, qr=Markup(qr), run=self.options.run)

    def state(self, request: Request, body: dict[str, Any]) -> Response:
        """All that the projector shows."""
        number = self.round
        found = figures.live(self.store, number)
        found |= {
            "round": number,
            "joined": len(self.store.nicknames()),
            "phase": self.store.setting("phase", "rank"),
            "training": self.progress(number),
            "votes": figures.verdict(self.store.votes(number)),
        }
        return JSONResponse(found)

    def progress(self, number: int) -> dict[str, Any] | None:
        training = self.store.training(number)
        if training and training["status"] == "running" and self.training and self.training.poll() not in (None, 0):
            self.store.set_training(number, training["run"], training["start"], "failed", {})
            training["status"] = "failed"
        if training:
            training["line"] = last_line(self.log(number))
        return training

    def log(self, number: int) -> Path:
        return self.store.path.with_name(f"class-{number}.log")

    def do(self, request: Request, body: dict[str, Any]) -> Response:
        """A button: train (start: fresh or own), rank, vote, round."""
        what, number = body.get("what"), self.round
        if what in PHASES:
            self.store.set("phase", str(what))
        elif what == "train" and body.get("start") in ("fresh", "own"):
            self.start(number, ["train", "--start", body["start"]])
        elif what == "round":
            training = self.store.training(number)
            if not training or training["status"] != "done":
                raise Refused("no_training")
            self.store.set("phase", "rank")
            self.start(number + 1, ["round"])
        else:
            raise Refused("button")
        return JSONResponse({"ok": True})

    def start(self, number: int, command: list[str]) -> None:
        """Starts work beside the server, one at a time."""
        if self.training and self.training.poll() is None:
            raise Refused("training")
        names = ("run", "runs_dir", "name", "prompts", "common", "responses")
        settings = [part for one in names for part in (f"--{one}", str(getattr(self.options, one)))]
        with self.log(number).open("wb") as log:
            self.training = subprocess.Popen(
                [sys.executable, "-m", "rlhf_mini.workshop.work", *command, "--round", str(number), *settings],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def rankings(self, request: Request, body: dict[str, Any]) -> Response:
        hashed = bool(request.query_params.get("hashed"))
        lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in self.store.rankings(self.round, hashed))
        return Response(
            "".join(lines), media_type="application/jsonl",
            headers={"Content-Disposition": f'attachment; filename="class-round-{self.round}.jsonl"'},
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


def last_line(path: Path) -> str:
    """What a program that is at work said last."""
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace")[-2000:].split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:200]
