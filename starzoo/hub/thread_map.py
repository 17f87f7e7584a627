"""Concurrent downloads that an interrupt or the first failure ends together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import ContextVar, copy_context
from threading import Event
from typing import Any, TypeVar

from starzoo.errors import HubError

__all__ = ["cancellable_tqdm", "thread_map"]

_MOST = 8
_stop: ContextVar[Event | None] = ContextVar("stop", default=None)

Item = TypeVar("Item")
Found = TypeVar("Found")


def thread_map(function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
    """Call a function for several items, up to eight at a time."""
    if len(items) < 2:
        return [function(item) for item in items]
    stop = Event()
    _stop.set(stop)
    with ThreadPoolExecutor(min(_MOST, len(items))) as pool:
        running = [pool.submit(copy_context().run, function, item) for item in items]
        try:
            ended, _ = wait(running, return_when=FIRST_EXCEPTION)
            for future in ended:
                future.result()  # raises what the first failure was
            return [future.result() for future in running]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            _stop.set(None)


def cancellable_tqdm() -> type[Any]:
    """The progress bar of a download; the client calls it for every piece, so that what `thread_map` began can end."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # documented, lacks a re-export

    stop = _stop.get()

    class StoppableBar(tqdm):
        """A bar that breaks off when another download failed."""

        def update(self, n: float | None = 1) -> bool | None:
            if stop is not None and stop.is_set():
                raise HubError("", "another download failed", hint="run it again")
            return bool(super().update(n))

    return StoppableBar
