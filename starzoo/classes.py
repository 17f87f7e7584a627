"""The order of classes: models that know the same classes in another order are brought into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from starzoo.architecture import Architecture
from starzoo.errors import IncompatibleError
from starzoo.specs import infer_architecture
from starzoo.symmetry import Permutation
from starzoo.symmetry.spec import Leaf

__all__ = ["are_reordered", "permute_classes"]


def are_reordered(ours: Sequence[str] | None, theirs: Sequence[str] | None) -> bool:
    """Whether two lists name the same classes, each once, in two orders.

    Args:
        ours: Class names, or None when unknown.
        theirs: Other class names, or None when unknown.

    Returns:
        False where the orders are equal, the classes are not, or a name stands for two classes.
    """
    if not ours or not theirs or list(ours) == list(theirs):
        return False
    return len(set(ours)) == len(ours) and sorted(ours) == sorted(theirs)


def permute_classes(architecture: Architecture, state: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Permute a model's outputs; how they stand in its weights is found by tracing, as every symmetry is.

    Args:
        architecture: The model, with its label names.
        state: Its state dict.
        names: The label names in the wanted order.

    Returns:
        The state dict of a model with ``new_output[i] = output[label_names.index(names[i])]``.

    Raises:
        IncompatibleError: The outputs of this architecture cannot be permuted.
    """
    spec = infer_architecture(architecture, pin_output=False)
    match spec.outputs:
        case ((_, Leaf(group)),):
            places = {name: place for place, name in enumerate(architecture.label_names or ())}
            order = np.array([places[name] for name in names])
            return Permutation(spec, {**Permutation.identity(spec).indices, group: order}).apply(state)
    raise IncompatibleError(
        f"{architecture.name}: its outputs cannot be permuted",
        hint="give models that have their classes in one order",
        subject=architecture.name,
    )
