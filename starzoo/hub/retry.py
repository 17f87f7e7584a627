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
"""Seconds after which a failing request is given up, even if the Hub asks for a longer wait."""

_PAUSES = (1.0, 2.0, 4.0, 8.0)
_current_repo: ContextVar[str | None] = ContextVar("current_repo", default=None)
_logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def with_retries(
    action: Callable[[], Result], repo: str, revision: str | None = None, *, max_wait: float = MAX_WAIT
) -> Result:
    """Call `action` up to five times while the Hub reports temporary failures, for at most `max_wait` seconds.

    Inside of it, a response that asks to wait ends the attempt: the client's own waiting has no bound.
    """
    start, pauses = time.monotonic(), iter(_PAUSES)
    while True:
        cap_retry_after()  # each time: the client replaces its session after some failures
        token = _current_repo.set(repo)
        try:
            with translate_hub_errors(repo, revision):
                return action()
        except HubUnavailableError as error:
            pause = next(pauses, None)
            wait = pause if error.wait is None else error.wait
            if pause is None or wait is None or wait > MAX_WAIT or time.monotonic() - start + wait > max_wait:
                raise
            _logger.warning("%s; trying again in %g s", error.message, wait)
        finally:
            _current_repo.reset(token)
        time.sleep(wait)


def cap_retry_after() -> None:
    """Make a response that asks to wait longer than `MAX_WAIT` an error everywhere in the client.

    This covers calls outside of `with_retries` that send several requests, which the client itself retries.
    """
    from huggingface_hub import get_session

    client = get_session()
    if _on_response not in client.event_hooks["response"]:
        client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks["response"], _on_response]}


def _on_response(response: Any) -> None:
    """Raise on a temporary failure, outside of `with_retries` only if it asks for too long a wait."""
    repo, wait = _current_repo.get(), _retry_after(response.headers)
    if response.status_code not in RETRYABLE_STATUS or (repo is None and (wait or 0.0) <= MAX_WAIT):
        return
    problem = f"{'the Hub ' if repo else ''}answered HTTP {response.status_code}"
    hint = "try again later, or see https://status.huggingface.co"
    if wait is not None:
        problem += f" and asks to wait {wait:g} s"
    if response.status_code == 429:
        hint = "try again later, or set HF_TOKEN, which allows more requests"
    raise HubUnavailableError(repo or "the Hub", problem, hint=hint, wait=wait)


def _retry_after(headers: Any) -> float | None:
    """Return the seconds to wait that the response states, in either of the two forms that the Hub uses."""
    seconds = re.fullmatch(r"\s*(\d{1,9})\s*", headers.get("retry-after", ""))
    seconds = seconds or re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})", headers.get("ratelimit", ""))
    return float(seconds[1]) if seconds else None
