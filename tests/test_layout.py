"""Imports go one way: core, models, data and training, stages, tools; without circles, and no stage knows another."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from rlhf_mini.core.inputs import imported

ROOT = Path(__file__).parent.parent
STAGES = ("sft", "rm", "ppo")

# What each folder may import of the project, besides itself. Only data-making and tools know the mini world. It ships a
# judge, and takes from the reward model's stage how to train one.
CORE, DATA, MODELS, TRAINING = "rlhf_mini.core", "rlhf_mini.data", "rlhf_mini.models", "rlhf_mini.training"
WORLD, EVALUATION = "rlhf_mini.world", "rlhf_mini.evaluation"
SHARED = (CORE, DATA, MODELS, TRAINING)
TOOL = (*SHARED, WORLD, EVALUATION, "stages")
ALLOWED: dict[str, tuple[str, ...]] = {
    CORE: (),
    DATA: (CORE, MODELS),
    MODELS: (CORE,),
    TRAINING: (CORE, MODELS),
    WORLD: (*SHARED, "stages.rm"),
    **{f"stages.{stage}": SHARED for stage in STAGES},
    "stages.__main__": (CORE,),
    EVALUATION: (*SHARED, WORLD, "stages"),
    "rlhf_mini.report": TOOL,
    "rlhf_mini.chat": TOOL,
    "rlhf_mini.doctor": TOOL,
    "rlhf_mini.museum": (*TOOL, "rlhf_mini.doctor"),
    "rlhf_mini.classroom": (*TOOL, "rlhf_mini.doctor", "rlhf_mini.museum"),
    "rlhf_mini.workshop": (*TOOL, "rlhf_mini.classroom"),
    "benchmarks": (*TOOL, "rlhf_mini.workshop"),
}


def modules() -> dict[str, Path]:
    """Every module of the project by name; a package stands for its __init__.py."""
    found = {}
    for package in ("rlhf_mini", "stages", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def package_of(name: str) -> str:
    return name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]


def module_of(name: str) -> str | None:
    """The module of the project that an imported name is, or is taken from."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def folder_of(name: str) -> str:
    """Its key in ALLOWED; the modules directly in `rlhf_mini` and `stages` belong to no folder."""
    return next((folder for folder in ALLOWED if f"{name}.".startswith(f"{folder}.")), name)


def may_import(own: str, target: str) -> bool:
    """Whether the modules of the folder `own` may import the module `target`; anybody may the two outer packages."""
    return target in ("rlhf_mini", "stages") or any(
        f"{target}.".startswith(f"{folder}.") for folder in ((own, *ALLOWED[own]) if own in ALLOWED else ())
    )


def broken_rules(name: str, source: str, package: str) -> list[str]:
    """What the module `name` imports but must not."""
    targets = {each: module_of(each) for each in imported(source, package)}
    return [each for each, target in targets.items() if target and not may_import(folder_of(name), target)]


def test_every_module_lives_in_a_folder_with_a_sentence() -> None:
    assert {folder_of(name) for name in MODULES} == {*ALLOWED, "rlhf_mini", "stages"}
    for folder in ALLOWED:
        assert ast.get_docstring(ast.parse(MODULES[folder].read_text(encoding="utf-8"))), folder


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name: str) -> None:
    assert broken_rules(name, MODULES[name].read_text(encoding="utf-8"), package_of(name)) == []


def test_there_is_no_circle() -> None:
    """Imports inside functions and those for type checkers only count, too."""
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        targets = {module_of(each) for each in imported(path.read_text(encoding="utf-8"), package_of(name))}
        graph[name] = {target for target in targets if target} - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as fault:
        pytest.fail(" -> ".join(fault.args[1]))


def test_no_module_has_the_name_of_a_standard_one() -> None:
    names = {name.rpartition(".")[2] for name in MODULES} - {"__main__"}
    assert names & set(sys.stdlib_module_names) == set()


@pytest.mark.parametrize(
    ("name", "source", "broken"),
    [
        ("rlhf_mini.models.sampling", "from stages.sft import train", ["stages.sft.train"]),
        ("rlhf_mini.models.sampling", "def f():\n    import stages.sft.train", ["stages.sft.train"]),
        ("rlhf_mini.models.sampling", "from ...stages.sft import train", ["stages.sft.train"]),
        ("rlhf_mini.models.sampling", "from ..training import schedule", ["rlhf_mini.training.schedule"]),
        ("rlhf_mini.core.console", "from rlhf_mini.models import sampling", ["rlhf_mini.models.sampling"]),
        ("rlhf_mini.world.gold", "from .knowledge import load\nimport stagesque", []),
        ("rlhf_mini.world.gold", "from stages.ppo import losses", ["stages.ppo.losses"]),
        ("stages.ppo.train", "from stages.rm import loss", ["stages.rm.loss"]),
        ("stages.ppo.train", "from ..rm.loss import k_wise_loss", ["stages.rm.loss.k_wise_loss"]),
        ("stages.ppo.train", "from .losses import gae\nfrom stages.ppo import losses\nimport rlhf_mini", []),
        ("stages.ppo.train", "import rlhf_mini.world.gold", ["rlhf_mini.world.gold"]),
        ("stages.ppo.train", "from rlhf_mini import world", ["rlhf_mini.world"]),
        ("stages.ppo.train", "from rlhf_mini.evaluation import compare", ["rlhf_mini.evaluation.compare"]),
        ("rlhf_mini.evaluation.compare", "from stages.ppo import losses\nfrom rlhf_mini.world import gold", []),
        ("rlhf_mini.evaluation.compare", "from rlhf_mini.report import page", ["rlhf_mini.report.page"]),
        ("rlhf_mini.chat.session", "from rlhf_mini.report import page", ["rlhf_mini.report.page"]),
    ],
)
def test_the_rules_themselves(name: str, source: str, broken: list[str]) -> None:
    package = name.rpartition(".")[0]
    assert broken_rules(name, source, package) == broken
