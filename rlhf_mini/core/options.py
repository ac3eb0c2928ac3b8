"""Options: one pydantic dataclass per command, read from the command line and from `--config FILE.yaml`.

    @options
    class SFTOptions(RunOptions):
        learning_rate: PositiveFloat = option(7e-4, "Peak learning rate.")

    settings = parse_options(SFTOptions, prog="python -m stages.sft", description="...")

The annotation of a field is also its check, so the values that an option accepts are stated once, where it is declared.
"""

import argparse
import dataclasses
import importlib
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, dataclass_transform

import yaml
from annotated_types import Ge, Le
from pydantic import AfterValidator, ConfigDict, NonNegativeInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from rlhf_mini.core.console import UserError, complain, printable
from rlhf_mini.core.validation import is_utf8, sentence

T = TypeVar("T")
STAGES = {"sft", "rm", "ppo"}  # a configuration may have a section for each


def option(default: Any, text: str) -> Any:
    """A field of an options class: its default and its help text."""
    return dataclasses.field(default=default, metadata={"description": text})


@dataclass_transform()
def options(cls: type[T]) -> type[T]:
    """Makes `cls` a dataclass that converts its values to the fields' types and checks them.

    Its constructor raises pydantic.ValidationError. Checks across fields go into `__post_init__`, which may raise
    UserError.
    """
    return cast(type[T], dataclass(config=ConfigDict(extra="forbid", allow_inf_nan=False))(cls))


def check_run_name(name: str) -> str:
    """Returns `name`. ValueError if it is not a plain name of a folder, which would put the run somewhere else.

    RUNS_DIR has hidden files of its own, and a colon would make a reward model's folder look like module:function.
    """
    if not name.strip() or name.startswith(".") or any(each in "/\\:" or not each.isprintable() for each in name):
        raise ValueError(f"must be a folder's name, without / \\ : and without a dot at its beginning, not {name!r}")
    return name


def _is_not_empty(path: str) -> str:
    if not path.strip():
        raise ValueError("must name a folder, such as runs")
    return path


