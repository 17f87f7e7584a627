"""A network at a random point, in float64: its output and its gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from starzoo.symmetry.trace import copy_module
from tests.symmetry.maximality.parts import Move, Part, State, exchanged

DIFFERENT = 1e-10  # of the largest entry of a tensor's gradient
JITTER = 1e-13
EQUAL = 1e-9  # relative error of outputs
PROBES = 8  # how many random points at most; most questions are settled by two


class _InDouble(TorchFunctionMode):
    """Everything in float64, and batch norm by its formula, so that its statistics have a gradient too."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is functional.batch_norm and kwargs.get("running_mean", args[1] if len(args) > 1 else None) is not None:
            return _batch_norm(*args, **kwargs)
        if func is Tensor.float:
            return args[0].double()
        if any(value is torch.float32 for value in (*args, *kwargs.values())):
            args = [_wider(value) for value in args]
            kwargs = {name: _wider(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _wider(value):
    return torch.float64 if value is torch.float32 else value


def _batch_norm(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    assert not training
    shape = (1, -1, *[1] * (x.ndim - 2))
    x = (x - running_mean.view(shape)) / (running_var.view(shape) + eps).sqrt()
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


class Probe:
    """A network in float64 with random weights, whose gradient can be asked for.

    Attributes:
        state: Random weights and statistics.
    """

    def __init__(self, module: nn.Module, example: Tensor, seed: int) -> None:
        rng = self.rng = torch.Generator().manual_seed(seed)
        self.scale = 0.5 if seed % 2 else 1.0  # some networks saturate at one scale, some at another
        self.network, _ = copy_module(
            module, lambda each: (each.double() if each.is_floating_point() else each).clone()
        )
        tensors = self.network.state_dict(keep_vars=True)
        first = {id(tensor): name for name, tensor in reversed(tensors.items())}  # tied weights have one name
        self.state = {name: self._random(tensor) for name, tensor in tensors.items() if first[id(tensor)] == name}
        self.example = torch.randn((2, *example.shape[1:]), generator=rng, dtype=torch.float64)
        self.reference = self.output(self.state)
        self.direction = torch.randn(self.reference.shape, generator=rng, dtype=torch.float64)
        self.generic, _ = self.gradients(self.state)
        self.largest = max(float(each.abs().max()) for each in self.generic.values())

    def _random(self, tensor: Tensor) -> Tensor:
        """As in `verify`: signals stay of order one, statistics positive."""
        if not tensor.is_floating_point():
            return tensor.detach()
        if tensor.ndim < 2:
            size = torch.rand(tensor.shape, generator=self.rng, dtype=tensor.dtype) + 0.5
            sign = torch.randint(2, tensor.shape, generator=self.rng) * 2 - 1
            return size * sign if isinstance(tensor, nn.Parameter) else size
        fan_in = tensor.numel() // len(tensor) if len(tensor) > 1 else 1
        return torch.randn(tensor.shape, generator=self.rng, dtype=tensor.dtype).mul(self.scale / fan_in**0.5)

    def output(self, state: Mapping[str, Tensor]) -> Tensor:
        """All outputs as one vector."""
        self.network.train().eval()  # drops what some networks cache in evaluation mode: biases derived from weights
        with _InDouble():
            outputs = torch.func.functional_call(self.network, dict(state), (self.example,))
        return torch.cat([leaf.flatten() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)])

    def change(self, state: Mapping[str, Tensor]) -> float:
        """The relative error of the output with other weights."""
        with torch.no_grad():
            return float((self.output(state) - self.reference).norm() / self.reference.norm())

    def is_idle(self, part: Part) -> bool:
        """Whether the output does not depend on these entries of a tensor, such as the keys' bias before a softmax."""
        moved = self.generic[part.tensor].movedim(part.axis, 0)[torch.from_numpy(part.places)]
        if moved.abs().max() > 1e-10 * self.largest:
            return False
        changed = self.state[part.tensor].clone()
        changed.movedim(part.axis, 0)[torch.from_numpy(part.places)] += torch.rand(moved.shape, generator=self.rng)
        return self.change({**self.state, part.tensor: changed}) < 1e-12

    def keeps(self, moves: Sequence[Move]) -> bool:
        """Whether exchanging some positions changes weights but not the output."""
        other = exchanged(self.state, moves)
        moved = any(not torch.equal(other[part.tensor], self.state[part.tensor]) for part, _, _ in moves)
        return moved and self.change(other) < EQUAL

    def gradients(self, state: Mapping[str, Tensor]) -> tuple[State, dict[str, float]]:
        """The gradient of every floating tensor, and how far rounding may have changed it."""
        exact = self.gradients_once(state)
        jittered = {}
        for name, value in state.items():
            noise = torch.randn(value.shape, generator=self.rng, dtype=torch.float64) * JITTER
            jittered[name] = value * (1 + noise) if value.is_floating_point() else value
        other = self.gradients_once(jittered)
        return exact, {name: float((exact[name] - other[name]).abs().max()) for name in exact}

    def gradients_once(self, state: Mapping[str, Tensor]) -> State:
        leaves = {
            name: value.detach().clone().requires_grad_() if value.is_floating_point() else value
            for name, value in state.items()
        }
        floating = {name: value for name, value in leaves.items() if value.requires_grad and value.numel()}
        value = self.output(leaves) @ self.direction
        found = torch.autograd.grad(value, list(floating.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(floating, found, strict=True))


def tolerance(gradient: State, rounding: Mapping[str, float], tensor: str) -> float:
    """How far two slices of a gradient may differ and still count as equal."""
    return max(DIFFERENT * float(gradient[tensor].abs().max()), 30 * rounding[tensor])


class Probes(Sequence[Probe]):
    """Random points, made when they are asked for."""

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        self._make = cache(partial(Probe, module, example))

    def __len__(self) -> int:
        return PROBES

    def __getitem__(self, seed: int) -> Probe:
        if not 0 <= seed < PROBES:
            raise IndexError(seed)
        return self._make(seed)

    def agree_that_idle(self, part: Part) -> bool:
        return self[0].is_idle(part) and self[1].is_idle(part)
