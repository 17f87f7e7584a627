"""Weight matching (Git Re-Basin, Ainsworth et al. 2023, algorithm 1) over any permutation specification.

The distance between a fixed model A and a permutee B is ‖A − πB‖² over the tensors that π moves, so a smaller distance
is a larger inner product ⟨A, πB⟩. With all groups but one held still, the inner product is linear in that group's
permutation: one assignment problem, whose gain matrix G[i, j] is the value of putting B's position j at position i.
Coordinate ascent over the groups ends when no group moves.

Four things differ from the published code. A group is solved again only when a tensor that it shares has changed. Its
gain matrix is kept, and updated only by the features that have moved since. Sweeps go through the network forward and
backward instead of in random order: they are fewer, and end no farther away. And a group is solved together with the
wreath groups within it: the best inner assignment for every pair of blocks, then the assignment of the blocks
(`starzoo.align.group_views.plan_steps` says which of them at once).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starzoo.align.assignment import solve_assignment
from starzoo.align.group_views import GroupOccurrence, JointStep, plan_steps
from starzoo.models.weights import StateDict
from starzoo.symmetry.permutation import Index, Permutation, gather
from starzoo.symmetry.spec import PermutationSpec

__all__ = ["MatchResult", "WeightMatcher"]

Gain = NDArray[np.floating]

_ROUNDING = 1e-6  # share of a step's inner product below which a gain is float32 noise, and following it could cycle


@dataclass(frozen=True, kw_only=True)
class MatchResult:
    """The outcome of one coordinate ascent.

    Attributes:
        permutation: Takes the permutee, as it was given, toward the fixed model.
        sweeps: Groups solved, divided by the number of groups.
        objective: ⟨A, πB⟩ at the start and after every outer group that moved; it never falls.
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

    Attributes:
        groups: The outer groups, in the order of the network.
        steps: For each of them its joint steps, over the tensors of the fixed model that are not zero.
        tensors: For each of them the tensors of its steps.
    """

    def __init__(self, spec: PermutationSpec, fixed: StateDict, *, max_sweeps: int = 100) -> None:
        self.spec = spec
        self.max_sweeps = max_sweeps
        self._all_steps = plan_steps(spec)
        self.groups = list(self._all_steps)
        self._set_fixed(fixed)

    def with_fixed(self, fixed: StateDict) -> WeightMatcher:
        """A matcher to another fixed model, which shares the plan of the steps.

        Args:
            fixed: State dict of the model that stays.

        Returns:
            The matcher.
        """
        other = copy(self)
        other._set_fixed(fixed)
        return other

    def _set_fixed(self, fixed: StateDict) -> None:
        self.fixed = _floats(fixed, self.spec)
        nonzero = {name for name, tensor in self.fixed.items() if tensor.any()}
        self.steps = {
            group: tuple(step.restricted_to(nonzero) for step in steps) for group, steps in self._all_steps.items()
        }
        self.tensors = {
            group: tuple(dict.fromkeys(name for step in steps for name in step.tensors))
            for group, steps in self.steps.items()
        }
        self._neighbors = self._find_neighbors()

    def match(self, permutee: StateDict, initial: Permutation) -> MatchResult:
        """Find a permutation of the permutee that no step improves.

        Args:
            permutee: State dict of the model that is permuted.
            initial: Where the ascent starts.

        Returns:
            The result.
        """
        ascent = _CoordinateAscent(self, permutee, initial)
        objective = [ascent.inner_product(self.spec.permuted_tensors, initial)]
        order, stale, solved = list(self.groups), set(self.groups), 0
        while stale and solved < self.max_sweeps * len(self.groups):
            for group in order:
                if group not in stale:
                    continue
                stale.discard(group)
                solved += 1
                if gain := ascent.improve(group):
                    objective.append(objective[-1] + gain)
                    stale |= self._neighbors[group]
            order.reverse()
        return MatchResult(
            permutation=ascent.permutation, sweeps=solved / max(1, len(self.groups)), objective=tuple(objective)
        )

    def _find_neighbors(self) -> dict[str, frozenset[str]]:
        """Groups whose assignment may change when one moves: those that share a tensor with it."""
        groups_of: dict[str, set[str]] = {}
        for group, tensors in self.tensors.items():
            for tensor in tensors:
                groups_of.setdefault(tensor, set()).add(group)
        neighbors = {}
        for group, tensors in self.tensors.items():
            near = {other for tensor in tensors for other in groups_of[tensor]}
            if len(self.steps[group]) == 1 and not self.steps[group][0].is_quadratic:
                near.discard(group)  # one linear step reaches its optimum
            neighbors[group] = frozenset(near)
        return neighbors


class _CoordinateAscent:
    """The current permutation of one permutee, and the gain matrix G of every group.

    Positions are those of the permutee as it was given, so the moves of a step's own groups change nothing of their G.

    Attributes:
        permutation: Takes the permutee, as it was given, to where it is now.
    """

    def __init__(self, matcher: WeightMatcher, permutee: StateDict, initial: Permutation) -> None:
        self.permutation = initial
        self._matcher, self._spec = matcher, matcher.spec
        self._identity = Permutation.identity(self._spec)
        self._permutee = _floats(permutee, self._spec)
        self._device = next((tensor.device for tensor in self._permutee.values()), None)
        self._gains: dict[tuple[JointStep, str], Tensor] = {}
        self._included: dict[GroupOccurrence, list[Index]] = {}  # the indices of the axes that G accounts for

    def improve(self, group: str) -> float:
        """Solve one outer group with its inner groups, all others held still, and move them where that is a gain.

        Args:
            group: The outer group.

        Returns:
            The growth of the inner product; 0 if nothing moves.
        """
        return sum(map(self._move, self._matcher.steps[group]))

    def _move(self, step: JointStep) -> float:
        current = self.permutation
        moved = replace(current, indices={**current.indices, **self.solve(step)})
        # The inner product of groups that occur twice in one tensor is a quadratic form. Its linear part can promise
        # what the step does not keep, so it is computed exactly instead of read from G.
        value = self._exact_value if step.is_quadratic else self._value_from_gain
        before, after = value(step, current), value(step, moved)
        if after - before <= _ROUNDING * abs(before):
            return 0.0
        self.permutation = moved
        return after - before

    def solve(self, step: JointStep) -> dict[str, Index]:
        """The best permutation of the groups of one step, all others held still.

        Args:
            step: The groups.

        Returns:
            The index vectors of the outer group and all its inner groups: those outside of the step are carried along
            with their blocks.
        """
        blocks = self._spec.groups[step.outer].size
        unpermuted = self._unpermuted(step)
        gain, assignments = self._gain(step, step.outer, unpermuted), {}
        for name in step.inner:
            values, assignments[name] = _assign_within(self._gain(step, name, unpermuted), blocks)
            gain = gain + values
        outer = solve_assignment(gain)
        carried = {name: unpermuted.indices[name][outer] for name in self._spec.inner_groups[step.outer]}
        solved = {name: indices[np.arange(blocks), outer] for name, indices in assignments.items()}
        return {step.outer: outer, **carried, **solved}

    def inner_product(self, tensors: Iterable[str], permutation: Permutation) -> float:
        """⟨A, πB⟩.

        Args:
            tensors: The names over which it is taken.
            permutation: π.

        Returns:
            The sum over all of them.
        """
        total = 0.0
        for name in tensors:
            moved = _gather(self._permutee[name], [permutation.index(term) for term in self._spec.axes[name]])
            total += float(torch.dot(self._matcher.fixed[name].reshape(-1), moved.reshape(-1)))
        return total

    def _exact_value(self, step: JointStep, permutation: Permutation) -> float:
        return self.inner_product(step.tensors, permutation)

    def _value_from_gain(self, step: JointStep, permutation: Permutation) -> float:
        """The step's part of the inner product: the trace of each G, its columns in the order of the permutation."""
        value, outer = 0.0, permutation.indices[step.outer]
        for group in (step.outer, *step.inner):
            gain, index = self._gains[step, group], permutation.indices[group]
            columns = index if group == step.outer else (outer[:, None] * index.shape[1] + index).reshape(-1)
            value += float(gain.gather(1, torch.from_numpy(columns).to(gain.device)[:, None]).double().sum())
        return value

    def _unpermuted(self, step: JointStep) -> Permutation:
        """The current permutation with the step's groups as the permutee has them; other inner groups keep blocks."""
        current = self.permutation.indices
        back = np.argsort(current[step.outer])
        carried = {name: current[name][back] for name in self._spec.inner_groups[step.outer]}
        own = {name: self._identity.indices[name] for name in (step.outer, *step.inner)}
        return replace(self.permutation, indices={**current, **carried, **own})

    def _gain(self, step: JointStep, group: str, unpermuted: Permutation) -> Gain:
        """Bring G up to date: Σ over occurrences of A_i · B_j, the groups of other steps held still.

        The first product with a tensor is a whole one. After that only the features count that have moved since: their
        product where they are now, less their product where they were.

        Returns:
            Shape (n, n), or (h·n, h·n) for a wreath group in h blocks.
        """
        if (step, group) not in self._gains:
            size = self._identity.indices[group].size
            self._gains[step, group] = torch.zeros(size, size, device=self._device)
        total = self._gains[step, group]
        for one in step.occurrences[group]:
            new, old = self._axis_indices(one, unpermuted), self._included.get(one)
            self._included[one] = new
            fixed, permutee = self._matcher.fixed[one.tensor], self._permutee[one.tensor]
            if old is None:
                total.addmm_(one.rows(fixed), one.rows(_gather(permutee, new)).T)
            elif changed := [axis for axis, index in enumerate(new) if not np.array_equal(index, old[axis])]:
                if len(changed) == 1 and changed[0] != one.axis:
                    axis = changed[0]
                    where = np.flatnonzero(new[axis] != old[axis])
                    fixed = gather(fixed, axis, where)
                    new, old = ([*index[:axis], index[axis][where], *index[axis + 1 :]] for index in (new, old))
                total.addmm_(one.rows(fixed), one.rows(_gather(permutee, new) - _gather(permutee, old)).T)
        return total.cpu().numpy()

    def _axis_indices(self, one: GroupOccurrence, unpermuted: Permutation) -> list[Index]:
        """The index of each axis of an occurrence's tensor, its own axis without the moves of its own step."""
        return [
            (unpermuted if axis == one.axis else self.permutation).index(term)
            for axis, term in enumerate(self._spec.axes[one.tensor])
        ]


def _assign_within(gain: Gain, blocks: int) -> tuple[Gain, Index]:
    """For every pair of blocks the best inner assignment: its value, shape (h, h), and itself, shape (h, h, n)."""
    n = len(gain) // blocks
    pairs = gain.reshape(blocks, n, blocks, n).swapaxes(1, 2)
    indices = np.stack([[solve_assignment(pairs[i, j]) for j in range(blocks)] for i in range(blocks)])
    values = np.take_along_axis(pairs, indices[..., None], axis=3).sum(axis=(2, 3))
    return values, indices


def _gather(tensor: Tensor, indices: Sequence[Index]) -> Tensor:
    """Read a tensor at the given indices of every axis."""
    for axis, index in enumerate(indices):
        tensor = gather(tensor, axis, index)
    return tensor


def _floats(state: StateDict, spec: PermutationSpec) -> dict[str, Tensor]:
    return {name: state[name].detach().float().contiguous() for name in spec.permuted_tensors}
