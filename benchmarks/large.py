"""A data file that is larger than the memory one would like to spend on it.

    python -m benchmarks.large --gigabytes 2      # most of an hour, and 8 GB of disk

Writes JSON lines in the Alpaca format, looks at them with `rlhf_mini.data inspect`, begins SFT on them, and prints the
peak memory of both, beside that of the same commands on a file of 2 MB.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rlhf_mini.core.console import UserError, console, run, track

WORDS = [f"{start}{end}" for start in ("ki", "wi", "ta", "lo", "mu") for end in ("ra", "n", "sta", "l")]

RECORD = 340  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the file (default: 2)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in (2e6, 1e9 * options.gigabytes):
            path = folder / f"{size / 1e6:.0f}MB.jsonl"
            write(path, int(size))
            inspect = ["-m", "rlhf_mini.data", "inspect", str(path), "--examples", "0"]
            share = 64 * 32 / (int(size) // RECORD)  # 64 steps
            sft = ["-m", "stages.sft", "--demonstrations", str(path), "--ptx_coef", "0", "--show_every", "0",
                   "--runs_dir", str(folder / "runs"), "--run", path.stem, "--save_steps", "0",
                   "--validation_share", "0.0001", "--num_train_epochs", str(share)]  # fmt: skip
            for title, command in (("inspect", inspect), ("sft, 64 steps", sft)):
                seconds, memory = measured(command)
                console.print(f"{path.name}: {title}: {seconds:,.0f} s, {memory / 1e6:,.0f} MB", soft_wrap=True)


def write(path: Path, size: int) -> None:
    """Records of about RECORD bytes, no two of them alike."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in track(range(size // RECORD), f"writing {path.name}"):
            text = " ".join(rng.choices(WORDS, k=60))
            file.write(json.dumps({"instruction": f"Say {number}.", "input": "", "output": text}) + "\n")


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds, and bytes of peak resident memory, of a command of Python's."""
    code = "import resource, subprocess, sys; status = subprocess.run([sys.executable, *sys.argv[1:]]).returncode; "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(status)"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed: {done.stderr[-300:]}")
    return time.monotonic() - started, int(done.stdout.splitlines()[-1]) * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    run(main)
