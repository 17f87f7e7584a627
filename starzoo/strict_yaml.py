"""YAML of strangers: text, lists and mappings within bounds, and nothing that stands for something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from starzoo.errors import UntrustedInputError

__all__ = ["YAML_LIMIT", "front_matter", "parse_yaml"]

YAML_LIMIT = 64_000
"""The most bytes of YAML that a stranger may have us read."""

_DEPTH = 32


def parse_yaml(content: bytes, subject: str, *, plain: Callable[[str], Any] = str) -> Any:
    """Parse one YAML document strictly: no aliases, anchors, merges, tags, repeated keys or excessive depth."""
    try:
        return _build(content, plain)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            reason = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise UntrustedInputError(
            subject, f"cannot be read as YAML: {reason}", hint="repair it, or use another file"
        ) from error


def front_matter(card: bytes) -> bytes | None:
    """The YAML block at the start of a card, as the Hub's own client finds it."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(card.decode("utf-8-sig", errors="replace"))
    return block[2].encode() if block else None


def _build(content: bytes, plain: Callable[[str], Any]) -> Any:
    """Put a document together without recursion."""
    if len(content) > YAML_LIMIT:
        raise yaml.YAMLError(f"expected at most {YAML_LIMIT:,} bytes, got {len(content):,}")
    document: list[Any] = []
    above: list[tuple[list[Any] | dict[str, Any], list[str]]] = [(document, [])]  # each with a key without a value
    for event in yaml.parse(content.decode(), Loader=yaml.BaseLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            above.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        line = f"line {event.start_mark.line + 1}" if event.start_mark else "somewhere"
        if event.anchor or getattr(event, "tag", None):
            raise yaml.YAMLError(
                f"{line}: expected plain values, got {'an anchor or alias' if event.anchor else 'a tag'}"
            )
        holder, key = above[-1]
        text = event if isinstance(event, yaml.ScalarEvent) else None
        if isinstance(holder, dict) and not key:
            if text is None or text.value in holder or (text.value == "<<" and text.implicit[0]):
                what = "a collection" if text is None else "a merge" if text.value == "<<" else "a key twice"
                raise yaml.YAMLError(f"{line}: expected a new key, got {what}")
            key.append(text.value)
            continue
        value: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
        if text is not None:
            value = plain(text.value) if text.implicit[0] else text.value
        if isinstance(holder, dict):
            holder[key.pop()] = value
        else:
            holder.append(value)
        if text is None:
            above.append((value, []))
            if len(above) > _DEPTH:
                raise yaml.YAMLError(f"{line}: more than {_DEPTH} levels")
    if len(document) > 1:
        raise yaml.YAMLError("more than one document")
    return document[0] if document else None
