"""What goes wrong on demand: requests that tests answer themselves, and answers that come late, slowly or cut off."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

from tests.hub.fakehub.messages import Request, Response

ALWAYS = 1 << 30


class Faults(ABC):
    """A pattern is looked for in `METHOD /path`; what is asked for first is tried first."""

    @abstractmethod
    def route(self, request: Request) -> Response:
        """The answer of a Hub that works."""

    def repair(self) -> None:
        """Let nothing go wrong any more."""
        self.interceptions: list[list] = []

    def intercept(self, pattern: str, respond: Callable[[Request], Response | None], times: int = ALWAYS) -> None:
        """Call `respond` for the next matching requests; None lets the server answer as usual.

        What `respond` does happens just before the answer: with `commit` it moves a head under the client's feet.
        """
        self.interceptions.append([re.compile(pattern), respond, times])

    def fail(self, pattern: str, status: int, times: int = ALWAYS, **headers: str) -> None:
        """Answer the next matching requests with an error; `X_Error_Code` becomes the header `X-Error-Code`."""
        response = Response(status, b"{}", {name.replace("_", "-"): value for name, value in headers.items()})
        self.intercept(pattern, lambda request: response, times)

    def spoil(self, pattern: str, times: int = ALWAYS, **how: float) -> None:
        """Send what the next matching requests ask for, but `late`, `slow` or `cut`, as `Response` has them."""
        self.intercept(pattern, lambda request: replace(self.route(request), **how), times)

    def intercepted(self, request: Request) -> Response | None:
        for interception in self.interceptions:
            pattern, respond, times = interception
            if times > 0 and pattern.search(str(request)):
                interception[2] -= 1
                response = respond(request)
                if response is not None:
                    return response
        return None
