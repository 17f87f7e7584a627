"""training.log: one line per epoch for people, and the same figures for the trackers that Accelerate knows."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starzoo.errors import UsageError
from starzoo.files import open_append
from starzoo.text import printable

__all__ = ["LOG", "TrainingLog", "check_trackers"]

LOG = "training.log"


class TrainingLog:
    """Writes an epoch's figures as a line."""

    def __init__(self, path: Path | None, names: Sequence[str], *, epochs: int, images: int) -> None:
        self._path, self._names, self._epochs, self._images = path, names, epochs, images
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        """Write a line, without control bytes."""
        if self._path:
            with open_append(self._path) as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())}  {printable(text)}\n".encode())

    def epoch(self, number: int, record: Mapping[str, float], share: float = 1.0) -> None:
        """Write what an epoch came to."""
        now = time.monotonic()
        seconds = (now - self._began) / max(share, 1e-9)
        self._began = now
        left = seconds * (self._epochs - number)
        parts = [f"epoch {number:>{len(str(self._epochs))}}/{self._epochs}"]
        parts += [f"{name} {record[f'{name}_loss']:.4f}" for name in ("path", "own") if f"{name}_loss" in record]
        if "midpoint_loss" in record:
            worst = max(range(len(self._names)), key=lambda source: record[f"midpoint_loss.{source}"])
            loss = record[f"midpoint_loss.{worst}"]
            parts.append(f"half-way {record['midpoint_loss']:.4f} (worst {loss:.4f}, {self._names[worst]})")
        parts.append(f"moved {record['moved']:.0f}")
        parts += [
            f"{name.replace('_', ' ')} {record[name]:.0f}"
            for name in ("skipped_steps", "loss_spikes")
            if name in record
        ]
        parts += [f"{self._images / seconds:.0f} images/s", f"{_duration(left)} left"]
        self.note("  ".join(parts))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def check_trackers(names: Sequence[str]) -> list[Any]:
    """Make sure that trackers are there, and that none calls home unless it was told to."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    there = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in there:
            known = sorted(map(str, LOGGER_TYPE_TO_CLASS))
            hint = f"pip install {name}" if name in known else f"the trackers are {', '.join(known)}"
            raise UsageError(f"tracker {name!r}", "is not installed", hint=hint)
    os.environ.setdefault("WANDB_MODE", "offline")
    return list(names)
