"""Cycle-consistent matching: every model is permuted into one universe, and all pairs agree by construction.

Matched pair by pair, three models contradict each other: A to B and B to C do not compose to A to C. C2M3 (Crisostomi
et al. 2024) factors every pairwise permutation through a universe, π_pq = π_p⁻¹ ∘ π_q, and maximises the sum over all
pairs of what their agreement is worth. For one model, the others standing as they are, that is matching it to all of
them at once. The models take turns until none of them moves; neither a group's assignment nor a model's turn can lower
the sum. (C2M3 ascends by Frank–Wolfe instead. Both end where no single move helps.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from starzoo.align.weight_matching import WeightMatcher
from starzoo.symmetry.permutation import Permutation
from starzoo.symmetry.spec import PermutationSpec

__all__ = ["match_all"]

StateDict = Mapping[str, Tensor]

_MAX_TURNS = 100  # of each model; they settle after about ten


def match_all(
    spec: PermutationSpec,
    states: Sequence[StateDict],
    rng: np.random.Generator,
    *,
    max_sweeps: int = 100,
) -> list[Permutation]:
    """Maximise Σ_{p<q} ⟨π_p A_p, π_q A_q⟩ over the tensors that can be permuted.

    Args:
        spec: The symmetries that the models share.
        states: The tensors by which they are compared.
        rng: Decides the order in which the models take turns.
        max_sweeps: Bound on passes over the groups, for each turn of a model.

    Returns:
        One permutation per model, into the universe.
    """
    moving = [name for name in spec.axes if spec.is_permuted(name)]
    permutations = [Permutation.identity(spec)] * len(states)

    def place(number: int) -> dict[str, Tensor]:
        return permutations[number].apply(states[number], only=moving)

    def take_turn(number: int, others: StateDict) -> tuple[bool, dict[str, Tensor]]:
        """Match one model to the sum of the others: whether it moved, and the sum with it."""
        before = permutations[number]
        permutations[number] = matcher.towards(others).match(states[number], before).permutation
        own = place(number)
        return permutations[number].moved(before) > 0, {name: others[name] + own[name] for name in moving}

    total = place(0)
    matcher = WeightMatcher(spec, total, max_sweeps=max_sweeps)
    for number in range(1, len(states)):  # the models come one after the other
        _, total = take_turn(number, total)
    for _ in range(_MAX_TURNS if len(states) > 1 else 0):
        settled = True
        for number in rng.permutation(len(states)):
            own = place(number)
            moved, total = take_turn(number, {name: total[name] - own[name] for name in moving})
            settled = settled and not moved
        if settled:
            break
    return permutations
