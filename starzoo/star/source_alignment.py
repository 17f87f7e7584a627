"""Alignment of the sources during a fit: to each other at first, then to the star."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from starzoo.align.align import Aligner
from starzoo.align.probe import Probe
from starzoo.config import RunConfig
from starzoo.models.architecture import Architecture
from starzoo.models.weights import StateDict, average
from starzoo.parallel import split_across_processes, world_size
from starzoo.progress import Progress, no_progress
from starzoo.symmetry.permutation import Permutation

if TYPE_CHECKING:
    from starzoo.data.task import ImageTask

__all__ = ["SourceAlignment"]

_logger = logging.getLogger(__name__)


class SourceAlignment:
    """Aligns the sources of a fit; the processes share the work, and each permutation comes from one of them.

    Attributes:
        permutations: One for every source, as they were last aligned.
    """

    def __init__(
        self,
        architecture: Architecture,
        sources: Sequence[StateDict],
        data: ImageTask,
        config: RunConfig,
        progress: Progress = no_progress,
    ) -> None:
        self._sources, self._init, self._progress, align = sources, config.star.init, progress, config.align
        network, labeled_images = architecture.build(), data.train.labeled_images
        probe = Probe(network, *labeled_images(limit=align.images, seed=align.seed)) if align.needs_images else None
        self._probe = Probe(network, *labeled_images(limit=config.star.midpoint_images, seed=config.star.seed))
        self._spec = architecture.spec
        self._aligner = Aligner(self._spec, align, probe, models=len(sources))
        self._features: dict[int, StateDict] = {}
        self.permutations = [Permutation.identity(self._spec) for _ in sources]
        self._moving = self._find_moving()

    def _find_moving(self) -> list[int]:
        """Return the sources to align: not those that share an ancestor, whose plain mean is already good."""
        first, *others = self._sources
        are_connected, tell = partial(self._probe.are_connected, first), partial(self._progress, "comparing sources")
        connected = split_across_processes(others, partial(map, are_connected), tell=tell)
        all_connected = bool(connected) and all(connected)
        if all_connected:
            _logger.warning("these models share an ancestor: their plain mean is already good, and none is permuted")
        stays = [all_connected, *connected]
        return [index for index, is_connected in enumerate(stays) if not is_connected]

    def initial_weights(self, random: StateDict, aligned: Sequence[Mapping[str, Tensor]] | None = None) -> StateDict:
        """Return the weights that the star starts from, with the sources aligned to them, or `aligned` as they were."""
        weights = random if self._init == "random" else self._sources[0]
        if aligned is not None:
            self.permutations = [Permutation.from_tensors(self._spec, tensors) for tensors in aligned]
        elif self._init != "aligned-average":
            self.align_to(weights)
        elif self._moving:
            indices = sorted({0, *self._moving})
            features = list(self._share_features(indices))
            self._replace(indices, self._aligner.match_all(features, progress=self._progress))
        if self._init != "aligned-average":
            return weights
        pairs = zip(self.permutations, self._sources, strict=True)
        return average([permutation.apply(source) for permutation, source in pairs])

    def align_to(self, star: StateDict) -> int:
        """Align the sources to the star, each from its last permutation; return how many positions moved."""
        # Not only where it lowers the midpoint loss, which is too noisy to judge small moves by: on the digits this
        # gives a barrier of 0.018 to held-outs instead of 0.012 (three seeds).
        fixed, previous = self._aligner.features.extract(star), self.permutations

        def match(indices: Sequence[int]) -> Iterator[Permutation]:
            starts = [previous[index] for index in indices]
            return (result.permutation for result in self._aligner.match(fixed, self._features_of(indices), starts))

        self._replace(self._moving, split_across_processes(self._moving, match))
        return sum(new.count_moved(old) for new, old in zip(self.permutations, previous, strict=True))

    def midpoint_losses(self, star: StateDict) -> list[float]:
        """Return the losses at the midpoint between the star and every source, on training images, in nats."""

        def measure(index: int) -> float:
            return self._probe.midpoint_loss(star, self.permutations[index].apply(self._sources[index]))

        return split_across_processes(range(len(self._sources)), partial(map, measure))

    def _replace(self, indices: Sequence[int], permutations: Sequence[Permutation]) -> None:
        changed = dict(zip(indices, permutations, strict=True))
        self.permutations = [changed.get(index, old) for index, old in enumerate(self.permutations)]

    def _share_features(self, indices: Sequence[int]) -> Iterator[StateDict]:
        """Yield the features of sources, each computed by one process; it keeps those that it will match later."""
        count = world_size()
        for start in range(0, len(indices), count):
            for features in split_across_processes(indices[start : start + count], self._host_features):
                yield {name: tensor.to(self._aligner.features.device) for name, tensor in features.items()}
            self._progress("extracting features", min(start + count, len(indices)), len(indices))

    def _features_of(self, indices: Iterable[int]) -> Iterator[StateDict]:
        """Yield features on the device of the aligner."""
        device = self._aligner.features.device
        for features in self._host_features(indices):
            yield {name: tensor.to(device) for name, tensor in features.items()}

    def _host_features(self, indices: Iterable[int]) -> Iterator[StateDict]:
        """Yield the features that sources are matched by: computed once, and kept in the computer's memory."""
        for index in indices:
            if index not in self._features:
                features = self._aligner.features.extract(self._sources[index])
                self._features[index] = {name: tensor.cpu() for name, tensor in features.items()}
            yield self._features[index]
