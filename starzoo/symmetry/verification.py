"""Verify a specification: permute everything at random and compare the outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker

from starzoo.errors import IncompatibleError
from starzoo.symmetry.permutation import Permutation
from starzoo.symmetry.spec import PermutationSpec
from starzoo.symmetry.terms import groups_of
from starzoo.symmetry.trace import copy_module

__all__ = ["Verification", "bisect_failing", "verify"]

State = dict[str, Tensor]
CONTROLS, DRAWS = 4, 3
EXACT, ROUNDED = 1e-9, 1e-6  # the largest relative errors of networks that compute in float64, and in part in float32


@dataclass(frozen=True)
class Verification:
    """What permuting a network at random showed.

    Attributes:
        relative_error: ‖f(permuted) − f‖ / ‖f‖ over all outputs, with one random element of all groups at once.
        weights_changed: Whether the permutation moved any weight.
        negative_control_passed: How many times permuting one axis of one tensor alone changed the output.
        negative_control_tried: How many such axes were tried.
        tolerance: The largest relative error that counts as equal.
        rounded_in: The modules that round to float32 whatever they are given, by name.
        failing_groups: Groups that change the output; empty where all is well.
    """

    relative_error: float
    weights_changed: bool
    negative_control_passed: int
    negative_control_tried: int
    tolerance: float = EXACT
    rounded_in: tuple[str, ...] = ()
    failing_groups: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether outputs stayed, weights changed, and every negative control was noticed."""
        noticed = self.negative_control_passed == self.negative_control_tried > 0
        return self.relative_error <= self.tolerance and self.weights_changed and noticed


def verify(
    module: nn.Module, example_input: Tensor, spec: PermutationSpec, *, seed: int = 0, tolerance: float | None = None
) -> Verification:
    """Permute all groups of a network at random and look whether its output stays, or moves as it should.

    All computation is in float64 on the CPU, with random weights, statistics and layer scales instead of the network's
    own, which may hide a fault (zeros and ones are symmetric). Every evaluation uses a copy that never ran: some
    networks cache what they derive from weights.

    Args:
        module: The network; it is not changed.
        example_input: What it is called with, shape (batch, ...); floating numbers are replaced by random ones.
        spec: The symmetries to check.
        seed: Seed of weights, input and permutations.
        tolerance: The largest relative error that counts as equal. When not given, 1e-9, or 1e-6 where a module rounds
            to float32 on its own.

    Returns:
        What was found, with the guilty groups if the output changed.

    Raises:
        IncompatibleError: The module has no values, because it is on the meta device.
    """
    if any(tensor.is_meta for tensor in module.state_dict().values()):
        raise IncompatibleError(
            type(module).__name__, "a network on the meta device cannot be run", hint="build it on the CPU"
        )
    generator = torch.Generator().manual_seed(seed)
    experiment = _Experiment(module, example_input, generator)
    if tolerance is None:
        tolerance = ROUNDED if experiment.rounded_in else EXACT
    rng = np.random.default_rng(seed)
    element, still = _moving_element(spec, rng), Permutation.identity(spec)
    permuted = element.apply(experiment.state)
    error = experiment.error(permuted, element)

    def is_noticed(name: str, axis: int) -> bool:
        for draw in range(DRAWS):  # the units behind it may happen to be dead at one set of weights
            drawn = _Experiment(module, example_input, generator) if draw else experiment
            if drawn.error(_permute_alone(spec, drawn.state, name, axis, rng), still) > 10 * tolerance:
                return True
        return False

    controls = [is_noticed(name, axis) for name, axis in _controls(spec, rng)]

    def breaks(groups: Sequence[str]) -> bool:
        only = Permutation(spec, {**still.indices, **{name: element.indices[name] for name in groups}})
        return experiment.error(only.apply(experiment.state), only) > tolerance

    return Verification(
        relative_error=error,
        weights_changed=any(not torch.equal(permuted[name], value) for name, value in experiment.state.items()),
        negative_control_passed=sum(controls),
        negative_control_tried=len(controls),
        tolerance=tolerance,
        rounded_in=experiment.rounded_in,
        failing_groups=tuple(bisect_failing(list(still.indices), breaks)) if error > tolerance else (),
    )


def _moving_element(spec: PermutationSpec, rng: np.random.Generator) -> Permutation:
    """A random element in which every group moves, and wreath groups not alike in all blocks: else less is learnt."""
    element, still = Permutation.random(spec, rng), Permutation.identity(spec).indices

    def is_trivial(name: str) -> bool:
        index = element.indices[name]
        return np.array_equal(index, still[name]) or bool(index.ndim == 2 and (index == index[0]).all())

    while stuck := list(filter(is_trivial, element.indices)):
        again = Permutation.random(spec, rng)
        element = Permutation(spec, {**element.indices, **{name: again.indices[name] for name in stuck}})
    return element


