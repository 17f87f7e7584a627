"""Alignment of many permutees to one fixed model, and the aligned average from which a star starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from starzoo.align.scaling import SCALINGS
from starzoo.align.weight_matching import WeightMatcher
from starzoo.config import AlignConfig
from starzoo.symmetry.permutation import Permutation
from starzoo.symmetry.spec import PermutationSpec

__all__ = ["AlignedSource", "align", "aligned_average", "average", "distance"]

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class AlignedSource:
    """A permutee, permuted to lie close to the fixed model.

    Attributes:
        state: The permuted state dict, parameters and buffers: the same function as before.
        permutation: What was applied.
        distance_before: ‖A − B‖ over the tensors that can be permuted.
        distance_after: ‖A − πB‖ over the same tensors.
        sweeps: Passes over the groups that the ascent took.
    """

    state: dict[str, Tensor]
    permutation: Permutation
    distance_before: float
    distance_after: float
    sweeps: float


def align(
    spec: PermutationSpec,
    fixed: StateDict,
    permutees: Sequence[StateDict],
    config: AlignConfig = AlignConfig(),
    *,
    initial: Sequence[Permutation] | None = None,
) -> list[AlignedSource]:
    """Permute every permutee towards the fixed model.

    Args:
        spec: The symmetries that all models share.
        fixed: State dict of the model that stays: the star, or one of the models.
        permutees: State dicts of the models that are permuted.
        config: The method and its limits.
        initial: Where the ascent starts, one permutation per permutee: the result of an earlier alignment makes a new
            one cheap. The identity when not given.

    Returns:
        One aligned source per permutee, in their order.
    """
    identity = Permutation.identity(spec)
    scale = SCALINGS[config.method]
    matcher = WeightMatcher(spec, scale(fixed), max_sweeps=config.max_sweeps)
    aligned = []
    for position, permutee in enumerate(permutees):
        rng = np.random.default_rng([config.seed, position])
        starts = [initial[position] if initial else identity]
        starts += [Permutation.random(spec, rng) for _ in range(config.restarts - 1)]
        matchings = [matcher.match(scale(permutee), start, rng) for start in starts]
        best = max(matchings, key=lambda matching: matching.objective[-1])
        state = best.permutation.apply(permutee)
        aligned.append(
            AlignedSource(
                state=state,
                permutation=best.permutation,
                distance_before=distance(fixed, permutee, matcher.moving),
                distance_after=distance(fixed, state, matcher.moving),
                sweeps=sum(matching.sweeps for matching in matchings),
            )
        )
    return aligned


def aligned_average(
    spec: PermutationSpec, states: Sequence[StateDict], config: AlignConfig = AlignConfig(), *, rounds: int = 10
) -> tuple[dict[str, Tensor], list[Permutation]]:
    """Average models modulo permutation (Git Re-Basin's MergeMany): align all to their mean until none moves.

    Args:
        spec: The symmetries that all models share.
        states: State dicts of the models, at least one; the first one lends the frame in which they are averaged.
        config: The method of alignment.
        rounds: Bound on the rounds of averaging and aligning.

    Returns:
        The mean of the aligned state dicts, and the permutation that was applied to each.
    """
    aligned = align(spec, states[0], states, config)
    for _ in range(rounds):
        before = [source.permutation for source in aligned]
        aligned = align(spec, average([source.state for source in aligned]), states, config, initial=before)
        if not any(source.permutation.moved(old) for source, old in zip(aligned, before, strict=True)):
            break
    return average([source.state for source in aligned]), [source.permutation for source in aligned]


def average(states: Sequence[StateDict]) -> dict[str, Tensor]:
    """The mean of state dicts; integer tensors (counters) are taken from the first.

    Args:
        states: State dicts with equal names and shapes, at least one.

    Returns:
        A new state dict.
    """
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in states[0].items()
    }


def distance(a: StateDict, b: StateDict, names: Sequence[str]) -> float:
    """The Euclidean distance of two state dicts over the named tensors.

    Args:
        a: A state dict.
        b: Another one with equal shapes.
        names: The tensors that count.

    Returns:
        ‖a − b‖.
    """
    return math.sqrt(sum(float((a[name].double() - b[name].double()).square().sum()) for name in names))
