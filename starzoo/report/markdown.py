"""Markdown templates that a stranger's words cannot break out of."""

from __future__ import annotations

import re
import unicodedata
from html import escape as escape_html
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from starzoo.evaluate.results import Spread
from starzoo.text import counted

__all__ = ["clean", "escape", "load_template"]

_SPECIAL = re.compile(r"([\\`*_\[\]|~$@:]|(?<=www)\.)", re.IGNORECASE)


def clean(text: str) -> str:
    """Take out what is not seen: control bytes, terminal escapes, direction marks; white space becomes one space.

    Args:
        text: Anything.

    Returns:
        One line of printable characters.
    """
    return " ".join(_printable(" ".join(text.split())).split())


def escape(text: str) -> Markup:
    """Write text so that Markdown and HTML show it as it is: in a paragraph, a heading or a cell, not in an attribute.

    Args:
        text: Anything.

    Returns:
        The escaped text, marked as safe.
    """
    return Markup(_SPECIAL.sub(r"\\\1", escape_html(clean(text), quote=False)))


def load_template(name: str) -> Template:
    """Read a template of `starzoo.model_cards`; what it puts out is escaped unless it is marked as safe.

    Args:
        name: The file's name.

    Returns:
        The template; a variable that is not given is an error.
    """
    environment = Environment(
        undefined=StrictUndefined,
        autoescape=True,  # leaves the template's own words and the results of its macros alone
        finalize=lambda value: value if isinstance(value, Markup) else escape(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": _code, "counted": _counted, "fence": _fence, "listed": _listed, "spread": _spread}
    return environment.from_string(files("starzoo.model_cards").joinpath(name).read_text(encoding="utf-8"))


def _printable(text: str) -> str:
    return "".join(character for character in text if unicodedata.category(character)[0] != "C")


def _code(text: str) -> Markup:
    """Inline code, for identifiers; a back-tick or a pipe, which no identifier has, is left out."""
    return Markup(f"`{re.sub(r'[`|]', '', clean(text)) or '?'}`")


def _fence(text: str, language: str) -> Markup:
    """A block of code, in a fence that is longer than any run of back-ticks in it."""
    ticks = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 0)
    lines = "\n".join(_printable(line) for line in text.split("\n"))
    return Markup(f"{ticks}{language}\n{lines.rstrip()}\n{ticks}")


def _counted(number: int, noun: str) -> Markup:
    """A number with its noun."""
    return Markup(counted(number, noun))


def _listed(texts: list[str], limit: int = 20) -> Markup:
    """Some names after each other, and how many were left out."""
    shown = Markup(", ").join(escape(text) for text in texts[:limit])
    return shown + f" and {len(texts) - limit} more" if len(texts) > limit else shown


def _spread(spread: Spread, digits: int, factor: float = 1.0) -> Markup:
    """A mean, with its standard deviation where there are several values."""
    mean = f"{factor * spread.mean:.{digits}f}"
    return Markup(f"{mean} ± {factor * spread.std:.{digits}f}" if spread.count > 1 else mean)
