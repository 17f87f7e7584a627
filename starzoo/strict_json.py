"""JSON from strangers: one object, of bounded size and depth, with finite numbers and without repeated keys."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from starzoo.errors import UntrustedInputError
from starzoo.files import read_file

__all__ = ["JSON_LIMIT", "parse_json", "read_json"]

_DEPTH = 100
_SHOWN = 200  # characters of a key, in a message
_DIGITS = 20  # of a whole number, its sign included

JSON_LIMIT = 10_000_000
"""Bytes of a JSON file; 21,841 classes with their descriptions take two million."""


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Read a JSON object strictly: no NaN, no repeated keys, no excessive size or depth."""
    return parse_json(read_file(path, limit, inside=[path.parent]), str(path))


def parse_json(data: bytes, subject: str) -> dict[str, Any]:
    """Parse a JSON object as strictly as `read_json` does."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_unique_keys,
        )
    except RecursionError as error:
        raise UntrustedInputError(subject, "is nested too deeply", hint="this is no file of a model") from error
    except ValueError as error:
        raise UntrustedInputError(
            subject, f"is not valid JSON: {error}", hint="download or write the file again"
        ) from error
    if _is_deep(value):
        raise UntrustedInputError(subject, "is nested too deeply", hint="this is no file of a model")
    if not isinstance(value, dict):
        raise UntrustedInputError(
            subject, f"holds a {type(value).__name__} where an object is expected", hint="see timm's config.json"
        )
    return value


def _is_deep(value: Any) -> bool:
    """Whether containers lie in each other more than `_DEPTH` times."""
    level = [value]
    for _ in range(_DEPTH):
        tables = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [each for table in tables for each in table if isinstance(each, dict | list)]
    return bool(level)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {key[:_SHOWN]!r} stands there twice")
        table[key] = value
    return table


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError("a whole number is too large")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value
