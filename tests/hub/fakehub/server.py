"""The server: HTTP on two loopback addresses, behind which requests are noted, intercepted and answered."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.fakehub import account, reading, writing
from tests.hub.fakehub.faults import Faults
from tests.hub.fakehub.messages import Refusal, Request, Response
from tests.hub.fakehub.store import Store

PIECE = 50_000
ROUTES = [*account.ROUTES, *writing.ROUTES, *reading.ROUTES]


class FakeHub(Store, Faults):
    """The Hub. `endpoint` goes into HF_ENDPOINT; everything else is for tests to arrange and to look at."""

    def __init__(self) -> None:
        self.listeners = [Listener(self.answer) for _ in range(2)]
        super().__init__(*(f"http://127.0.0.1:{listener.server_port}" for listener in self.listeners))
        self.reset()
        for listener in self.listeners:
            threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        for listener in self.listeners:
            listener.shutdown()
            listener.server_close()

    def reset(self) -> None:
        """Forget all repositories, requests and faults."""
        with self.lock:
            self.empty()
            self.repair()
            self.requests: list[Request] = []

    def asked(self, pattern: str) -> list[str]:
        """The requests so far, as `METHOD /path`, that match a pattern."""
        return [str(request) for request in self.requests if re.search(pattern, str(request))]

    def answer(self, request: Request) -> Response:
        with self.lock:
            self.requests.append(request)
            return self.intercepted(request) or self.route(request)

    def route(self, request: Request) -> Response:
        path = (request.target or request.path).replace("/api/datasets/", "/api/models/datasets/")
        with self.lock:
            for methods, pattern, handle in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and request.method in methods:
                    names = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                    try:
                        return handle(self, request, **names)
                    except Refusal as refusal:
                        return refusal.response
            return Refusal(404, "EntryNotFound", f"no route for {request}").response


class Listener(ThreadingHTTPServer):
    """One address: what `answer` says to a request is sent, in the time and to the byte that it says."""

    daemon_threads = True

    def handle_error(self, *address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # of a client that was killed
            super().handle_error(*address)

    def __init__(self, answer: Callable[[Request], Response]) -> None:
        self.answer = answer
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Listener

    def answer(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, unquote(parts.path), parse_qs(parts.query), headers, body, parts.path)
        response = self.server.answer(request)
        if response.late:
            time.sleep(response.late)
        with contextlib.suppress(ConnectionError):  # a client that was killed, or had no patience
            self.send(response)

    def send(self, response: Response) -> None:
        self.send_response(response.status)
        for name, value in {"Content-Length": str(len(response.body)), **response.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        body = b"" if self.command == "HEAD" else response.body[: response.cut]
        for start in range(0, len(body), PIECE if response.slow else max(len(body), 1)):
            if response.slow:
                time.sleep(response.slow)
            self.wfile.write(body[start : start + PIECE] if response.slow else body)
        self.close_connection = self.close_connection or response.cut is not None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Tests read `requests` instead."""
