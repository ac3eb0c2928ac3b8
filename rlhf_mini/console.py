"""What every command shares with the person at the terminal: options, progress, metrics, and errors in one sentence."""

import argparse
import dataclasses
import errno
import importlib
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from trl import TrlParser

T = TypeVar("T")

# Sampled text is printed as it is: "[/b]" or ":smile:" in a response is no markup. Use `style=` to colour a line.
console = Console(markup=False, emoji=False, highlight=False)

LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal to draw a bar on


class UserError(Exception):
    """Something the user can put right. Its text is one sentence that says what is wrong and what to do."""


# --- options ---------------------------------------------------------------------------------------------------------


class _Parser(TrlParser):
    """TRL's parser for a dataclass, with mistakes told in one sentence instead of a page of usage."""

    source = ""  # "nano.yaml: " while the options of a file are read

    def error(self, message: str) -> NoReturn:
        print(f"error: {self.source}{message} (--help lists the options)", file=sys.stderr)
        sys.exit(2)


def option(default: Any, text: str) -> Any:
    """A field of an options dataclass: its default, and what --help says of it (a per cent sign is written %%)."""
    return dataclasses.field(default=default, metadata={"help": text})


def parse_options(cls: type[T], argv: Sequence[str] | None = None, prog: str | None = None, description: str = "") -> T:
    """Reads the options dataclass `cls` from the command line and, with `--config file.yaml`, from a file.

    The command line wins over the file, the file over the defaults. Each field's `metadata={"help": ...}` is shown by
    `--help` (write a percent sign as %%). `cls.__post_init__` may raise `UserError` for values that do not go together.
    An unknown option or key, a wrong type or a missing file is told in one sentence and exits with 2.

    A file's keys become options that stand before those of the command line. So both go through the same checks, which
    TrlParser's own reading of files omits (it sets defaults, which argparse never checks).
    """
    parser = _Parser(cls, prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="Read options from this file; the command line wins.")
    arguments = list(sys.argv[1:] if argv is None else argv)

    finder = _Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    config = finder.parse_known_args(arguments)[0].config
    if config is not None:
        parser.source = f"{config}: "
        names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        from_file = _file_arguments(parser, Path(config), names)
        parser.parse_known_args(from_file)  # finds the file's faults while we can still say that they are the file's
        parser.source = ""
        arguments = from_file + arguments

    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(f"unknown option {unknown[0]}")
    values = vars(namespace)
    values.pop("config")
    try:
        return cls(**values)
    except UserError as fault:
        parser.error(str(fault))


def _file_arguments(parser: argparse.ArgumentParser, path: Path, names: set[str]) -> list[str]:
    """The options in a YAML file as command-line arguments: `kl_coef: 0.1` becomes `--kl_coef=0.1`."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as fault:
        parser.error(f"cannot be read: {fault.strerror}")
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        parser.error("is not valid YAML: " + " ".join(str(fault).split()))
    if content is None:  # an empty file states no deviation
        return []
    if not isinstance(content, dict):
        parser.error("must hold lines of the form `option: value`")
    arguments: list[str] = []
    for name, value in content.items():
        if name not in names:
            parser.error(f"unknown option {name}")
        if isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        elif isinstance(value, (str, int, float)):
            arguments.append(f"--{name}={value}")
        else:
            parser.error(f"option {name} needs a value, not {value!r}")
    return arguments


def command_line(prog: str) -> str:
    """The command that runs now, as one would type it, for the provenance of what it writes; `prog` as in --help."""
    return shlex.join([*prog.split(), *sys.argv[1:]])


def load_function(spec: str, what: str) -> Callable[..., Any]:
    """The function that `spec`, "package.module:function", names. UserError, about a `what`, if there is none."""
    module_name, colon, function_name = spec.partition(":")
    if not (module_name and colon and function_name):
        raise UserError(f"{what} {spec!r} must be given as package.module:function")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ModuleNotFoundError as fault:
        if not f"{module_name}.".startswith(f"{fault.name}."):
            raise UserError(f"{what} {spec!r} needs the module {fault.name}, which is not installed") from None
        raise UserError(f"{what} {spec!r}: there is no module {fault.name}; check the spelling") from None
    except AttributeError:
        raise UserError(f"{what} {spec!r}: {module_name} has no function {function_name}") from None
    if not callable(function):
        raise UserError(f"{what} {spec!r} is no function: name one that is")
    return cast(Callable[..., Any], function)


# --- running ---------------------------------------------------------------------------------------------------------

# What a user can run into on any machine, with the words that help; other OSErrors are bugs and keep their traceback.
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


def run(main: Callable[[], object]) -> None:
    """Calls `main`; what a user can cause is told in a sentence, exit 1 (130 for Ctrl-C). A bug keeps its traceback."""
    try:
        main()
        return
    except UserError as fault:
        status, message = 1, f"error: {fault}"
    except KeyboardInterrupt as fault:
        status, message = 130, "interrupted: nothing was left half-written, and earlier checkpoints are as they were"
        message += f"; {fault}" if str(fault) else ""
    except Exception as fault:
        sentence = _system_fault(fault)
        if sentence is None:
            raise
        status, message = 1, f"error: {sentence}"
    # Outside the handlers the failed frames are gone, and with them a progress bar that would draw over the message.
    console.show_cursor()
    print(message, file=sys.stderr)
    sys.exit(status)


def _system_fault(fault: Exception) -> str | None:
    """The sentence for a full disk and its like, or None for anything else."""
    # safetensors and tokenizers wrap a full disk into exceptions of their own; only the text tells.
    full = "No space left on device" in str(fault)
    code = errno.ENOSPC if full else getattr(fault, "errno", None)
    if code not in _SYSTEM_FAULTS:
        return None
    filename = getattr(fault, "filename", None)
    return f"{filename}: {_SYSTEM_FAULTS[code]}" if filename else _SYSTEM_FAULTS[code]


# --- progress and metrics --------------------------------------------------------------------------------------------


def track(iterable: Iterable[T], description: str, total: int | None = None, done: int = 0) -> Iterator[T]:
    """Iterates with a progress bar; where there is no terminal, with a plain line each ten seconds and at the end.

    `done` of the `total` lie behind already.
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


def printable(text: str) -> str:
    """A model's text without control characters that the terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def plain(value: Any) -> Any:
    """`value` as strict JSON can hold it: one-element tensors and arrays as numbers, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):  # torch and numpy scalars
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


class MetricsLog:
    """Appends one JSON object a line to `path`, written out at once so that `tail -f` shows a stage at work."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, **metrics: Any) -> None:
        """Appends {"step": step, **metrics}; pass names with a slash as `**{"objective/kl": kl}`."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **plain(metrics)}) + "\n")
