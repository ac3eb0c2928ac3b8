"""Forty phones at once: how fast the class's server answers, and whether it loses or mixes anything.

    python -m benchmarks.phones                    # 40 students for 5 minutes
    python -m benchmarks.phones --students 10 --minutes 0.2

The server is in a process of its own, on prompts made up here. Each simulated student looks at a prompt for a few
seconds and ranks it; now and then they reload, answer twice, or send what is not theirs. At the end, every answer that
was acknowledged must be in the file, once, with the ranks that were sent.
"""

import argparse
import asyncio
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from rlhf_mini.core.console import UserError, console, run
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.workshop.store import NewItem, Store, shuffle_of

PROMPTS, COMMON, RESPONSES = 400, 5, 4
THINKING = (2.0, 8.0)  # seconds
CODE = "abc234"
SERVER = """
import argparse, sys
from pathlib import Path
import uvicorn
from rlhf_mini.workshop.app import make_app
from rlhf_mini.workshop.store import Store
path, port = Path(sys.argv[1]), int(sys.argv[2])
options = argparse.Namespace(host="127.0.0.1", run="r", runs_dir=path.parent, language="en", name="ours", prompts=0,
                             common=0, responses=0)
app = make_app(Store(path), options, "abc234", "the-secret", f"http://127.0.0.1:{port}")
uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")
"""


class Phone:
    """A student at work."""

    def __init__(self, number: int, address: str, seed: int) -> None:
        self.number, self.random = number, random.Random(f"{seed} {number}")
        self.client = httpx.AsyncClient(base_url=f"{address}/{CODE}/", timeout=30)
        self.token = secrets.token_hex(24)
        self.times: list[float] = []  # seconds, of each request
        self.sent: dict[int, list[int]] = {}  # by prompt: the ranks that were acknowledged, as they were shown
        self.faults: list[str] = []

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        started = time.monotonic()
        response = await (self.client.get(path) if body is None else self.client.post(path, json=body))
        self.times.append(time.monotonic() - started)
        found: dict[str, Any] = response.json()
        return found

    async def work(self, until: float) -> None:
        await asyncio.sleep(self.random.uniform(0, 5))
        await self.ask("join", {"nickname": f"student {self.number}", "token": self.token})
        while time.monotonic() < until:
            task = await self.ask("next")
            if "item" not in task:
                await asyncio.sleep(3)
                continue
            if self.random.random() < 0.1 and (await self.ask("next")).get("item") != task["item"]:
                self.faults.append("a reload showed another prompt")
            await asyncio.sleep(self.random.uniform(*THINKING))
            order = self.random.sample(range(1, RESPONSES + 1), RESPONSES)
            if self.random.random() < 0.05:
                forged = {"item": task["item"] % PROMPTS + 1, "kind": "ranked", "ranks": order}
                if "ok" in await self.ask("label", forged) and forged["item"] not in self.sent:
                    self.faults.append("a prompt of somebody else was taken")
            body = {"item": task["item"], "kind": "ranked", "ranks": order}
            if "ok" not in await self.ask("label", body):
                self.faults.append("an answer was refused")
            self.sent[task["item"]] = order
            if self.random.random() < 0.1:
                await self.ask("label", {**body, "ranks": order[::-1]})  # the other tab
        await self.client.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.phones", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--students", type=int, default=40, help="phones at once (default: 40)")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of what students do (default: 0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "ours.sqlite")
        store.begin_round(1, [made_up(number) for number in range(PROMPTS)], COMMON)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = subprocess.Popen([sys.executable, "-c", SERVER, str(store.path), str(port)])
        try:
            phones = asyncio.run(crowd(f"http://127.0.0.1:{port}", options))
        finally:
            server.terminate()
            server.wait()
        report(phones, store, options)


def made_up(number: int) -> NewItem:
    example: Prompt = {"prompt": [{"role": "user", "content": f"Prompt {number}"}]}
    return example, [Response(f"Response {number}.{n}", True) for n in range(RESPONSES)], []


async def crowd(address: str, options: argparse.Namespace) -> list[Phone]:
    async with httpx.AsyncClient() as client:
        for _ in range(100):
            try:
                await client.get(f"{address}/{CODE}/")
                break
            except httpx.TransportError:
                await asyncio.sleep(0.1)
    phones = [Phone(number, address, options.seed) for number in range(options.students)]
    until = time.monotonic() + 60 * options.minutes
    await asyncio.gather(*(phone.work(until) for phone in phones), projector(address, until))
    return phones


async def projector(address: str, until: float) -> None:
    async with httpx.AsyncClient(base_url=address, timeout=30, follow_redirects=True) as client:
        await client.get("/teacher/the-secret")
        while time.monotonic() < until:
            await client.get("/teacher/state")
            await asyncio.sleep(2)


def report(phones: list[Phone], store: Store, options: argparse.Namespace) -> None:
    """Prints the times; UserError if anything was lost or mixed up."""
    faults = [fault for phone in phones for fault in phone.faults]
    kept = {(label.student, label.item): label.ranks for label in store.labels(1)}
    for phone in phones:
        student = store.student(phone.token)
        assert student is not None
        for item, shown in phone.sent.items():
            order = shuffle_of(student.id, item, RESPONSES)
            ranks = [shown[order.index(index)] for index in range(RESPONSES)]
            if kept.pop((student.id, item), None) != ranks:
                faults.append(f"what student {phone.number} said of prompt {item} is not what is in the file")
    faults += [f"nobody sent {key}" for key in kept]
    times = np.array([one for phone in phones for one in phone.times])
    rankings = sum(len(phone.sent) for phone in phones)
    half, most, worst = np.percentile(times, [50, 95, 100]) * 1000
    console.print(
        f"{options.students} students, {options.minutes:g} min: {len(times)} requests, {rankings} rankings; "
        f"median {half:.0f} ms, 95 % within {most:.0f} ms, slowest {worst:.0f} ms; {len(faults)} lost or mixed up"
    )
    if faults:
        raise UserError(f"the server lost or mixed up something: {'; '.join(faults[:3])}")


if __name__ == "__main__":
    run(main)
