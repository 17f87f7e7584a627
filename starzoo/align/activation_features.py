"""Channel activations, and gradients with respect to them, as tensors that permute with the weights.

Two channels belong together if they respond to the same images in the same way (activation matching: Li et al. 2016,
Ainsworth et al. 2023). Every module whose result some group moves is a witness. What it returns, for a sample of images
and positions, is one more tensor of the model: its rows are the channels, each brought to mean 0 and norm 1, so that
the product of two rows is their correlation, and no witness counts more because its values are large.

A channel is known by what it makes of the input, and just as much by what the network makes of it. With gradients, the
output's gradient with respect to each result is a tensor of the model too.
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

__all__ = ["ActivationFeatures", "most_numbers"]

_SAMPLE = 4000  # images and positions in all; all of them, a hundred times as many, leave the same barriers
_MOST = 250_000_000  # numbers that are kept of one model: a gigabyte, in which a ViT-B has a sample of a thousand
_MOST_OF_ALL = 1_000_000_000  # and of all models that are kept at once
_FAINT = 1e-4  # share of the greatest norm below which a row is largely rounding: a channel of which nothing depends
_TRUST = 1e-5  # share of a row's mean square below which its variance is what rounding left


@dataclass(frozen=True)
class _Witness:
    """A module, the axes of its result that groups move, and how many columns each batch of images adds."""

    module: str
    axes: tuple[int, ...]
    terms: tuple[Term, ...]
    columns: int

    def rows(self, response: Tensor, rng: np.random.Generator) -> Tensor:
        """Some columns of a response, the same ones for every model: its shape is (channels…, columns)."""
        moved = response.movedim(self.axes, tuple(range(len(self.axes))))
        flat = moved.unsqueeze(-1).flatten(len(self.axes))  # the result may have no other axis
        found = flat.shape[-1]
        few = found <= self.columns
        chosen = np.arange(self.columns) % found if few else rng.choice(found, self.columns, replace=False)
        return flat[..., torch.from_numpy(chosen).to(flat.device)]


def most_numbers(models: int) -> int:
    """How much may be noted of one model.

    Args:
        models: How many are kept at once, which share the memory.

    Returns:
        A bound on the numbers of its responses, gradients included.
    """
    return min(_MOST, _MOST_OF_ALL // models)


class ActivationFeatures:
    """Runs models, and notes how their channels respond.

    Args:
        spec: The symmetries of the architecture.
        probe: Runs the models.
        gradients: Whether what the network makes of a channel is noted as well.
        models: How many models are kept at once.

    Attributes:
        axes: One term for each axis of each tensor that `of` returns, as in `PermutationSpec.axes`.

    Raises:
        IncompatibleError: The probe's network has other symmetries.
    """

    def __init__(self, spec: PermutationSpec, probe: Probe, *, gradients: bool, models: int = 1) -> None:
        activations = infer_activations(probe.network, probe.images[0])
        if dict(activations.groups) != dict(spec.groups):
            raise IncompatibleError(
                "", "the network that is run has other symmetries than the models", hint="use one architecture for both"
            )
        self.probe, self.gradients = probe, gradients
        self._witnesses = list(_find_witnesses(activations, probe, most=most_numbers(models) // (1 + gradients)))
        self.axes: dict[str, tuple[Term, ...]] = {
            name: (*witness.terms, Pinned(witness.columns * len(probe.images), "images"))
            for witness in self._witnesses
            for name in self._names(witness)
        }

    def of(self, state: StateDict) -> dict[str, Tensor]:
        """The responses of one model.

        Args:
            state: Its state dict.

        Returns:
            For every witness a tensor of shape (channels, columns), or (channels, channels, columns) where groups move
            two axes of its result; with gradients a second one.
        """
        modules = {witness.module for witness in self._witnesses}
        found: dict[str, list[Tensor]] = {name: [] for name in self.axes}
        for number, images in enumerate(self.probe.images):
            responses = self.probe.responses(state, images, modules, gradients=self.gradients)
            for witness in self._witnesses:
                for name, response in zip(self._names(witness), responses[witness.module], strict=True):
                    found[name].append(witness.rows(response, np.random.default_rng(number)))
        return {name: _standardise(torch.cat(pieces, dim=-1)) for name, pieces in found.items()}

    def _names(self, witness: _Witness) -> tuple[str, ...]:
        return (f"{witness.module}()", f"∂/∂{witness.module}()")[: 1 + self.gradients]


def _find_witnesses(activations: PermutationSpec, probe: Probe, *, most: int) -> Iterator[_Witness]:
    own = probe.responses(probe.network.state_dict(), probe.images[0], activations.axes, gradients=False)
    shapes = {name: response.shape for name, (response,) in own.items() if response.is_floating_point()}  # no masks
    found = []
    for module, terms in activations.axes.items():
        if module not in shapes:
            continue
        axes = tuple(axis for axis, term in enumerate(terms) if any(groups_of(term)))
        sizes = [terms[axis].size for axis in axes]
        # An axis that the network merges with the batch was shorter when it was traced.
        fits = [shapes[module][axis] for axis in axes] == sizes
        # A batch norm scales and shifts what it is given, channel by channel: it would say the same once more.
        is_small = math.prod(sizes) * len(probe.images) <= most // 20  # one column of each batch
        if axes and fits and is_small and not isinstance(probe.network.get_submodule(module), _BatchNorm):
            found.append((module, axes, tuple(terms[axis] for axis in axes), sizes))
    sample = min(_SAMPLE, most // max(1, sum(sizes[0] for *_, sizes in found)))
    for module, axes, moving, sizes in found:
        yield _Witness(module, axes, moving, max(1, sample // len(probe.images) // math.prod(sizes[1:])))


def _standardise(rows: Tensor) -> Tensor:
    """Mean 0 and norm 1 along the last axis; 0 where all is constant, or rounding beside what other rows say."""
    centered = rows - rows.mean(dim=-1, keepdim=True)
    norms = centered.norm(dim=-1, keepdim=True)
    varies = norms > math.sqrt(_TRUST) * rows.norm(dim=-1, keepdim=True)
    responds = norms > _FAINT * norms.max()  # the greatest of all rows, in whatever order they are
    return torch.where(varies & responds, centered / norms, 0)
