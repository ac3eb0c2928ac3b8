"""What a stage is made from, by content: the files it reads, its code, and the checkpoints before it.

stage.json and the resume file keep it. A checkpoint is up to date as long as nothing of it has changed, whatever the
times of the files say: a copied run stays finished, and a labeler who judges differently shows.
"""

import ast
import dataclasses
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from rlhf_mini.core.checkpoints import known_by, read_stage_json
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.files import sha256

ROOT = Path(__file__).parents[2]
FUNCTION = re.compile(r"([\w.]+):\w+")  # package.module:function, as options name it
# Read by this module rather than imported, so its code alone does not tell what it does.
KNOWLEDGE_READER, KNOWLEDGE = "rlhf_mini.world.knowledge", "data/knowledge"


def inputs_of(stage: str, options: Any, files: Sequence[str]) -> dict[str, str]:
    """The checksum of everything that `stage` is made from, except options and checkpoints, by path.

    Args:
        options: the stage's, a dataclass; functions that they name bring the modules that define them.
        files: paths of the files that the stage reads.
    """
    named = [FUNCTION.fullmatch(value) for value in dataclasses.asdict(options).values() if isinstance(value, str)]
    return {path: sha256(Path(path)) for path in files} | code_of(
        [f"stages.{stage}.train", *(m[1] for m in named if m)]
    )


def code_of(modules: Sequence[str]) -> dict[str, str]:
    """The checksums of these modules' files and of all that they import, but for what is installed.

    Found by reading the import statements, without running them.
    """
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        package = name.rpartition(".")[0]
        waiting += [package] if package else []  # also where `name` is a function in it
        if path := _file_of(name):
            found[name] = path
            with suppress(SyntaxError, ValueError):  # its own import will say so
                waiting += imported(path.read_bytes(), name if path.name == "__init__.py" else package)
    paths = [*found.values(), *(sorted((ROOT / KNOWLEDGE).rglob("*.yaml")) if KNOWLEDGE_READER in found else [])]
    return {_shown(path): sha256(path) for path in sorted(paths)}


def _file_of(module: str) -> Path | None:
    """In the current folder, in the project, or where Python finds what is not installed."""
    for root in (Path.cwd(), ROOT, *map(Path, filter(_is_not_installed, sys.path))):
        base = root.joinpath(*module.split("."))
        for path in (base / "__init__.py", base.with_name(base.name + ".py")):
            if path.is_file():
                return path
    return None


@cache
def _is_not_installed(entry: object) -> bool:
    """Whether an entry of sys.path is a folder of the user's, without the standard library or installed packages."""
    if not isinstance(entry, str):  # Python ignores it
        return False
    path, standard = Path(entry).resolve(), {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    packages = {"site-packages", "dist-packages"} & set(path.parts)
    return not packages and not any(path.is_relative_to(folder.resolve()) for folder in standard)


def imported(source: str | bytes, package: str) -> Iterator[str]:
    """Every name that Python source imports, anywhere in it: a module, or something in one.

    Args:
        package: that relative imports are resolved against.

    Raises:
        SyntaxError: it is not Python.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)  # `from stages import rm` imports stages.rm


def _shown(path: Path) -> str:
    """Relative to the project or the current folder, if it is there: so the same run has the same inputs elsewhere."""
    return next((path.relative_to(root) for root in (ROOT, Path.cwd()) if path.is_relative_to(root)), path).as_posix()


# --- is a checkpoint up to date? -------------------------------------------------------------------------------------


def changes(folder: Path) -> list[str]:
    """What has changed of that which the checkpoint in `folder` was made from, each in words; [] if it is up to date.

    A checkpoint that it was built on, but that is not there, counts as unchanged. UserError if there is no stage.json
    of this project.
    """
    try:
        info = read_stage_json(folder)
    except UserError:
        info = {}
    if not info:
        raise UserError(f"{folder}/stage.json was not written by this project: delete {folder}")
    made_from = info.get("made_from", {})
    if not made_from:
        return ["stage.json does not say what it was made from"]
    found = []
    for name, then in made_from.items():
        path = next((path for path in (Path(name), ROOT / name) if path.is_file()), None)
        if path is None or sha256(path) != then:
            found.append(f"{name} {'is gone' if path is None else 'has changed'}")
    for parent in info["parents"]:
        now = _known_now(folder, info, parent)
        if now and parent.get("files_sha256", parent["sha256"]) not in now:
            found.append(f"the {parent['stage']} that it was built on was trained again")
    return found


def _known_now(folder: Path, info: dict[str, Any], parent: dict[str, str]) -> list[str]:
    """The checksums of the checkpoint that the one in `folder` was built on, as it is today; [] if it is not there."""
    places = [Path(parent["path"])]
    if places[0].parent == Path(info["options"].get("runs_dir", ""), info["options"].get("run", "")):
        places.insert(0, folder.parent / parent["stage"])  # one of the same run, of which a copied run has its own
    for place in places:
        with suppress(UserError):  # damaged
            if found := known_by(read_stage_json(place)):
                return found
    return []


def in_words(found: Sequence[str]) -> str:
    """The first change, and how many more there are."""
    return found[0] + (f", and {len(found) - 1} more" if len(found) > 1 else "")


def note_changes(folders: Sequence[Path]) -> None:
    """Says which of these checkpoints are not up to date, for a command that goes on with them."""
    for folder in folders:
        if found := changes(folder):
            console.print(f"note: {folder} is not up to date: {in_words(found)}", soft_wrap=True)
