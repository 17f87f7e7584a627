"""Text as a person reads it: numbers with their nouns, and lines without what is not seen."""

from __future__ import annotations

import unicodedata

__all__ = ["clean", "counted", "printable"]


def clean(text: str) -> str:
    """Take out what is not seen: control bytes, terminal escapes, direction marks; white space becomes one space.

    Args:
        text: Anything.

    Returns:
        One line of printable characters.
    """
    return " ".join(printable(" ".join(text.split())).split())


def printable(text: str) -> str:
    """Take out what is not seen, line breaks too, and leave white space as it is."""
    return "".join(character for character in text if unicodedata.category(character)[0] != "C")


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun.

    Args:
        number: How many.
        noun: What of, in the singular.
        plural: The same in the plural, where an `s` does not make it.

    Returns:
        Such as `1 group` or `1,200 groups`.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
