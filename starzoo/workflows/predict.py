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
    """A class, and how probable it is.

    Attributes:
        label: The name of the class, or its number where the star does not know names.
        index: Its number, from 0.
        probability: From 0 to 1.
    """

    label: str
    index: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a star, or some points of its domain, say about one image.

    Attributes:
        file: The image.
        answers: The most probable classes, the first one first.
        entropy: How uncertain the answer is, in nats: 0 is certain.
        mutual_information: How much of that is because models of the domain disagree, in nats; None for one model.
    """

    file: str
    answers: tuple[ClassProbability, ...]
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
        top: How many classes to name for each image.
        seed: Draws the points.
        data: Values of `DataConfig` that differ from those that the star was fitted with.
        progress: Told about downloads and points.

    Returns:
        One prediction per file.

    Raises:
        UsageError: There is nothing to predict with, or nothing to name.
    """
    if samples < 1 or top < 1:
        raise UsageError("", "predict: takes one sample and one class, or more", hint="see --samples and --top")
    loaded = load_star(star)
    architecture = loaded.manifest.architecture
    images = read_images(files, architecture.preprocessing)
    if samples == 1:
        members = predict_probabilities(loaded.model(), images)[None]
    else:
        domain = loaded.domain(progress=progress)
        if domain.needs_images:
            domain.set_batch_norm_images(reload_data(loaded, data))
        members = domain.predict_each(images, samples, seed, progress=progress)
    mean = members.mean(dim=0)
    best = mean.topk(min(top, mean.shape[1]))
    names = architecture.label_names or tuple(map(str, range(mean.shape[1])))
    disagreement = mutual_information(members).tolist() if samples > 1 else [None] * len(files)
    return [
        Prediction(
            file=str(file),
            answers=tuple(
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
    """Align a model that a star never saw to it, and measure the path between the two; no source is needed for that.

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
