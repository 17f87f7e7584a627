"""Cycle-consistent matching: each model gets one permutation, so that all pairs agree by construction.

Matched pair by pair, three models contradict each other: A to B and B to C do not compose to A to C. C2M3 (Crisostomi
et al. 2024) factors every pairwise permutation through a common universe, π_pq = π_p⁻¹ ∘ π_q, and maximizes

    Σ_{p<q} ⟨π_p A_p, π_q A_q⟩ = ½ ‖S‖² − ½ Σ_p ‖A_p‖²,   S = Σ_p π_p A_p.

For one model, with the others held still, that is weight matching to the sum of the others, S − π_p A_p. At the start
one, two, four … models join the sum of those before them. Then quarters of the models take turns: all of a quarter are
matched to the sum at its start, which processes share. Their new permutations are taken one after another, each only if
‖S‖ grows with those before it. So the objective never falls, and the turns end where no model moves. (C2M3 ascends by
Frank–Wolfe instead. Both end where no single move helps.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor

from starzoo.align.weight_matching import WeightMatcher
from starzoo.models.weights import StateDict
from starzoo.parallel import split_across_processes
from starzoo.progress import Progress, no_progress
from starzoo.symmetry.permutation import Permutation
from starzoo.symmetry.spec import PermutationSpec

__all__ = ["match_cycle_consistent"]

_MAX_TURNS = 100  # the models settle after about ten
_QUARTERS = 4  # with halves or wholes, models chase each other: more turns for the same objective


def match_cycle_consistent(
    spec: PermutationSpec,
    states: Sequence[StateDict],
    rng: np.random.Generator,
    *,
    max_sweeps: int = 100,
    progress: Progress = no_progress,
) -> list[Permutation]:
    """Maximize Σ_{p<q} ⟨π_p A_p, π_q A_q⟩ over the tensors that can be permuted. All processes call it together.

    Args:
        spec: The symmetries that the models share.
        states: The tensors by which they are compared, the same on all processes.
        rng: Decides in which order the permutations of a turn are taken.
        max_sweeps: Bound on passes over the groups, for each match.
        progress: Called after every match.

    Returns:
        One permutation per model, into the universe; the same for any number of processes.
    """
    permutations = [Permutation.identity(spec)] * len(states)

    def permuted(model: int) -> dict[str, Tensor]:
        return permutations[model].apply(states[model], only=spec.permuted_tensors)

    def propose(turn: int, models: Sequence[int], total: StateDict, *, included: bool) -> list[Permutation]:
        def match(model: int) -> Permutation:
            others = _subtract(total, permuted(model)) if included else total
            return matcher.with_fixed(others).match(states[model], permutations[model]).permutation

        tell = partial(progress, "aligning the sources to each other", turn=turn)
        return split_across_processes(models, partial(map, match), tell=tell)

    total, joined = permuted(0), 1
    matcher = WeightMatcher(spec, total, max_sweeps=max_sweeps)
    while joined < len(states):
        new = range(joined, min(2 * joined, len(states)))
        permutations[joined : new.stop] = propose(0, new, total, included=False)
        total, joined = reduce(_add, map(permuted, new), total), new.stop
    for turn in range(1, _MAX_TURNS):
        moved = False
        for quarter in np.array_split(rng.permutation(len(states)), _QUARTERS):
            models: list[int] = quarter.tolist()
            for model, proposal in zip(models, propose(turn, models, total, included=True), strict=True):
                current, names = permutations[model], _moved_tensors(permutations[model], proposal)
                before, after = (each.apply(states[model], only=names) for each in (current, proposal))
                change = _subtract(after, before)
                if _dot(change, total) > _dot(change, before):
                    permutations[model], total, moved = proposal, {**total, **_add(total, change)}, True
        if not moved:
            break
    return permutations


def _moved_tensors(one: Permutation, other: Permutation) -> list[str]:
    """Return the names of the tensors that two permutations arrange differently."""
    return [
        name
        for name in one.spec.permuted_tensors
        if any(not np.array_equal(one.index(term), other.index(term)) for term in one.spec.axes[name])
    ]


def _add(a: StateDict, b: StateDict) -> dict[str, Tensor]:
    return {name: a[name] + tensor for name, tensor in b.items()}


def _subtract(a: StateDict, b: StateDict) -> dict[str, Tensor]:
    return {name: a[name] - tensor for name, tensor in b.items()}


def _dot(a: StateDict, b: StateDict) -> float:
    return float(sum(torch.dot(tensor.flatten(), b[name].flatten()).double() for name, tensor in a.items()))
