"""What a piece of a test opened, listed and connected to: by an audit hook, which nothing in Python gets round."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_LISTING = ("os.listdir", "os.scandir", "glob.glob")


@dataclass
class Seen:
    paths: set[str] = field(default_factory=set)
    connections: list[object] = field(default_factory=list)

    def below(self, folder: Path) -> set[str]:
        """The paths that were opened or listed in a folder, or were the folder itself."""
        return {path for path in self.paths if Path(path).is_relative_to(folder)}


_seen: list[Seen] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if not _seen:
        return
    if event == "open" or event in _LISTING:
        path = arguments[0]
        if isinstance(path, (str, bytes, os.PathLike)):
            _seen[-1].paths.add(os.path.realpath(os.fsdecode(path)))
    elif event in {"socket.connect", "socket.getaddrinfo"}:
        _seen[-1].connections.append(arguments)


sys.addaudithook(_note)


@contextmanager
def watching() -> Iterator[Seen]:
    _seen.append(Seen())
    try:
        yield _seen[-1]
    finally:
        _seen.pop()
