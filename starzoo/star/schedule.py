"""The schedule of a fit: which draws of (source, t), on which images, each process takes at each step.

A step has one or more draws, which share its batch and are split among the processes; their gradients are averaged. So
two processes do what one does with two draws per step, and more draws mean less variance and the same expectation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from starzoo.config import RunConfig
from starzoo.errors import UsageError
from starzoo.star.sampling import SourceSampler

if TYPE_CHECKING:
    from starzoo.data.loader import Loader
    from starzoo.data.task import ImageTask

__all__ = ["Batch", "Schedule"]

Batch = tuple[Tensor, Tensor]


class Schedule:
    """What one process computes at each step; a function of the configuration and the step alone.

    Attributes:
        sampler: The draws of every step.
        own_draws: The indices of this process's draws in each step.
        steps_per_epoch: Incomplete batches are left out.
        steps: Steps of the whole fit.
    """

    def __init__(self, data: ImageTask, config: RunConfig, sources: int, rank: int, ranks: int) -> None:
        self._data, self._config, self._ranks = data, config, ranks
        draws = _count_draws(config.star.draws, ranks)
        self.sampler = SourceSampler(config.star, sources, draws)
        self.own_draws = range(rank, draws, ranks)
        self.steps_per_epoch = len(self._loader(0, 0))
        self.steps = config.star.epochs * self.steps_per_epoch

    def batches(self, epoch: int, first: int, device: torch.device) -> Iterator[tuple[Batch, ...]]:
        """Yield, for every step of an epoch from `first` on, the images and labels of each of this process's draws."""
        loaders = [self._loader(epoch, index).skip(first) for index in self.own_draws]
        steps = zip(*(loader.batches for loader in loaders), strict=True)
        together = iter(replace(loaders[0], batches=[*chain.from_iterable(steps)], device=device))
        return zip(*[together] * len(loaders), strict=True)

    def next_source(self, step: int, draw_index: int) -> int | None:
        """Return the source of this process's next draw; None where an epoch begins, which may align it first."""
        if draw_index != self.own_draws[-1]:
            return self.sampler.draw(step, draw_index + self._ranks).source
        if (step + 1) % self.steps_per_epoch == 0:
            return None
        return self.sampler.draw(step + 1, self.own_draws[0]).source

    def image_rows(self, step: int, draw_index: int) -> list[int]:
        """Return the rows of the training images of a draw."""
        epoch, index = divmod(step, self.steps_per_epoch)
        rows: list[int] = self._loader(epoch, draw_index).batches[index].tolist()
        return rows

    def _loader(self, epoch: int, draw_index: int) -> Loader:
        settings = self._config.star
        return self._data.train.loader(
            settings.batch_size,
            epoch=epoch,
            seed=settings.seed,
            augment=self._config.data.augment,
            shard=draw_index,
            num_shards=self.sampler.draws,
            workers=self._config.runtime.workers,
        )


def is_due(period: int, epoch: int) -> bool:
    """Whether something that happens every `period` epochs, or never if 0, happens after `epoch` of them."""
    return epoch > 0 and period > 0 and epoch % period == 0


def _count_draws(draws: int | None, ranks: int) -> int:
    draws = draws or ranks
    if draws % ranks:
        raise UsageError(
            "star.draws",
            f"expected a multiple of {ranks} processes, got {draws}",
            hint=f"use star.draws={ranks * -(-draws // ranks)}",
        )
    return draws
