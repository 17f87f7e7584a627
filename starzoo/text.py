"""Text for people: printable characters, counted nouns and differences of JSON values."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from typing import Any

__all__ = ["clean", "json_differences", "pluralize", "printable"]


def clean(text: str) -> str:
    """Remove invisible characters, for example terminal escapes and direction marks, and collapse white space."""
    return " ".join(printable(" ".join(text.split())).split())


def printable(text: str) -> str:
    """Remove invisible characters, line breaks included, and keep other white space."""
    return "".join(character for character in text if unicodedata.category(character)[0] != "C")


def pluralize(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def json_differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield every difference of two JSON values, as `star.lr was 0.1, now 0.2`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from json_differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    elif old != new:
        yield f"{path} was {json.dumps(old)}, now {json.dumps(new)}"
