"""Work beside the server: a training or the sampling of a round, in a process of its own, one at a time.

The process holds a lock for as long as it lives, so that a server that was started again, or a second one, knows that
it is at work. How it ended is in the store.
"""

import argparse
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlhf_mini.workshop.store import Refused, Store

OPTIONS = ("run", "runs_dir", "name", "prompts", "common", "responses")


def lock_of(store: Store) -> FileLock:
    return FileLock(f"{store.path}.work.lock", timeout=0)


class Work:
    """What is at work, or was last."""

    def __init__(self, store: Store, options: argparse.Namespace) -> None:
        self.store, self.options = store, options
        self.process: subprocess.Popen[bytes] | None = None
        self.starting = threading.Lock()

    @property
    def log(self) -> Path:
        return self.store.path.with_suffix(".log")

    def begin(self, what: str, number: int, start: str = "fresh") -> None:
        """Starts it. Refused if something is at work."""
        with self.starting:
            if self.at_work():
                raise Refused("training")
            settings = [part for one in OPTIONS for part in (f"--{one}", str(getattr(self.options, one)))]
            command = [what, "--round", str(number), "--start", start, *settings]
            self.store.set("work", json.dumps({"what": what, "round": number, "status": "running"}))
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "rlhf_mini.workshop", *command],
                    stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                )  # fmt: skip

    def at_work(self) -> bool:
        if self.process and self.process.poll() is None:
            return True
        try:
            with lock_of(self.store):
                return False
        except Timeout:
            return True

    def state(self) -> dict[str, Any] | None:
        """What, of which round, its status (running, done or failed) and the last line that it printed."""
        found: dict[str, Any] = json.loads(self.store.setting("work", "null"))
        if not found:
            return None
        if found["status"] == "running" and not self.at_work():
            found = json.loads(self.store.setting("work", "null"))  # it may have ended between the two looks
            if found["status"] == "running":
                found["status"] = "failed"
        return found | {"line": last_line(self.log)}


def last_line(path: Path) -> str:
    """What a program said last, but for what belongs to an earlier line and stands below it, such as a sample."""
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace")[-2000:].split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip() and line[0] != " "), "")[:200]
