"""The processes that are measured: started, asked, and stopped."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


class Worker:
    """One side: a process that does an update when asked."""

    def __init__(self, module: str, case_file: Path, threads: int, path: str = "") -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)} | ({"PYTHONPATH": path} if path else {})
        self.module = module
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115, it lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(case_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            raise RuntimeError(f"{self.module} stopped:\n{self.log.read()[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, request: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(request, file=self.process.stdin, flush=True)
        return self.read()

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()
