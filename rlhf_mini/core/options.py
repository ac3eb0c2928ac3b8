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
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform

import yaml
from pydantic import ConfigDict, NonNegativeInt, ValidationError
from pydantic.dataclasses import dataclass

from rlhf_mini.core.console import UserError
from rlhf_mini.core.validation import sentence

T = TypeVar("T")


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


@options
class RunOptions:
    """What every command that reads or writes a run takes."""

    run: str = option("default", "Name of the run; its checkpoints are in RUNS_DIR/RUN.")
    runs_dir: str = option("runs", "Folder of all runs.")
    seed: NonNegativeInt = option(0, "Seed of all random numbers.")

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.run


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
    print(f"error: {message} (--help lists the options)", file=sys.stderr)
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
        "--config", metavar="FILE.yaml", help="Read options from this file; the command line takes precedence."
    )
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
    try:
        return cls(**from_file | given)
    except ValidationError as fault:
        first = fault.errors()[0]
        name = str(first["loc"][0])
        raise UserError(sentence(first, f"--{name}" if name in given else f"{config}: {name}")) from None


def _read_config(path: str, cls: type[Any]) -> dict[str, str]:
    """The options in a YAML file, as text. UserError says what is wrong with the file."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as fault:
        raise UserError(f"{path} cannot be read: {fault.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(fault).split())}") from None
    if content is None:  # an empty file changes no default
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold lines of the form `option: value`")
    names = {field.name for field in dataclasses.fields(cls)}
    for name, value in content.items():
        if name not in names:
            raise UserError(f"{path}: unknown option {name}")
        if not isinstance(value, (str, int, float)):
            raise UserError(f"{path}: {name} needs a single value")
    return {name: str(value) for name, value in content.items()}  # as on the command line: a run may be called 7


def command_line(prog: str) -> str:
    """The running command as one would type it, to be recorded beside its results; `prog` as in --help."""
    return shlex.join([*prog.split(), *sys.argv[1:]])


def load_function(spec: str, what: str) -> Callable[..., Any]:
    """Imports the function that `spec`, "package.module:function", names.

    Args:
        what: what the function is for, such as "labelers" or "--reward"; the error message begins with it.

    Raises:
        UserError: there is no such module or function, or a module that it imports is not installed.
    """
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
        raise UserError(f"{what} {spec!r} is not a function")
    return cast(Callable[..., Any], function)
