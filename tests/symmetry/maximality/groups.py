"""Is a group larger than it need be, or smaller than it could be?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import permutations

import numpy as np
import torch

from starzoo.symmetry.spec import PermutationSpec
from starzoo.symmetry.terms import Leaf
from tests.symmetry.maximality.parts import Part, State, constant_along, exchanged, slices
from tests.symmetry.maximality.probe import Probe, Probes, tolerance

MANY = 64  # closed sets of one group


def find_nodes(spec: PermutationSpec, parts: Iterable[Part]) -> dict[str, list[Part]]:
    """The places at which each group meets a tensor, cut up as finely as they might move on their own.

    Blocks of a product are places of their own, since each could have its own permutation. Where each has, for a group
    within another one, all blocks are alike, and the first one stands for all.
    """
    nodes: dict[str, list[Part]] = {}
    leaves = [part for part in parts if isinstance(part.term, Leaf)]
    for part in leaves:
        group = spec.groups[part.term.group]
        places = part.places
        if group.within is not None:
            columns = places.transpose(0, 2, 1).reshape(-1, part.size)
            places = columns[_blocks(part, group.within, leaves)[columns[:, 0]] == 0][..., None]
        for outer in _pieces(len(places), 4):
            for inner in _pieces(places.shape[2], 1):
                piece = places[outer][:, :, inner]
                nodes.setdefault(group.name, []).append(Part(part.tensor, part.axis, part.term, piece))
    return nodes


def _blocks(part: Part, outer: str, leaves: Iterable[Part]) -> np.ndarray:
    """For each position of the axis of a part: in which block of the outer group it lies."""
    for other in leaves:
        if (other.tensor, other.axis, other.term) == (part.tensor, part.axis, Leaf(outer, other.size)):
            blocks = np.full(max(other.places.max(), part.places.max()) + 1, -1)
            blocks[other.places] = np.arange(other.size)[:, None]
            if (blocks[part.places] >= 0).all():
                return blocks
    raise AssertionError(f"{part}: not within {outer}")


def _pieces(count: int, most: int) -> list[list[int]]:
    """Each index on its own if there are few, else the first one and the rest."""
    if count <= most:
        return [[index] for index in range(count)]
    return [[0], list(range(1, count))]


def _tied(probe: Probe, nodes: Mapping[str, list[Part]]) -> dict[str, set[tuple[int, int]]]:
    """For each group: which of its nodes (first) cannot move unless another one (second) moves too.

    What moves some nodes of a group of n positions stays a symmetry after conjugation with the group. So if there is
    such a symmetry, there is one that turns any three positions around (or exchanges both, for n = 2), and it is enough
    that these are equal: the point is not very special. Groups are tried together, but each as if no other moved.
    """
    ties: dict[str, set[tuple[int, int]]] = {group: set() for group in nodes}
    chosen = {group: torch.randperm(each[0].size, generator=probe.rng)[:3].tolist() for group, each in nodes.items()}
    only = {node: [chosen[group]] for group, each in nodes.items() for node in each}
    _, rounding = probe.gradients(constant_along(probe.state, only, only))
    for turn in range(max(map(len, nodes.values()), default=0)):
        still = {group: each for group, each in nodes.items() if turn < len(each)}
        constant = [node for each in still.values() for node in each if node is not each[turn]]
        gradient = probe.gradients_once(constant_along(probe.state, constant, only))
        for group, each in still.items():
            for index, node in enumerate(each):
                if index != turn:
                    rows = slices(gradient[node.tensor], node, each)[:, chosen[group]]
                    if (rows - rows[:, :1]).abs().max() > tolerance(gradient, rounding, node.tensor):
                        ties[group].add((index, turn))
    return ties


def _closed(count: int, ties: Collection[tuple[int, int]]) -> list[frozenset[int]]:
    """The sets of nodes that could move without the others, as far as ties tell; not the empty one and not all."""
    reach = np.eye(count, dtype=bool)
    for first, second in ties:
        reach[first, second] = True
    for middle in range(count):
        reach |= reach[:, [middle]] & reach[[middle]]
    smallest = {frozenset(np.flatnonzero(row).tolist()) for row in reach}
    closed = set(smallest)
    while len(closed) < MANY and (more := {first | second for first in closed for second in smallest} - closed):
        closed |= more
    return sorted((each for each in closed if len(each) < count), key=len)


def could_be_one(parts: Iterable[Part]) -> dict[tuple[str, str], list[Part]]:
    """Pairs of groups that stand in one product, or in one concatenation, wherever they occur: as one long axis."""
    leaves = [part for part in parts if isinstance(part.term, Leaf)]
    occurrences = Counter(part.term.group for part in leaves)
    found: dict[tuple[str, str], list[Part]] = {}
    for first, second in permutations(leaves, 2):
        if (first.tensor, first.axis) == (second.tensor, second.axis) and first.term != second.term:
            joint = _joined(first.places, second.places)
            if joint is not None:
                pair = (first.term.group, second.term.group)
                both = Leaf(" and ".join(pair), joint.shape[1])
                found.setdefault(pair, []).append(Part(first.tensor, first.axis, both, joint))
    return {pair: each for pair, each in found.items() if {occurrences[group] for group in pair} == {len(each)}}


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray | None:
    """The places of both as one axis, with those of the second next to each other."""
    outer, n, inner = second.shape
    if first.shape[0] == outer and first.shape[2] == inner and first.flat[0] < second.flat[0]:
        return np.concatenate([first, second], axis=1)
    if first.size == second.size and np.array_equal(first.ravel(), second.ravel()) and first.shape[2] == n * inner:
        return first.reshape(len(first), -1, inner)
    return None


def in_one_block(parts: Iterable[Part]) -> Iterator[tuple[str, str, list[tuple[Part, Part | None]]]]:
    """Pairs of groups (inner, outer) of which the inner one occurs only in weights that the outer one permutes too.

    Yields:
        The two groups, and for each part of the inner one the part of the outer one that stands on another axis; None
        where it stands on the same axis, around it.
    """
    leaves = [part for part in parts if isinstance(part.term, Leaf)]
    names = dict.fromkeys(part.term.group for part in leaves)
    for inner, outer in permutations(names, 2):
        pairs = []
        for part in (part for part in leaves if part.term.group == inner):
            around = [other for other in leaves if other.tensor == part.tensor and other.term.group == outer]
            same = [other for other in around if np.isin(part.places, other.places).all() and other.axis == part.axis]
            elsewhere = [other for other in around if other.axis != part.axis]
            if not same and len(elsewhere) != 1:
                break
            pairs.append((part, None if same else elsewhere[0]))
        else:
            if any(elsewhere for _, elsewhere in pairs):
                yield inner, outer, pairs


def exchanged_in_block(
    probe: Probe, outer: str, pairs: Iterable[tuple[Part, Part | None]], parts: Iterable[Part]
) -> State:
    """Two positions of the inner group exchanged in the first block of the outer group, and in no other."""
    changed = dict(probe.state)
    for part, elsewhere in pairs:
        tensor = exchanged(changed, [(part, [0], [1])])[part.tensor]
        axis, block = (part.axis, None) if elsewhere is None else (elsewhere.axis, elsewhere.places[:, 0].ravel())
        if block is None:
            block = np.flatnonzero(_blocks(part, outer, [each for each in parts if isinstance(each.term, Leaf)]) == 0)
        index = torch.from_numpy(block)
        kept = changed[part.tensor].clone()
        kept.movedim(axis, 0)[index] = tensor.movedim(axis, 0)[index]
        changed[part.tensor] = kept
    return changed


def find_tied(probes: Probes, nodes: Mapping[str, list[Part]]) -> tuple[list[str], list[str]]:
    """Occurrences that can move without the rest of their group, and groups for which that was not found out."""
    nodes = {group: [node for node in each if not probes.agree_that_idle(node)] for group, each in nodes.items()}
    ties: dict[str, set[tuple[int, int]]] = {group: set() for group in nodes}
    left = {group: [] for group, each in nodes.items() if len(each) > 1}
    for probe in probes:
        for group, more in _tied(probe, {group: nodes[group] for group in left}).items():
            ties[group] |= more
        left = {group: sets for group in left if (sets := _closed(len(nodes[group]), ties[group]))}
        if not left:
            break
    tied = []
    for group, sets in left.items():
        for closed in sets:
            moves = [(nodes[group][index], [0], [1]) for index in closed]
            if all(probe.keeps(moves) for probe in probes):
                tied.append("; ".join(str(node) for node, _, _ in moves))
                break
    return tied, [group for group, sets in left.items() if len(sets) >= MANY]
