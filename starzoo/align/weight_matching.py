"""Weight matching (Git Re-Basin, Ainsworth et al. 2023, algorithm 1) over any permutation specification.

The distance between a fixed model A and a permutee B is ‖A − πB‖² over the tensors that π moves, so a smaller
distance is a larger inner product ⟨A, πB⟩. With all groups but one held still, the inner product is linear in that
group's permutation: one assignment problem, whose matrix G says what it is worth to put B's position j at place i.
Coordinate ascent over the groups ends when no group wants to move.

Four things differ from the published code. A group is solved again only when a tensor that it shares has changed. Its
G is kept, and only what the positions contribute that its neighbors have moved since is computed anew. Sweeps go
through the network there and back instead of at random: they are fewer, and end no farther away. And a group is solved
together with the wreath groups within it: the best inner assignment for every pair of blocks, then the assignment of
the blocks (`starzoo.align.group_views.plan_steps` says which of them at once).
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
from starzoo.symmetry.permutation import Permutation
from starzoo.symmetry.spec import PermutationSpec

__all__ = ["MatchResult", "WeightMatcher"]

Gain = NDArray[np.floating]
Index = NDArray[np.int64]

_ROUNDING = 1e-6  # share of a family's inner product below which a gain is float32 noise, and following it could cycle


@dataclass(frozen=True, kw_only=True)
class MatchResult:
    """The outcome of one coordinate ascent.

    Attributes:
        permutation: Takes the permutee, as it was given, toward the fixed model.
        sweeps: Groups solved, divided by the number of groups.
        objective: ⟨A, πB⟩ at the start and after every family that moved; it never falls.
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
        self.moving = tuple(name for name in spec.axes if spec.is_permuted(name))
        self._all_turns = plan_steps(spec)
        self.groups = list(self._all_turns)
        self._face(fixed)

    def with_fixed(self, fixed: StateDict) -> WeightMatcher:
        """A matcher of the same architecture, for which its symmetries are not looked through again.

        Args:
            fixed: State dict of the model that stays.

        Returns:
            The matcher.
        """
        other = copy(self)
        other._face(fixed)
        return other

    def _face(self, fixed: StateDict) -> None:
        self.fixed = _floats(fixed, self.moving)
        votes = {name for name, tensor in self.fixed.items() if tensor.any()}
        self.turns = {group: tuple(each.among(votes) for each in turns) for group, turns in self._all_turns.items()}
        self.tensors = {
            group: tuple(dict.fromkeys(name for each in turns for name in each.tensors))
            for group, turns in self.turns.items()
        }
        self.neighbors = self._find_neighbors()

    def match(self, permutee: StateDict, initial: Permutation) -> MatchResult:
        """Find a permutation of the permutee that no step improves: each solves one group, or a family, by assignments.

        Args:
            permutee: State dict of the model that is permuted.
            initial: Where the ascent starts.

        Returns:
            The matching.
        """
        ascent = _Ascent(self, permutee, initial)
        objective = [ascent.inner_product(self.moving, initial)]
        order, stale, solved = list(self.groups), set(self.groups), 0
        while stale and solved < self.max_sweeps * len(self.groups):
            for group in order:
                if group not in stale:
                    continue
                stale.discard(group)
                solved += 1
                if gain := ascent.step(group):
                    objective.append(objective[-1] + gain)
                    stale |= self.neighbors[group]
            order.reverse()
        return MatchResult(
            permutation=ascent.permutation, sweeps=solved / max(1, len(self.groups)), objective=tuple(objective)
        )

    def _find_neighbors(self) -> dict[str, frozenset[str]]:
        """Groups whose assignment may change when one moves: those that share a tensor with it."""
        at: dict[str, set[str]] = {}
        for group, tensors in self.tensors.items():
            for tensor in tensors:
                at.setdefault(tensor, set()).add(group)
        found = {}
        for group, tensors in self.tensors.items():
            near = {other for tensor in tensors for other in at[tensor]}
            if len(self.turns[group]) == 1 and not self.turns[group][0].is_quadratic:
                near.discard(group)  # it stands at its best
            found[group] = frozenset(near)
        return found