RunName = Annotated[str, AfterValidator(check_run_name)]
RunsDir = Annotated[str, AfterValidator(_is_not_empty)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
"""What random, torch and numpy all take; the upper bound is numpy's."""


def parse_seed(text: str) -> int:
    """A `Seed` from the command line, for the commands that have an argparse parser of their own."""
    try:
        return TypeAdapter(Seed).validate_python(text)
    except ValidationError as fault:
        raise argparse.ArgumentTypeError(sentence(fault.errors()[0], "it")) from None


@options
class RunOptions:
    """What every command that reads or writes a run takes."""

    run: RunName = option("default", "Name of the run; its checkpoints are in RUNS_DIR/RUN.")
    runs_dir: RunsDir = option("runs", "Folder of all runs.")
    seed: Seed = option(0, "Seed of all random numbers.")

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.run


@options
class StageOptions(RunOptions):
    """What every stage takes. A file of examples may be in any format of rlhf_mini/data/formats.py."""

    device: Literal["cpu", "auto"] = option("cpu", "cpu, or auto for the best available device.")
    precision: Literal["no", "bf16"] = option(
        "no", "bf16: matrix products of the models' passes in bfloat16; weights and optimizer stay in float32."
    )
    lora_rank: NonNegativeInt = option(
        0, "Rank of a LoRA adapter that is trained, and saved, instead of all weights (0: all weights)."
    )
    strict: bool = option(False, "Stop at a record that cannot be used, instead of leaving it out and saying so.")
    too_long: Literal["drop", "cut"] = option(
        "drop", "What is longer than the model's context: drop it, or cut off the beginning of its prompt."
    )


def parse_options(cls: type[T], argv: Sequence[str] | None = None, prog: str | None = None, description: str = "") -> T:
    """Reads the options class `cls` from the command line and, with `--config FILE.yaml`, from a file.

    The command line takes precedence over the file, and the file over the defaults. An unknown option or key, a value
    that its field does not accept, or an unreadable file ends the program with one sentence and exit status 2.
    """
    parser = _parser(cls, prog, description)
    try:
        given, unknown = parser.parse_known_args(argv)
        if unknown:
            raise UserError(f"unknown option {unknown[0]}")
        return _make(cls, **vars(given))
    except argparse.ArgumentError as fault:  # without a value, or --no_x with one: only the message tells them apart
        name = str(fault.argument_name).partition("/")[0]
        message = f"{name} {'takes no' if 'explicit argument' in fault.message else 'needs a'} value"
    except UserError as fault:
        message = str(fault)
    message = " ".join(printable(message).split("\n"))  # a file's name may hold a line end
    complain(f"error: {message} (--help lists the options)")
    sys.exit(2)


def _parser(cls: type[Any], prog: str | None, description: str) -> argparse.ArgumentParser:
    """A parser with an argument per field. Its namespace holds only the arguments that were given, as text."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument(
        "--config", metavar="FILE.yaml",
        help="Read options from this file, or from its section sft, rm or ppo; the command line takes precedence.",
    )  # fmt: skip
    for field in dataclasses.fields(cls):
        text = field.metadata["description"] + ("" if field.default == "" else f" (default: {field.default})")
        text = text.replace("%", "%%")
        flags, metavar = _spellings(field.name), field.name.upper()
        if isinstance(field.default, bool):
            parser.add_argument(*flags, nargs="?", const=True, metavar=metavar, help=text)
        else:
            parser.add_argument(*flags, metavar=metavar, help=text)
        if field.default is True:
            no = _spellings(f"no_{field.name}")
            parser.add_argument(
                *no, dest=field.name, action="store_const", const=False, help=f"The same as --{field.name} False."
            )
    return parser


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


def _make(cls: type[T], config: str | None = None, **given: Any) -> T:
    """Builds the options. UserError says which value is wrong, and in which file if it is from one."""
    from_file = {} if config is None else _read_config(config, cls)
    places = {name: f"--{name}" if name in given else f"{config}: {name}" for name in from_file | given}
    for name, value in (from_file | given).items():
        if isinstance(value, str) and "\0" in value:  # no path may hold one
            raise UserError(f"{places[name]} must not hold a null character")
        if isinstance(value, str) and not is_utf8(value):  # how Python reads bytes that are not UTF-8
            raise UserError(f"{places[name]} is not UTF-8 text")
    try:
        return cls(**from_file | given)
    except ValidationError as fault:
        first = fault.errors()[0]
        raise UserError(sentence(first, places[str(first["loc"][0])])) from None


def _read_config(path: str, cls: type[Any]) -> dict[str, str]:
    """The options in a YAML file, as text. UserError says what is wrong with the file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as fault:
        raise UserError(f"{path} cannot be read: {fault.strerror}") from None
    except ValueError as fault:  # not UTF-8, or a null character in the path
        raise UserError(f"{path} is not valid YAML: {fault}") from None
    try:
        content = yaml.safe_load(text)
    except Exception as fault:  # a YAMLError, or what its constructors raise at dates and numbers that do not exist
        raise UserError(f"{path} is not valid YAML: {' '.join(str(fault).split())}") from None
    if content is None:  # an empty file changes no default
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold lines of the form `option: value`")
    if set(content) <= STAGES and all(isinstance(section, dict) for section in content.values()):
        content = content.get(cls.__name__.removesuffix("Options").lower(), {})
    names = {field.name for field in dataclasses.fields(cls)}
    for name, value in content.items():
        if name not in names:
            raise UserError(f"{path}: unknown option {name}")
        if not isinstance(value, (str, int, float)):
            raise UserError(f"{path}: {name} needs a single value")
        if isinstance(value, int) and abs(value) >= 10**4000:  # Python refuses to write out as many digits
            raise UserError(f"{path}: {name} has too many digits")
    return {name: str(value) for name, value in content.items()}  # as on the command line: a run may be called 7


def command_line(prog: str) -> str:
    """The running command as one would type it, to be recorded beside its results; `prog` as in --help."""
    return shlex.join([*prog.split(), *sys.argv[1:]])


def load_function(spec: str, what: str) -> Callable[..., Any]:
    """Imports the function that `spec`, "package.module:function", names, which runs the module's code.

    So `spec` must come from the user's own command, never from a file of a run: others may have made that.

    Args:
        what: what the function is for, such as "labelers" or "--reward"; the error message begins with it.

    Raises:
        UserError: there is no such module or function, or the module cannot be imported.
    """
    module_name, colon, function_name = spec.partition(":")
    if not (module_name and colon and function_name):
        raise UserError(f"{what} {spec!r} must be given as package.module:function")
    if "/" in module_name or module_name.endswith(".py") or not all(module_name.split(".")):
        dotted = ".".join(part for part in re.split(r"[./\\]", module_name.removesuffix(".py")) if part)
        raise UserError(
            f"{what} {spec!r} must be given as package.module:function, without slashes and .py: "
            f"write {dotted or 'module'}:{function_name}"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as fault:
        if not f"{module_name}.".startswith(f"{fault.name}."):
            raise UserError(f"{what} {spec!r} needs the module {fault.name}, which is not installed") from None
        raise UserError(f"{what} {spec!r}: there is no module {fault.name}; check the spelling") from None
    except (Exception, SystemExit) as fault:
        raise UserError(f"{what} {spec!r} cannot be imported: {what_happened(fault)}") from None
    try:
        function = getattr(module, function_name)
    except AttributeError:
        raise UserError(f"{what} {spec!r}: {module_name} has no function {function_name}") from None
    if not callable(function):
        raise UserError(f"{what} {spec!r} is not a function")
    return cast(Callable[..., Any], function)


@contextmanager
def code_of_the_user(name: str) -> Iterator[None]:
    """Turns whatever the user's own code raises in the block into a UserError that begins with `name`."""
    try:
        yield
    except UserError:
        raise
    except Exception as fault:
        raise UserError(f"{name} failed with a {what_happened(fault)}") from None


def what_happened(fault: BaseException) -> str:
    """A user's code has failed: "ZeroDivisionError in line 3 of mine.py (division by zero); correct it"."""
    if isinstance(fault, SyntaxError):
        file, line, message = fault.filename, fault.lineno, fault.msg
    else:
        last = traceback.extract_tb(fault.__traceback__)[-1]
        file, line, message = last.filename, last.lineno, str(fault)
    place = f" in line {line} of {file}" if file else ""
    said = f" ({' '.join(printable(message).split())})" if message else ""
    return f"{type(fault).__name__}{place}{said}; correct it"
