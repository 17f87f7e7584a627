"""Termination signals: deferred to the end of a step during the fit, raised immediately elsewhere."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from starzoo.errors import InterruptedRunError, PreemptedError

__all__ = ["StopRequest", "ignore_signals", "raise_on_signals", "stop"]

_WARNINGS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # what schedulers send before they end a job
_ECHO_SECONDS = 1.0  # a terminal and torchrun both send the same Ctrl-C


class StopRequest:
    """Remembers that the run shall end; the second Ctrl-C ends it at once.

    Used as a context, which takes over the signals if it is entered in the main thread.

    Attributes:
        number: The signal, or 0 as long as there was none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._interrupted: float | None = None

    def __enter__(self) -> StopRequest:
        """Take over the signals."""
        self._restore = _handle(self._note, (signal.SIGINT, *_WARNINGS))
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, before in self._restore.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted is not None and now - self._interrupted > _ECHO_SECONDS:
                raise KeyboardInterrupt
            self._interrupted = self._interrupted or now
        self.number = self.number or number


def stop(number: int, state: str) -> NoReturn:
    """End the run as its signal wants it."""
    name = signal.Signals(number).name
    if number == signal.SIGINT:
        raise InterruptedRunError("", f"interrupted; {state}", hint="the same command goes on from there")
    raise PreemptedError("", f"stopped by {name}; {state}", hint="the same command goes on from there")


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """End in an orderly way where a scheduler's signal would end the process as it stands; Ctrl-C does so by itself."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise _SignalledError(number)

    before = _handle(end, _WARNINGS)
    try:
        yield
    except _SignalledError as signalled:
        stop(signalled.number, "what was finished is kept")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ignore_signals() -> Iterator[None]:
    """Let a process say how its run ended, where torchrun sends SIGTERM because another one has ended before."""
    before = _handle(signal.SIG_IGN, _WARNINGS)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _SignalledError(BaseException):
    """Passes by whatever handles errors, as KeyboardInterrupt does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _handle(handler: signal._HANDLER, numbers: Iterable[int]) -> dict[int, signal._HANDLER]:
    """Handle some signals; which handlers there were. Only a main thread may do that."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers}
