"""YAML from strangers: text, lists and mappings within bounds, without aliases, tags or repeated keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from starzoo.errors import UntrustedInputError

__all__ = ["YAML_LIMIT", "front_matter", "parse_yaml"]

YAML_LIMIT = 64_000
"""Most bytes of a YAML document."""

_DEPTH = 32


def parse_yaml(content: bytes, subject: str, *, plain: Callable[[str], Any] = str) -> Any:
    """Parse one YAML document strictly; `plain` makes the values of unquoted text."""
    try:
        return _build(content, plain)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            reason = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise UntrustedInputError(
            subject, f"cannot be read as YAML: {reason}", hint="correct it, or use another file"
        ) from error


def front_matter(card: bytes) -> bytes | None:
    """Return the YAML block at the start of a card, as huggingface_hub finds it."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(card.decode("utf-8-sig", errors="replace"))
    return block[2].encode() if block else None


def _build(content: bytes, plain: Callable[[str], Any]) -> Any:
    """Build a document from parser events, without recursion."""
    if len(content) > YAML_LIMIT:
        raise yaml.YAMLError(f"expected at most {YAML_LIMIT:,} bytes, got {len(content):,}")
    document: list[Any] = []
    # The open containers from the outside in, each with the key whose value is next.
    open_containers: list[tuple[list[Any] | dict[str, Any], list[str]]] = [(document, [])]
    for event in yaml.parse(content.decode(), Loader=yaml.BaseLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            open_containers.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        line = f"line {event.start_mark.line + 1}" if event.start_mark else "somewhere"
        if event.anchor or getattr(event, "tag", None):
            raise yaml.YAMLError(
                f"{line}: expected plain values, got {'an anchor or alias' if event.anchor else 'a tag'}"
            )
        container, key = open_containers[-1]
        scalar = event if isinstance(event, yaml.ScalarEvent) else None
        if isinstance(container, dict) and not key:
            if scalar is None or scalar.value in container or (scalar.value == "<<" and scalar.implicit[0]):
                what = "a collection" if scalar is None else "a merge" if scalar.value == "<<" else "a key twice"
                raise yaml.YAMLError(f"{line}: expected a new key, got {what}")
            key.append(scalar.value)
            continue
        value: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
        if scalar is not None:
            value = plain(scalar.value) if scalar.implicit[0] else scalar.value
        if isinstance(container, dict):
            container[key.pop()] = value
        else:
            container.append(value)
        if scalar is None:
            open_containers.append((value, []))
            if len(open_containers) > _DEPTH:
                raise yaml.YAMLError(f"{line}: more than {_DEPTH} levels")
    if len(document) > 1:
        raise yaml.YAMLError("more than one document")
    return document[0] if document else None
