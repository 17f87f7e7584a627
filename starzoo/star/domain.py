"""The star domain: a star, its aligned sources, and the straight lines between them.

Every point on these lines is a model of the task, so that their predictions can be averaged: Bayesian model averaging
(BMA) over the star domain. Points are drawn from the range of t that the star's evaluation chose on validation images.
Without one they come from the half near the star, since the path's residual barrier lies beyond.
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
from starzoo.models.memory_format import as_channels_last, channels_last
from starzoo.models.weights import StateDict, interpolate
from starzoo.parallel import default_device
from starzoo.progress import Progress, no_progress
from starzoo.star.inputs import match_to_star, reload_models
from starzoo.star.join import JoinResult, join
from starzoo.star.run.local_paths import resolve_records
from starzoo.star.star import Star

__all__ = ["NEAR_STAR", "Point", "StarDomain", "predict_probabilities"]

_BATCH = 64  # images


class StarDomain:
    """A star and its aligned sources, as `Star.domain` makes it.

    Args:
        star: The star.
        sources: State dicts of its sources, aligned to it, by name.
    """

    def __init__(self, star: Star, sources: Mapping[str, StateDict]) -> None:
        self.star, self.sources = star, sources
        self._batch_norm_images: Callable[[], Iterable[Tensor]] | None = None

    @classmethod
    def load(cls, star: Star, folders: Sequence[str | Path] | None = None, *, progress: Progress = no_progress) -> Self:
        """Load, check and align the sources of a star, as `Star.domain` does."""
        records = star.manifest.sources
        refs = resolve_records(records, star.local_paths.sources) if folders is None else folders
        if len(refs) != len(records):
            raise UsageError(
                star.manifest.name,
                f"has {len(records)} sources, and {len(refs)} folders are given",
                hint=f"give one for each of {', '.join(record.name for record in records)}",
            )
        sources = match_to_star(star, reload_models(star, records, refs, progress=progress))
        return cls(star, {source.name: star.permutation(source.name).apply(source.state) for source in sources})

    @property
    def t_range(self) -> Uniform:
        """Where on the lines points are drawn: as the star's evaluation chose, or near the star."""
        evaluation = self.star.manifest.evaluation
        return evaluation.domain.t if evaluation and evaluation.domain else NEAR_STAR

    @cached_property
    def needs_images(self) -> bool:
        """Whether points between the ends need `set_batch_norm_images`: the network has batch-norm statistics."""
        return has_batch_norm(self._network)

    def set_batch_norm_images(self, images: ImageTask | Tensor | Iterable[Tensor]) -> None:
        """Set the training images on which batch-norm statistics are re-estimated at every point.

        Args:
            images: The task, of which the images of the star's evaluation serve; or training images, preprocessed and
                augmented as in the star's training, of shape (batch, channels, height, width), in one batch or several.

        Raises:
            UsageError: There is no image.
        """
        if isinstance(images, ImageTask):
            self._batch_norm_images = partial(images.batch_norm_images, self.star.manifest.config.evaluate)
            return
        batches = [images] if isinstance(images, Tensor) else list(images)
        if not sum(map(len, batches)):
            raise UsageError("", "no image to estimate batch-norm statistics on", hint="give training images")
        self._batch_norm_images = lambda: batches

    def interpolate(self, name: str, t: float) -> dict[str, Tensor]:
        """The model at a point of the domain.

        Args:
            name: The source.
            t: Position on the line: 0 at the star, 1 at the source, which keep their own batch-norm statistics unless
                those of the source are broken.

        Returns:
            (1 − t)·star + t·source, with batch-norm statistics estimated on the images of `set_batch_norm_images`.

        Raises:
            UsageError: The star has no such source, t is out of range, or there are no images where they are needed.
        """
        if name not in self.sources:
            raise UsageError(name, "no source of this star", hint=f"there are {', '.join(self.sources)}")
        if not 0 <= t <= 1:
            raise UsageError("t", f"expected a number from 0 to 1, got {t}")
        state = interpolate(self.star.state, self.sources[name], t)
        broken = any(source.estimated for source in self.star.manifest.sources if source.name == name)
        if t == 0 or (t == 1 and not broken) or not self.needs_images:
            return state
        self._network.load_state_dict(state)
        reestimate_batch_norm(self._network, map(self._to_device, self._training_images()))
        return {key: tensor.to("cpu", copy=True) for key, tensor in self._network.state_dict().items()}

    def sample(self, samples: int, seed: int | np.random.Generator = 0, *, t: Uniform | None = None) -> list[Point]:
        """Draw points of the domain: a source, each with equal probability, and a position on its line.

        Args:
            samples: Number of points.
            seed: Draws them; a seed's first points are the same for any number of samples.
            t: The range of positions, drawn uniformly; `t_range` when not given.

        Returns:
            The points.

        Raises:
            UsageError: There is no point to draw.
        """
        if samples < 1:
            raise UsageError("samples", f"expected one or more, got {samples}")
        return draw_points(list(self.sources), samples, seed, t or self.t_range)

    def predict_each(
        self,
        images: Tensor,
        samples: int = 8,
        seed: int | np.random.Generator = 0,
        *,
        t: Uniform | None = None,
        progress: Progress = no_progress,
    ) -> Tensor:
        """The predictions of each of several points of the domain.

        Args:
            images: As the star takes them, shape (batch, channels, height, width).
            samples: Number of points.
            seed: Draws them.
            t: The range of positions; `t_range` when not given.
            progress: Told after every point.

        Returns:
            Probabilities, shape (samples, batch, classes), on the CPU.
        """
        predictions = []
        for point in self.sample(samples, seed, t=t):
            self._network.load_state_dict(self.interpolate(point.source, point.t))
            predictions.append(predict_probabilities(self._network, images))
            progress("averaging models", len(predictions), samples)
        return torch.stack(predictions)

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
            samples: Number of points, each with a forward pass.
            seed: Draws them.
            t: The range of positions; `t_range` when not given.

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
        return join(self.star, ref, data, progress=progress)

    @cached_property
    def _network(self) -> nn.Module:
        network = self.star.manifest.architecture.build().requires_grad_(False)
        return channels_last(network.to(default_device()))

    def _to_device(self, images: Tensor) -> Tensor:
        return as_channels_last(images.to(next(self._network.parameters()).device))

    def _training_images(self) -> Iterable[Tensor]:
        if self._batch_norm_images is None:
            raise UsageError(
                self.star.manifest.name,
                "the network has batch-norm statistics, which must be re-estimated at every point of the star domain, "
                "and there are no images",
                hint="give training images: domain.set_batch_norm_images(images), or --dataset on the command line",
            )
        return self._batch_norm_images()


def predict_probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """Return the probabilities that a network predicts, shape (images, classes), on the CPU."""
    device = next(network.parameters()).device
    network.eval()  # which drops what some networks cache of earlier weights
    parts = (as_channels_last(part.to(device)) for part in torch.split(images, _BATCH))
    with torch.inference_mode():
        logits = torch.cat([network(part).float().cpu() for part in parts])
    if not torch.isfinite(logits).all():
        raise NumericalError("", "the predictions are not finite", hint="check the weights with `starzoo verify`")
    return logits.softmax(dim=1)
