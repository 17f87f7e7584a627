"""The measurements of an evaluation: predictions, paths and averages over the star domain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from starzoo.config import Augmentation, RunConfig, Uniform
from starzoo.data.augmentation import transform_key
from starzoo.data.corruption import corrupt_split
from starzoo.evaluate.domain_average import draw_points, entropy_of, running_average
from starzoo.evaluate.evaluator import Curve, Evaluator, name_errors, score_points
from starzoo.evaluate.model_pool import EvaluatedModels, ModelPool, PathSpec
from starzoo.evaluate.result_cache import ResultCache
from starzoo.evaluate.results import DomainSampling
from starzoo.metrics import negative_log_likelihood
from starzoo.models.batch_norm import has_batch_norm
from starzoo.models.weights import StateDict, interpolate
from starzoo.parallel import default_device

if TYPE_CHECKING:
    from starzoo.data.decoding import DecodedImages
    from starzoo.data.split import Split
    from starzoo.data.task import ImageTask

__all__ = ["CORRUPTED", "VALIDATION", "CachedEvaluation", "Predictions"]

# Beside the splits "train" and "test"; data sets of out-of-distribution images are numbered.
VALIDATION, OOD, CORRUPTED = "validation", "ood", "corrupted"

_IMAGES_PER_PART, _ENTROPIES = 1024, "entropies"

Predictions = Mapping[str, Tensor]
"""Log-probabilities of shape (images, classes), by split; of averages also mean entropies, by `entropy_of`."""


class CachedEvaluation:
    """The measurements of some models on some images, each taken from the cache if it is there.

    Args:
        models: The models.
        data: The task's images.
        config: The evaluation's settings, the alignment's, and for baselines those of the star's fit.
        ood: Out-of-distribution images of one data set or several.
        cache: Where results are kept; without it, nowhere.
    """

    def __init__(
        self,
        models: EvaluatedModels,
        data: ImageTask,
        config: RunConfig,
        *,
        ood: Sequence[Split] = (),
        cache: ResultCache | None = None,
    ) -> None:
        self.models, self.data, self.run_config, self.config = models, data, config, config.evaluate
        self.pool = ModelPool(models, data, config.align)
        self.cache = cache or ResultCache(None)
        self.splits: dict[str, Split] = {split: getattr(data, split) for split in self.config.splits}
        self.limits: dict[str, int] = {}
        if data.validation:
            self.splits[VALIDATION], self.limits[VALIDATION] = data.validation, self.config.validation_images
        if self.config.corruptions:
            self.splits[CORRUPTED] = corrupt_split(data.test, self.config.corruptions, self.config.seed)
        self.ood = [f"{OOD} {number}" for number, _ in enumerate(ood, start=1)]
        for name, images in zip(self.ood, ood, strict=True):
            self.splits[name], self.limits[name] = images, len(data.test)

    def labels(self, split: str) -> Tensor:
        """The labels of a split's images, shape (images,)."""
        return self.splits[split].labels[self._rows(split)]

    @property
    def t(self) -> tuple[float, ...]:
        """The points of every path, from 0 to 1."""
        return tuple(np.linspace(0, 1, self.config.points).tolist())

    @property
    def calibration_split(self) -> str | None:
        """The split that fits temperatures, where there are images that no model was fitted on."""
        return VALIDATION if VALIDATION in self.splits else None

    @cached_property
    def network(self) -> nn.Module:
        """The architecture, whose weights every evaluator overwrites."""
        return self.models.architecture.build().to(default_device())

    @cached_property
    def reestimates(self) -> bool:
        """Whether the network has batch-norm statistics."""
        return has_batch_norm(self.network)

    def in_float32(self) -> CachedEvaluation:
        """The same evaluation of the star alone, with forward passes in float32."""
        star = EvaluatedModels(architecture=self.models.architecture, star=self.models.star)
        precise = self.config.model_copy(update={"precision": "fp32"})
        config = self.run_config.model_copy(update={"evaluate": precise})
        return CachedEvaluation(star, self.data, config, cache=self.cache)

    def predict(
        self, name: str, *, augment: Augmentation = "none", draw: int = 0, splits: Iterable[str] | None = None
    ) -> Predictions:
        """Predict with one of the pool's models, for images that may be augmented by the numbers of a draw."""
        # A model keeps the batch-norm statistics of its own file; those of a mean of weights are re-estimated.
        estimate = self.reestimates and name not in self.pool.by_name
        return self._predict_as(name, estimate=estimate, augment=augment, draw=draw, splits=splits)

    def predict_end(self, name: str) -> Predictions:
        """Predict with a model at the end of a path: its statistics are re-estimated as those between the ends."""
        splits = [*self.config.splits, *filter(None, [self.calibration_split])]
        return self._predict_as(name, estimate=self.reestimates, splits=splits)

    def predict_state(
        self, key: Mapping[str, Any], make_state: Callable[[], StateDict], splits: Iterable[str] | None = None
    ) -> Predictions:
        """Predict with weights that a key stands for, with re-estimated batch-norm statistics."""

        def run() -> Predictions:
            with name_errors(str(next(iter(key.values())))):
                return self.evaluator(splits or self.splits).log_probabilities(make_state())

        return self._predict({"state": key}, run, splits)

    def path(self, path: PathSpec) -> Curve:
        """Measure a path between its ends, on each of the configuration's splits."""
        is_aligned = path.kind != "source-source-unaligned"
        calibration, inner = self.calibration_split, self.t[1:-1]
        key = {
            "path": [self.pool.cache_key(path.a), self.pool.hashes[path.b]],
            "alignment": self.pool.alignment_key(path) if is_aligned else None,
            "repair": self.config.repair,
            "t": inner,
            "splits": self.config.splits,
            "calibration": self.split_hashes[calibration] if calibration else None,
        }

        def measure() -> Curve:
            evaluator = self.evaluator([*self.config.splits, *filter(None, [calibration])])
            with name_errors(f"the path from {path.a} to {path.b}"):
                ends = self.pool.state(path.a), self.pool.path_end(path)
                return evaluator.curve(*ends, inner, calibration=calibration)

        return self.get_or_compute(key, measure)

    def curve_of(self, predictions: Predictions) -> Curve:
        """Score the predictions of a single point of a path."""
        calibration = self.calibration_split
        labels = {split: self.labels(split) for split in (*self.config.splits, *filter(None, [calibration]))}
        return score_points([predictions], labels, calibration)

    def domain_losses(self, t: Uniform) -> list[float]:
        """The validation loss of the average of 1, 2, 3 … points of the star domain."""
        samples = self.config.bma_samples

        def measure() -> dict[str, Tensor]:
            labels = self.labels(VALIDATION)
            losses = [
                negative_log_likelihood(mean[VALIDATION], labels)
                for _, mean in self._domain_averages(
                    DomainSampling(t=t, samples=samples), [VALIDATION], range(1, samples + 1)
                )
            ]
            return {"loss": torch.tensor(losses, dtype=torch.float64)}

        key = {"tune": self.pool.domain_key(t, samples), "images": self.split_hashes[VALIDATION]}
        losses: list[float] = self.get_or_compute(key, measure)["loss"].tolist()
        return losses

    def domain(self, sampling: DomainSampling) -> Predictions:
        """Predict with the average of points of the star domain."""

        def run() -> Predictions:
            with name_errors("a point of the star domain"):
                [(_, mean)] = self._domain_averages(sampling, self.splits, [sampling.samples])
            return mean

        return self._predict({"domain with entropies": self.pool.domain_key(sampling.t, sampling.samples)}, run)

    def evaluator(self, splits: Iterable[str], augment: Augmentation = "none", draw: int = 0) -> Evaluator:
        """Return what predicts the images of some splits with any weights."""
        return Evaluator(
            self.network,
            {name: (partial(self._images, name, augment, draw), self.labels(name)) for name in splits},
            partial(self.data.batch_norm_images, self.config),
            repairs=self.config.repair,
            precision=self.config.precision,
        )

    def get_or_compute(self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return a result from the cache, or measure it; the key need not hold what all results depend on."""
        return self.cache.get_or_compute({**key, **self._common_key}, measure)

    def shared_images(self) -> list[tuple[DecodedImages, Tensor]]:
        """The images that all processes share, in parts that each of them can decode."""
        rows: dict[DecodedImages, list[Tensor]] = defaultdict(list)
        for split, images in self.splits.items():
            rows[images.pixels].append(self._rows(split))
        if self.reestimates:
            train, config = self.data.train, self.config
            rows[train.pixels].append(train.sample_indices(config.batch_norm_images, config.seed))
        return [
            (pixels, part)
            for pixels, needed in rows.items()
            if pixels.is_shared
            for part in torch.split(torch.unique(torch.cat(needed)), _IMAGES_PER_PART)
        ]

    def _images(self, split: str, augment: Augmentation = "none", draw: int = 0) -> Iterator[Tensor]:
        config = self.config
        return self.splits[split].images(
            config.batch_size, limit=self.limits.get(split), seed=config.seed, augment=augment, draw=draw
        )

    def _rows(self, split: str) -> Tensor:
        return self.splits[split].sample_indices(self.limits.get(split), self.config.seed)

    def _predict(
        self, key: Mapping[str, Any], run: Callable[[], Predictions], splits: Iterable[str] | None = None
    ) -> Predictions:
        predictions: dict[str, Tensor] = {}

        def measure(split: str) -> dict[str, Tensor]:
            if not predictions:  # one run predicts all splits, so that statistics are re-estimated once
                predictions.update(run())
            found = {"log_probabilities": predictions[split]}
            if (name := entropy_of(split)) in predictions:
                found[_ENTROPIES] = predictions[name]
            return found

        results: dict[str, Tensor] = {}
        for split in splits or self.split_hashes:
            found = self.get_or_compute({**key, "images": self.split_hashes[split]}, partial(measure, split))
            results[split] = found["log_probabilities"]
            if _ENTROPIES in found:
                results[entropy_of(split)] = found[_ENTROPIES]
        return results

    def _predict_as(
        self,
        name: str,
        *,
        estimate: bool,
        augment: Augmentation = "none",
        draw: int = 0,
        splits: Iterable[str] | None = None,
    ) -> Predictions:
        key = {"model": self.pool.cache_key(name), "estimated": estimate}
        if augment != "none":
            key |= {"augmented": [augment, draw]}

        def run() -> Predictions:
            with name_errors(name):
                evaluator = self.evaluator(splits or self.splits, augment, draw)
                return evaluator.log_probabilities(self.pool.state(name), estimate=estimate)

        return self._predict(key, run, splits)

    def _domain_averages(
        self, sampling: DomainSampling, splits: Iterable[str], counts: Container[int]
    ) -> Iterator[tuple[int, Predictions]]:
        points = draw_points(list(self.models.sources), sampling.samples, self.config.seed, sampling.t)
        predict, ends = self.evaluator(splits).log_probabilities, self.pool.aligned_sources
        return running_average((predict(interpolate(self.models.star, ends[name], t)) for name, t in points), counts)

    @cached_property
    def task_key(self) -> dict[str, Any]:
        """What every result and the weights of every baseline depend on."""
        return {
            "architecture": self.models.architecture.model_dump(mode="json", exclude={"label_names"}),
            "data": self.data.fingerprint,
            "classes": self.data.class_names,  # the fingerprint holds the labels in the stored order
            "device": default_device().type,
        }

    @cached_property
    def _common_key(self) -> dict[str, Any]:
        """What every result depends on."""
        config = self.config
        return {
            **self.task_key,
            "statistics": [config.batch_norm_images, config.batch_size, config.seed, config.batch_norm_augment],
            **transform_key(self.data.config, config.batch_norm_augment or self.data.config.augment),
            "precision": config.precision,
        }

    @cached_property
    def split_hashes(self) -> dict[str, str]:
        """A hash of each split's images, or its name: the data's fingerprint holds the training and test images."""
        named = self.config.splits
        return {
            split: split if split in named else images.pixels.records.hash_rows(self._rows(split).numpy())
            for split, images in self.splits.items()
        }
