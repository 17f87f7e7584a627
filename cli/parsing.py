"""How the texts of a command line become values."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from starzoo.errors import UsageError

__all__ = ["expand_refs", "parse_model_args", "parse_seeds", "read_lines", "resolve_zoo"]

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


def resolve_zoo(sources: Sequence[str], holdouts: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The models of a star: a zoo file among the sources also names held-outs."""
    from starzoo.workflows.refs import is_zoo_file, read_zoo_file

    files = [ref for ref in sources if is_zoo_file(ref) and not Path(ref).is_dir()]
    named = [*(ref for ref in files if read_zoo_file(Path(ref)).holdouts), *(holdouts or ())]
    return expand_refs(sources, of="sources"), expand_refs(named, of="holdouts")


def expand_refs(refs: Sequence[str], *, of: Literal["sources", "holdouts", "all"] = "all") -> list[str]:
    """Replace zoo files, and folders of members as `starzoo train` writes them, by their models; a star is none."""
    from starzoo.files import check_inside
    from starzoo.star.manifest import MANIFEST
    from starzoo.workflows.refs import is_zoo_file, read_zoo_file

    models: list[str] = []
    for ref in refs:
        if is_zoo_file(ref) and not Path(ref).is_dir():
            zoo = read_zoo_file(Path(ref))
            named = {"sources": zoo.sources, "holdouts": zoo.holdouts, "all": (*zoo.sources, *zoo.holdouts)}[of]
            if of == "holdouts" and not named:
                raise UsageError(ref, "names no held-outs", hint="list them under `holdouts:`")
            for name in named:
                if is_zoo_file(name) and not Path(name).is_dir():
                    raise UsageError(ref, f"names {name}, another zoo file", hint="list its models")
            models += expand_refs(named)
            continue
        folder = Path(ref)
        is_zoo = folder.is_dir() and not (folder / "config.json").exists()
        inside = [config.parent for config in folder.glob("*/config.json")] if is_zoo else []
        members = [member for member in inside if not (member / MANIFEST).exists()]
        for member in members:
            check_inside(member, folder)
        models += [str(member) for member in sorted(members, key=_number_aware)] or [ref]
    return models


def _number_aware(path: Path) -> list[tuple[int, str]]:
    """A sorting key by which seed-2 comes before seed-10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]
