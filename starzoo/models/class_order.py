"""Permute the outputs of a model into another class order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from starzoo.errors import IncompatibleError
from starzoo.models.architecture import Architecture
from starzoo.models.spec_cache import cached_spec
from starzoo.symmetry import Permutation
from starzoo.symmetry.terms import Leaf

__all__ = ["permute_outputs"]


def permute_outputs(architecture: Architecture, state: Mapping[str, Tensor], order: Sequence[int]) -> dict[str, Tensor]:
    """Permute a model's outputs; how they stand in its weights is found by tracing, as every symmetry is."""
    spec = cached_spec(architecture, pin_output=False)
    match spec.outputs:
        case ((_, Leaf(group)),):
            indices = {**Permutation.identity(spec).indices, group: np.array(order)}
            return Permutation(spec, indices).apply(state)
    raise IncompatibleError(
        architecture.name, "its outputs cannot be permuted", hint="give models that have their classes in one order"
    )
