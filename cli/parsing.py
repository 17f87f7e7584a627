"""Parse the texts of a command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from starzoo.errors import UsageError

__all__ = ["parse_model_args", "parse_seeds", "read_lines"]

_MOST_SEEDS = 10_000


def parse_seeds(text: str) -> list[int]:
    """Read seeds such as `0-9` or `0,3,5-7`."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        bounds = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part, re.ASCII)
        first, last = (int(bounds[1]), int(bounds[2] or bounds[1])) if bounds else (1, 0)
        if not first <= last < first + _MOST_SEEDS:
            raise UsageError(
                "--seeds",
                f"{text!r}: {part!r} is no seed and no range of seeds",
                hint="write --seeds 0-9 or --seeds 0,3,5-7",
            )
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)


def parse_model_args(text: str | None) -> dict[str, Any]:
    """Read the JSON object of `--model-args`."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UsageError(
            "--model-args", f"{text!r} is no JSON object", hint="""write --model-args '{"stem_width": 16}'"""
        )
    return value


def read_lines(file: Path | None) -> list[str] | None:
    """Read the lines of a text file."""
    if file is None:
        return None
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(str(file), "cannot be read as text", hint="check the path") from error
