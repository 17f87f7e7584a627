"""Where two JSON values differ, for people who ask why a folder is not theirs."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["first_difference"]


def first_difference(then: Any, now: Any, path: str = "") -> str:
    """Say in words where two JSON values differ first.

    Args:
        then: What was written down; a key that one of two objects lacks counts as null.
        now: What is asked for.
        path: The keys that lead to both, joined by dots.

    Returns:
        For instance `train.epochs was 2, now 3`; empty where they are equal.
    """
    if isinstance(then, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*then, *now])
        found = (first_difference(then.get(key), now.get(key), f"{path}.{key}".lstrip(".")) for key in keys)
        return next(filter(None, found), "")
    return "" if then == now else f"{path} was {json.dumps(then)}, now {json.dumps(now)}"
