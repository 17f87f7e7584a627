"""A Hugging Face Hub on loopback, for tests."""

from __future__ import annotations

from tests.hub.fakehub.server import FakeHub, Request, Response, as_json

__all__ = ["FakeHub", "Request", "Response", "as_json"]
