"""How Sphinx builds these pages: `sphinx-build -W docs build/docs`."""

from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx

import starzoo

project = "starzoo"
author = "the starzoo authors"
copyright = "the starzoo authors, Apache-2.0"
release = version = starzoo.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["build"]
myst_heading_anchors = 3  # the anchors that links in Markdown name, as on GitHub

highlight_language = "text"  # what commands print
default_role = "code"  # docstrings quote code with single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "exclude-members": "model_config"}
napoleon_use_rtype = False

html_theme = "furo"  # its own fonts and scripts: a page asks no other server for anything
html_title = f"starzoo {release}"
html_copy_source = False


def list_fields(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Add the fields of a configuration, as `--help` describes them, to its docstring."""
    if what == "class" and issubclass(obj, BaseModel):
        lines += [f"- `{field}`: {info.description}" for field, info in obj.model_fields.items() if info.description]


def setup(app: Sphinx) -> None:
    """Connect the functions above to Sphinx."""
    app.connect("autodoc-process-docstring", list_fields)
