"""What client and server say to each other."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """A request: `path` is for people, `target` the same as it was sent, where a slash in a name is `%2F`."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes = b""
    target: str = ""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def json(self) -> dict:
        return json.loads(self.body)


@dataclass
class Response:
    """An answer: `late` seconds before its first byte, `slow` seconds between its pieces, `cut` where it breaks off."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    late: float = 0
    slow: float = 0
    cut: int | None = None


class Refusal(Exception):  # noqa: N818
    """An error as the Hub sends it: its code, of which the client makes its exceptions, and a sentence."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        marks = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.response = as_json({"error": message}, status)
        self.response.headers |= marks


def as_json(value: object, status: int = 200) -> Response:
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def as_file(request: Request, data: bytes, headers: dict[str, str]) -> Response:
    """A file, or the part of it that the client wants."""
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not wanted:
        return Response(200, data, {**headers, "Content-Length": str(len(data))})
    start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
    if start >= len(data):
        return Response(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
    return Response(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})