class _Experiment:
    """A network in float64 with random weights, and its output on a random input."""

    def __init__(self, module: nn.Module, example_input: Tensor, rng: torch.Generator) -> None:
        self.base, _ = copy_module(module, _without_weights)
        self.state = _random_state(self.base, rng)
        self.example = _in_float64(example_input)
        if self.example.is_floating_point():
            self.example = torch.randn(self.example.shape, generator=rng, dtype=torch.float64)
        self._calibrate(rng)
        with _Float32Detector() as roundings:
            self.outputs = self.run(self.state)
        self.rounded_in = tuple(roundings.modules)

    def fresh(self, state: Mapping[str, Tensor]) -> nn.Module:
        """A copy that never ran, which holds the given tensors themselves."""
        fresh = copy.deepcopy(self.base)
        fresh.load_state_dict(state, assign=True)
        return fresh

    def _calibrate(self, rng: torch.Generator) -> None:
        """Give batch norms the statistics of what they see: signals that grow from layer to layer drown all others."""
        fresh = self.fresh(self.state)  # holds the tensors of the state, and writes into them
        norms = [module for module in fresh.modules() if isinstance(module, BatchNorm)]
        for module in norms:
            module.train().momentum = 1.0
        if norms and self.example.is_floating_point():
            others = torch.randn(3 * len(self.example), *self.example.shape[1:], generator=rng, dtype=torch.float64)
            with torch.no_grad():
                fresh(torch.cat([self.example, others]))
        for variance in (module.running_var for module in norms if module.running_var is not None):
            variance.clamp_min_(0.1 * float(variance.mean()))  # a channel that hardly varies here may do so elsewhere

    def run(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs of a fresh copy with the given weights."""
        with torch.no_grad():
            outputs = self.fresh(state)(self.example)
        return [leaf.double() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]

    def error(self, state: Mapping[str, Tensor], element: Permutation) -> float:
        """How far the outputs with the given weights are from the outputs before, moved as `element` says."""
        expected = _flat(element.apply_to_outputs(self.outputs))
        output = _flat(self.run(state))
        if not (output.isfinite().all() and expected.isfinite().all()):
            return float("inf")
        return float((output - expected).norm() / expected.norm().clamp_min(torch.finfo(torch.float64).tiny))


class _Float32Detector(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the modules that convert float64 to something coarser."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.modules: dict[str, None] = {}
        self._tracker = ModuleTracker()

    def __enter__(self) -> Self:
        self._tracker.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._tracker.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        coarser = isinstance(result, Tensor) and result.is_floating_point() and result.dtype != torch.float64
        if coarser and any(isinstance(each, Tensor) and each.dtype == torch.float64 for each in args):
            inside = self._tracker.parents - {"Global"}
            self.modules[max(inside, key=len, default="the network")] = None  # the longest name is the innermost
        return result


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _without_weights(tensor: Tensor) -> Tensor:
    """A parameter gets its value in every run; what is no parameter keeps its own."""
    if isinstance(tensor, nn.Parameter):
        return torch.empty(tensor.shape, dtype=torch.float64, device="meta")
    return _in_float64(tensor).clone()


def _in_float64(tensor: Tensor) -> Tensor:
    return tensor.cpu().double() if tensor.is_floating_point() else tensor.cpu()


def _random_state(module: nn.Module, rng: torch.Generator) -> State:
    """Matrices that keep signals of order one; vectors of ±(1/2 … 3/2), positive where they are statistics."""
    state: State = {}
    drawn: dict[int, Tensor] = {}  # by tensor: tied weights get one value
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in drawn:
            # A single number that nothing trains, such as a limit at which signals are cut, is no weight.
            keeps = not tensor.is_floating_point() or (tensor.ndim == 0 and not isinstance(tensor, nn.Parameter))
            drawn[id(tensor)] = tensor.detach() if keeps else _random_like(tensor, rng)
        state[name] = drawn[id(tensor)]
    return state


def _random_like(tensor: Tensor, rng: torch.Generator) -> Tensor:
    if tensor.ndim < 2:
        size = _uniform(tensor.shape, rng)
        sign = torch.randint(2, tensor.shape, generator=rng) * 2 - 1
        return size * sign if isinstance(tensor, nn.Parameter) else size
    fan_in = tensor.numel() // len(tensor) if len(tensor) > 1 else 1
    return torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype).div(fan_in**0.5)


def _uniform(shape: torch.Size, rng: torch.Generator) -> Tensor:
    """Numbers from 1/2 to 3/2."""
    return torch.rand(shape, generator=rng, dtype=torch.float64) + 0.5


def _controls(spec: PermutationSpec, rng: np.random.Generator) -> list[tuple[str, int]]:
    """Weights and their axes, each to be permuted alone: the output has to notice.

    Vectors are left out: some have no influence of their own, such as the bias of the keys before a softmax.

    Args:
        spec: The symmetries.
        rng: The source of randomness.

    Returns:
        Up to `CONTROLS` pairs of a tensor's name and an axis.
    """
    places = [
        (name, axis)
        for name, terms in spec.axes.items()
        for axis, term in enumerate(terms)
        if len(terms) >= 2 and any(groups_of(term))
    ]
    return [places[place] for place in rng.permutation(len(places))[:CONTROLS]]


def _permute_alone(spec: PermutationSpec, state: State, name: str, axis: int, rng: np.random.Generator) -> State:
    index = identity = np.arange(state[name].shape[axis])
    while np.array_equal(index, identity):
        index = Permutation.random(spec, rng).index(spec.axes[name][axis])
    permuted = state[name].index_select(axis, torch.from_numpy(index))
    return {other: permuted if value is state[name] else value for other, value in state.items()}  # tied names follow


def bisect_failing(groups: Sequence[str], breaks: Callable[[Sequence[str]], bool]) -> list[str]:
    """Halve a set of groups that breaks the network, as far as a half still does by itself.

    Args:
        groups: Groups that break the network together.
        breaks: Whether some groups break it.

    Returns:
        The groups of the smallest sets that were found.
    """
    if len(groups) == 1:
        return list(groups)
    halves = groups[: len(groups) // 2], groups[len(groups) // 2 :]
    failing_groups = [name for half in halves if breaks(half) for name in bisect_failing(half, breaks)]
    return failing_groups or list(groups)
