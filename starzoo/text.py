"""Numbers with their nouns, as a person reads them."""

from __future__ import annotations

__all__ = ["counted"]


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
