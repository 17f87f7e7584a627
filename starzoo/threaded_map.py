"""Work that is done ahead in threads, while its results are used in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["map_ahead"]

Item = TypeVar("Item")
Found = TypeVar("Found")


def map_ahead(work: Callable[[Item], Found], items: Iterable[Item], threads: int) -> Iterator[Found]:
    """Map a function over items that are taken one by one, as many at a time as there are threads.

    Args:
        work: The function; it may be called in several threads at once.
        items: Taken as far ahead as there are threads, in the thread that iterates.
        threads: How many; with one or none each item is worked on when its result is asked for.

    Yields:
        The results, in the order of the items.
    """
    if threads < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        begun = deque[Future[Found]]()
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) == threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
