"""The sources of a fit as they are aligned now: to each other at its start, then again and again to the star."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from starzoo.align.align import Aligner, average, choose_method, take_better
from starzoo.align.probe import Probe
from starzoo.architecture import Architecture
from starzoo.config import RunConfig
from starzoo.processes import from_first, share_out
from starzoo.symmetry.permutation import Permutation
from starzoo.symmetry.spec import PermutationSpec

if TYPE_CHECKING:
    from starzoo.data import ImageData

__all__ = ["SourceAlignment"]

StateDict = Mapping[str, Tensor]
_logger = logging.getLogger(__name__)


class SourceAlignment:
    """Aligns the sources of a fit; several processes share them out, and each permutation comes from one of them.

    Args:
        architecture: What star and sources have in common.
        spec: Its symmetries.
        sources: State dicts of the sources.
        data: The task's images.
        config: The run's configuration.

    Attributes:
        config: How the sources are aligned, with the method that `auto` chose.
        permutations: One for every source, as they were last aligned.
    """

    def __init__(
        self,
        architecture: Architecture,
        spec: PermutationSpec,
        sources: Sequence[StateDict],
        data: ImageData,
        config: RunConfig,
    ) -> None:
        self._sources, self._start, align = sources, config.star.start, config.align
        network, split = architecture.build(), data.train
        probe = (
            Probe(network, *split.labelled_images(limit=align.images, seed=align.seed)) if align.needs_images else None
        )
        some = split.labelled_images(limit=config.star.midpoint_images, seed=config.star.seed)
        self._halfway = Probe(network, *some)
        self.config = from_first(lambda: choose_method(spec, sources[0], sources[1:], align, probe))
        self._aligner = Aligner(spec, self.config.to_one, probe, models=len(sources))
        self._kept: dict[int, StateDict] = {}
        self.permutations = [Permutation.identity(spec) for _ in sources]

    def start(self, random: StateDict, known: Sequence[Permutation] | None = None) -> StateDict:
        """Where the star starts from, and the sources aligned to that.

        Args:
            random: Weights that no training has seen, for a random start.
            known: How the sources are aligned in a run that goes on; nothing is matched then.

        Returns:
            The average of the sources, aligned to each other; one of them; or the random weights.
        """
        before, everyone = self.permutations, range(len(self._sources))
        of_one = random if self._start == "random" else self._sources[0]
        if known is not None:
            self.permutations = list(known)
        elif self._start == "aligned-average":
            found = from_first(lambda: self._aligner.match_all(list(self._evidence(everyone))))
            self._take(found, of_one)
            if not any(new.moved(identity) for new, identity in zip(self.permutations, before, strict=True)):
                _logger.warning(
                    "these models share an ancestor: their plain mean is already good, and none is permuted"
                )
        else:
            self.bring_to(of_one)
        if self._start != "aligned-average":
            return of_one
        return average([found.apply(source) for found, source in zip(self.permutations, self._sources, strict=True)])

    def bring_to(self, star: StateDict) -> int:
        """Align the sources to the star, each from where it is.

        Args:
            star: Its state dict.

        Returns:
            How many positions that moved.
        """
        fixed, before = self._aligner.evidence.of(star), self.permutations

        def match(numbers: Sequence[int]) -> Iterator[Permutation]:
            starts = [before[number] for number in numbers]
            return (found.permutation for found in self._aligner.match(fixed, self._evidence(numbers), starts))

        self._take(share_out(range(len(before)), match), star)
        return sum(new.moved(old) for new, old in zip(self.permutations, before, strict=True))

    def _take(self, found: Sequence[Permutation], fixed: StateDict) -> None:
        """Take what was found for each source where it lowers the loss half-way to the fixed model."""

        def choose(number: int) -> Permutation:
            start, source = self.permutations[number], self._sources[number]
            if not found[number].moved(start):
                return start
            return take_better(self._halfway, fixed, source, start, found[number])[0]

        self.permutations = share_out(range(len(self._sources)), partial(map, choose))

    def _evidence(self, numbers: Iterable[int]) -> Iterator[StateDict]:
        """What some sources are compared by: made once, where it is needed, and kept off the GPU."""
        for number in numbers:
            if number not in self._kept:
                found = self._aligner.evidence.of(self._sources[number])
                self._kept[number] = {name: tensor.cpu() for name, tensor in found.items()}
            device = self._aligner.evidence.device
            yield {name: tensor.to(device) for name, tensor in self._kept[number].items()}

    def halfway_losses(self, star: StateDict) -> list[float]:
        """The losses half-way between the star and every source, on some training images, in nats.

        Args:
            star: Its state dict.

        Returns:
            One loss per source.
        """

        def measure(number: int) -> float:
            return self._halfway.midpoint_loss(star, self.permutations[number].apply(self._sources[number]))

        return share_out(range(len(self._sources)), partial(map, measure))
