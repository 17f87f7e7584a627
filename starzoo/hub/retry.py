"""Retry transient Hub failures with a bound on attempts and total wait."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from starzoo.hub.error_mapping import RETRYABLE_STATUS, HubUnavailableError, translate_hub_errors

__all__ = ["MAX_WAIT", "cap_retry_after", "with_retries"]

MAX_WAIT = 60.0
"""Seconds after which a request that keeps failing is given up, also when the Hub asks to wait longer."""

_PAUSES = (1.0, 2.0, 4.0, 8.0)
_current_repo: ContextVar[str | None] = ContextVar("current_repo", default=None)
_logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


def with_retries(
    action: Callable[[], Answer], repo: str, revision: str | None = None, *, max_wait: float = MAX_WAIT
) -> Answer:
    """Do something on the Hub, and again where it fails in a way that may pass: at most five times, and not for long.

    The client's own waiting, which has no bound, is switched off: an answer that asks to wait ends the attempt.
    """
    began, pauses = time.monotonic(), iter(_PAUSES)
    while True:
        try:
            return _attempt(action, repo, revision)
        except HubUnavailableError as error:
            pause = next(pauses, None)
            wait = pause if error.wait is None else error.wait
            if pause is None or wait is None or wait > MAX_WAIT or time.monotonic() - began + wait > max_wait:
                raise
            _logger.warning("%s; trying again in %g s", error.message, wait)
            time.sleep(wait)


def cap_retry_after() -> None:
    """Make an answer that asks to wait longer than `MAX_WAIT` an error, wherever in the client it comes from.

    For calls outside of `with_retries`, which ask many things one after another. The client itself retries those.
    """
    from huggingface_hub import get_session

    client = get_session()
    if _on_response not in client.event_hooks["response"]:
        client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks["response"], _on_response]}


def _attempt(action: Callable[[], Answer], repo: str, revision: str | None) -> Answer:
    cap_retry_after()
    token = _current_repo.set(repo)
    try:
        with translate_hub_errors(repo, revision):
            return action()
    finally:
        _current_repo.reset(token)


def _on_response(response: Any) -> None:
    """Called by the HTTP client for every answer: one that asks to come back later is an error, or only much later."""
    repo, wait = _current_repo.get(), _retry_after(response.headers)
    if response.status_code not in RETRYABLE_STATUS or (repo is None and (wait or 0.0) <= MAX_WAIT):
        return
    what = f"{'the Hub ' if repo else ''}answered HTTP {response.status_code}"
    hint = "try again later, or see https://status.huggingface.co"
    if wait is not None:
        what += f" and asks to wait {wait:g} s"
    if response.status_code == 429:
        hint = "too many requests: try again later, or set HF_TOKEN, with which more are allowed"
    raise HubUnavailableError(repo or "the Hub", what, hint=hint, wait=wait)


def _retry_after(headers: Any) -> float | None:
    """Seconds to wait as the answer states them, in either of the two forms that the Hub uses."""
    stated = re.fullmatch(r"\s*(\d{1,9})\s*", headers.get("retry-after", ""))
    stated = stated or re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})", headers.get("ratelimit", ""))
    return float(stated[1]) if stated else None