class _Ascent:
    """Where one permutee stands, and what is known of the gain matrix G of every group.

    Positions are counted as the permutee has them, so what the groups of a turn move changes nothing of their G.

    Attributes:
        permutation: Takes the permutee, as it was given, to where it stands.
    """

    def __init__(self, matcher: WeightMatcher, permutee: StateDict, initial: Permutation) -> None:
        self.permutation = initial
        self._matcher, self._spec = matcher, matcher.spec
        self._identity = Permutation.identity(self._spec)
        self._permutee = _floats(permutee, matcher.moving)
        self._device = next((tensor.device for tensor in self._permutee.values()), None)
        self._gains: dict[tuple[JointStep, str], Tensor] = {}
        self._seen: dict[GroupOccurrence, list[Index]] = {}

    def step(self, group: str) -> float:
        """Solve one family, the others standing as they do, and move it where that is a gain.

        Args:
            group: The family's outer group.

        Returns:
            How much the inner product has grown; 0 if the family stays.
        """
        return sum(map(self._move, self._matcher.turns[group]))

    def _move(self, turn: JointStep) -> float:
        stands = self.permutation
        moved = replace(stands, indices={**stands.indices, **self.best(turn)})
        # The gain of groups that meet themselves in one tensor is a quadratic form, whose linear part can promise what
        # the step does not keep: it is measured, not read off G.
        value = self._measure if turn.is_quadratic else self._read
        before, after = value(turn, stands), value(turn, moved)
        if after - before <= _ROUNDING * abs(before):
            return 0.0
        self.permutation = moved
        return after - before

    def best(self, turn: JointStep) -> dict[str, Index]:
        """The best permutation of the groups of one turn, all others standing as they do.

        Args:
            turn: The groups.

        Returns:
            The index vectors of the whole family: groups within it whose turn it is not go along with their blocks.
        """
        blocks = self._spec.groups[turn.outer].size
        at_home = self._at_home(turn)
        gain, found = self._gain(turn, turn.outer, at_home), {}
        for name in turn.inner:
            values, indices = _assign_within(self._gain(turn, name, at_home), blocks)
            gain, found[name] = gain + values, indices
        chosen = solve_assignment(gain)
        carried = {name: at_home.indices[name][chosen] for name in self._spec.inner_groups[turn.outer]}
        solved = {name: indices[np.arange(blocks), chosen] for name, indices in found.items()}
        return {turn.outer: chosen, **carried, **solved}

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
            index = [permutation.index(term) for term in self._spec.axes[name]]
            moved = _take(self._permutee[name], index)
            total += float(torch.dot(self._matcher.fixed[name].reshape(-1), moved.reshape(-1)))
        return total

    def _measure(self, turn: JointStep, permutation: Permutation) -> float:
        return self.inner_product(turn.tensors, permutation)

    def _read(self, turn: JointStep, permutation: Permutation) -> float:
        """The turn's part of the inner product: the trace of each G, its columns in the order of the permutation."""
        value, outer = 0.0, permutation.indices[turn.outer]
        for member in (turn.outer, *turn.inner):
            gain, index = self._gains[turn, member], permutation.indices[member]
            columns = index if member == turn.outer else (outer[:, None] * index.shape[1] + index).reshape(-1)
            value += float(gain.gather(1, _index(columns, gain)[:, None]).double().sum())
        return value

    def _at_home(self, turn: JointStep) -> Permutation:
        """What stands now, but for the turn's groups, which are as the permutee has them; others keep their blocks."""
        here = self.permutation.indices
        back = np.argsort(here[turn.outer])
        family = (turn.outer, *turn.inner)
        home = {name: here[name][back] for name in self._spec.inner_groups[turn.outer]}
        home |= {name: self._identity.indices[name] for name in family}
        return replace(self.permutation, indices={**here, **home})

    def _gain(self, turn: JointStep, member: str, at_home: Permutation) -> Gain:
        """Bring G up to date: Σ over views of A_i · B_j, the other families standing as they do.

        The first product with a tensor is a whole one. Later on, only those features count that have moved since: what
        they add where they are, less what they added where they were.

        Returns:
            Shape (n, n), or (h·n, h·n) for a wreath group in h blocks.
        """
        if (turn, member) not in self._gains:
            size = self._identity.indices[member].size
            self._gains[turn, member] = torch.zeros(size, size, device=self._device)
        total = self._gains[turn, member]
        for view in turn.views[member]:
            now, then = self._places(view, at_home), self._seen.get(view)
            self._seen[view] = now
            fixed, permutee = self._matcher.fixed[view.tensor], self._permutee[view.tensor]
            if then is None:
                total.addmm_(view.rows(fixed), view.rows(_take(permutee, now)).T)
            elif changed := [axis for axis, places in enumerate(now) if not np.array_equal(places, then[axis])]:
                if len(changed) == 1 and changed[0] != view.axis:
                    axis = changed[0]
                    where = np.flatnonzero(now[axis] != then[axis])
                    fixed = fixed.index_select(axis, _index(where, fixed))
                    now, then = ([*each[:axis], each[axis][where], *each[axis + 1 :]] for each in (now, then))
                total.addmm_(view.rows(fixed), view.rows(_take(permutee, now) - _take(permutee, then)).T)
        return total.cpu().numpy()

    def _places(self, view: GroupOccurrence, at_home: Permutation) -> list[Index]:
        """Where each axis of a view's tensor stands, the view's own one without the moves of its own turn."""
        return [
            (at_home if axis == view.axis else self.permutation).index(term)
            for axis, term in enumerate(self._spec.axes[view.tensor])
        ]


def _assign_within(gain: Gain, blocks: int) -> tuple[Gain, Index]:
    """For every pair of blocks the best inner assignment: its value, shape (h, h), and itself, shape (h, h, n)."""
    n = len(gain) // blocks
    pairs = gain.reshape(blocks, n, blocks, n).swapaxes(1, 2)
    indices = np.stack([[solve_assignment(pairs[i, j]) for j in range(blocks)] for i in range(blocks)])
    values = np.take_along_axis(pairs, indices[..., None], axis=3).sum(axis=(2, 3))
    return values, indices


def _take(tensor: Tensor, index: Sequence[Index]) -> Tensor:
    """Read a tensor at the given places of every axis."""
    for axis, places in enumerate(index):
        if not np.array_equal(places, np.arange(tensor.shape[axis])):
            tensor = tensor.index_select(axis, _index(places, tensor))
    return tensor


def _index(places: Index, like: Tensor) -> Tensor:
    return torch.from_numpy(places).to(like.device)


def _floats(state: StateDict, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: state[name].detach().float().contiguous() for name in names}
