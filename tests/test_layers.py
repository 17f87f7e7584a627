"""Who may import whom: one ordered list, and no circle within a package."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import starzoo

ROOT = Path(starzoo.__file__).parent
COLUMN = [
    *("errors", "progress", "text", "config", "files", "strict_json", "strict_yaml", "metrics", "parallel"),
    *("symmetry", "hub", "data", "models", "align", "evaluate", "star", "report", "workflows"),
]
"""From the bottom up: a module imports from those before its own, and from its own package."""

FORBIDDEN = {  # besides what only the command line uses
    "": {"typer", "click", "rich", "starzoo.cli", "cli"},
    "report": {"torch", "huggingface_hub", "requests", "httpx", "urllib"},
    "symmetry": {"huggingface_hub", "datasets", "accelerate"},
    "align": {"huggingface_hub", "datasets", "accelerate", "timm"},
    "models.weights": {"huggingface_hub", "datasets", "accelerate", "timm"},
    "models.batch_norm": {"huggingface_hub", "datasets", "accelerate", "timm"},
}
_parse = functools.cache(ast.parse)
LIGHT = (
    *("errors", "config", "progress", "text"),
    *("models.architecture", "evaluate.results", "star.manifest", "report", "hub"),
)


def modules_of(root: Path) -> dict[str, str]:
    """The source of every module below `root`, by its name without `starzoo.`; the root itself is left out."""
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in root.rglob("*.py")}
    return {name.removesuffix(".__init__"): path.read_text() for path, name in names.items() if name != "__init__"}


def imports_of(name: str, source: str, modules: Mapping[str, str], *, late: bool = True) -> Iterator[str]:
    """Full names of what a module imports, with `late` inside functions and for type checkers too."""
    package = name.split(".") if f"{name}.x" in modules else name.split(".")[:-1]
    tree = _parse(source)
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1]
            base = ".".join(["starzoo", *above, *filter(None, [node.module])]) if node.level else str(node.module)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full.removeprefix("starzoo.") in modules or base == "starzoo" else base


def is_within(name: str, package: str) -> bool:
    return not package or name == package or name.startswith(f"{package}.")


def violations(modules: Mapping[str, str]) -> Iterator[str]:
    """Every import that the column does not allow, in words."""
    for name, source in modules.items():
        room = name.partition(".")[0]
        if room not in COLUMN:
            yield f"{name} stands nowhere: give it a place in COLUMN"
            continue
        below = COLUMN[: COLUMN.index(room) + 1]
        banned = set().union(*(names for package, names in FORBIDDEN.items() if is_within(name, package)))
        for imported in imports_of(name, source, modules):
            if any(is_within(imported, each) for each in banned):
                yield f"{name} imports {imported}"
            elif is_within(imported, "starzoo") and imported.removeprefix("starzoo.").partition(".")[0] not in below:
                yield f"{name} imports {imported}, which is not below {room}"


def test_every_import_goes_down():
    assert sorted(violations(modules_of(ROOT))) == []


def test_no_circle():
    modules = modules_of(ROOT)
    graph = {
        name: {each.removeprefix("starzoo.") for each in imports_of(name, source, modules, late=False)} & {*modules}
        for name, source in modules.items()
    }
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(modules)


def test_the_root_is_small():
    assert {name.partition(".")[0] for name in modules_of(ROOT)} == {*COLUMN}
    assert len(list(ROOT.glob("*.py"))) <= 20


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("symmetry.rules.new", "from starzoo.align.align import align", "which is not below symmetry"),
        ("symmetry.new", "def f():\n    import starzoo.models.weights", "which is not below symmetry"),
        ("align.new", "from starzoo import workflows", "starzoo.workflows, which is not below align"),
        ("align.new", "from ..star import fit", "starzoo.star.fit, which is not below align"),
        ("align.new", "from .. import star", "starzoo.star, which is not below align"),
        ("align.new", "import timm", "align.new imports timm"),
        ("evaluate.new", "from starzoo.star.star import Star", "which is not below evaluate"),
        ("workflows.fit", "from starzoo.cli.output import Output", "workflows.fit imports starzoo.cli.output"),
        ("workflows.fit", "import typer", "workflows.fit imports typer"),
        ("report.card", "if TYPE_CHECKING:\n    from torch import Tensor", "report.card imports torch"),
        ("unheard_of", "", "unheard_of stands nowhere"),
        ("errors", "from starzoo import load_star", "starzoo.load_star, which is not below errors"),
    ],
)
def test_the_check_can_fail(name, source, complaint):
    found = list(violations({**modules_of(ROOT), name: source}))
    assert [line for line in found if complaint in line], found


def test_the_check_lets_good_imports_pass():
    source = (
        "import torch\nfrom starzoo.errors import UsageError\nfrom starzoo.symmetry import rules\nfrom . import align"
    )
    found = violations({**modules_of(ROOT), "align.new": source})
    assert [line for line in found if line.startswith("align.new")] == []


def test_light_modules_load_no_torch():
    names = [name for name in modules_of(ROOT) if any(is_within(name, each) for each in LIGHT)]
    code = f"""
import importlib, sys
for name in {["", *names]}:
    importlib.import_module(f"starzoo.{{name}}".rstrip("."))
    assert "torch" not in sys.modules, name
import starzoo.models.weights
print("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
