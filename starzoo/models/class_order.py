"""Bring models into one class order."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from starzoo.data.class_names import list_names, match_names
from starzoo.errors import IncompatibleError
from starzoo.models.architecture import Architecture, HasArchitecture
from starzoo.models.sources import Source
from starzoo.models.spec_cache import cached_spec
from starzoo.symmetry import Permutation
from starzoo.symmetry.terms import Leaf

__all__ = ["common_label_names", "match_classes", "named_classes", "permute_outputs", "reorder_classes"]

_logger = logging.getLogger(__name__)


def common_label_names(models: Sequence[HasArchitecture]) -> tuple[str, ...] | None:
    """Return the class names of the first model that has them."""
    return next(filter(None, (model.architecture.label_names for model in models)), None)


def named_classes(source: Source, names: Sequence[str] | None) -> Source:
    """Return a model whose outputs have these names."""
    label_names = tuple(names) if names else None
    return replace(source, architecture=source.architecture.model_copy(update={"label_names": label_names}))


def match_classes(model: HasArchitecture, names: Sequence[str] | None, owner: str) -> list[int]:
    """Return the output of a model for each class name; nothing where there are no names to match."""
    own = model.architecture.label_names
    return match_names(names, own, owner=owner, subject=model.name) if names and own else []


def reorder_classes(sources: Sequence[Source], names: Sequence[str] | None) -> list[Source]:
    """Bring the outputs of models into one order, by the names of their classes."""
    ordered, permuted = [], []
    for source in sources:
        order = match_classes(source, names, "the other models")
        if order != sorted(order):
            permuted.append(source.name)
            state = permute_outputs(source.architecture, source.state, order)
            source = replace(source.with_record(label_names=source.architecture.label_names), state=state)
            source = named_classes(source, names)
        ordered.append(source)
    if permuted:
        _logger.warning(
            "classes are matched by name: %d of %d models had another order%s",
            len(permuted),
            len(sources),
            list_names(permuted),
        )
    return ordered


def permute_outputs(architecture: Architecture, state: Mapping[str, Tensor], order: Sequence[int]) -> dict[str, Tensor]:
    """Permute a model's outputs, which a trace finds in its weights as it finds every symmetry."""
    spec = cached_spec(architecture, pin_output=False)
    match spec.outputs:
        case ((_, Leaf(group)),):
            indices = {**Permutation.identity(spec).indices, group: np.array(order)}
            return Permutation(spec, indices).apply(state)
    raise IncompatibleError(
        architecture.name, "its outputs cannot be permuted", hint="give models that have their classes in one order"
    )
