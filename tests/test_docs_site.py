"""The pages under docs/: they build without a warning, links lead somewhere, and what the code blocks name exists."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from starzoo.config import EvalConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TOP = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")]
LINKED = [*TOP, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "model_cards").rglob("README.md"))]


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """The links and pictures of a page that lead nowhere; of links to other places only the form is looked at."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            if not re.fullmatch(r"https://[\w.-]+\.[a-z]+(/\S*)?", target):
                found.append(target)
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        file = file / "README.md" if file.is_dir() else file  # which is what a folder shows
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A heading: with `code`\n")
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "README.md").touch()
    (tmp_path / "empty").mkdir()
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n[k](shown/) [l](empty/) [a](there.md) [b](there.md#a-heading-with-code) [c](#page) [d](https://example.org/x)\n"
        "[e](away.md) [f](there.md#away) [g](#away) [h](http://example.org) ![i](away.png)\n```\n[j](away.md)\n```\n"
    )
    assert broken_links(page) == ["empty/", "away.md", "there.md#away", "#away", "http://example.org", "away.png"]


def test_the_generated_pages_are_those_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages = dict(module.pages())
    assert {file: file.read_text(encoding="utf-8") for file in pages} == pages, "run python docs/generate.py"
    assert {*pages} == {*(ROOT / "docs" / "commands").glob("*.md"), ROOT / "docs" / "settings.md"}
    assert "`realign_every`" in pages[ROOT / "docs" / "settings.md"]
    assert "`--baseline`" in pages[ROOT / "docs" / "commands" / "fit-star.md"]


def test_the_site_builds_without_a_warning_and_asks_no_other_server(tmp_path: Path) -> None:
    sphinx = pytest.importorskip("sphinx.cmd.build")
    assert (
        sphinx.main(["-q", "-W", "--keep-going", "-d", str(tmp_path / "doctrees"), str(ROOT / "docs"), str(tmp_path)])
        == 0
    )
    html = {page.name: page.read_text(encoding="utf-8") for page in tmp_path.glob("*.html")}
    assert {page.with_suffix(".html").name for page in PAGES} <= html.keys()
    assert "starzoo.fit_star" in html["reference.html"]
    assert EvalConfig.model_fields["points"].description in html["reference.html"]
    for name, text in html.items():
        assert not re.findall(r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//[^\"]+", text), name
        assert not re.findall(r"<link[^>]+rel=\"stylesheet\"[^>]+href=\"(?:https?:)?//[^\"]+", text), name


def python_blocks() -> list[tuple[str, str]]:
    return [
        (page.name, code)
        for page in PAGES
        for code in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    ]


@pytest.mark.parametrize(("page", "code"), python_blocks())
def test_python_blocks_compile_and_what_they_import_and_call_of_starzoo_exists(page: str, code: str) -> None:
    for node in ast.walk(ast.parse(code, page)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("starzoo"):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "starzoo":
            assert node.attr in importlib.import_module("starzoo").__all__
