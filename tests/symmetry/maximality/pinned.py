"""Could a pinned part move, together with other pinned parts?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tests.symmetry.maximality.parts import Move, Part, constant_along, slices
from tests.symmetry.maximality.probe import Probe, tolerance

Pairs = dict[Part, np.ndarray]  # which positions of each part could not be told apart, shape (n, n)
Sets = Sequence[Sequence[int]]  # positions of a part that are made equal, set by set
ALL: Sets = ((),)  # stands for all positions of a part


def _agreeing(probe: Probe, parts: Collection[Part], only: Mapping[Part, Sets] | None = None) -> Pairs:
    """Pairs of positions whose slices agree where all parts are constant, but those in `only` in some sets only."""
    gradient, rounding = probe.gradients(constant_along(probe.state, parts, only))
    agreeing = {}
    for part in parts if only is None else only:
        rows = slices(gradient[part.tensor], part, parts)
        same = torch.cdist(rows, rows, p=float("inf")).numpy() <= tolerance(gradient, rounding, part.tensor)
        idle = (slices(probe.generic[part.tensor], part, parts) == 0).all(-1).numpy()  # taps that only meet padding
        agreeing[part] = (same & ~(idle[:, :, None] & idle[:, None, :])).any(0) & ~np.eye(part.size, dtype=bool)
    return agreeing


def unproven(probes: Iterable[Probe], parts: Pairs) -> Pairs:
    """What is left when gradients say what they can. Parts without any pair left are random from then on."""
    while True:
        before = len(parts)
        for probe in probes:
            if not parts:
                return {}
            agreeing = _agreeing(probe, parts)
            parts = {part: left for part, pairs in parts.items() if (left := pairs & agreeing[part]).any()}
        if len(parts) == before:
            return parts


@dataclass(frozen=True)
class Exchange:
    """Of an axis seen as (outer, n, inner): two of the n places change places, in all blocks alike."""

    outer: int
    n: int
    inner: int
    first: int
    second: int

    def positions(self) -> list[tuple[int, int]]:
        places = np.arange(self.outer * self.n * self.inner).reshape(self.outer, self.n, self.inner)
        return list(zip(places[:, self.first].ravel().tolist(), places[:, self.second].ravel().tolist(), strict=True))


def _exchanges(size: int) -> Iterator[list[Exchange]]:
    """All exchanges of an axis, in rounds that can be tried at once: no position occurs in two of a round."""
    divisors = [divisor for divisor in range(1, size + 1) if size % divisor == 0]
    for outer in divisors:
        for n in divisors[1:]:
            if size % (outer * n) == 0:
                circle = list(range(n + n % 2))  # a round-robin tournament
                for _ in range(len(circle) - 1):
                    half = len(circle) // 2
                    pairs = zip(circle[:half], circle[: half - 1 : -1], strict=True)
                    yield [Exchange(outer, n, size // (outer * n), *pair) for pair in pairs if max(pair) < n]
                    circle.insert(1, circle.pop())


def exchangeable(probes: Iterable[Probe], parts: Collection[Part]) -> dict[Part, list[Exchange]]:
    """Suppose that a symmetry acts on one part by an exchange, and on others of its size by the same one or not at all.

    Then only the exchanged positions need to be equal, and the point is less special.
    """
    left: dict[Part, list[Exchange]] = {}
    for size in {part.size for part in parts}:
        alike = [part for part in parts if part.size == size]
        for together in _exchanges(size):
            possible = dict.fromkeys(alike, together)
            for probe in probes:  # all of a round at once, and what is left of it one by one
                possible = _still_possible(probe, parts, possible)
            for exchange in together:
                single = {part: [exchange] for part, exchanges in possible.items() if exchange in exchanges}
                for probe in probes:
                    single = _still_possible(probe, parts, single, alike)
                for part in single:
                    left.setdefault(part, []).append(exchange)
    return left


def until_settled(step: Callable[[Collection[Part]], dict], parts: Collection[Part]) -> dict:
    """Repeat on what is left: the parts that are done stay where they are."""
    while len(left := step(parts)) < len(parts):
        parts = left
    return left


def _still_possible(probe: Probe, parts: Collection[Part], exchanges: Mapping[Part, list[Exchange]], alike=None):
    if not exchanges:
        return {}
    tried = list(dict.fromkeys(exchange for each in exchanges.values() for exchange in each))
    pairs = [pair for exchange in tried for pair in exchange.positions()]
    agreeing = _agreeing(probe, parts, dict.fromkeys(alike or exchanges, pairs))
    possible = {
        part: [each for each in tried if all(agreeing[part][pair] for pair in each.positions())] for part in exchanges
    }
    return {part: each for part, each in possible.items() if each}


def _exchanged_with(probes: Iterable[Probe], part: Part, exchange: Exchange, parts: Collection[Part]) -> list[Move]:
    """The positions that have to change places together with those of one part; nothing where outputs do not stay."""
    probe = next(iter(probes))

    def agree(constant: Collection[Part], only: Mapping[Part, Sets] | None = None) -> bool:
        only = None if only is None else {**dict.fromkeys(constant, ALL), **only}
        agreeing = _agreeing(probe, constant, only)[part]
        return all(agreeing[pair] for pair in exchange.positions())

    needed = list(parts)
    for other in parts:
        rest = [each for each in needed if each is not other]
        if other is not part and agree(rest):
            needed = rest
    own = tuple(zip(*exchange.positions(), strict=True))
    choices: list[list[Move]] = [[(part, *own)], [(part, *own)]]
    for other in needed:
        if other is part:
            continue
        if other.size == part.size:
            ways = [own, own]
        else:
            positions = range(other.size)
            lone = [p for p in positions if not agree(needed, {other: [[q for q in positions if q != p]]})]
            half = len(lone) // 2
            ways = [(lone[:half], lone[half:]), (lone[::2], lone[1::2])]
        for moves, way in zip(choices, ways, strict=True):
            moves.append((other, *way))
    for moves in choices:
        if all(len(first) == len(second) for _, first, second in moves) and all(p.keeps(moves) for p in probes):
            return moves
    return []


def confirmed(
    probes: Sequence[Probe], possible: Mapping[Part, list[Exchange]], parts: Collection[Part]
) -> tuple[list[Part], list[Part]]:
    """The parts for which an exchange keeps the output, and those for which none that was tried does."""
    missed: dict[Part, None] = {}
    for part in sorted(possible, key=lambda part: part.size):  # the smallest one tells how the others move
        for exchange in possible[part]:
            if part not in missed:
                missed.update((other, None) for other, _, _ in _exchanged_with(probes, part, exchange, parts))
    return list(missed), [part for part in possible if part not in missed]
