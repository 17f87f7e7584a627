"""Prove a specification on the network itself: permute everything at random and compare the outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from starzoo.errors import IncompatibleError
from starzoo.symmetry.permutation import Permutation
from starzoo.symmetry.spec import PermutationSpec, groups_of
from starzoo.symmetry.trace import copy_module

__all__ = ["Verification", "verify"]

State = dict[str, Tensor]
CONTROLS = 4


@dataclass(frozen=True)
class Verification:
    """What permuting a network at random showed.

    Attributes:
        relative_error: ‖f(permuted) − f‖ / ‖f‖ over all outputs, with one random element of all groups at once.
        weights_changed: Whether the permutation moved any weight.
        negative_control_passed: How many times permuting one axis of one tensor alone changed the output.
        negative_control_tried: How many such axes were tried.
        tolerance: The largest relative error that counts as equal.
        guilty: Groups that change the output; empty where all is well.
    """

    relative_error: float
    weights_changed: bool
    negative_control_passed: int
    negative_control_tried: int
    tolerance: float
    guilty: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether outputs stayed, weights changed, and every negative control was noticed."""
        noticed = self.negative_control_passed == self.negative_control_tried > 0
        return self.relative_error <= self.tolerance and self.weights_changed and noticed


def verify(
    module: nn.Module, example_input: Tensor, spec: PermutationSpec, *, seed: int = 0, tolerance: float = 1e-9
) -> Verification:
    """Permute all groups of a network at random and look whether its output stays.

    All computation is in float64 on the CPU, with random weights, statistics and layer scales instead of the network's
    own, which may hide a fault (zeros and ones are symmetric). Every evaluation uses a copy that never ran: some
    networks cache what they derive from weights.

    Args:
        module: The network; it is not changed.
        example_input: What it is called with, shape (batch, ...); the numbers are replaced by random ones.
        spec: The symmetries to check, with the output pinned.
        seed: Seed of weights, input and permutations.
        tolerance: The largest relative error that counts as equal; 1e-9 unless the network itself computes in float32.

    Returns:
        What was found, with the guilty groups if the output changed.

    Raises:
        IncompatibleError: The module has no values, because it is on the meta device.
    """
    if any(value.is_meta for value in module.state_dict().values()):
        raise IncompatibleError(
            f"{type(module).__name__}: a network on the meta device cannot be run",
            hint="build it on the CPU",
            subject=type(module).__name__,
        )
    torch_rng, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    base, _ = copy_module(module, lambda tensor: _in_float64(tensor).clone())
    state = _random_state(base, torch_rng)
    example = _in_float64(example_input)
    if example.is_floating_point():
        example = torch.randn(example.shape, generator=torch_rng, dtype=torch.float64)
    output = _run(base, state, example)

    def change(permuted: State) -> float:
        return _relative_error(_run(base, permuted, example), output)

    element = Permutation.random(spec, rng)
    permuted = element.apply(state)
    error = change(permuted)
    breaks = partial(_breaks, element, state, change, tolerance)
    controls = _controls(spec, state, rng)
    return Verification(
        relative_error=error,
        weights_changed=any(not torch.equal(permuted[name], state[name]) for name in state),
        negative_control_passed=sum(change(control) > 1e3 * tolerance for control in controls),
        negative_control_tried=len(controls),
        tolerance=tolerance,
        guilty=tuple(_bisect(list(spec.groups), breaks)) if error > tolerance else (),
    )


def _in_float64(tensor: Tensor) -> Tensor:
    return tensor.cpu().double() if tensor.is_floating_point() else tensor.cpu()


def _random_state(module: nn.Module, rng: torch.Generator) -> State:
    """Weights that keep signals of order one, and vectors (scales, variances, biases) between 1/2 and 3/2.

    Integer buffers are kept. A tensor that has several names gets one value.
    """
    drawn: dict[int, Tensor] = {}
    for tensor in module.state_dict(keep_vars=True).values():
        if not tensor.is_floating_point():
            drawn[id(tensor)] = tensor.detach()
        elif tensor.ndim < 2:
            drawn.setdefault(id(tensor), torch.rand(tensor.shape, generator=rng, dtype=torch.float64) + 0.5)
        else:
            fan_in = tensor.numel() // len(tensor) if len(tensor) > 1 else 1
            noise = torch.randn(tensor.shape, generator=rng, dtype=torch.float64)
            drawn.setdefault(id(tensor), noise / max(fan_in, 1) ** 0.5)
    return {name: drawn[id(tensor)] for name, tensor in module.state_dict(keep_vars=True).items()}


def _run(base: nn.Module, state: State, example: Tensor) -> Tensor:
    """All outputs of a fresh copy, as one vector."""
    fresh = copy.deepcopy(base)
    fresh.load_state_dict(state)
    with torch.no_grad():
        outputs = fresh(example)
    return torch.cat([leaf.double().flatten() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)])


def _relative_error(output: Tensor, expected: Tensor) -> float:
    if not (output.isfinite().all() and expected.isfinite().all()):
        return float("inf")
    return float((output - expected).norm() / expected.norm().clamp_min(torch.finfo(torch.float64).tiny))


def _controls(spec: PermutationSpec, state: State, rng: np.random.Generator) -> list[State]:
    """States in which one axis of one weight is permuted alone: the output has to notice.

    Vectors are left out: some have no influence on their own, such as the key's bias before a softmax.
    """
    places = [
        (name, axis)
        for name, terms in spec.axes.items()
        for axis, term in enumerate(terms)
        if len(terms) >= 2 and any(groups_of(term))
    ]
    chosen = rng.permutation(len(places))[:CONTROLS]
    return [_permute_alone(spec, state, *places[place], rng) for place in chosen]


def _permute_alone(spec: PermutationSpec, state: State, name: str, axis: int, rng: np.random.Generator) -> State:
    index = np.arange(state[name].shape[axis])
    while np.array_equal(index, np.arange(len(index))):
        index = Permutation.random(spec, rng).index(spec.axes[name][axis])
    permuted = state[name].index_select(axis, torch.from_numpy(index))
    return {other: permuted if value is state[name] else value for other, value in state.items()}  # tied names follow


def _breaks(
    element: Permutation, state: State, change: Callable[[State], float], tolerance: float, groups: Iterable[str]
) -> bool:
    """Whether permuting only some groups changes the output."""
    only = {name: element.indices[name] for name in groups}
    return (
        change(Permutation(element.spec, {**Permutation.identity(element.spec).indices, **only}).apply(state))
        > tolerance
    )


def _bisect(groups: Sequence[str], breaks: Callable[[Iterable[str]], bool]) -> list[str]:
    """The smallest sets of groups that break by themselves, found by halving."""
    if len(groups) == 1:
        return list(groups)
    halves = groups[: len(groups) // 2], groups[len(groups) // 2 :]
    guilty = [group for half in halves if breaks(half) for group in _bisect(half, breaks)]
    return guilty or list(groups)
