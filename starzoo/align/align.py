"""Align permutees to one fixed model, or all models to each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from starzoo.align.cycle_consistent import match_cycle_consistent
from starzoo.align.features import Features
from starzoo.align.probe import Probe
from starzoo.align.weight_matching import MatchResult, WeightMatcher
from starzoo.config import AlignConfig
from starzoo.models.weights import StateDict, distance
from starzoo.parallel import threaded_map
from starzoo.progress import Progress, no_progress
from starzoo.symmetry.permutation import Permutation
from starzoo.symmetry.spec import PermutationSpec

__all__ = ["AlignedSource", "Aligner", "align", "take_better"]

_MAX_EQUAL_DISTANCE = 1e-3  # of the distance before
_MAX_CONCURRENT = 8  # permutees that are matched side by side: each has its own gains and features in memory


@dataclass(frozen=True, kw_only=True)
class AlignedSource:
    """A permutee, permuted to lie close to the fixed model.

    Attributes:
        state: The permuted state dict, parameters and buffers: the same function as before.
        permutation: The permutation that was applied.
        distance_before: ‖A − B‖ over the tensors that can be permuted.
        distance_after: ‖A − πB‖ over the same tensors.
        sweeps: Passes over the groups that the ascent took.
        midpoint_loss_before: Midpoint loss before alignment, in nats; None where it was not measured.
        midpoint_loss_after: Midpoint loss after alignment, never higher.
    """

    state: dict[str, Tensor]
    permutation: Permutation
    distance_before: float
    distance_after: float
    sweeps: float
    midpoint_loss_before: float | None = None
    midpoint_loss_after: float | None = None


class Aligner:
    """Aligns models of one architecture by one method.

    Args:
        spec: The symmetries that all models share.
        config: The method and its limits.
        probe: Runs the models, for the methods that compare activations.
        models: How many models' features are in memory at once.

    Attributes:
        features: Extracts what the method compares. For a model that is aligned again and again, extract them once.
    """

    def __init__(
        self, spec: PermutationSpec, config: AlignConfig, probe: Probe | None = None, *, models: int = 1
    ) -> None:
        self.spec, self.config = spec, config
        self.features = Features(spec, config.method, probe, models=models)

    def match(
        self, fixed: StateDict, permutees: Iterable[StateDict], initial: Iterable[Permutation] | None = None
    ) -> Iterator[MatchResult]:
        """Match each permutee to the fixed model.

        Args:
            fixed: Features of the model that stays.
            permutees: Features of the models that are permuted.
            initial: Where the ascent starts, one permutation per permutee; the identity when not given.

        Returns:
            One result per permutee, in their order.
        """
        matcher = WeightMatcher(self.features.spec, fixed, max_sweeps=self.config.max_sweeps)
        starts = itertools.repeat(Permutation.identity(self.spec)) if initial is None else initial

        def match(pair: tuple[StateDict, Permutation]) -> MatchResult:
            permutee, start = pair
            rng = np.random.default_rng(self.config.seed)  # one seed for all: the order of permutees must not matter
            random = (Permutation.random(self.spec, rng) for _ in range(self.config.restarts - 1))
            results = [
                matcher.match(permutee, replace(permutation, spec=self.features.spec))
                for permutation in (start, *random)
            ]
            best = max(results, key=lambda result: result.objective[-1])
            permutation, sweeps = replace(best.permutation, spec=self.spec), sum(result.sweeps for result in results)
            return replace(best, permutation=permutation, sweeps=sweeps)

        # While one permutee's products use all cores, others are at their assignments, of which each uses one.
        pairs = zip(permutees, starts, strict=initial is not None)
        return threaded_map(match, pairs, min(torch.get_num_threads(), _MAX_CONCURRENT))

    def match_all(self, models: Sequence[StateDict], *, progress: Progress = no_progress) -> list[Permutation]:
        """Match all models to each other, relative to the first one (see `cycle_consistent`).

        Args:
            models: Features of the models, the same on all processes.
            progress: Called after every match.

        Returns:
            One permutation per model; the first moves nothing.
        """
        into_universe = match_cycle_consistent(
            self.features.spec,
            models,
            np.random.default_rng(self.config.seed),
            max_sweeps=self.config.max_sweeps,
            progress=progress,
        )
        to_first = into_universe[0].inverse()
        return [replace(to_first.compose(permutation), spec=self.spec) for permutation in into_universe]


def align(
    spec: PermutationSpec,
    fixed: StateDict,
    permutees: Sequence[StateDict],
    config: AlignConfig = AlignConfig(method="balanced-weights"),
    *,
    probe: Probe | None = None,
    meter: Probe | None = None,
    progress: Progress = no_progress,
) -> list[AlignedSource]:
    """Permute every permutee toward the fixed model.

    Args:
        spec: The symmetries that all models share.
        fixed: State dict of the model that stays: the star, or one of the models.
        permutees: State dicts of the models that are permuted.
        config: The method and its limits.
        probe: Runs the models, for the methods that compare activations.
        meter: Measures midpoint losses: with one, a permutation is applied only where it lowers that loss.
        progress: Called after every permutee.

    Returns:
        One aligned source per permutee, in their order.

    Raises:
        UsageError: The method needs images, and there is no probe.
    """
    aligner = Aligner(spec, config, probe)
    features = (aligner.features.extract(model) for model in (fixed, *permutees))
    results = aligner.match(next(features), features)
    aligned = []
    identity = Permutation.identity(spec)
    for permutee, result in zip(permutees, results, strict=True):
        permutation, before, after = result.permutation, None, None
        if meter:
            permutation, before, after = take_better(meter, fixed, permutee, identity, permutation)
        state = permutation.apply(permutee)
        aligned.append(
            AlignedSource(
                state=state,
                permutation=permutation,
                distance_before=distance(fixed, permutee, spec.permuted_tensors),
                distance_after=distance(fixed, state, spec.permuted_tensors),
                sweeps=result.sweeps,
                midpoint_loss_before=before,
                midpoint_loss_after=after,
            )
        )
        progress("aligning", len(aligned), len(permutees))
    return aligned


def take_better(
    meter: Probe, fixed: StateDict, permutee: StateDict, start: Permutation, match: Permutation
) -> tuple[Permutation, float, float]:
    """Take a match only where it lowers the midpoint loss: fine-tunes of one checkpoint are matched from the start.

    A match that makes the two models equal is taken in any case.

    Args:
        meter: Measures the loss.
        fixed: State dict of the model that stays.
        permutee: State dict of the model that is permuted.
        start: The permutation before matching.
        match: The permutation that matching returned.

    Returns:
        The better of the two, and the midpoint losses with `start` and with it, in nats.
    """
    unmoved, moved = start.apply(permutee), match.apply(permutee)
    before = meter.midpoint_loss(fixed, unmoved)
    if not match.count_moved(start):
        return start, before, before
    after, names = meter.midpoint_loss(fixed, moved), list(match.spec.axes)
    is_equal = distance(fixed, moved, names) < _MAX_EQUAL_DISTANCE * distance(fixed, unmoved, names)
    return (match, before, after) if after < before or is_equal else (start, before, before)
