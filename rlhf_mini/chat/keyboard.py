"""What the user types: lines, the history behind the up-arrow, and Ctrl-C."""

import os
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

from rlhf_mini.chat.display import say
from rlhf_mini.core.console import console

HISTORY_LENGTH = 500  # lines


def read_lines(prompt: str) -> Iterator[str]:
    """Lines as typed, until Ctrl-D; or from a pipe, without showing `prompt`, until its end.

    Leading and trailing spaces are removed. A line that is not UTF-8 is reported and skipped.
    """
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    while True:
        try:
            line = input(prompt if sys.stdin.isatty() else "").strip()
            line.encode()
        except EOFError:
            if sys.stdin.isatty():
                console.print()  # Ctrl-D leaves the cursor behind the prompt
            return
        except UnicodeEncodeError:
            say("error: that line is not UTF-8 text, so it was not sent", style="")
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            say("\n(Ctrl-D or /quit leaves)")
        else:
            yield line


@contextmanager
def history(path: Path) -> Iterator[None]:
    """Within the block the up-arrow brings back earlier lines; `path` keeps them from session to session."""
    try:
        import readline
    except ImportError:  # Python was built without it
        yield
        return
    readline.set_history_length(HISTORY_LENGTH)
    with suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        partial = path.with_name(path.name + ".partial")
        with suppress(OSError):
            readline.write_history_file(partial)
            os.replace(partial, path)


@contextmanager
def ctrl_c_event() -> Iterator[Event]:
    """Within the block Ctrl-C sets the event instead of raising, so that an answer stops between two tokens.

    Keys typed in the block are not echoed into the answer; they appear at the next prompt.
    """
    pressed = Event()
    handler = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    settings = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    if settings:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, [*settings[:3], settings[3] & ~termios.ECHO, *settings[4:]])
    try:
        yield pressed
    finally:
        if settings:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, settings)
        signal.signal(signal.SIGINT, handler)
