"""Markdown templates with escaping, and the marker of generated files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape as escape_html
from importlib.resources import files
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from starzoo.errors import UsageError
from starzoo.evaluate.results import Summary
from starzoo.text import clean, pluralize, printable

__all__ = ["check_generated", "escape", "load_template"]

_MAX_SIZE = 50_000_000  # bytes of a generated file

# A colon makes a link or an emoji only of what follows it at once.
_SPECIAL = re.compile(r"([\\`*_\[\]|~$@]|:(?!\s)|(?<=www)\.)", re.IGNORECASE)


def escape(text: str) -> Markup:
    """Escape text for Markdown and HTML, in a paragraph, a heading or a cell; not for an attribute."""
    return Markup(_SPECIAL.sub(r"\\\1", escape_html(clean(text), quote=False)))


def load_template(name: str) -> Template:
    """Read a template of `starzoo.model_cards`; all values but those that a filter here made are escaped."""
    escape_value = _escape_html if name.endswith(".html.jinja") else escape
    environment = Environment(
        undefined=StrictUndefined,
        autoescape=True,  # leaves the template's own words and the results of its macros alone
        finalize=lambda value: value if isinstance(value, Markup) else escape_value(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": _code,
        "pluralize": _pluralize,
        "fence": _fence,
        "line": _line,
        "listed": _listed,
        "mean_std": _mean_std,
        "yaml": _yaml,
    }
    return environment.from_string(files("starzoo.model_cards").joinpath(name).read_text(encoding="utf-8"))


def check_generated(file: Path, marker: bytes) -> None:
    """Make sure that a file of another author is not overwritten: those of starzoo contain the marker."""
    if file.is_symlink() or not file.is_file():  # a link is replaced, and its target stays
        return
    if file.stat().st_size > _MAX_SIZE or marker not in file.read_bytes():
        hint = "move it away, and give the same command again"
        raise UsageError(str(file), "was not written by starzoo, and would be overwritten", hint=hint)


def _code(text: str) -> Markup:
    """Inline code for an identifier, without back-ticks and pipes, which no identifier has."""
    return Markup(f"`{re.sub(r'[`|]', '', clean(text)) or '?'}`")


def _fence(text: str, language: str) -> Markup:
    """A block of code in a fence longer than any run of back-ticks in it."""
    ticks = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 0)
    lines = "\n".join(printable(line) for line in text.split("\n"))
    return Markup(f"{ticks}{language}\n{lines.rstrip()}\n{ticks}")


def _line(text: str) -> Markup:
    """Part of a line in a block of code; not its beginning, where back-ticks would end the block."""
    return Markup(clean(text))


def _yaml(value: Mapping[str, object]) -> Markup:
    """A mapping as YAML, for the front matter and for blocks of code."""
    return Markup(yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=120))


def _escape_html(text: str) -> Markup:
    return Markup.escape(clean(text))


def _pluralize(number: int, noun: str) -> Markup:
    return Markup(pluralize(number, noun))


def _listed(texts: list[str], limit: int = 20) -> Markup:
    """The first names, and the number of the others."""
    shown = Markup(", ").join(escape(text) for text in texts[:limit])
    return shown + f" and {len(texts) - limit} more" if len(texts) > limit else shown


def _mean_std(value: Summary, digits: int, factor: float = 1.0) -> Markup:
    """The mean, with the standard deviation where there are several values."""
    mean = f"{factor * value.mean:.{digits}f}"
    return Markup(f"{mean} ± {factor * value.std:.{digits}f}" if value.count > 1 else mean)
