"""Channel activations, and gradients with respect to them, as tensors that permute with the weights.

Two channels match if they respond to the same images in the same way (activation matching: Li et al. 2016, Ainsworth et
al. 2023, section 3.1). Every module whose output is moved by some group is recorded. Its output, for a sample of images
and positions, is one more tensor of the model. The rows of that tensor are the channels, each with mean 0 and norm 1:
the product of two rows is their correlation, and no module counts more because its activations are large.

Activations show what a channel makes of the input. The gradient of the logits with respect to an activation shows what
the network makes of the channel. With gradients, it is a tensor of the model too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from starzoo.align.probe import Probe
from starzoo.errors import IncompatibleError
from starzoo.models.weights import StateDict
from starzoo.symmetry import PermutationSpec, infer_activations
from starzoo.symmetry.terms import Pinned, Term, groups_of

__all__ = ["ActivationFeatures", "max_feature_elements"]

_SAMPLE = 4000  # images and positions in all; all of them, a hundred times as many, leave the same barriers
_MAX_PER_MODEL = 250_000_000  # elements of one model: a gigabyte, in which a ViT-B has a sample of a thousand
_MAX_TOTAL = 1_000_000_000  # elements of all models in memory at once
_MIN_RELATIVE_NORM = 1e-4  # share of the greatest norm below which a row is largely rounding: nothing depends on it
_MIN_RELATIVE_VARIANCE = 1e-5  # share of a row's mean square below which its variance is only rounding


@dataclass(frozen=True)
class _RecordedModule:
    """A module, the axes of its output that groups move, and how many columns each batch of images adds."""

    module: str
    axes: tuple[int, ...]
    terms: tuple[Term, ...]
    columns: int

    def rows(self, activation: Tensor, rng: np.random.Generator) -> Tensor:
        """Sample columns of an activation, the same ones for every model; the shape is (channels…, columns)."""
        channels_first = activation.movedim(self.axes, tuple(range(len(self.axes))))
        flat = channels_first.unsqueeze(-1).flatten(len(self.axes))  # the output may have no other axis
        available = flat.shape[-1]
        if available <= self.columns:
            sample = np.arange(self.columns) % available
        else:
            sample = rng.choice(available, self.columns, replace=False)
        return flat[..., torch.from_numpy(sample).to(flat.device)]


def max_feature_elements(models: int) -> int:
    """How large the activations of one model may be.

    Args:
        models: How many models share the memory.

    Returns:
        A bound on the number of elements, gradients included.
    """
    return min(_MAX_PER_MODEL, _MAX_TOTAL // models)


class ActivationFeatures:
    """Extracts the activations of models.

    Args:
        spec: The symmetries of the architecture.
        probe: Runs the models.
        gradients: Whether gradients with respect to the activations are extracted as well.
        models: How many models' activations are in memory at once.

    Attributes:
        axes: One term for each axis of each tensor that `extract` returns, as in `PermutationSpec.axes`.

    Raises:
        IncompatibleError: The probe's network has other symmetries.
    """

    def __init__(self, spec: PermutationSpec, probe: Probe, *, gradients: bool, models: int = 1) -> None:
        activations = infer_activations(probe.network, probe.images[0])
        if dict(activations.groups) != dict(spec.groups):
            raise IncompatibleError(
                "probe", "its network has other symmetries than the models", hint="use one architecture for both"
            )
        self.probe, self.gradients = probe, gradients
        max_elements = max_feature_elements(models) // (1 + gradients)
        self._recorded = list(_find_recorded(activations, probe, max_elements=max_elements))
        self.axes: dict[str, tuple[Term, ...]] = {
            name: (*recorded.terms, Pinned(recorded.columns * len(probe.images), "images"))
            for recorded in self._recorded
            for name in self._names(recorded)
        }

    def extract(self, state: StateDict) -> dict[str, Tensor]:
        """Extract the activations of one model.

        Args:
            state: Its state dict.

        Returns:
            For every recorded module a tensor of shape (channels, columns), or (channels, channels, columns) where
            groups move two axes of its output; with gradients a second one.
        """
        modules = {recorded.module for recorded in self._recorded}
        batches: dict[str, list[Tensor]] = {name: [] for name in self.axes}
        for seed, images in enumerate(self.probe.images):
            activations = self.probe.activations(state, images, modules, gradients=self.gradients)
            for recorded in self._recorded:
                for name, activation in zip(self._names(recorded), activations[recorded.module], strict=True):
                    batches[name].append(recorded.rows(activation, np.random.default_rng(seed)))
        return {name: _standardize(torch.cat(columns, dim=-1)) for name, columns in batches.items()}

    def _names(self, recorded: _RecordedModule) -> tuple[str, ...]:
        return (f"{recorded.module}()", f"∂/∂{recorded.module}()")[: 1 + self.gradients]


def _find_recorded(activations: PermutationSpec, probe: Probe, *, max_elements: int) -> Iterator[_RecordedModule]:
    own = probe.activations(probe.network.state_dict(), probe.images[0], activations.axes, gradients=False)
    shapes = {name: output.shape for name, (output,) in own.items() if output.is_floating_point()}  # no masks
    candidates = []
    for module, terms in activations.axes.items():
        if module not in shapes:
            continue
        axes = tuple(axis for axis, term in enumerate(terms) if any(groups_of(term)))
        sizes = [terms[axis].size for axis in axes]
        # An axis that the network merges with the batch was shorter when it was traced.
        fits = [shapes[module][axis] for axis in axes] == sizes
        # A batch norm scales and shifts its input channel by channel: it would say the same once more.
        is_small = math.prod(sizes) * len(probe.images) <= max_elements // 20  # one column of each batch
        if axes and fits and is_small and not isinstance(probe.network.get_submodule(module), _BatchNorm):
            candidates.append((module, axes, tuple(terms[axis] for axis in axes), sizes))
    sample = min(_SAMPLE, max_elements // max(1, sum(sizes[0] for *_, sizes in candidates)))
    for module, axes, moving, sizes in candidates:
        yield _RecordedModule(module, axes, moving, max(1, sample // len(probe.images) // math.prod(sizes[1:])))


def _standardize(rows: Tensor) -> Tensor:
    """Mean 0 and norm 1 along the last axis; 0 where all is constant, or rounding beside the other rows."""
    centered = rows - rows.mean(dim=-1, keepdim=True)
    norms = centered.norm(dim=-1, keepdim=True)
    varies = norms > math.sqrt(_MIN_RELATIVE_VARIANCE) * rows.norm(dim=-1, keepdim=True)
    responds = norms > _MIN_RELATIVE_NORM * norms.max()  # of all rows, so that their order does not matter
    return torch.where(varies & responds, centered / norms, 0)
