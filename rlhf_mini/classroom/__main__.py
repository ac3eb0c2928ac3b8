"""Builds the lessons in `lessons/` as notebooks and offline pages, and compares a run's figures with those of others.

python -m rlhf_mini.classroom pages               # runs all lessons; lessons/built/en and ko, .ipynb and .html
python -m rlhf_mini.classroom pages 3 --preset nano
python -m rlhf_mini.classroom notebook 3          # a notebook to work in: lessons/mine/3_ppo.ipynb
python -m rlhf_mini.classroom compare 3           # where do the figures of my run lie?
python -m rlhf_mini.classroom bands               # runs all lessons on five runs; writes docs/bands.json, .md
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat

from rlhf_mini.classroom import bands, notebook
from rlhf_mini.classroom.page import index, to_html
from rlhf_mini.core.console import UserError, console, run
from rlhf_mini.core.files import replacing
from rlhf_mini.core.inputs import ROOT
from rlhf_mini.core.options import check_run_name

BUILT = notebook.LESSONS / "built"
MINE = notebook.LESSONS / "mine"


def build_pages(numbers: Sequence[int], environment: dict[str, str]) -> None:
    """Runs the lessons and writes, in each language, the executed notebook and the page of each."""
    sources = notebook.sources()
    originals = {number: notebook.read(path) for number, path in sources.items()}
    versions = {
        language: {n: notebook.translated(originals[n], sources[n], language) for n in sources}
        for language in notebook.LANGUAGES
    }
    titles = {
        language: [(n, notebook.title(of), f"{sources[n].stem}.html") for n, of in lessons.items()]
        for language, lessons in versions.items()
    }
    for number in numbers:
        started = time.monotonic()
        executed = run_lesson(number, environment | {"PAGES": "1"})
        for language, lessons in versions.items():
            made = notebook.same_outputs(executed, lessons[number])
            folder = BUILT / language
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{sources[number].stem}.ipynb"
            write(path, nbformat.writes(made))
            path.chmod(0o444)  # so that nobody works in a file that is written again
            write(path.with_suffix(".html"), to_html(made, language, titles[language], f"{path.stem}.html"))
        minutes = (time.monotonic() - started) / 60
        console.print(f"lesson {number}: {minutes:.1f} min; {BUILT.relative_to(ROOT)}/*/{path.stem}.html written")
    for language, of_language in titles.items():
        built = [one for one in of_language if (BUILT / language / one[2]).is_file()]
        write(BUILT / language / "index.html", index(language, built))


def write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with replacing(path) as file:
        file.write(text)


def run_lesson(number: int, environment: dict[str, str]) -> notebook.NotebookNode:
    """The executed notebook. Shows which cell is at work; UserError if one stops."""

    def progress(done: int, cells: int) -> None:
        if console.is_terminal:
            console.print(f"lesson {number}: cell {done}/{cells}", end="\r")

    path = notebook.source_of(number)
    console.print(f"lesson {number}: running {path.relative_to(ROOT)}")
    try:
        return notebook.execute(notebook.read(path), environment, progress)
    except UserError as fault:
        raise UserError(f"lesson {number}: {fault}") from fault


def own_notebook(number: int, language: str) -> Path:
    """A notebook to work in. One that is there already stays, with all that was written into it."""
    source = notebook.source_of(number)
    path = MINE / language / f"{source.stem}.ipynb"
    if not path.exists():
        made = notebook.translated(notebook.read(source), source, language)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, nbformat.writes(made))
        console.print(f"{path.relative_to(ROOT)} written")
    return path


def open_notebook(path: Path, environment: dict[str, str]) -> None:
    """Starts JupyterLab on 127.0.0.1 with this notebook. The settings in `jupyter` keep it from asking for news."""
    command = [
        *(sys.executable, "-m", "jupyterlab", str(path), "--ip=127.0.0.1"),
        "--LabApp.extension_manager=readonly",
        *(["--allow-root"] if os.geteuid() == 0 else []),  # the only user of most containers
    ]
    sys.stdout.flush()
    settings = {"JUPYTER_CONFIG_PATH": str(Path(__file__).parent / "jupyter")}
    os.execve(sys.executable, command, dict(os.environ) | environment | notebook.QUIET | settings)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m rlhf_mini.classroom", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    pages = commands.add_parser("pages", help="run lessons; build executed notebooks and offline pages")
    pages.add_argument("numbers", nargs="*", type=int, metavar="N", help="which lessons (default: all)")
    own = commands.add_parser("notebook", help="open a lesson in JupyterLab, to work in")
    own.add_argument("number", type=int, metavar="N", help="which lesson")
    own.add_argument("--language", choices=notebook.LANGUAGES, default="en", help="of the prose (default: en)")
    own.add_argument("--only-write", action="store_true", help="write the notebook, but do not start JupyterLab")
    compare = commands.add_parser("compare", help="compare the figures of a run with the bands of others")
    compare.add_argument("number", type=int, metavar="N", help="which lesson")
    measure = commands.add_parser("bands", help="run lessons on several runs and write the bands")
    measure.add_argument("numbers", nargs="*", type=int, metavar="N", help="which lessons (default: all)")
    measure.add_argument("--runs", default="seed0,seed1,seed2,seed3,seed4", help="comma-separated (%(default)s)")
    measure.add_argument("--out", type=Path, default=bands.BANDS, help="file to write (default: docs/bands.json)")
    for one in (pages, own, compare):
        one.add_argument("--run", type=check_run_name, default="default", help="run to look at (default: default)")
    for one in (pages, own, compare, measure):
        one.add_argument("--runs_dir", default="runs", help="folder of all runs (default: runs)")
    for one in (pages, own):
        one.add_argument("--preset", choices=("full", "nano"), default="full", help="nano: small steps, in seconds")
    return made


def main() -> None:
    arguments = parser().parse_args()
    runs_dir = Path(arguments.runs_dir).absolute()
    environment = {"RUNS_DIR": str(runs_dir if arguments.runs_dir != "runs" else "runs")}
    if arguments.command in ("pages", "notebook", "compare"):
        environment |= {"RUN": arguments.run}
    if arguments.command in ("pages", "notebook"):
        environment |= {"PRESET": arguments.preset}
    if arguments.command == "pages":
        build_pages(arguments.numbers or list(notebook.sources()), environment)
    elif arguments.command == "notebook":
        path = own_notebook(arguments.number, arguments.language)
        if not arguments.only_write:
            open_notebook(path, environment)
    elif arguments.command == "compare":
        for line in bands.compare(arguments.number, runs_dir / arguments.run):
            console.print(line, soft_wrap=True)
    else:
        numbers = arguments.numbers or list(notebook.sources())
        names = arguments.runs.split(",")
        if len(names) < bands.MIN_RUNS:
            raise UserError(f"bands need at least {bands.MIN_RUNS} runs: name more with --runs")
        for name in names:
            if not (runs_dir / name).is_dir():
                raise UserError(f"there is no run {runs_dir / name}: make seeds trains five")
        for number in numbers:
            for name in names:
                if not bands.is_recorded(runs_dir / name, number):
                    run_lesson(number, environment | {"RUN": name, "PAGES": "1"})
            bands.write(arguments.out, [runs_dir / name for name in names], [number])
            console.print(f"lesson {number}: {arguments.out} and .md written")


if __name__ == "__main__":
    run(main)
