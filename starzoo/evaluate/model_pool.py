"""The models of an evaluation, by name, aligned to the star."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from starzoo.align.align import Aligner, take_better
from starzoo.align.probe import Probe
from starzoo.config import AlignConfig, Uniform
from starzoo.evaluate.results import PathKind
from starzoo.models.architecture import Architecture
from starzoo.models.weights import StateDict, average, hash_tensors
from starzoo.symmetry.permutation import Permutation

if TYPE_CHECKING:
    from starzoo.data.task import ImageTask

__all__ = ["Line", "ModelPool", "Zoo"]


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """The models of an evaluation, by name; batch-norm statistics are estimated anew for all of them.

    Attributes:
        star: The star's state dict.
        sources: The models that the star was fitted on.
        holdouts: The models that it never saw.
        others: Other stars of the same task.
        permutations: What brings sources to the star, by name, where its fit has found that: the star domain that it
            publishes. What is missing is found here.
    """

    star: StateDict
    sources: Mapping[str, StateDict]
    holdouts: Mapping[str, StateDict]
    others: Mapping[str, StateDict] = field(default_factory=dict)
    permutations: Mapping[str, Permutation] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One path to measure: a function of two models, aligned or not."""

    kind: PathKind
    a: str
    b: str


class ModelPool:
    """The models of a zoo, each one aligned when that is asked for first."""

    def __init__(self, architecture: Architecture, zoo: Zoo, data: ImageTask, config: AlignConfig) -> None:
        self.architecture, self.zoo, self.data, self.config = architecture, zoo, data, config
        self.by_name = {**zoo.sources, **zoo.holdouts, **zoo.others, "star": zoo.star}

    @property
    def names(self) -> list[str]:
        """The models that predict by themselves, averages of weights among them."""
        return [*self.by_name, "naive mean", "aligned mean"]

    @cached_property
    def hashes(self) -> dict[str, str]:
        """A hash of each model's weights."""
        return {name: hash_tensors(state) for name, state in self.by_name.items()}

    @cached_property
    def to_star(self) -> dict[str, dict[str, Tensor]]:
        """All models but the star, aligned to it."""
        known = self.zoo.permutations
        found = self._bring([name for name in self._others if name not in known], "star")
        return found | {name: permutation.apply(self.by_name[name]) for name, permutation in known.items()}

    @property
    def aligned(self) -> dict[str, dict[str, Tensor]]:
        """The sources, aligned to the star."""
        return {name: self.to_star[name] for name in self.zoo.sources}

    def end(self, line: Line) -> StateDict:
        """The model at the end of a path, aligned to the one at its start unless the path is raw."""
        if line.kind == "source-source-unaligned":
            return self.by_name[line.b]
        return self._bring([line.b], line.a)[line.b] if line.kind == "source-source" else self.to_star[line.b]

    def state(self, name: str) -> StateDict:
        """The weights of one of `names`."""
        match name:
            case "naive mean":
                return average(list(self.zoo.sources.values()))
            case "aligned mean":
                return average(list(self.aligned.values()))
            case _:
                return self.by_name[name]

    def identity(self, name: str) -> Any:
        """What decides the weights of one of `names`."""
        means = [self.hashes[source] for source in self.zoo.sources]
        match name:
            case "naive mean":
                return {"mean": means}
            case "aligned mean":
                return {"mean": means, "alignment": self.star_alignment(self.zoo.sources)}
            case _:
                return self.hashes[name]

    def domain_identity(self, t: Uniform, samples: int) -> dict[str, Any]:
        """What decides some points of the star domain, but for the seed that draws them."""
        ends = self.identity("aligned mean")
        return {"t": [t.low, t.high], "samples": samples, "star": self.hashes["star"], **ends}

    def star_alignment(self, names: Iterable[str]) -> dict[str, Any]:
        """What decides how some models are aligned to the star."""
        return self.alignment(*(Line("star-source", "star", name) for name in names))

    def alignment(self, *lines: Line) -> dict[str, Any]:
        """What decides how the ends of some lines are aligned."""
        known = self.zoo.permutations
        return {
            "config": self.config.model_dump(mode="json"),
            "fixed": [self.hashes[line.a] for line in lines],
            "known": [
                hash_tensors(known[line.b].to_tensors()) for line in lines if line.a == "star" and line.b in known
            ],
        }

    @property
    def _others(self) -> list[str]:
        return [name for name in self.by_name if name != "star"]

    @cached_property
    def _probe(self) -> Probe:
        some = self.data.train.labeled_images(limit=self.config.images, seed=self.config.seed)
        return Probe(self.architecture.build(), *some)

    @cached_property
    def _aligner(self) -> Aligner:
        return Aligner(self.architecture.spec, self.config, self._probe if self.config.needs_images else None)

    def _bring(self, names: Sequence[str], fixed: str) -> dict[str, dict[str, Tensor]]:
        """Some models, aligned to another one where that lowers the loss half-way."""
        if not names:
            return {}
        seen = map(self._aligner.features.extract, map(self.by_name.__getitem__, (fixed, *names)))
        matched, identity = self._aligner.match(next(seen), seen), Permutation.identity(self.architecture.spec)
        aligned = {}
        for name, found in zip(names, matched, strict=True):
            ends = self.by_name[fixed], self.by_name[name]
            permutation, _, _ = take_better(self._probe, *ends, identity, found.permutation)
            aligned[name] = permutation.apply(self.by_name[name])
        return aligned
