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
MAX_CONTROLS, MAX_DRAWS = 4, 3
EXACT, ROUNDED = 1e-9, 1e-6  # the largest relative errors of networks that compute in float64, and in part in float32


@dataclass(frozen=True)
class Verification:
    """The result of permuting a network at random.

    Attributes:
        relative_error: ‖f(permuted) − f‖ / ‖f‖ over all outputs, with one random permutation of all groups at once.
        weights_changed: Whether the permutation moved any weight.
        negative_control_passed: The number of axes of which each, permuted alone in one tensor, changed the output.
        negative_control_tried: The number of such axes that were tried.
        tolerance: The largest relative error that counts as equal.
        rounded_in: The names of the modules that round float64 to float32.
        failing_groups: Groups that change the output; empty if the verification passed.
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
        """Whether the outputs stayed, weights changed, and every negative control changed the outputs."""
        controls_passed = self.negative_control_passed == self.negative_control_tried > 0
        return self.relative_error <= self.tolerance and self.weights_changed and controls_passed


def verify(
    module: nn.Module, example_input: Tensor, spec: PermutationSpec, *, seed: int = 0, tolerance: float | None = None
) -> Verification:
    """Permute all groups of a network at random and check that its output stays, or is permuted as it should be.

    All computation is in float64 on the CPU, with random weights, statistics and layer scales. The network's own values
    may hide a fault, because zeros and ones are symmetric. Every evaluation uses a copy that never ran, because some
    networks cache what they derive from their weights.

    Args:
        module: The network; it is not changed.
        example_input: Its input, shape (batch, ...); floating-point numbers are replaced by random ones.
        spec: The symmetries to check.
        seed: Seed of weights, input and permutations.
        tolerance: The largest relative error that counts as equal. When not given, 1e-9, or 1e-6 where a module rounds
            to float32.

    Returns:
        The result, with the failing groups if the output changed.

    Raises:
        IncompatibleError: The module has no values, because it is on the meta device.
    """
    if any(tensor.is_meta for tensor in module.state_dict().values()):
        raise IncompatibleError(
            type(module).__name__, "cannot run a network on the meta device", hint="build it on the CPU"
        )
    generator = torch.Generator().manual_seed(seed)
    experiment = _Experiment(module, example_input, generator)
    if tolerance is None:
        tolerance = ROUNDED if experiment.rounded_in else EXACT
    rng = np.random.default_rng(seed)
    permutation, identity = _nontrivial(spec, rng), Permutation.identity(spec)
    permuted = permutation.apply(experiment.state)
    error = experiment.error(permuted, permutation)

    def changes_output(name: str, axis: int) -> bool:
        for draw in range(MAX_DRAWS):  # with one set of weights, the units that read the axis may happen to be dead
            run = _Experiment(module, example_input, generator) if draw else experiment
            if run.error(_permute_alone(spec, run.state, name, axis, rng), identity) > 10 * tolerance:
                return True
        return False

    controls = [changes_output(name, axis) for name, axis in _controls(spec, rng)]

    def breaks(groups: Sequence[str]) -> bool:
        partial = Permutation(spec, {**identity.indices, **{name: permutation.indices[name] for name in groups}})
        return experiment.error(partial.apply(experiment.state), partial) > tolerance

    return Verification(
        relative_error=error,
        weights_changed=any(not torch.equal(permuted[name], value) for name, value in experiment.state.items()),
        negative_control_passed=sum(controls),
        negative_control_tried=len(controls),
        tolerance=tolerance,
        rounded_in=experiment.rounded_in,
        failing_groups=tuple(bisect_failing(list(spec.groups), breaks)) if error > tolerance else (),
    )


def _nontrivial(spec: PermutationSpec, rng: np.random.Generator) -> Permutation:
    """A random permutation in which every group moves, and wreath groups not alike in all blocks: it tests more."""
    permutation, identity = Permutation.random(spec, rng), Permutation.identity(spec).indices

    def is_trivial(name: str) -> bool:
        index = permutation.indices[name]
        return np.array_equal(index, identity[name]) or bool(index.ndim == 2 and (index == index[0]).all())

    while trivial := list(filter(is_trivial, permutation.indices)):
        redrawn = Permutation.random(spec, rng)
        permutation = Permutation(spec, {**permutation.indices, **{name: redrawn.indices[name] for name in trivial}})
    return permutation


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
        """A copy that never ran, with the given tensors themselves."""
        fresh = copy.deepcopy(self.base)
        fresh.load_state_dict(state, assign=True)
        return fresh

    def _calibrate(self, rng: torch.Generator) -> None:
        """Give batch norms the statistics of their inputs: signals that grow from layer to layer hide all others."""
        fresh = self.fresh(self.state)  # shares the tensors of the state, and writes into them
        norms = [module for module in fresh.modules() if isinstance(module, BatchNorm)]
        for module in norms:
            module.train().momentum = 1.0
        if norms and self.example.is_floating_point():
            more = torch.randn(3 * len(self.example), *self.example.shape[1:], generator=rng, dtype=torch.float64)
            with torch.no_grad():
                fresh(torch.cat([self.example, more]))
        for variance in (module.running_var for module in norms if module.running_var is not None):
            variance.clamp_min_(0.1 * float(variance.mean()))  # a channel that hardly varies here may vary elsewhere

    def run(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs of a fresh copy with the given weights."""
        with torch.no_grad():
            outputs = self.fresh(state)(self.example)
        return [leaf.double() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]

    def error(self, state: Mapping[str, Tensor], permutation: Permutation) -> float:
        """The relative distance of the outputs with the given weights from the permuted original outputs."""
        expected = _flat(permutation.apply_to_outputs(self.outputs))
        output = _flat(self.run(state))
        if not (output.isfinite().all() and expected.isfinite().all()):
            return float("inf")
        return float((output - expected).norm() / expected.norm().clamp_min(torch.finfo(torch.float64).tiny))


