"""The terminal: output, progress bars, and errors in one sentence."""

import errno
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import suppress
from typing import TypeVar
from unicodedata import bidirectional, category

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

# Of a process that was started with others (processes.py), as torch's launchers say. Only the first one prints.
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
RANK = int(os.environ.get("RANK", 0)) if WORLD_SIZE > 1 else 0

# Sampled text is printed verbatim: "[/b]" or ":smile:" in a response is not markup. Use `style=` to colour a line.
console = Console(markup=False, emoji=False, highlight=False, quiet=RANK > 0)

LINE_EVERY = 10.0  # seconds between progress lines when the output is not a terminal


class UserError(Exception):
    """A problem that the user can fix. Its text is one sentence that says what is wrong and what to do."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows instead of a traceback."""
        return [f"error: {self}"]


# --- running ---------------------------------------------------------------------------------------------------------

# Faults of the machine that a user can fix; any other OSError is a bug and keeps its traceback.
_SYSTEM_FAULTS = {
    errno.ENOSPC: "the disk is full; free some space and run the command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the command again",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a file is where a folder is expected",
    errno.EISDIR: "a folder is where a file is expected",
    errno.EEXIST: "a file is in the way",
    errno.ENAMETOOLONG: "the name is too long",
}
_LOST = re.compile("Connection (closed|reset) by peer")  # what torch's Gloo says where another process has ended


def run(main: Callable[[], object]) -> None:
    """Calls `main` and exits with a sentence instead of a traceback if the user can fix the error.

    The exit status is 1 for a UserError or a fault of the machine such as a full disk, and 130 for Ctrl-C, whose
    exception may carry a hint to print. Any other exception is a bug and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show must not end a training
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # a stream that is also read cannot always be changed
                stream.reconfigure(errors="replace")
    try:
        main()
        return
    except UserError as fault:
        status, message = 1, f"error: {fault}"
    except KeyboardInterrupt as fault:
        status, message = 130, "interrupted: no half-written files remain, and earlier checkpoints are unchanged"
        message += f"; {fault}" if str(fault) else ""
    except Exception as fault:
        sentence = _system_fault(fault)
        if sentence is None:
            raise
        status, message = 1, f"error: {sentence}"
    # Printed outside the handlers: by now the failed frames are gone, and with them any progress bar that would draw
    # over the message.
    console.show_cursor()
    complain(message)
    sys.exit(status)


def complain(message: str) -> None:
    """Prints a message to stderr; of several processes, each but the first says which one it is."""
    print(message if RANK == 0 else f"process {RANK}: {message}", file=sys.stderr)


def _system_fault(fault: Exception) -> str | None:
    """The sentence for a fault of the machine, or None for any other exception."""
    if WORLD_SIZE > 1 and isinstance(fault, RuntimeError) and _LOST.search(str(fault)):
        return "another process has ended, which has said why if it could"
    # safetensors and tokenizers raise exceptions of their own for a full disk; only the text tells.
    full = "No space left on device" in str(fault)
    code = errno.ENOSPC if full else getattr(fault, "errno", None)
    if code not in _SYSTEM_FAULTS:
        return None
    filename = getattr(fault, "filename", None)
    return f"{filename}: {_SYSTEM_FAULTS[code]}" if filename else _SYSTEM_FAULTS[code]


# --- progress --------------------------------------------------------------------------------------------------------


def track(iterable: Iterable[T], description: str, total: int | None = None, done: int = 0) -> Iterator[T]:
    """Iterates with a progress bar or, if the output is not a terminal, with a line every ten seconds and at the end.

    Args:
        total: number of items, if `iterable` cannot tell or does not begin at the first.
        done: number of items that were done before.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            yield from progress.track(iterable, total=total, completed=done, description=description)
        return
    started = last = time.monotonic()
    for done, item in enumerate(iterable, start=done + 1):  # noqa: B020
        yield item
        if time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            console.print(f"{description}: {done}/{total or '?'}, {last - started:.0f} s")
    console.print(f"{description}: {done} done in {time.monotonic() - started:.0f} s")


# Unicode's classes of the characters that open or close a stretch in another direction: left open, one would reverse
# what follows the text.
_DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def printable(text: str) -> str:
    """Replaces what a terminal would obey in a model's text: control characters but "\\n", and changes of direction.

    Halves of a surrogate pair, which cannot be written, are replaced too. The joiners of emoji, Persian or Hindi stay.
    """
    return "".join(c if c == "\n" or _is_shown(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def _is_shown(character: str) -> bool:
    """str.isprintable() would be False for joiners too."""
    return category(character) not in ("Cc", "Cs") and bidirectional(character) not in _DIRECTIONS
