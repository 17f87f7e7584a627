"""Termination signals: deferred to the end of a step during the fit, raised immediately elsewhere."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from starzoo.errors import InterruptedRunError, PreemptedError

__all__ = ["StopRequest", "ignore_signals", "raise_for_signal", "raise_on_signals"]

_SCHEDULER_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # sent before a job is ended
_DUPLICATE_SECONDS = 1.0  # a terminal and torchrun both send the same Ctrl-C


class StopRequest:
    """Records the first termination signal; the second Ctrl-C ends the run at once.

    As a context it handles the signals, if it is entered in the main thread.

    Attributes:
        number: The signal, or 0 before there was one.
    """

    def __init__(self) -> None:
        self.number = 0
        self._interrupted: float | None = None

    def __enter__(self) -> StopRequest:
        """Install the handlers."""
        self._handlers = _handle(self._note, (signal.SIGINT, *_SCHEDULER_SIGNALS))
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the handlers."""
        _restore(self._handlers)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted is not None and now - self._interrupted > _DUPLICATE_SECONDS:
                raise KeyboardInterrupt
            self._interrupted = self._interrupted or now
        self.number = self.number or number


def raise_for_signal(number: int, state: str) -> NoReturn:
    """Raise the error of a termination signal; `state` says what of the run is kept."""
    name = signal.Signals(number).name
    if number == signal.SIGINT:
        raise InterruptedRunError("", f"interrupted; {state}", hint="re-run the same command to resume")
    raise PreemptedError("", f"stopped by {name}; {state}", hint="re-run the same command to resume")


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise an error where a scheduler's signal would end the process; Ctrl-C raises one anyway."""

    def raise_signalled(number: int, frame: FrameType | None) -> NoReturn:
        raise _SignalledError(number)

    handlers = _handle(raise_signalled, _SCHEDULER_SIGNALS)
    try:
        yield
    except _SignalledError as error:
        raise_for_signal(error.number, "what was finished is kept")
    finally:
        _restore(handlers)


@contextmanager
def ignore_signals() -> Iterator[None]:
    """Ignore the SIGTERM that torchrun sends once another process has ended, so that this one can record why."""
    handlers = _handle(signal.SIG_IGN, _SCHEDULER_SIGNALS)
    try:
        yield
    finally:
        _restore(handlers)


class _SignalledError(BaseException):
    """Passes every `except Exception`, as KeyboardInterrupt does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _handle(handler: signal._HANDLER, numbers: Iterable[int]) -> dict[int, signal._HANDLER]:
    """Handle signals; return the previous handlers. Only the main thread may do that."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers}


def _restore(handlers: Mapping[int, signal._HANDLER]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
