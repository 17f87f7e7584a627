"""Everything that changes during a fit, and that a checkpoint therefore holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from starzoo.parallel import all_gather_object
from starzoo.star.loss_monitor import EpochSums, LossMonitor
from starzoo.star.run.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from starzoo.star.source_alignment import SourceAlignment

if TYPE_CHECKING:
    from torch.amp import GradScaler

__all__ = ["RunState"]


class RunState:
    """The state of a fit on one process.

    There is no state of a random number generator in it: all random numbers are functions of the seed and the step.

    Attributes:
        step: Optimizer steps taken.
        average: The exponential moving average of the star's parameters; empty where none is kept.
        epoch_sums: Sums over the steps of the epoch in progress.
        history: One record per finished epoch.
        changes: What was changed when the run was resumed, in words.
    """

    def __init__(
        self,
        star: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        alignment: SourceAlignment,
        loss_monitor: LossMonitor,
        scaler: GradScaler | None,
        ema_decay: float | None = None,
    ) -> None:
        self.star, self.optimizer, self.alignment = star, optimizer, alignment
        self.loss_monitor, self.scaler = loss_monitor, scaler
        self.average = {} if ema_decay is None else {name: value.detach().clone() for name, value in star.items()}
        self._update_average = get_ema_multi_avg_fn(ema_decay or 0.0)  # type: ignore[no-untyped-call]
        self.step, self.epoch_sums = 0, EpochSums()
        self.history, self.changes = list[dict[str, float]](), list[str]()

    def update_star(self, max_norm: float | None) -> None:
        """Take a step of the optimizer; in half precision not where a gradient overflowed."""
        if max_norm:
            if self.scaler:
                self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.star.values(), max_norm)
        if self.scaler:
            scale = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            overflowed = self.scaler.get_scale() < scale
            self.epoch_sums.skipped += overflowed
            self.loss_monitor.record_overflow(overflowed)
        else:
            self.optimizer.step()
        self.step += 1
        if self.average:
            self._update_average(list(self.average.values()), list(self.star.values()), self.step)

    def has_converged(self, patience: int | None) -> bool:
        """Whether the last `patience` midpoint losses are no lower than those before."""
        losses = [record["midpoint_loss"] for record in self.history if "midpoint_loss" in record]
        if patience is None or len(losses) <= patience:
            return False
        return min(losses[-patience:]) >= min(losses[:-patience])

    def state_dict(self) -> Checkpoint:
        """Return the checkpoint of this state; all processes call it together."""
        return Checkpoint(
            step=self.step,
            star={name: parameter.detach() for name, parameter in self.star.items()},
            average=self.average,
            optimizer=optimizer_tensors(self.optimizer),
            permutations=[permutation.to_tensors() for permutation in self.alignment.permutations],
            history=self.history,
            epoch_sums=all_gather_object(self.epoch_sums.values()),
            scaler=self.scaler.state_dict() if self.scaler else None,
            loss_monitor=self.loss_monitor.state_dict(),
            changes=self.changes,
        )

    def load_state_dict(self, checkpoint: Checkpoint, rank: int, ranks: int) -> None:
        """Restore a checkpoint, of which `alignment` has the permutations already."""
        with torch.no_grad():
            for name, parameter in self.star.items():
                parameter.copy_(checkpoint.star[name])
            for name, average in self.average.items():
                average.copy_(checkpoint.average.get(name, checkpoint.star[name]))
        self.step, self.changes = checkpoint.step, list(checkpoint.changes)
        self.history = [dict(record) for record in checkpoint.history]
        self.epoch_sums = EpochSums.redistribute(checkpoint.epoch_sums, rank, ranks)
        self.loss_monitor.load_state_dict(checkpoint.loss_monitor)
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        if self.scaler and checkpoint.scaler:
            self.scaler.load_state_dict(dict(checkpoint.scaler))
