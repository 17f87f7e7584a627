"""Alignment of the sources during a fit: to each other at first, then to the star."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from starzoo.align.align import Aligner
from starzoo.align.probe import Probe
from starzoo.config import RunConfig
from starzoo.models.architecture import Architecture
from starzoo.models.weights import StateDict, average
from starzoo.parallel import on_main_process, split_across_processes
from starzoo.symmetry.permutation import Permutation

if TYPE_CHECKING:
    from starzoo.data.task import ImageTask

__all__ = ["SourceAlignment"]

_logger = logging.getLogger(__name__)


class SourceAlignment:
    """Aligns the sources of a fit; several processes share them out, and each permutation comes from one of them.

    Attributes:
        config: How the sources are aligned.
        permutations: One for every source, as they were last aligned.
    """

    def __init__(
        self,
        architecture: Architecture,
        sources: Sequence[StateDict],
        data: ImageTask,
        config: RunConfig,
    ) -> None:
        self._sources, self._start, align = sources, config.star.init, config.align
        network, split = architecture.build(), data.train
        probe = (
            Probe(network, *split.labeled_images(limit=align.images, seed=align.seed)) if align.needs_images else None
        )
        some = split.labeled_images(limit=config.star.midpoint_images, seed=config.star.seed)
        self._halfway = Probe(network, *some)
        self.config = align
        self._aligner = Aligner(architecture.spec, align, probe, models=len(sources))
        self._kept: dict[int, StateDict] = {}
        self.permutations = [Permutation.identity(architecture.spec) for _ in sources]
        self._moving = list(range(len(sources)))

    def start(self, random: StateDict, known: Sequence[Permutation] | None = None) -> StateDict:
        """Where the star starts from, and the sources aligned to that."""
        others = range(1, len(self._sources))
        first, of_one = self._sources[0], random if self._start == "random" else self._sources[0]
        related = split_across_processes(
            others, partial(map, lambda number: self._halfway.are_connected(first, self._sources[number]))
        )
        self._moving = [number for number, stays in enumerate([bool(related) and all(related), *related]) if not stays]
        if not self._moving:
            _logger.warning("these models share an ancestor: their plain mean is already good, and none is permuted")
        if known is not None:
            self.permutations = list(known)
        elif self._start != "aligned-average":
            self.align_to(of_one)
        elif self._moving:
            numbers = sorted({0, *self._moving})
            found = on_main_process(lambda: self._aligner.match_all(list(self._evidence(numbers))))
            self._replace(numbers, found)
        if self._start != "aligned-average":
            return of_one
        return average([found.apply(source) for found, source in zip(self.permutations, self._sources, strict=True)])

    def align_to(self, star: StateDict) -> int:
        """Align the sources to the star, each from where it is; those that share an ancestor stay as they are."""
        # Not only where it lowers the loss half-way, which is too noisy to judge a small move by: on the digits a star
        # so held back has a barrier of 0.018 to held-outs, and one that follows its sources 0.012 (three seeds).
        fixed, before = self._aligner.features.extract(star), self.permutations

        def match(numbers: Sequence[int]) -> Iterator[Permutation]:
            starts = [before[number] for number in numbers]
            return (found.permutation for found in self._aligner.match(fixed, self._evidence(numbers), starts))

        self._replace(self._moving, split_across_processes(self._moving, match))
        return sum(new.count_moved(old) for new, old in zip(self.permutations, before, strict=True))

    def _replace(self, numbers: Sequence[int], found: Sequence[Permutation]) -> None:
        changed = dict(zip(numbers, found, strict=True))
        self.permutations = [changed.get(number, old) for number, old in enumerate(self.permutations)]

    def _evidence(self, numbers: Iterable[int]) -> Iterator[StateDict]:
        """What some sources are compared by: made once, where it is needed, and kept off the GPU."""
        for number in numbers:
            if number not in self._kept:
                found = self._aligner.features.extract(self._sources[number])
                self._kept[number] = {name: tensor.cpu() for name, tensor in found.items()}
            device = self._aligner.features.device
            yield {name: tensor.to(device) for name, tensor in self._kept[number].items()}

    def midpoint_losses(self, star: StateDict) -> list[float]:
        """The losses half-way between the star and every source, on some training images, in nats."""

        def measure(number: int) -> float:
            return self._halfway.midpoint_loss(star, self.permutations[number].apply(self._sources[number]))

        return split_across_processes(range(len(self._sources)), partial(map, measure))
