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
_SHOWN = 200  # characters of a key in a message
_DIGITS = 20  # of an integer, with its sign

JSON_LIMIT = 10_000_000
"""Most bytes of a JSON file; 21,841 classes with descriptions take two million."""


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Read a JSON object strictly: no NaN, no repeated keys, no excessive size or depth."""
    return parse_json(read_file(path, limit, inside=[path.parent]), str(path))


def parse_json(data: bytes, subject: str) -> dict[str, Any]:
    """Parse a JSON object as strictly as `read_json` does."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_bounded_int,
            object_pairs_hook=_unique_keys,
        )
    except RecursionError as error:
        raise UntrustedInputError(subject, "is nested too deeply", hint="use a file of a model") from error
    except ValueError as error:
        raise UntrustedInputError(
            subject, f"is not valid JSON: {error}", hint="download or write the file again"
        ) from error
    if _is_deep(value):
        raise UntrustedInputError(subject, "is nested too deeply", hint="use a file of a model")
    if not isinstance(value, dict):
        raise UntrustedInputError(
            subject, f"expected an object, got {type(value).__name__}", hint="see timm's config.json"
        )
    return value


def _is_deep(value: Any) -> bool:
    """Whether containers are nested more than `_DEPTH` times."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEPTH):
        containers = [value.values() if isinstance(value, dict) else value for value in level]
        level = [value for container in containers for value in container if isinstance(value, dict | list)]
    return bool(level)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key[:_SHOWN]!r} occurs twice")
        values[key] = value
    return values


def _bounded_int(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError("an integer is too large")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value
