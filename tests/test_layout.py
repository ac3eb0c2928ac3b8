"""Who may import whom: the library knows no stage, a stage knows no other stage, and no stage knows the mini world."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = sorted(path.name for path in (ROOT / "stages").iterdir() if (path / "__main__.py").is_file())
FILES = [path for package in ("rlhf_mini", "stages") for path in sorted((ROOT / package).rglob("*.py"))]


def imported(source: str, package: str) -> set[str]:
    """Every module that `source` imports, anywhere in it, with relative imports resolved against `package`."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            modules.update(f"{base}.{alias.name}" for alias in node.names)  # `from stages import rm` imports stages.rm
    return modules


def forbidden(path: Path) -> list[str]:
    """The packages that the file at `path` (relative to the root) must not import."""
    if path.parts[0] == "rlhf_mini":
        return ["stages"]
    own = path.parts[1]
    return ["rlhf_mini.world", *(f"stages.{stage}" for stage in STAGES if stage != own)]


def broken_rules(path: Path, source: str) -> list[str]:
    modules = imported(source, ".".join(path.parent.parts))
    return [module for module in modules for bad in forbidden(path) if f"{module}.".startswith(f"{bad}.")]


def test_the_stages_are_found() -> None:
    assert {"sft", "rm", "ppo"} <= set(STAGES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path: Path) -> None:
    assert broken_rules(path.relative_to(ROOT), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source", "broken"),
    [
        ("rlhf_mini/sampling.py", "from stages.sft import train", ["stages.sft.train"]),
        ("rlhf_mini/sampling.py", "def f():\n    import stages", ["stages"]),
        ("rlhf_mini/sampling.py", "from ..stages.sft import train", ["stages.sft.train"]),
        ("rlhf_mini/world/gold.py", "from .knowledge import load\nimport stagesque", []),
        ("stages/ppo/train.py", "from stages import rm", ["stages.rm"]),
        ("stages/ppo/train.py", "from ..rm.loss import k_wise", ["stages.rm.loss.k_wise"]),
        ("stages/ppo/train.py", "from .losses import clip\nfrom stages.ppo import losses", []),
        ("stages/ppo/train.py", "import rlhf_mini.world.gold", ["rlhf_mini.world.gold"]),
        ("stages/ppo/train.py", "from rlhf_mini import world", ["rlhf_mini.world"]),
        ("stages/ppo/train.py", "from rlhf_mini import rankings", []),
    ],
)
def test_the_rules_themselves(path: str, source: str, broken: list[str]) -> None:
    assert broken_rules(Path(path), source) == broken
