"""Classify images with a star, and join models to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starzoo.data.image_files import read_images
from starzoo.errors import UsageError
from starzoo.metrics import entropy, mutual_information
from starzoo.progress import Progress, no_progress
from starzoo.star.domain import predict_probabilities
from starzoo.star.inputs import reload_data
from starzoo.star.join import JoinResult, join
from starzoo.star.star import load_star

__all__ = ["ClassProbability", "Prediction", "join_star", "predict_images"]


@dataclass(frozen=True, kw_only=True)
class ClassProbability:
    """A class and its probability.

    Attributes:
        label: The name of the class, or its index where the star has no label names.
        index: Its index.
        probability: From 0 to 1.
    """

    label: str
    index: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction of a star, or of points of its domain, for one image.

    Attributes:
        file: The image.
        top_classes: The most probable classes, in descending order.
        entropy: The uncertainty, in nats: 0 is certain.
        mutual_information: The part of it that comes from disagreement between points, in nats; None for one model.
    """

    file: str
    top_classes: tuple[ClassProbability, ...]
    entropy: float
    mutual_information: float | None


def predict_images(
    star: str | Path,
    files: Sequence[str | Path],
    *,
    samples: int = 1,
    top: int = 3,
    seed: int = 0,
    data: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
) -> list[Prediction]:
    """Classify image files with a star, or with the average of some points of its domain.

    Args:
        star: The star's folder, or its repository.
        files: The images.
        samples: 1 for the star itself; more for as many points of the star domain, which needs the star's sources, and
            for a network with batch norm its training images.
        top: Number of classes for each image.
        seed: Draws the points.
        data: Values of `DataConfig` that differ from those that the star was fitted with.
        progress: Told about downloads and points.

    Returns:
        One prediction per file.

    Raises:
        UsageError: There is nothing to predict with, or nothing to name.
    """
    if samples < 1 or top < 1:
        raise UsageError("", "predict: expected at least one sample and one class", hint="see --samples and --top")
    loaded = load_star(star)
    architecture = loaded.manifest.architecture
    images = read_images(files, architecture.preprocessing)
    if samples == 1:
        probabilities = predict_probabilities(loaded.model(), images)[None]
    else:
        domain = loaded.domain(progress=progress)
        if domain.needs_images:
            domain.set_batch_norm_images(reload_data(loaded, data))
        probabilities = domain.predict_each(images, samples, seed, progress=progress)
    mean = probabilities.mean(dim=0)
    best = mean.topk(min(top, mean.shape[1]))
    names = architecture.label_names or tuple(map(str, range(mean.shape[1])))
    disagreement = mutual_information(probabilities).tolist() if samples > 1 else [None] * len(files)
    return [
        Prediction(
            file=str(file),
            top_classes=tuple(
                ClassProbability(label=names[index], index=index, probability=probability)
                for index, probability in zip(indices, values, strict=True)
            ),
            entropy=uncertainty,
            mutual_information=information,
        )
        for file, indices, values, uncertainty, information in zip(
            files, best.indices.tolist(), best.values.tolist(), entropy(mean).tolist(), disagreement, strict=True
        )
    ]


def join_star(
    star: str | Path,
    ref: str | Path,
    *,
    data: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
) -> JoinResult:
    """Align a model to a star that never saw it, and measure the path between the two; the sources are not needed.

    Args:
        star: The star's folder, or its repository.
        ref: The model: a folder, or a repository.
        data: Values of `DataConfig` that differ from those that the star was fitted with.
        progress: Told about every stage.

    Returns:
        The aligned model with its paths.
    """
    loaded = load_star(star)
    images = reload_data(loaded, data)
    return join(loaded, ref, images, progress=progress)
