"""The star domain: a star, its aligned sources, and the straight lines between them.

Every point on these lines is a model of the task, so that their predictions can be averaged: Bayesian model averaging
(BMA) over the star domain. Points are drawn from the part of the lines that the star's evaluation chose on validation
images. Where it chose none they come from the half near the star, since the path's residual barrier lies beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from starzoo.config import Uniform
from starzoo.data.task import ImageTask
from starzoo.errors import NumericalError, UsageError
from starzoo.evaluate.domain_average import NEAR_STAR, Point, draw_points
from starzoo.models.batch_norm import has_batch_norm, reestimate_batch_norm
from starzoo.models.class_order import reorder_classes
from starzoo.models.compatibility import check_compatible
from starzoo.models.memory_format import as_channels_last, channels_last
from starzoo.models.weights import StateDict, interpolate
from starzoo.parallel import default_device
from starzoo.progress import Progress, no_progress
from starzoo.star.inputs import load_models
from starzoo.star.join import JoinResult, join, star_as_source
from starzoo.star.manifest import StarManifest
from starzoo.symmetry import Permutation

__all__ = ["NEAR_STAR", "Point", "StarDomain", "probabilities"]

_BATCH = 64  # images


class StarDomain:
    """A star and its aligned sources, as `Star.domain` makes it; what it is made of are its attributes too.

    Args:
        manifest: What stands in the star's star.json.
        star: The star's state dict.
        sources: State dicts of the sources, aligned to the star, by name.
    """

    def __init__(self, manifest: StarManifest, star: StateDict, sources: Mapping[str, StateDict]) -> None:
        self.manifest, self.star, self.sources = manifest, star, sources
        self._statistics: Callable[[], Iterable[Tensor]] | None = None

    @classmethod
    def load(
        cls,
        manifest: StarManifest,
        star: StateDict,
        permutations: Mapping[str, StateDict],
        refs: Sequence[str | Path],
        *,
        progress: Progress = no_progress,
    ) -> Self:
        """Load the sources of a star, check that they are the very files it was fitted on, and align them.

        Args:
            manifest: What stands in the star's star.json.
            star: The star's state dict.
            permutations: For every source, by name, one index vector per group that brings it to the star.
            refs: Where the sources are, one reference per source.
            progress: Told after every source.

        Returns:
            The domain.
        """
        members = load_models(manifest.sources, refs, progress=progress)
        check_compatible([star_as_source(manifest, star), *members])
        members = reorder_classes(members, manifest.architecture.label_names)  # as when the star was fitted
        aligned = {
            member.name: Permutation.from_tensors(
                manifest.architecture.spec, permutations[member.name], subject=member.name
            ).apply(member.state)
            for member in members
        }
        return cls(manifest, star, aligned)

    @property
    def t(self) -> Uniform:
        """Where on the lines points are drawn: as the star's evaluation chose, or near the star."""
        evaluation = self.manifest.evaluation
        return evaluation.domain.t if evaluation and evaluation.domain else NEAR_STAR

    @cached_property
    def needs_images(self) -> bool:
        """Whether points between the ends need `calibrate`: the network has batch-norm statistics."""
        return has_batch_norm(self._network)

    def calibrate(self, images: ImageTask | Tensor | Iterable[Tensor]) -> None:
        """Give the training images on which batch-norm statistics are estimated anew, at every point by itself.

        Args:
            images: The task, of which the images of the star's evaluation serve; or training images, preprocessed and
                augmented as in the star's training, of shape (batch, channels, height, width), in one batch or several.

        Raises:
            UsageError: There is no image.
        """
        if isinstance(images, ImageTask):
            self._statistics = partial(images.statistics_images, self.manifest.config.evaluate)
            return
        batches = [images] if isinstance(images, Tensor) else list(images)
        if not sum(map(len, batches)):
            raise UsageError("", "no image to estimate batch-norm statistics on", hint="give training images")
        self._statistics = lambda: batches

    def interpolate(self, name: str, t: float) -> dict[str, Tensor]:
        """The model at a point of the domain.

        Args:
            name: The source.
            t: Place on the line: 0 at the star, 1 at the source, which have the statistics of their own unless those of
                the source are broken.

        Returns:
            (1 − t)·star + t·source, with batch-norm statistics estimated on the images of `calibrate`.

        Raises:
            UsageError: There is no such source or place, or `calibrate` was not called where it is needed.
        """
        if name not in self.sources:
            known = ", ".join(self.sources)
            raise UsageError(name, "no source of this star", hint=f"there are {known}")
        if not 0 <= t <= 1:
            raise UsageError("t", f"expected a number from 0 to 1, got {t}")
        state = interpolate(self.star, self.sources[name], t)
        broken = any(source.estimated for source in self.manifest.sources if source.name == name)
        if t == 0 or (t == 1 and not broken) or not self.needs_images:
            return state
        self._network.load_state_dict(state)
        reestimate_batch_norm(self._network, map(self._place, self._training_images()))
        return {key: tensor.to("cpu", copy=True) for key, tensor in self._network.state_dict().items()}

    def sample(self, samples: int, seed: int | np.random.Generator = 0, *, t: Uniform | None = None) -> list[Point]:
        """Draw points of the domain: a source, each as likely as any other, and a place on its line.

        Args:
            samples: How many.
            seed: Draws them; a seed's first points are the same for any number of samples.
            t: Where on the line, uniformly; `StarDomain.t` when not given.

        Returns:
            The points.

        Raises:
            UsageError: There is no point to draw.
        """
        if samples < 1:
            raise UsageError("samples", f"expected one or more, got {samples}")
        return draw_points(list(self.sources), samples, seed, t or self.t)

    def predict_each(
        self,
        images: Tensor,
        samples: int = 8,
        seed: int | np.random.Generator = 0,
        *,
        t: Uniform | None = None,
        progress: Progress = no_progress,
    ) -> Tensor:
        """What each of some points of the domain says.

        Args:
            images: As the star takes them, shape (batch, channels, height, width).
            samples: How many points are drawn.
            seed: Draws them.
            t: Where on the lines; `StarDomain.t` when not given.
            progress: Told after every point.

        Returns:
            Probabilities, shape (samples, batch, classes), on the CPU.
        """
        members = []
        for name, place in self.sample(samples, seed, t=t):
            self._network.load_state_dict(self.interpolate(name, place))
            members.append(probabilities(self._network, images))
            progress("averaging models", len(members), samples)
        return torch.stack(members)

    def predict(
        self,
        images: Tensor,
        samples: int = 8,
        seed: int | np.random.Generator = 0,
        *,
        t: Uniform | None = None,
    ) -> Tensor:
        """Bayesian model averaging over the star domain: the mean probability of some of its points.

        Args:
            images: As the star takes them, shape (batch, channels, height, width).
            samples: How many points are drawn: as many forward passes.
            seed: Draws them.
            t: Where on the lines; `StarDomain.t` when not given.

        Returns:
            Probabilities, shape (batch, classes), on the CPU; each row sums to 1.
        """
        return self.predict_each(images, samples, seed, t=t).mean(dim=0)

    def join(self, ref: str | Path, data: ImageTask, *, progress: Progress = no_progress) -> JoinResult:
        """Align a model that the star never saw to it, and measure the path between the two.

        Args:
            ref: The model: `user/repo[@revision]`, or a folder.
            data: The task's images.
            progress: Told about every stage.

        Returns:
            The aligned model with its paths.
        """
        return join(self.manifest, self.star, ref, data, progress=progress)

    @cached_property
    def _network(self) -> nn.Module:
        network = self.manifest.architecture.build().requires_grad_(False)
        return channels_last(network.to(default_device()))

    def _place(self, images: Tensor) -> Tensor:
        return as_channels_last(images.to(next(self._network.parameters()).device))

    def _training_images(self) -> Iterable[Tensor]:
        if self._statistics is None:
            raise UsageError(
                self.manifest.name,
                "the network has batch-norm statistics, which must be estimated anew at every "
                "point of the star domain, and there are no images",
                hint="give training images: domain.calibrate(images), or --dataset on the command line",
            )
        return self._statistics()


def probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """What a network says about some images."""
    device = next(network.parameters()).device
    network.eval()  # which drops what some networks cache of the weights before
    parts = (as_channels_last(part.to(device)) for part in torch.split(images, _BATCH))
    with torch.inference_mode():
        logits = torch.cat([network(part).float().cpu() for part in parts])
    if not torch.isfinite(logits).all():
        raise NumericalError("", "the predictions are not finite", hint="check the weights with `starzoo verify`")
    return logits.softmax(dim=1)