class _Float32Detector(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the modules that convert float64 to a lower precision."""

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
        is_lower = isinstance(result, Tensor) and result.is_floating_point() and result.dtype != torch.float64
        if is_lower and any(isinstance(argument, Tensor) and argument.dtype == torch.float64 for argument in args):
            inside = self._tracker.parents - {"Global"}
            self.modules[max(inside, key=len, default="the network")] = None  # the longest name is the innermost
        return result


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _without_weights(tensor: Tensor) -> Tensor:
    """A parameter gets a random value in every experiment; buffers keep their own."""
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
            # A single number that nothing trains is not a weight, for example a limit at which signals are clipped.
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
    """Weights and their axes, each to be permuted alone, which has to change the output.

    Vectors are left out: some have no influence, for example the bias of the keys before a softmax.

    Args:
        spec: The symmetries.
        rng: The source of randomness.

    Returns:
        Up to `MAX_CONTROLS` pairs of a tensor's name and an axis.
    """
    axes = [
        (name, axis)
        for name, terms in spec.axes.items()
        for axis, term in enumerate(terms)
        if len(terms) >= 2 and any(groups_of(term))
    ]
    return [axes[number] for number in rng.permutation(len(axes))[:MAX_CONTROLS]]


def _permute_alone(spec: PermutationSpec, state: State, name: str, axis: int, rng: np.random.Generator) -> State:
    index = identity = np.arange(state[name].shape[axis])
    while np.array_equal(index, identity):
        index = Permutation.random(spec, rng).index(spec.axes[name][axis])
    permuted = state[name].index_select(axis, torch.from_numpy(index))
    return {other: permuted if value is state[name] else value for other, value in state.items()}  # tied names follow


def bisect_failing(groups: Sequence[str], breaks: Callable[[Sequence[str]], bool]) -> list[str]:
    """Halve a set of groups that breaks the network, as long as a half still breaks it.

    Args:
        groups: Groups that break the network together.
        breaks: Whether some groups break it.

    Returns:
        The groups of the smallest sets that break it.
    """
    if len(groups) == 1:
        return list(groups)
    halves = groups[: len(groups) // 2], groups[len(groups) // 2 :]
    failing_groups = [name for half in halves if breaks(half) for name in bisect_failing(half, breaks)]
    return failing_groups or list(groups)
