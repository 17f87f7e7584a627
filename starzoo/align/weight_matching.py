"""Weight matching (Git Re-Basin, Ainsworth et al. 2023, algorithm 1) over any permutation specification.

The distance between a fixed model A and a permutee B is ‖A − πB‖² over the tensors that π moves, so a smaller
distance is a larger inner product ⟨A, πB⟩. With all groups but one held still, the inner product is linear in that
group's permutation: one assignment problem. Coordinate ascent over the groups ends when no group wants to move.

Three things differ from the published code. The permutee is kept as it stands *now*, so an assignment yields the
permutation that is still missing, and a group that is already right costs one product and changes nothing. A group is
solved again only when a tensor that it shares has changed. And a group is solved together with the wreath groups within
it: the best inner assignment for every pair of blocks, then the assignment of the blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starzoo.align.assignment import solve_assignment
from starzoo.align.views import find_views
from starzoo.symmetry.permutation import Permutation
from starzoo.symmetry.spec import PermutationSpec

__all__ = ["Matching", "WeightMatcher"]

StateDict = Mapping[str, Tensor]
Gain = NDArray[np.float64]
Index = NDArray[np.int64]

_ROUNDING = 1e-6  # share of a family's inner product below which a gain is float32 noise, and following it could cycle


@dataclass(frozen=True, kw_only=True)
class Matching:
    """The outcome of one coordinate ascent.

    Attributes:
        permutation: Takes the permutee, as it was given, towards the fixed model.
        sweeps: Groups solved, divided by the number of groups.
        objective: ⟨A, πB⟩ at the start and after every assignment that was taken; it never falls.
    """

    permutation: Permutation
    sweeps: float
    objective: tuple[float, ...]


class WeightMatcher:
    """Matches permutees to one fixed model, whose side of every product is prepared once.

    Args:
        spec: The symmetries of the architecture.
        fixed: State dict of the model that stays.
        max_sweeps: Bound on passes over the groups.
    """

    def __init__(self, spec: PermutationSpec, fixed: StateDict, *, max_sweeps: int = 100) -> None:
        self.spec = spec
        self.max_sweeps = max_sweeps
        self.groups = [name for name, group in spec.groups.items() if group.within is None]
        self.views = {name: find_views(spec, name) for name in spec.groups}
        self.tensors = {
            group: tuple(dict.fromkeys(view.tensor for member in self._family(group) for view in self.views[member]))
            for group in self.groups
        }
        self.neighbours = {group: self._neighbours(group) for group in self.groups}
        self.moving = tuple(name for name in spec.axes if spec.is_permuted(name))
        self.fixed = _floats(fixed, self.moving)
        self.fixed_rows = {
            name: [view.rows(self.fixed[view.tensor]) for view in views] for name, views in self.views.items()
        }

    def match(self, permutee: StateDict, initial: Permutation, rng: np.random.Generator) -> Matching:
        """Find a permutation of the permutee that no change of a single group improves.

        Args:
            permutee: State dict of the model that is permuted.
            initial: Where the ascent starts.
            rng: Decides the order of the groups in every sweep.

        Returns:
            The matching.
        """
        permutation, current = initial, _floats(initial.apply(permutee, only=self.moving), self.moving)
        objective = [self._inner_product(current, self.moving)]
        stale, solved = set(self.groups), 0
        while stale and solved < self.max_sweeps * len(self.groups):
            for group in rng.permutation(sorted(stale)):
                stale.discard(group)
                solved += 1
                step = self._best_step(group, current)
                moved = step.apply(current, only=self.tensors[group])
                before = self._inner_product(current, self.tensors[group])
                gain = self._inner_product(moved, self.tensors[group]) - before
                # The gain is measured, not read off the assignment: a group that meets itself in one tensor is worth
                # a quadratic form, whose linear part can promise what the step does not keep.
                if gain > _ROUNDING * abs(before):
                    permutation = step.compose(permutation)
                    current.update(moved)
                    objective.append(objective[-1] + gain)
                    stale |= self.neighbours[group]
        return Matching(permutation=permutation, sweeps=solved / max(1, len(self.groups)), objective=tuple(objective))

    def _best_step(self, group: str, current: StateDict) -> Permutation:
        """The permutation of one family that is still missing, the other groups standing as they are."""
        blocks = self.spec.groups[group].size
        gain = self._gain(group, current) if self.views[group] else np.zeros((blocks, blocks))
        inner = {}
        for name in self.spec.inner_groups[group]:
            values, inner[name] = _assign_within(self._gain(name, current), blocks)
            gain += values
        chosen = solve_assignment(gain)
        step = {name: indices[np.arange(blocks), chosen] for name, indices in inner.items()}
        identity = Permutation.identity(self.spec)
        return replace(identity, indices={**identity.indices, group: chosen, **step})

    def _gain(self, group: str, current: StateDict) -> Gain:
        """What it is worth to put the permutee's position j at place i: Σ over views of A_i · B_j."""
        products = (
            fixed @ view.rows(current[view.tensor]).T
            for fixed, view in zip(self.fixed_rows[group], self.views[group], strict=True)
        )
        total: Tensor = sum(products, start=torch.zeros(()))
        return total.double().cpu().numpy()

    def _inner_product(self, current: StateDict, tensors: Sequence[str]) -> float:
        return sum(float(torch.dot(self.fixed[name].reshape(-1), current[name].reshape(-1))) for name in tensors)

    def _family(self, group: str) -> tuple[str, ...]:
        return (group, *self.spec.inner_groups[group])

    def _neighbours(self, group: str) -> frozenset[str]:
        # Groups whose assignment may change when this one moves: those that share a tensor with it. The group itself is
        # one of them only where it meets itself, on two axes of one tensor.
        mine = {(view.tensor, view.axis) for member in self._family(group) for view in self.views[member]}
        meets_itself = len(mine) > len({tensor for tensor, _ in mine})
        shared = {other for other in self.groups if not set(self.tensors[group]).isdisjoint(self.tensors[other])}
        return frozenset(shared if meets_itself else shared - {group})


def _assign_within(gain: Gain, blocks: int) -> tuple[Gain, Index]:
    """For every pair of blocks the best inner assignment: its value, shape (h, h), and itself, shape (h, h, n)."""
    n = len(gain) // blocks
    pairs = gain.reshape(blocks, n, blocks, n).swapaxes(1, 2)
    indices = np.stack([[solve_assignment(pairs[i, j]) for j in range(blocks)] for i in range(blocks)])
    values = np.take_along_axis(pairs, indices[..., None], axis=3).sum(axis=(2, 3))
    return values, indices


def _floats(state: StateDict, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: state[name].detach().float().contiguous() for name in names}
