"""Mutation testing: changes one operator or constant at a time, and asks whether a test notices.

    make mutants                                                         # 12 changes of each file in TESTS
    make mutants ARGS="--files rlhf_mini/world/gold.py --number 0"       # all changes of one file

What to inspect: the survivors. Each is a line that no test holds to what it computes, or a change that changes nothing,
such as a smaller tolerance. Which of the two, only a reader can tell, so the score has no target.

The working tree stays as it is: the changes are made in a temporary copy. Only the tests of the changed file run, each
time in a fork of this process, which has imported the libraries. For Linux; elsewhere a fork may not survive torch.
"""

import ast
import importlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import NonNegativeInt
from rich.table import Table

from rlhf_mini.core.console import UserError, console, run
from rlhf_mini.core.files import write_json
from rlhf_mini.core.options import command_line, option, options, parse_options

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("rlhf_mini", "stages", "tests", "data")
LIBRARIES = ("pytest", "hypothesis", "scipy.optimize", "torch", "transformers.models.gpt2.modeling_gpt2",
             "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto")  # fmt: skip
TESTS = {
    "stages/ppo/losses.py": ["tests/stages/test_ppo_losses.py"],
    "stages/rm/loss.py": ["tests/stages/test_rm_loss.py"],
    "rlhf_mini/models/sampling.py": ["tests/models/test_sampling.py"],
    "rlhf_mini/models/scoring.py": ["tests/models/test_scoring.py"],
    "rlhf_mini/world/gold.py": ["tests/world/test_gold.py", "tests/world/test_adversarial.py"],
    "rlhf_mini/world/labelers.py": ["tests/world/test_labelers.py"],
    "rlhf_mini/core/rankings.py": ["tests/core/test_rankings.py"],
    "rlhf_mini/evaluation/ratings.py": ["tests/evaluation/test_ratings.py", "tests/evaluation/test_pairs.py"],
    "rlhf_mini/evaluation/pairs.py": ["tests/evaluation/test_pairs.py"],
}
NOT_LOADED = 99  # exit status: the tests passed, but on another file than the mutant


@options
class MutantsOptions:
    """Options of `python -m benchmarks.mutants`."""

    files: str = option("", "Files to change, comma-separated (default: all that have tests listed in TESTS).")
    number: NonNegativeInt = option(12, "Mutants of each file, drawn at random (0: all).")
    seed: NonNegativeInt = option(0, "Seed of the draw.")
    out: str = option("", "JSON file to write the scores and the survivors to (default: none).")

    def __post_init__(self) -> None:
        if unknown := [name for name in self.names if name not in TESTS]:
            raise UserError(f"--files: {unknown[0]} has no tests in TESTS of benchmarks/mutants.py; add them there")

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.files.split(",")] if self.files else list(TESTS)


# --- mutants ---------------------------------------------------------------------------------------------------------

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A file with one change."""

    line: int
    code: str
    """The line as it was."""
    before: str
    after: str
    source: bytes


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What to put in the place of a node."""
    match node:
        case ast.Compare(left, ops, comparators):
            for at, op in enumerate(ops):
                for other in COMPARISONS[type(op)]:
                    yield ast.Compare(left, [*ops[:at], other(), *ops[at + 1 :]], comparators)
        case ast.BinOp(left, op, right) if type(op) in ARITHMETIC:
            yield ast.BinOp(left, ARITHMETIC[type(op)](), right)
        case ast.AugAssign(target, op, value) if type(op) in ARITHMETIC:
            yield ast.AugAssign(target, ARITHMETIC[type(op)](), value)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield operand
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.Return(ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield ast.Return(ast.Constant(None))


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that compute something: no annotations, decorators, parts of f-strings, or `strict=` of a zip."""
    yield node
    if isinstance(node, ast.keyword) and node.arg == "strict":
        return
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                    yield from nodes(child)


def mutants_of(source: bytes) -> list[Mutant]:
    """Every change of a module."""
    starts = [0]
    lines = source.splitlines(keepends=True)
    for line in lines:
        starts.append(starts[-1] + len(line))
    found = []
    for node in nodes(ast.parse(source)):
        for variant in variants(node):
            assert isinstance(node, ast.expr | ast.stmt) and node.end_lineno and node.end_col_offset is not None
            begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            after = ast.unparse(variant)
            new = f"({after})" if isinstance(node, ast.expr) else after
            changed, code = source[:begin] + new.encode() + source[end:], lines[node.lineno - 1].decode().strip()
            found.append(Mutant(node.lineno, code, ast.unparse(node), after, changed))
    return found


# --- tests -----------------------------------------------------------------------------------------------------------


def run_tests(tree: Path, file: str, log: Path) -> None:
    """In a fork: runs the tests of `file` in the copied tree, and exits with pytest's status."""
    os.setsid()  # a group of its own, so that a mutant that hangs can be killed with what it started
    with log.open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(tree)
    sys.path[:] = [str(tree), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    sys.dont_write_bytecode = True  # a mutant may have the size and the second of the one before it
    for name in [name for name in sys.modules if name.split(".")[0] in ("rlhf_mini", "stages", "benchmarks")]:
        del sys.modules[name]

    import pytest

    status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *TESTS[file]]))
    module = sys.modules.get(file.removesuffix(".py").replace("/", "."))
    if status == 0 and not (module and module.__file__ and Path(module.__file__).is_relative_to(tree)):
        status = NOT_LOADED
    sys.stdout.flush()
    os._exit(status)


