"""Cycle-consistent matching: each model gets one permutation, so that all pairs agree by construction.

Matched pair by pair, three models contradict each other: A to B and B to C do not compose to A to C. C2M3 (Crisostomi
et al. 2024) factors every pairwise permutation through a common universe, π_pq = π_p⁻¹ ∘ π_q, and maximizes the sum of
⟨π_p A_p, π_q A_q⟩ over all pairs. For one model, with the others held still, that is weight matching to the sum of the
others. The models take turns until none moves, and no turn lowers the objective. (C2M3 ascends by Frank–Wolfe instead.
Both end where no single move helps.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from starzoo.align.weight_matching import WeightMatcher
from starzoo.models.weights import StateDict
from starzoo.symmetry.permutation import Permutation
from starzoo.symmetry.spec import PermutationSpec

__all__ = ["match_cycle_consistent"]

_MAX_ROUNDS = 100  # the models settle after about ten


def match_cycle_consistent(
    spec: PermutationSpec, states: Sequence[StateDict], rng: np.random.Generator, *, max_sweeps: int = 100
) -> list[Permutation]:
    """Maximize Σ_{p<q} ⟨π_p A_p, π_q A_q⟩ over the tensors that can be permuted.

    Args:
        spec: The symmetries that the models share.
        states: The tensors by which they are compared.
        rng: Decides the order in which the models take turns.
        max_sweeps: Bound on passes over the groups, for each turn of a model.

    Returns:
        One permutation per model, into the universe.
    """
    permutations = [Permutation.identity(spec)] * len(states)

    def permuted(model: int) -> dict[str, Tensor]:
        return permutations[model].apply(states[model], only=spec.permuted_tensors)

    def rematch(model: int, others: StateDict) -> tuple[bool, dict[str, Tensor]]:
        """Match one model to the sum of the others; return whether it moved, and the sum with it."""
        previous = permutations[model]
        permutations[model] = matcher.with_fixed(others).match(states[model], previous).permutation
        own = permuted(model)
        return permutations[model].count_moved(previous) > 0, {name: others[name] + own[name] for name in own}

    total = permuted(0)
    matcher = WeightMatcher(spec, total, max_sweeps=max_sweeps)
    for model in range(1, len(states)):  # the models come one after the other
        _, total = rematch(model, total)
    for _ in range(_MAX_ROUNDS if len(states) > 1 else 0):
        any_moved = False
        for model in rng.permutation(len(states)):
            own = permuted(model)
            moved, total = rematch(model, {name: total[name] - own[name] for name in own})
            any_moved = any_moved or moved
        if not any_moved:
            break
    return permutations
