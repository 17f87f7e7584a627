"""Align permutees to one fixed model, or all models to each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from starzoo.align.cycle_consistent import match_all
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

_EQUAL = 1e-3  # of the distance before
_AHEAD = 8  # permutees that are matched side by side, at most: each has gains and evidence of its own in memory


@dataclass(frozen=True, kw_only=True)
class AlignedSource:
    """A permutee, permuted to lie close to the fixed model.

    Attributes:
        state: The permuted state dict, parameters and buffers: the same function as before.
        permutation: What was applied.
        distance_before: ‖A − B‖ over the tensors that can be permuted.
        distance_after: ‖A − πB‖ over the same tensors.
        sweeps: Passes over the groups that the ascent took.
        midpoint_loss_before: Loss half-way to the fixed model, in nats; None where it was not measured.
        midpoint_loss_after: The same after alignment, never higher.
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
        probe: Runs the models, for the methods that look at what they compute.
        models: How many models' evidence is kept at once.

    Attributes:
        evidence: What the method compares. Of a model that is aligned again and again it is enough to ask once.
    """

    def __init__(
        self, spec: PermutationSpec, config: AlignConfig, probe: Probe | None = None, *, models: int = 1
    ) -> None:
        self.spec, self.config = spec, config
        self.evidence = Features(spec, config.method, probe, models=models)

    def match(
        self, fixed: StateDict, permutees: Iterable[StateDict], initial: Iterable[Permutation] | None = None
    ) -> Iterator[MatchResult]:
        """Match each permutee to the fixed model by itself.

        Args:
            fixed: Evidence about the model that stays.
            permutees: Evidence about the models that are permuted.
            initial: Where the ascent starts, one permutation per permutee; the identity when not given.

        Returns:
            One matching per permutee, in their order.
        """
        matcher = WeightMatcher(self.evidence.spec, fixed, max_sweeps=self.config.max_sweeps)
        starts = itertools.repeat(Permutation.identity(self.spec)) if initial is None else initial

        def match(pair: tuple[StateDict, Permutation]) -> MatchResult:
            permutee, start = pair
            rng = np.random.default_rng(self.config.seed)  # the same for all: it must not matter which come together
            tried = [start, *(Permutation.random(self.spec, rng) for _ in range(self.config.restarts - 1))]
            found = [matcher.match(permutee, replace(each, spec=self.evidence.spec)) for each in tried]
            best = max(found, key=lambda matching: matching.objective[-1])
            permutation, sweeps = replace(best.permutation, spec=self.spec), sum(each.sweeps for each in found)
            return replace(best, permutation=permutation, sweeps=sweeps)

        # While one permutee's products use all cores, others are at their assignments, of which each uses one.
        pairs = zip(permutees, starts, strict=initial is not None)
        return threaded_map(match, pairs, min(torch.get_num_threads(), _AHEAD))

    def match_all(self, models: Sequence[StateDict]) -> list[Permutation]:
        """Match all models to each other (`cycle_consistent`), seen from where the first one stands.

        Args:
            models: Evidence about the models.

        Returns:
            One permutation per model; the first moves nothing.
        """
        rng = np.random.default_rng(self.config.seed)
        found = match_all(self.evidence.spec, models, rng, max_sweeps=self.config.max_sweeps)
        back, *others = found
        return [replace(back.inverse().compose(each), spec=self.spec) for each in (back, *others)]


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
        probe: Runs the models, for the methods that look at what they compute.
        meter: Measures the loss half-way: with one, a permutation is taken only where it lowers that.
        progress: Told after every permutee.

    Returns:
        One aligned source per permutee, in their order.

    Raises:
        UsageError: The method needs images, and there is no probe.
    """
    aligner = Aligner(spec, config, probe)
    seen = (aligner.evidence.of(model) for model in (fixed, *permutees))
    matched = aligner.match(next(seen), seen)
    moving = [name for name in spec.axes if spec.is_permuted(name)]
    aligned = []
    identity = Permutation.identity(spec)
    for permutee, found in zip(permutees, matched, strict=True):
        permutation, before, after = found.permutation, None, None
        if meter:
            permutation, before, after = take_better(meter, fixed, permutee, identity, permutation)
        state = permutation.apply(permutee)
        aligned.append(
            AlignedSource(
                state=state,
                permutation=permutation,
                distance_before=distance(fixed, permutee, moving),
                distance_after=distance(fixed, state, moving),
                sweeps=found.sweeps,
                midpoint_loss_before=before,
                midpoint_loss_after=after,
            )
        )
        progress("aligning", len(aligned), len(permutees))
    return aligned


def take_better(
    meter: Probe, fixed: StateDict, permutee: StateDict, start: Permutation, found: Permutation
) -> tuple[Permutation, float, float]:
    """Take a permutation only where it lowers the loss half-way: fine-tunes of one checkpoint are matched already.

    One that makes the two models equal is taken in any case.

    Args:
        meter: Measures the loss.
        fixed: State dict of the model that stays.
        permutee: State dict of the model that is permuted.
        start: The permutation that it has.
        found: The permutation that matching has found.

    Returns:
        The better of the two, and the losses half-way with `start` and with it, in nats.
    """
    unmoved, moved = start.apply(permutee), found.apply(permutee)
    before = meter.midpoint_loss(fixed, unmoved)
    if not found.moved(start):
        return start, before, before
    after, names = meter.midpoint_loss(fixed, moved), list(found.spec.axes)
    equal = distance(fixed, moved, names) < _EQUAL * distance(fixed, unmoved, names)
    return (found, before, after) if after < before or equal else (start, before, before)
