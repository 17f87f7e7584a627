"""The identity of a network, regardless of the arguments that built it.

Different arguments can build one network: `img_size` 32 and [32, 32], a default that is spelled out, another drop rate.
Two modules are the same network when they have the same layers, by kind and settings, and the same tensors.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Network"]

_TRAINING_LAYERS = re.compile(r"(Alpha|Feature|Patch)?Drop(out|Path|Block)?\w*|Identity")
"""Layers that do nothing in evaluation; timm leaves them out, or puts an Identity, where their rate is 0."""

_TRAINING_SETTINGS = re.compile(
    r"training|inplace|momentum|grad_checkpointing|memory_efficient|fused_attn|.*(drop|init).*"
)
"""Settings that change neither the weights nor what is computed from them in evaluation."""


@dataclass(frozen=True)
class Network:
    """A network without its weights.

    Attributes:
        layers: The kind and the settings of every layer that computes something in evaluation, by name.
        shapes: The shape of every tensor of the state dict, by name.
        integers: The tensors that do not hold floating-point numbers, as batch norm's counters.
    """

    layers: Mapping[str, tuple[str, Mapping[str, Any]]]
    shapes: Mapping[str, tuple[int, ...]]
    integers: frozenset[str]

    @classmethod
    def describe(cls, model: nn.Module) -> Self:
        """Describe the layers of a module."""
        layers = {name: (type(layer).__name__, _settings(layer)) for name, layer in model.named_modules()}
        state = model.state_dict()
        return cls(
            layers={name: layer for name, layer in layers.items() if not _TRAINING_LAYERS.fullmatch(layer[0])},
            shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
            integers=frozenset(name for name, tensor in state.items() if not tensor.is_floating_point()),
        )


def _settings(layer: nn.Module) -> dict[str, Any]:
    """Return the numbers, texts and functions among a layer's attributes."""
    public = {name: _plain(value) for name, value in vars(layer).items() if not name.startswith("_")}
    return {
        name: value for name, value in public.items() if value is not None and not _TRAINING_SETTINGS.fullmatch(name)
    }


def _plain(value: Any) -> Any:
    """Return a value to compare, where (3, 3) becomes 3; None where it is not a setting."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        parts = tuple(map(_plain, value))
        return parts[0] if parts and all(part == parts[0] for part in parts) else parts
    if isinstance(value, functools.partial):
        return (_plain(value.func), *((name, _plain(argument)) for name, argument in sorted(value.keywords.items())))
    return getattr(value, "__qualname__", None)
