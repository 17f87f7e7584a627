"""Arithmetic of state dicts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["StateDict", "average", "distance", "hash_tensors", "interpolate"]

StateDict = Mapping[str, Tensor]


def interpolate(a: StateDict, b: StateDict, t: float) -> dict[str, Tensor]:
    """Return the state dict at t on the straight line from `a` to `b`."""
    return {
        name: torch.lerp(tensor, b[name], t) if tensor.is_floating_point() else tensor for name, tensor in a.items()
    }


def average(states: Sequence[StateDict]) -> dict[str, Tensor]:
    """Return the mean of state dicts; integer tensors (counters) are those of the first."""
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in states[0].items()
    }


def distance(a: StateDict, b: StateDict, names: Sequence[str]) -> float:
    """Return the Euclidean distance of two state dicts over the named tensors."""
    return math.sqrt(sum(float((a[name].double() - b[name].double()).square().sum()) for name in names))


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
