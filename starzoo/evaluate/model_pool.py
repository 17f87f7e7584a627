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

__all__ = ["EvaluatedModels", "ModelPool", "PathSpec"]


@dataclass(frozen=True, kw_only=True)
class EvaluatedModels:
    """The models of an evaluation.

    Attributes:
        architecture: Their common architecture.
        star: The star's state dict.
        sources: The models that the star was fitted on, by name.
        holdouts: The models that it never saw, by name.
        other_stars: Other stars of the same task, by name.
        permutations: Permutations to the star, by name, where they are known. The evaluation finds those of the others.
    """

    architecture: Architecture
    star: StateDict
    sources: Mapping[str, StateDict] = field(default_factory=dict)
    holdouts: Mapping[str, StateDict] = field(default_factory=dict)
    other_stars: Mapping[str, StateDict] = field(default_factory=dict)
    permutations: Mapping[str, Permutation] = field(default_factory=dict)


@dataclass(frozen=True)
class PathSpec:
    """A path to measure: its kind, and the names of the models at its ends."""

    kind: PathKind
    a: str
    b: str


class ModelPool:
    """The models of an evaluation and their means, aligned when they are first needed."""

    def __init__(self, models: EvaluatedModels, data: ImageTask, config: AlignConfig) -> None:
        self.models, self.data, self.config = models, data, config
        self.by_name = {**models.sources, **models.holdouts, **models.other_stars, "star": models.star}
        self.baselines: dict[str, StateDict] = {}

    @property
    def names(self) -> list[str]:
        """The models of one forward pass: all models, and the means of weights."""
        return [*self.by_name, "naive mean", "aligned mean"]

    def add_baseline(self, name: str, state: StateDict) -> None:
        """Add the weights of a baseline, from which paths are measured."""
        self.baselines[name] = state
        self.hashes[name] = hash_tensors(state)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """A hash of each model's weights."""
        return {name: hash_tensors(state) for name, state in self.by_name.items()}

    @cached_property
    def to_star(self) -> dict[str, dict[str, Tensor]]:
        """All models but the star, aligned to it."""
        known = {name: perm.apply(self.by_name[name]) for name, perm in self.models.permutations.items()}
        return self._aligned_to("star", [name for name in self.by_name if name not in {"star", *known}]) | known

    @property
    def aligned_sources(self) -> dict[str, dict[str, Tensor]]:
        """The sources, aligned to the star."""
        return {name: self.to_star[name] for name in self.models.sources}

    def path_end(self, path: PathSpec) -> StateDict:
        """Return the model at t = 1, aligned to that at t = 0 unless the path is an unaligned one."""
        match path.kind:
            case "source-source-unaligned":
                return self.by_name[path.b]
            case "source-source" | "baseline-heldout":
                return self._aligned_to(path.a, [path.b])[path.b]
            case _:
                return self.to_star[path.b]

    def state(self, name: str) -> StateDict:
        """Return the weights of one of `names`."""
        match name:
            case "naive mean":
                return average(list(self.models.sources.values()))
            case "aligned mean":
                return average(list(self.aligned_sources.values()))
            case _:
                return self.by_name[name] if name in self.by_name else self.baselines[name]

    def cache_key(self, name: str) -> Any:
        """Return what decides the weights of one of `names`."""
        means = [self.hashes[source] for source in self.models.sources]
        match name:
            case "naive mean":
                return {"mean": means}
            case "aligned mean":
                return {"mean": means, "alignment": self.star_alignment_key(self.models.sources)}
            case _:
                return self.hashes[name]

    def domain_key(self, t: Uniform, samples: int) -> dict[str, Any]:
        """Return what decides points of the star domain, but for the seed that draws them."""
        ends = self.cache_key("aligned mean")
        return {"t": [t.low, t.high], "samples": samples, "star": self.hashes["star"], **ends}

    def star_alignment_key(self, names: Iterable[str]) -> dict[str, Any]:
        """Return what decides how models are aligned to the star."""
        return self.alignment_key(*(PathSpec("star-source", "star", name) for name in names))

    def alignment_key(self, *paths: PathSpec) -> dict[str, Any]:
        """Return what decides how the ends of paths are aligned."""
        known = self.models.permutations
        return {
            "config": self.config.model_dump(mode="json"),
            "fixed": [self.cache_key(path.a) for path in paths],
            "known": [
                hash_tensors(known[path.b].to_tensors()) for path in paths if path.a == "star" and path.b in known
            ],
        }

    @cached_property
    def _probe(self) -> Probe:
        images = self.data.train.labeled_images(limit=self.config.images, seed=self.config.seed)
        return Probe(self.models.architecture.build(), *images)

    @cached_property
    def _aligner(self) -> Aligner:
        return Aligner(self.models.architecture.spec, self.config, self._probe if self.config.needs_images else None)

    def _aligned_to(self, fixed: str, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """Align models to a fixed one, where that lowers the midpoint loss."""
        if not names:
            return {}
        features = map(self._aligner.features.extract, map(self.state, (fixed, *names)))
        matches = self._aligner.match(next(features), features)
        identity = Permutation.identity(self.models.architecture.spec)
        aligned = {}
        for name, match in zip(names, matches, strict=True):
            ends = self.state(fixed), self.by_name[name]
            permutation, _, _ = take_better(self._probe, *ends, identity, match.permutation)
            aligned[name] = permutation.apply(self.by_name[name])
        return aligned
