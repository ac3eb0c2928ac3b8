"""Options: a pydantic dataclass for each command, read from the command line and from `--config file.yaml`.

    @options
    class SFTOptions(RunOptions):
        learning_rate: PositiveFloat = option(7e-4, "Peak learning rate.")

    settings = parse_options(SFTOptions, prog="python -m stages.sft", description="...")

A field's annotation says which values it takes, so what is checked stands once, where the option is declared.
"""

import argparse
import dataclasses
import importlib
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, dataclass_transform

import yaml
from pydantic import ConfigDict, Field, NonNegativeInt, ValidationError
from pydantic.dataclasses import dataclass

from rlhf_mini.core.console import UserError
from rlhf_mini.core.validation import sentence

T = TypeVar("T")


def option(default: Any, text: str, **bounds: Any) -> Any:
    """A field of an options class: its default, what --help says of it, and bounds such as `ge=0`, `lt=1`."""
    return Field(default, description=text, **bounds)


@dataclass_transform()
def options(cls: type[T]) -> type[T]:
    """Makes `cls` a pydantic dataclass: values are converted to the fields' types and checked when it is made."""
    config = ConfigDict(allow_inf_nan=False, coerce_numbers_to_str=True)  # a run may be called 7 in a YAML file
    return cast(type[T], dataclass(config=config)(cls))


@options
class RunOptions:
    """What every command about a run takes."""

    run: str = option("default", "Name of the run; its checkpoints are in RUNS_DIR/RUN.")
    runs_dir: str = option("runs", "Folder of all runs.")
    seed: NonNegativeInt = option(0, "Seed of everything random.")

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.run


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one sentence instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (--help lists the options)", file=sys.stderr)
        sys.exit(2)


def parse_options(cls: type[T], argv: Sequence[str] | None = None, prog: str | None = None, description: str = "") -> T:
    """Reads the options class `cls` from the command line and, with `--config file.yaml`, from a file.

    The command line wins over the file, the file over the defaults. An unknown option or key, a value that its field
    does not take, or a missing file is reported in one sentence; the exit status is then 2.
    """
    fields: dict[str, Any] = cls.__pydantic_fields__  # type: ignore[attr-defined]
    parser = _Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="Read options from this file; the command line wins.")
    for name, field in fields.items():
        default = "none" if field.default in ("", None) else field.default
        add = dict(nargs="?", const=True) if isinstance(field.default, bool) else {}
        parser.add_argument(
            *dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]), default=argparse.SUPPRESS,
            metavar=name.upper(), help=f"{field.description} (default: {default})".replace("%", "%%"), **add,
        )  # fmt: skip
        if field.default is True:
            parser.add_argument(f"--no_{name}", dest=name, action="store_false", default=argparse.SUPPRESS,
                                help=f"The same as --{name} False.")  # fmt: skip
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"unknown option {unknown[0]}")
    given = vars(namespace)
    config = given.pop("config", None)
    from_file: dict[str, Any] = {}
    try:
        from_file = _read_config(config, set(fields))
        return cls(**from_file | given)
    except UserError as fault:
        parser.error(str(fault))
    except ValidationError as fault:
        first = fault.errors()[0]
        name = str(first["loc"][0])
        source = f"{config}: " if name in from_file.keys() - given else ""
        parser.error(source + sentence(first, f"--{name}"))


def _read_config(path: str | None, names: set[str]) -> dict[str, Any]:
    """The options in a YAML file. UserError names the file and what is wrong with it."""
    if path is None:
        return {}
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as fault:
        raise UserError(f"{path}: cannot be read: {fault.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise UserError(f"{path}: is not valid YAML: {' '.join(str(fault).split())}") from None
    if content is None:  # an empty file states no deviation
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold lines of the form `option: value`")
    for name, value in content.items():
        if name not in names:
            raise UserError(f"{path}: unknown option {name}")
        if value is None or isinstance(value, (dict, list)):
            raise UserError(f"{path}: option {name} needs a value, not {value!r}")
    return content


def command_line(prog: str) -> str:
    """The running command as one would type it, for the provenance of what it writes; `prog` as in --help."""
    return shlex.join([*prog.split(), *sys.argv[1:]])


def options_dict(settings: Any) -> dict[str, Any]:
    """An options object as plain values by name, for stage.json and other provenance."""
    return dataclasses.asdict(settings)


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
        raise UserError(f"{what} {spec!r} is not a function: name one that is")
    return cast(Callable[..., Any], function)