def status_of(tree: Path, file: str, timeout: float | None = None) -> int | None:
    """Pytest's exit status; None if the tests were killed because they took longer."""
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(tree, file, tree / "pytest.log"))
    process.start()
    try:
        process.join(timeout)
        return process.exitcode
    finally:  # Ctrl-C, too
        if process.is_alive() and process.pid:
            with suppress(ProcessLookupError):  # it has no group yet
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()


@dataclass
class Score:
    """What became of the mutants of one file."""

    mutants: int
    tested: int = 0
    survivors: list[str] = field(default_factory=list)

    @property
    def killed(self) -> int:
        return self.tested - len(self.survivors)


def measure(tree: Path, file: str, drawn: Sequence[Mutant], score: Score) -> None:
    """Fills the score, mutant by mutant, and tells what becomes of each."""
    unchanged, started = (tree / file).read_bytes(), time.monotonic()
    if status := status_of(tree, file):
        told = (tree / "pytest.log").read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
        raise UserError(f"the tests of {file} fail without a mutant (status {status}): {' '.join(told)}")
    took = time.monotonic() - started
    console.print(f"mutants: {file}: {len(drawn)} of {score.mutants}; its tests take {took:.0f} s", soft_wrap=True)
    for mutant in sorted(drawn, key=lambda each: each.line):
        (tree / file).write_bytes(mutant.source)
        status = status_of(tree, file, timeout=10 + 5 * took)
        change = f"{file}:{mutant.line}: {mutant.before}  ->  {mutant.after}"
        verdict = "survived" if status == 0 else "killed" if status is not None else "hung"
        console.print(f"  {verdict:8} {change}", soft_wrap=True)
        score.tested += 1
        if status == 0:
            score.survivors.append(f"{change}    in  {mutant.code}")
    (tree / file).write_bytes(unchanged)  # other files' tests need it


# --- the command -----------------------------------------------------------------------------------------------------


def main() -> None:
    options = parse_options(
        MutantsOptions,
        prog="python -m benchmarks.mutants",
        description="Changes the code, one operator or constant at a time, and counts the changes that tests notice.",
    )
    for library in LIBRARIES:
        importlib.import_module(library)
    scores: dict[str, Score] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder).resolve()
        for name in COPIED:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        try:
            for file in options.names:
                mutants = mutants_of((tree / file).read_bytes())
                number = min(options.number or len(mutants), len(mutants))
                scores[file] = Score(len(mutants))
                measure(tree, file, random.Random(f"{options.seed} {file}").sample(mutants, number), scores[file])
        finally:  # Ctrl-C, too
            console.print(table(scores))
            for survivor in (each for score in scores.values() for each in score.survivors):
                console.print(f"survived: {survivor}", soft_wrap=True)
    if options.out:
        files = {file: {**asdict(score), "killed": score.killed} for file, score in scores.items()}
        write_json(Path(options.out), {"command": command_line("python -m benchmarks.mutants"), "files": files})
        console.print(f"mutants: {options.out} written", soft_wrap=True)


def table(scores: dict[str, Score]) -> Table:
    """The share of mutants that tests noticed."""
    out = Table("file", "mutants", "tested", "killed", "score")
    for column in out.columns[1:]:
        column.justify = "right"
    every = Score(0)
    for score in scores.values():
        every.mutants, every.tested = every.mutants + score.mutants, every.tested + score.tested
        every.survivors.extend(score.survivors)
    for name, score in {**scores, "all": every}.items():
        share = f"{score.killed / score.tested:.0%}" if score.tested else "-"
        out.add_row(name, f"{score.mutants}", f"{score.tested}", f"{score.killed}", share)
    return out


if __name__ == "__main__":
    run(main)
