"""training.log: one line per epoch, for people."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from starzoo.files import open_append
from starzoo.text import printable

__all__ = ["LOG", "TrainingLog"]

LOG = "training.log"


class TrainingLog:
    """Writes the figures of each epoch as a line; without a path it writes nothing.

    Attributes:
        names: The names of the sources.
    """

    def __init__(self, path: Path | None, names: Sequence[str], *, epochs: int, images: int) -> None:
        self.names = names
        self._path, self._epochs, self._images = path, epochs, images
        self._epoch_start = time.monotonic()

    def write_line(self, text: str) -> None:
        """Write a line, without control bytes."""
        if self._path:
            with open_append(self._path) as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())}  {printable(text)}\n".encode())

    def write_epoch(self, epoch: int, record: Mapping[str, float], share: float = 1.0) -> None:
        """Write the record of an epoch, of whose steps this run took a `share`."""
        now = time.monotonic()
        seconds = (now - self._epoch_start) / max(share, 1e-9)
        self._epoch_start = now
        parts = [f"epoch {epoch:>{len(str(self._epochs))}}/{self._epochs}"]
        parts += [f"{name} {record[f'{name}_loss']:.4f}" for name in ("path", "own") if f"{name}_loss" in record]
        if "midpoint_loss" in record:
            worst = max(range(len(self.names)), key=lambda source: record[f"midpoint_loss.{source}"])
            loss = record[f"midpoint_loss.{worst}"]
            parts.append(f"midpoint {record['midpoint_loss']:.4f} (worst {loss:.4f}, {self.names[worst]})")
        parts.append(f"moved {record['moved']:.0f}")
        counts = [name for name in ("skipped_steps", "loss_spikes") if name in record]
        parts += [f"{name.replace('_', ' ')} {record[name]:.0f}" for name in counts]
        seconds_left = seconds * (self._epochs - epoch)
        parts += [f"{self._images / seconds:.0f} images/s", f"{_duration(seconds_left)} left"]
        self.write_line("  ".join(parts))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
