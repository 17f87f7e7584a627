"""Numbers and differences in words, and text without what is not seen."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from typing import Any

__all__ = ["clean", "first_json_difference", "json_differences", "pluralize", "printable"]


def clean(text: str) -> str:
    """Take out what is not seen: control bytes, terminal escapes, direction marks; white space becomes one space."""
    return " ".join(printable(" ".join(text.split())).split())


def printable(text: str) -> str:
    """Take out what is not seen, line breaks too, and leave white space as it is."""
    return "".join(character for character in text if unicodedata.category(character)[0] != "C")


def pluralize(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def first_json_difference(then: Any, now: Any, path: str = "") -> str:
    """Say in words where two JSON values differ first."""
    return next(_differences(then, now, path), "")


def json_differences(then: Any, now: Any) -> list[str]:
    """Say in words where two JSON values differ, once for every place, as `first_json_difference` does."""
    return list(_differences(then, now, ""))


def _differences(then: Any, now: Any, path: str) -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*then, *now]):
            yield from _differences(then.get(key), now.get(key), f"{path}.{key}".lstrip("."))
    elif then != now:
        yield f"{path} was {json.dumps(then)}, now {json.dumps(now)}"
