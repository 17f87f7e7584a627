"""What happens to a process that evaluates; found by its name in a new process."""

from __future__ import annotations

import itertools
import os
import signal
from typing import Any

from starzoo.evaluate import result_cache as cache


def kill_after(items: int, rank: int) -> None:
    """A fault: the process is killed as soon as so many results are kept."""
    save, number = cache.save_tensors, itertools.count(1)

    def save_and_die(*arguments: Any) -> None:
        save(*arguments)
        if next(number) == items:
            os.kill(os.getpid(), signal.SIGKILL)

    cache.save_tensors = save_and_die
