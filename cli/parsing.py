"""Parse the texts of a command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from starzoo.errors import UsageError

__all__ = ["parse_model_args", "parse_seeds", "read_lines"]

_MAX_SEEDS = 10_000


def parse_seeds(text: str) -> list[int]:
    """Parse seeds, for example `0-9` or `0,3,5-7`."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        bounds = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part, re.ASCII)
        first, last = (int(bounds[1]), int(bounds[2] or bounds[1])) if bounds else (1, 0)
        if not first <= last < first + _MAX_SEEDS:
            raise UsageError(
                "--seeds",
                f"expected seeds and ranges of seeds, got {part!r}" + (f" in {text!r}" if part != text else ""),
                hint="write --seeds 0-9 or --seeds 0,3,5-7",
            )
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)


def parse_model_args(text: str | None) -> dict[str, Any]:
    """Parse the JSON object of `--model-args`."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        hint = """write --model-args '{"stem_width": 16}'"""
        raise UsageError("--model-args", f"expected a JSON object, got {text!r}", hint=hint)
    return value


def read_lines(file: Path | None) -> list[str] | None:
    """Read the lines of a text file that are not empty."""
    if file is None:
        return None
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(str(file), "cannot be read as text", hint="check the path") from error
