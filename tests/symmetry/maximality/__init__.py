"""What did `infer` miss? A slow reference that does not know a single operator: it looks at gradients only.

A symmetry is a permutation P of the positions of some axes with f(Pθ) = f(θ) for all weights θ. Then F = Σ c·f with
random c, the same for all θ, has ∇F(Pθ) = P∇F(θ), and at a θ that P leaves as it is, P leaves the gradient as it is
too. So make θ constant along all axes that might move, and random elsewhere. Two positions of an axis whose slices of
the gradient differ cannot be exchanged by any such symmetry, whatever else it moves: that is a proof. Slices that agree
are a suspicion only, because the point is a special one; it is followed up at less special points, and in the end by
exchanging two positions and comparing outputs.

* Pinned axes (`pinned`): all of them are made constant; those that are proven not to move are made random again, until
  nothing more is proven. What is left would have to move together. `exchangeable` then asks less: may a symmetry act by
  one exchange alike on all parts of one size? `confirmed` tries what is still possible.
* Groups (`groups`): an occurrence that is random while the others are constant shows which of them cannot move without
  it. Where that does not connect all occurrences to each other, some of them could move on their own.

The gradient is exact up to rounding, which such points can amplify without limit (a layer norm of equal numbers divides
by nearly nothing). Each gradient is therefore computed twice, the second time with all weights changed by 1e-13, and a
difference counts only if it is far larger than what that does.

Not looked for: permutations that are no group of all exchanges, such as the mirror image of an axis (the kernel of an
efficient channel attention may be mirrored together with all channels), and symmetries of a pinned axis that would take
some occurrences of a group along, but not all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor, nn

from starzoo.symmetry.spec import PermutationSpec
from starzoo.symmetry.terms import Pinned
from tests.symmetry.maximality.groups import could_be_one, exchanged_in_block, find_nodes, find_tied, in_one_block
from tests.symmetry.maximality.parts import parts_of, slice_index
from tests.symmetry.maximality.pinned import confirmed, exchangeable, unproven, until_settled
from tests.symmetry.maximality.probe import EQUAL, Probes

__all__ = ["Report", "find_missed"]


@dataclass(frozen=True)
class Report:
    """What was found, in parts of axes with more than one position.

    Attributes:
        free: How many are permuted by a group.
        proven: How many pinned ones cannot move, whatever else moves with them.
        excluded: How many pinned ones cannot be moved by exchanges, if parts of one size move alike.
        idle: Pinned parts that the output does not depend on.
        missed: Pinned parts that could be permuted, and those that would have to move with them.
        tied: Occurrences of a group that could move without its other occurrences.
        merged: Pairs of groups that could be one larger group.
        blockwise: Groups that could act differently in each block of another group, which stands on another axis of a
            weight: the inputs of a grouped convolution, whose weight is (groups × outputs, inputs of a group).
        undecided: Suspicions that could neither be confirmed nor dispelled.
    """

    free: int
    proven: int
    excluded: int
    idle: tuple[str, ...]
    missed: tuple[str, ...]
    tied: tuple[str, ...]
    merged: tuple[str, ...]
    blockwise: tuple[str, ...]
    undecided: tuple[str, ...]

    @property
    def share(self) -> float:
        """Parts that are free, of those that could be."""
        return self.free / (self.free + len(self.missed)) if self.free else 0.0


def find_missed(module: nn.Module, example_input: Tensor, spec: PermutationSpec) -> Report:
    """Compare a specification with what gradients and exchanges say of the network.

    Args:
        module: The network; it is not changed.
        example_input: What it is called with.
        spec: What `infer` found, with the output pinned.

    Returns:
        What `infer` missed, and what was shown.
    """
    probes = Probes(module, example_input)
    parts = [part for part in parts_of(spec) if part.tensor in probes[0].generic]  # weights, and each of them once
    pinned = [part for part in parts if isinstance(part.term, Pinned)]
    idle = [part for part in pinned if probes.agree_that_idle(part)]
    left = unproven(probes, {part: ~np.eye(part.size, dtype=bool) for part in pinned if part not in idle})
    possible = until_settled(partial(exchangeable, probes), left)
    missed, undecided = confirmed(probes, possible, left)
    tied, open_ties = find_tied(probes, find_nodes(spec, parts))
    merged = [
        pair
        for pair, joint in could_be_one(parts).items()
        if all(
            probe.keeps([(part, [spec.groups[pair[0]].size - 1], [part.size - 1]) for part in joint])
            for probe in probes
        )
    ]
    blockwise = [
        f"{inner} in {outer}"
        for inner, outer, pairs in in_one_block(parts)
        if spec.groups[inner].within is spec.groups[outer].within is None
        and all(probe.change(exchanged_in_block(probe, outer, pairs, parts)) < EQUAL for probe in probes)
    ]
    slice_index.cache_clear()
    return Report(
        free=len(parts) - len(pinned),
        proven=len(pinned) - len(idle) - len(left),
        excluded=len(left) - len(possible),
        idle=tuple(map(str, idle)),
        missed=tuple(map(str, missed)),
        tied=tuple(tied),
        merged=tuple(map(" and ".join, merged)),
        blockwise=tuple(blockwise),
        undecided=(*map(str, undecided), *open_ties),
    )
