"""What is installed is what stands in the tree."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest
import yaml

import starzoo

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HOMES = {"starzoo": "starzoo", "starzoo.cli": "cli", "starzoo.model_cards": "model_cards"}
TEMPLATES = ["gallery.md.jinja", "report.html.jinja", "star.md.jinja"]


def test_the_list_of_packages_is_the_tree():
    found = set()
    for package, folder in HOMES.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    assert PROJECT["tool"]["setuptools"]["packages"] == sorted(found)


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for folder in HOMES.values() for path in (ROOT / folder).rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_packages_come_from_their_folders():
    assert PROJECT["tool"]["setuptools"]["package-dir"] == HOMES


def test_the_version_stands_in_two_places_alike():
    assert PROJECT["project"]["version"] == starzoo.__version__ == metadata.version("starzoo")


def test_the_program_starts_the_boundary():
    module, _, function = PROJECT["project"]["scripts"]["starzoo"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", starzoo.__all__)
def test_public_names_resolve(name):
    value = getattr(starzoo, name)
    assert name == "__version__" or value.__name__ == name
    assert name in dir(starzoo)


def test_public_names_are_documented():
    undocumented = [name for name in starzoo.__all__ if name != "__version__" and not getattr(starzoo, name).__doc__]
    assert undocumented == []


def test_type_checkers_see_the_same_names_as_the_lazy_table():
    source = (ROOT / "starzoo" / "__init__.py").read_text()
    seen = {line.split(" as ")[1] for line in source.splitlines() if line.startswith("    from ")}
    assert seen == set(starzoo.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'load_stars'"):
        _ = starzoo.load_stars  # type: ignore[attr-defined]


def test_importing_starzoo_loads_nothing_else():
    code = "import sys; before = set(sys.modules); import starzoo; print(*(set(sys.modules) - before))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    third_party = {name.partition(".")[0] for name in ended.stdout.split()} - sys.stdlib_module_names
    assert third_party == {"starzoo"}


def test_the_templates_of_cards_are_package_data():
    assert PROJECT["tool"]["setuptools"]["package-data"]["starzoo.model_cards"] == ["*.jinja"]
    assert sorted((ROOT / "model_cards").rglob("*.jinja")) == [ROOT / "model_cards" / name for name in TEMPLATES]
    assert all((resources.files("starzoo.model_cards") / name).is_file() for name in TEMPLATES)


def test_the_typing_marker_is_package_data():
    assert PROJECT["tool"]["setuptools"]["package-data"]["starzoo"] == ["py.typed"]
    assert (resources.files("starzoo") / "py.typed").is_file()


def test_a_wheel_holds_every_module(tmp_path):
    """Built for real: the packages list, the renamed folders and the data files together."""
    import zipfile

    code = "import sys; from setuptools import build_meta as b; b.build_wheel(sys.argv[1])"
    tree = tmp_path / "tree"
    tracked = [*ROOT.glob("starzoo/**/*"), *ROOT.glob("cli/*"), *ROOT.glob("model_cards/*.*")]
    for path in [ROOT / "pyproject.toml", ROOT / "LICENSE", *tracked]:
        if path.is_file() and "__pycache__" not in path.parts:
            copy = tree / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (tree / "README.md").write_text("# starzoo\n")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tree, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {"starzoo/py.typed", *(f"starzoo/model_cards/{name}" for name in TEMPLATES)}
    for package, folder in HOMES.items():
        base = package.replace(".", "/")
        expected |= {f"{base}/{path.relative_to(ROOT / folder)}" for path in (ROOT / folder).rglob("*.py")}
    assert packed == expected


def test_configuration_files_are_valid():
    from starzoo.config import load_config

    for file in sorted((ROOT / "configs").glob("*.yaml")):
        assert load_config(file).model_dump(mode="json"), file
        assert isinstance(yaml.safe_load(file.read_text()), dict)
