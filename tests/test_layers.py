"""Who may import whom: the rooms of the library, each with the rooms below it that it may use."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import starzoo

ROOT = Path(starzoo.__file__).parent

LOW = {"errors", "config", "methods", "progress", "wording", "class_names", "hub.offline"}
# The longest name that a module's name begins with is its room. `hub` is what talks to the network.
ROOMS: Mapping[str, set[str]] = {
    "errors": set(),
    "progress": set(),
    "wording": set(),
    "class_names": {"errors"},
    "differences": set(),
    "files": {"errors"},
    "ahead": set(),
    "cache": set(),
    "licences": set(),
    "strict_yaml": {"errors"},
    "zoo_file": {"errors", "config", "files", "strict_yaml"},
    "processes": {"errors", "config", "wording"},
    "status": {"errors", "progress", "files", "folder", "processes"},
    "methods": set(),
    "config": {"errors", "methods"},
    "hub.strict_json": {"errors", "files"},
    "hub.inspect": {"errors", "files", "wording", "hub.strict_json"},
    "hub.names": {"errors"},
    "hub.offline": set(),
    "hub.failures": {"errors", "hub.offline"},
    "hub.patience": {"errors", "hub.failures"},
    "blank": set(),
    "layout": set(),
    "network": set(),
    "timm_config": {"errors", "blank"},
    "architecture": {"errors", "config", "network", "timm_config", "blank"},
    "timm_weights": {"errors", "wording", "architecture", "timm_config", "hub.inspect"},
    "hub": {
        *LOW,
        "cache",
        "files",
        "hub.failures",
        "hub.offline",
        "hub.patience",
        "hub.names",
        "hub.strict_json",
        "hub.inspect",
        "architecture",
        "timm_config",
        "timm_weights",
    },
    "folder": {"errors", "wording", "files", "architecture", "timm_config", "timm_weights", "hub.strict_json"},
    "classes": {"errors", "architecture", "specs", "symmetry"},
    "sources": {
        *LOW,
        "files",
        "licences",
        "architecture",
        "strict_yaml",
        "classes",
        "folder",
        "hub",
        "hub.inspect",
        "star.manifest",
    },
    "data": {
        *LOW,
        "ahead",
        "architecture",
        "files",
        "hub.failures",
        "hub.names",
        "hub.patience",
        "hub.strict_json",
        "strict_yaml",
    },
    "symmetry": {"errors"},
    "align": {*LOW, "ahead", "layout", "symmetry", "evaluate.path"},
    "optimization": {"config"},
    "evaluate.measures": {"errors", "config"},
    "evaluate.findings": {"errors", "wording", "evaluate.measures"},
    "evaluate.plots": {"errors", "wording", "files", "evaluate.measures", "evaluate.findings"},
    "evaluate.path": {"errors"},
    "evaluate.predictive": {"errors"},
    "evaluate.baselines": {"config", "evaluate.measures", "evaluate.path"},
    "evaluate.rivals": {
        "errors",
        "progress",
        "config",
        "layout",
        "architecture",
        "data",
        "optimization",
        "processes",
    },
    "star.log": {"errors", "files", "wording"},
    "star.manifest": {"errors", "config", "architecture", "evaluate.measures", "hub.names", "hub.strict_json"},
    "star": {
        *LOW,
        "files",
        "star.log",
        "layout",
        "architecture",
        "folder",
        "data",
        "symmetry",
        "align",
        "optimization",
        "differences",
        "evaluate.path",
        "processes",
        "star.manifest",
    },
    "evaluate": {
        *LOW,
        "cache",
        "folder",
        "processes",
        "layout",
        "architecture",
        "data",
        "symmetry",
        "align",
        "star",
        "star.manifest",
        "evaluate.baselines",
        "evaluate.measures",
        "evaluate.path",
        "evaluate.predictive",
        "evaluate.rivals",
    },
    "zoo": {
        "timm_config",
        *LOW,
        "layout",
        "architecture",
        "folder",
        "data",
        "optimization",
        "differences",
        "evaluate.predictive",
        "hub.strict_json",
    },
    "markdown": {"errors", "wording", "evaluate.measures"},
    "card": {
        "errors",
        "wording",
        "files",
        "config",
        "hub.names",
        "licences",
        "markdown",
        "star.manifest",
        "evaluate.measures",
        "evaluate.findings",
        "evaluate.plots",
    },
    "gallery": {"errors", "files", "card", "markdown", "evaluate.measures", "evaluate.findings", "star.manifest"},
    "report": {"errors", "files", "card", "markdown", "evaluate.measures", "evaluate.plots", "star.manifest"},
    "places": {*LOW, "cache", "files", "folder", "hub", "star.log", "star.manifest", "status"},
    "measuring": {
        *LOW,
        "data",
        "evaluate",
        "evaluate.measures",
        "places",
        "sources",
        "star.manifest",
        "symmetry",
    },
    "specs": {"errors", "cache", "architecture", "folder", "symmetry"},
    "inspection": {*LOW, "architecture", "folder", "sources", "hub", "symmetry", "specs"},
    "origins": {*LOW, "architecture", "data", "hub.names", "sources", "places", "star.manifest"},
    "star.joining": {
        *LOW,
        "data",
        "folder",
        "sources",
        "specs",
        "symmetry",
        "align",
        "star.manifest",
        "evaluate",
        "evaluate.measures",
    },
    "star.domain": {
        *LOW,
        "layout",
        "data",
        "sources",
        "specs",
        "symmetry",
        "origins",
        "evaluate.baselines",
        "evaluate.path",
        "star.manifest",
        "star.joining",
    },
    "star.star": {*LOW, "folder", "hub", "hub.inspect", "places", "star.manifest", "star.domain"},
    "publishing": {"errors", "card", "hub", "hub.names", "licences", "star.manifest", "star.star"},
    "planning": {
        *LOW,
        "align",
        "architecture",
        "folder",
        "hub",
        "hub.inspect",
        "hub.strict_json",
        "licences",
        "sources",
        "timm_config",
        "timm_weights",
        "zoo_file",
    },
    "doctor": {"errors", "cache", "hub", "hub.offline", "hub.patience"},
    "importing": {*LOW, "architecture", "files", "folder", "hub", "hub.inspect", "strict_yaml"},
    "alignment": {
        *LOW,
        "symmetry",
        "measuring",
        "origins",
        "folder",
        "sources",
        "align",
        "star.manifest",
        "star.star",
        "specs",
        "places",
    },
    "using": {*LOW, "data", "origins", "evaluate.predictive", "star.domain", "star.joining", "star.star"},
    "verification": {
        *LOW,
        "hub",
        "folder",
        "sources",
        "specs",
        "symmetry",
        "places",
        "origins",
        "star.manifest",
        "star.joining",
        "star.star",
    },
}
TOP = {"pipeline": set(ROOMS)}

FORBIDDEN = {
    "": {"typer", "click", "rich", "starzoo.cli", "cli"},
    "card": {"torch", "huggingface_hub", "requests", "httpx", "urllib"},
    "gallery": {"torch", "huggingface_hub", "requests", "httpx", "urllib"},
    "report": {"torch", "huggingface_hub", "requests", "httpx", "urllib"},
    "markdown": {"torch", "huggingface_hub", "requests", "httpx", "urllib"},
    "symmetry": {"huggingface_hub", "datasets", "accelerate"},
    "align": {"huggingface_hub", "datasets", "accelerate", "timm"},
    "evaluate.path": {"huggingface_hub", "datasets", "accelerate", "timm"},
}
LIGHT = [
    "errors",
    "config",
    "progress",
    "differences",
    "architecture",
    "evaluate.measures",
    "star.manifest",
    "card",
    "hub",
]


def modules_of(root: Path) -> dict[str, str]:
    """The source of every module below `root`, by its name without `starzoo.`; the root itself is left out."""
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in root.rglob("*.py")}
    return {name.removesuffix(".__init__"): path.read_text() for path, name in names.items() if name != "__init__"}


def imports_of(name: str, source: str, modules: Mapping[str, str]) -> Iterator[str]:
    """Full names of what a module imports anywhere, inside functions and for type checkers too."""
    package = name.split(".") if f"{name}.x" in modules else name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1]
            base = ".".join(["starzoo", *above, *filter(None, [node.module])]) if node.level else str(node.module)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full.removeprefix("starzoo.") in modules or base == "starzoo" else base


def room_of(name: str) -> str | None:
    """The room that a module belongs to."""
    fitting = [room for room in {**ROOMS, **TOP} if name == room or name.startswith(f"{room}.")]
    return max(fitting, key=len, default=None)


def violations(modules: Mapping[str, str]) -> Iterator[str]:
    """Every import that a room is not allowed, in words."""
    for name, source in modules.items():
        room = room_of(name)
        if room is None:
            yield f"{name} has no room: give it one in ROOMS"
            continue
        allowed = {**ROOMS, **TOP}[room] | {room}
        forbidden = FORBIDDEN[""] | FORBIDDEN.get(room, set())
        for imported in imports_of(name, source, modules):
            if any(imported == banned or imported.startswith(f"{banned}.") for banned in forbidden):
                yield f"{name} imports {imported}"
            elif imported.partition(".")[0] == "starzoo" and room_of(imported.removeprefix("starzoo.")) not in allowed:
                yield f"{name} imports {imported}, which is not below {room}"


def test_every_import_goes_down():
    assert sorted(violations(modules_of(ROOT))) == []


def test_the_rooms_stand_above_each_other():
    order = list(graphlib.TopologicalSorter({**ROOMS, **TOP}).static_order())
    assert order[-1] == "pipeline"


def test_every_room_has_a_module():
    rooms = {room_of(name) for name in modules_of(ROOT)}
    assert {*ROOMS, *TOP} - rooms == set()


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        (
            "symmetry.rules.new",
            "from starzoo.align.align import align",
            "starzoo.align.align, which is not below symmetry",
        ),
        ("symmetry.new", "def f():\n    import starzoo.config", "starzoo.config, which is not below symmetry"),
        ("align.new", "from starzoo.hub.pull import pull", "starzoo.hub.pull, which is not below align"),
        ("align.new", "from starzoo import hub", "starzoo.hub, which is not below align"),
        ("align.new", "from ..star import train", "starzoo.star.train, which is not below align"),
        ("align.new", "from .. import star", "starzoo.star, which is not below align"),
        ("star.new", "from starzoo.evaluate.evaluate import evaluate", "which is not below star"),
        ("pipeline", "from starzoo.cli.output import Output", "pipeline imports starzoo.cli.output"),
        ("pipeline", "import typer", "pipeline imports typer"),
        ("card", "if TYPE_CHECKING:\n    from torch import Tensor", "card imports torch"),
        ("unheard_of", "", "unheard_of has no room"),
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
    assert [
        line for line in violations({**modules_of(ROOT), "align.new": source}) if line.startswith("align.new")
    ] == []


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


IMPORT_AND_LIST = "import importlib, sys; importlib.import_module({!r}); print('torch' in sys.modules)"


@pytest.mark.parametrize("name", ["", *(name for name in modules_of(ROOT) if name in LIGHT or name.startswith("hub."))])
def test_light_modules_load_no_torch(name):
    assert run_python(IMPORT_AND_LIST.format(f"starzoo.{name}".rstrip("."))) == "False"


def test_the_check_for_torch_can_fail():
    assert run_python(IMPORT_AND_LIST.format("starzoo.star.train")) == "True"
