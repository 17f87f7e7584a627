"""Monitor the losses of a fit, and stop it when they diverge."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from starzoo.errors import NumericalError

__all__ = ["EpochSums", "LossMonitor", "nonfinite_error"]

_WINDOW = 100  # recent steps whose mean loss a spike is measured by
_SPIKE = 4.0  # times the recent mean
_MAX_IN_A_ROW = 20
_HINT = (
    "lower star.lr, raise star.warmup, or set star.clip_grad_norm=1, and add --override: the last checkpoint is kept"
)


@dataclass
class EpochSums:
    """Sums over the steps of an epoch on one process.

    Attributes:
        path_count: Mini-batches on paths.
        path_loss: The sum of their losses.
        own_count: Mini-batches at the star itself.
        own_loss: The sum of their losses.
        skipped: Steps that overflowed in half precision and were not taken.
        spikes: Steps whose loss was far above the recent mean.
        moved: Positions that the alignment before the epoch moved.
    """

    path_count: float = 0.0
    path_loss: float = 0.0
    own_count: float = 0.0
    own_loss: float = 0.0
    skipped: float = 0.0
    spikes: float = 0.0
    moved: float = 0.0
    _pending: list[tuple[Tensor, bool]] = field(default_factory=list, init=False)

    def add(self, loss: Tensor, *, at_star: bool) -> None:
        """Count a mini-batch, without waiting for its loss to be computed."""
        self._pending.append((loss, at_star))

    def values(self) -> list[float]:
        """Return the attributes in their order."""
        for loss, at_star in self._pending:  # one by one, so that a resumed run rounds as an uninterrupted one
            if at_star:
                self.own_count += 1
                self.own_loss += float(loss)
            else:
                self.path_count += 1
                self.path_loss += float(loss)
        self._pending.clear()
        losses = [self.path_count, self.path_loss, self.own_count, self.own_loss]
        return [*losses, self.skipped, self.spikes, self.moved]

    @classmethod
    def redistribute(cls, parts: Sequence[Sequence[float]], rank: int, ranks: int) -> EpochSums:
        """Return the sums of one of `ranks` processes that resume an epoch, whose `parts` another number has begun."""
        if len(parts) == ranks:
            return cls(*parts[rank])
        losses = [sum(column) if rank == 0 else 0.0 for column in zip(*parts, strict=True)]
        return cls(*losses[:4], *parts[0][4:])  # the others are equal on all processes

    @staticmethod
    def record(parts: Sequence[Sequence[float]]) -> dict[str, float]:
        """Return the record of an epoch from the sums of all processes."""
        path_count, path_loss, own_count, own_loss, *_ = map(sum, zip(*parts, strict=True))
        skipped, spikes, moved = parts[0][4:]  # equal on all processes
        record = {"path_loss": path_loss / path_count} if path_count else {}
        if own_count:
            record["own_loss"] = own_loss / own_count
        counts = {"skipped_steps": skipped, "loss_spikes": spikes}
        return record | {name: count for name, count in counts.items() if count} | {"moved": moved}


class LossMonitor:
    """Monitors the losses of a fit, and raises when too many steps in a row fail."""

    def __init__(self, classes: int) -> None:
        self._guessing = math.log(classes)
        self._recent = deque[float](maxlen=_WINDOW)
        self._spikes = self._skipped = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON."""
        return {"recent": list(self._recent), "spikes": self._spikes, "skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of another monitor."""
        self._recent.extend(state["recent"])
        self._spikes, self._skipped = state["spikes"], state["skipped"]

    def record_loss(self, loss: float) -> bool:
        """Record the loss of a step, and return whether it is a spike."""
        mean = sum(self._recent) / len(self._recent) if self._recent else math.inf
        is_spike = loss > max(_SPIKE * mean, self._guessing)
        self._spikes = self._spikes + 1 if is_spike else 0
        if self._spikes > _MAX_IN_A_ROW:
            raise NumericalError(
                "", f"{self._spikes} steps in a row lost more than {_SPIKE:.0f} times the usual", hint=_HINT
            )
        if not is_spike:
            self._recent.append(loss)
        return is_spike

    def record_overflow(self, overflowed: bool) -> None:
        """Record whether a step overflowed in half precision."""
        self._skipped = self._skipped + 1 if overflowed else 0
        if self._skipped > _MAX_IN_A_ROW:
            raise NumericalError(
                "",
                f"{self._skipped} steps in a row overflowed in half precision",
                hint="set star.precision=bf16 and add --override: the last checkpoint is kept",
            )


def nonfinite_error(when: str) -> NumericalError:
    """Return the error of a loss that is not finite."""
    return NumericalError("", f"the loss of the star is not finite {when}", hint=_HINT)
