"""Concurrent downloads that all end on an interrupt or on the first failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import ContextVar, copy_context
from threading import Event
from typing import Any, TypeVar

from starzoo.errors import HubError

__all__ = ["cancellable_tqdm", "thread_map"]

_MAX_THREADS = 8
_stop: ContextVar[Event | None] = ContextVar("stop", default=None)

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Call a function for several items, up to eight at a time; the first failure stops the others."""
    if len(items) < 2:
        return [function(item) for item in items]
    stop = Event()
    _stop.set(stop)
    with ThreadPoolExecutor(min(_MAX_THREADS, len(items))) as pool:
        futures = [pool.submit(copy_context().run, function, item) for item in items]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()  # raises the first failure
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            _stop.set(None)


def cancellable_tqdm() -> type[Any]:
    """Return a progress bar class that ends a download of `thread_map`: the client calls it for every chunk."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # documented, lacks a re-export

    stop = _stop.get()

    class CancellableTqdm(tqdm):
        """A progress bar that raises after the failure of another download."""

        def update(self, n: float | None = 1) -> bool | None:
            if stop is not None and stop.is_set():
                raise HubError("", "another download failed", hint="run it again")
            return bool(super().update(n))

    return CancellableTqdm
