"""Monitor the losses of a fit, and stop it when they diverge."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from starzoo.errors import NumericalError

__all__ = ["Epoch", "LossMonitor"]

_WINDOW = 100  # steps that tell what loss is usual
_SPIKE = 4.0  # times the usual
_IN_A_ROW = 20
_CURE = (
    "lower star.lr, raise star.warmup, or set star.clip_grad_norm=1, and add --override: the last checkpoint is kept"
)


@dataclass
class Epoch:
    """Sums over the steps of an epoch on one process; of the whole, once they are added up.

    Attributes:
        paths: Mini-batches on paths.
        path: Their losses.
        owns: Mini-batches at the star itself.
        own: Their losses.
        skipped: Steps that overflowed in half precision and were not taken.
        spikes: Steps whose loss was far above what is usual.
    """

    paths: float = 0
    path: float = 0
    owns: float = 0
    own: float = 0
    skipped: float = 0
    spikes: float = 0
    _waiting: list[tuple[Tensor, bool]] = field(default_factory=list)

    def add(self, loss: Tensor, *, own: bool) -> None:
        """Count a mini-batch; its loss may still be in the making."""
        self._waiting.append((loss, own))

    def sums(self) -> list[float]:
        """All of this as numbers, in the order of the attributes."""
        for loss, own in self._waiting:  # one by one, so that a resumed run rounds as an uninterrupted one
            if own:
                self.owns += 1
                self.own += float(loss)
            else:
                self.paths += 1
                self.path += float(loss)
        self._waiting.clear()
        return [self.paths, self.path, self.owns, self.own, self.skipped, self.spikes]

    @classmethod
    def shared_out(cls, parts: Sequence[Sequence[float]], rank: int, ranks: int) -> Epoch:
        """What a process goes on with, where perhaps another number of them has begun an epoch."""
        if len(parts) == ranks:
            sums = parts[rank]
        else:
            *losses, skipped, spikes = zip(*parts, strict=True)
            shared = [sum(column) for column in losses] if rank == 0 else [0.0] * len(losses)
            sums = [*shared, skipped[0], spikes[0]]  # of which the last two are alike on all processes
        paths, path, owns, own, skip, spike = sums
        return cls(paths, path, owns, own, skip, spike)

    @staticmethod
    def record(parts: Sequence[Sequence[float]]) -> dict[str, float]:
        """What an epoch's history tells."""
        paths, path, owns, own, skipped, spikes = (sum(column) for column in zip(*parts, strict=True))
        record = {"path_loss": path / paths} if paths else {}
        if owns:
            record["own_loss"] = own / owns
        shared = {"skipped_steps": skipped / len(parts), "loss_spikes": spikes / len(parts)}  # alike on all processes
        return record | {name: count for name, count in shared.items() if count}


class LossMonitor:
    """Watches the losses of a fit as all processes hear them, and ends it when they are no losses any more."""

    def __init__(self, classes: int) -> None:
        self._guessing = math.log(classes)
        self._usual = deque[float](maxlen=_WINDOW)
        self._spikes = self._skipped = 0

    @property
    def memory(self) -> dict[str, Any]:
        """What it goes by, as JSON."""
        return {"usual": list(self._usual), "spikes": self._spikes, "skipped": self._skipped}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Go on from what another one went by."""
        self._usual.extend(memory["usual"])
        self._spikes, self._skipped = memory["spikes"], memory["skipped"]

    def is_spike(self, loss: float) -> bool:
        """Whether a loss is far above the usual one."""
        usual = sum(self._usual) / len(self._usual) if self._usual else math.inf
        spike = loss > max(_SPIKE * usual, self._guessing)
        self._spikes = self._spikes + 1 if spike else 0
        if self._spikes > _IN_A_ROW:
            raise NumericalError(
                "", f"{self._spikes} steps in a row lost more than {_SPIKE:.0f} times the usual", hint=_CURE
            )
        if not spike:
            self._usual.append(loss)
        return spike

    def skipped(self, now: bool) -> None:
        """Hear whether a step overflowed in half precision."""
        self._skipped = self._skipped + 1 if now else 0
        if self._skipped > _IN_A_ROW:
            raise NumericalError(
                "",
                f"{self._skipped} steps in a row overflowed in half precision",
                hint="set star.precision=bf16 and add --override: the last checkpoint is kept",
            )

    @staticmethod
    def broken(where: str) -> NumericalError:
        """The error of a loss that is not finite."""
        return NumericalError("", f"the loss of the star is not finite {where}", hint=_CURE)
