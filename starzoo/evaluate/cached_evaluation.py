"""The parts of an evaluation, each measured once: predictions, paths and averages over the star domain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from starzoo.config import AlignConfig, Baseline, EvalConfig, StarConfig, Uniform
from starzoo.errors import NumericalError
from starzoo.evaluate.domain_average import draw_points, running_average
from starzoo.evaluate.evaluator import Curve, Evaluator
from starzoo.evaluate.model_pool import Line, ModelPool, Zoo
from starzoo.evaluate.result_cache import ResultCache
from starzoo.evaluate.results import DomainSampling
from starzoo.evaluate.trained_baselines import baseline_recipe, train_baseline
from starzoo.metrics import negative_log_likelihood
from starzoo.models.architecture import Architecture
from starzoo.models.batch_norm import has_batch_norm
from starzoo.models.weights import StateDict, hash_tensors
from starzoo.parallel import default_device
from starzoo.progress import Progress, no_progress

if TYPE_CHECKING:
    from starzoo.data.split import Split
    from starzoo.data.task import ImageTask

__all__ = ["OOD", "VALIDATION", "CachedEvaluation", "name_errors", "points"]

_CURVES = ("loss", "accuracy", "tempered_loss")
VALIDATION, OOD = "validation", "outside"  # beside the splits "train" and "test"


class CachedEvaluation:
    """Everything that is measured on one zoo, item by item, each from the cache if it is there."""

    def __init__(
        self,
        architecture: Architecture,
        zoo: Zoo,
        data: ImageTask,
        config: EvalConfig,
        align_config: AlignConfig,
        *,
        star_config: StarConfig | None = None,
        outside: Split | None = None,
        cache: ResultCache | None = None,
    ) -> None:
        self.architecture, self.zoo, self.data, self.config = architecture, zoo, data, config
        self.star_config = star_config or StarConfig()
        self.models = ModelPool(architecture, zoo, data, align_config)
        self.cache = cache or ResultCache(None)
        self.splits: dict[str, Split] = {split: getattr(data, split) for split in config.splits}
        self.limits: dict[str, int] = {}
        if data.validation:
            self.splits[VALIDATION], self.limits[VALIDATION] = data.validation, config.validation_images
        if outside:
            self.splits[OOD], self.limits[OOD] = outside, len(data.test)

    def labels(self, split: str) -> Tensor:
        """The labels of the images of one split that are looked at, shape (images,)."""
        return self.splits[split].labels[self._rows(split)]

    def predict(self, name: str) -> dict[str, Tensor]:
        """What one of the models predicts: for every split log-probabilities of shape (images, classes)."""
        # A model has the batch-norm statistics of its own file; those of a mean of weights are estimated.
        return self._predict_as(name, estimated=self.estimates and name not in self.models.by_name)

    def predict_end(self, name: str) -> dict[str, Tensor]:
        """What one of the models predicts at the end of a path: with statistics that are estimated as between."""
        return self._predict_as(name, estimated=self.estimates)

    @cached_property
    def estimates(self) -> bool:
        """Whether the network has batch-norm statistics."""
        return has_batch_norm(self.network)

    def baseline(self, kind: Baseline, progress: Progress = no_progress) -> dict[str, Tensor]:
        """What a baseline of the star predicts, as `predict`; it is trained if it is not there yet."""
        decides = ("architecture", "data", "classes", "device")
        key = {
            "baseline": kind,
            "sources": [self.models.hashes[name] for name in self.zoo.sources],
            "star": self.star_config.model_dump(mode="json"),
            "recipe": baseline_recipe(kind, self.star_config).model_dump(mode="json"),
            "augment": self.data.config.augment,
            **{name: self._settings[name] for name in decides},
        }

        def train() -> dict[str, Tensor]:
            sources = list(self.zoo.sources.values())
            return train_baseline(kind, self.architecture, sources, self.data, self.star_config, progress=progress)

        return self._predict(key, lambda: self._run(kind, self.cache.get_or_compute({"weights": key}, train)))

    def path(self, line: Line) -> Curve:
        """What is measured between the ends of a path, for each of the configuration's splits."""
        how = None if line.kind == "source-source-unaligned" else self.models.alignment(line)
        ends = [self.models.hashes[line.a], self.models.hashes[line.b]]
        key = {"path": ends, "alignment": how, "repair": self.config.repair}
        t = points(self.config)[1:-1]
        splits = [*self.config.splits, *([self.calibration] if self.calibration else [])]

        def measure() -> dict[str, Tensor]:
            with name_errors(f"the path from {line.a} to {line.b}"):
                ends = self.models.by_name[line.a], self.models.end(line)
                curve = self.evaluator(splits).curve(*ends, t, calibration=self.calibration)
            return {
                f"{name} {split}": torch.tensor(values, dtype=torch.float64)
                for name in _CURVES
                for split, values in getattr(curve, name).items()
            }

        images = self._digests[self.calibration] if self.calibration else None
        found = self.get_or_compute({**key, "t": t, "splits": self.config.splits, "calibration": images}, measure)

        def curve(name: str) -> dict[str, tuple[float, ...]]:
            known = {split: found.get(f"{name} {split}") for split in self.config.splits}
            return {str(split): tuple(values.tolist()) for split, values in known.items() if values is not None}

        return Curve(*map(curve, _CURVES))

    def curve_of(self, predicted: Mapping[str, Tensor]) -> Curve:
        """The curve of one point: that of a model which predicts so."""
        labels = {split: self.labels(split) for split in (*self.config.splits, *filter(None, [self.calibration]))}
        return Curve.of([predicted], labels, self.calibration)

    @property
    def calibration(self) -> str | None:
        """The split that fits temperatures, where there are images that no model was fitted on."""
        return VALIDATION if VALIDATION in self.splits else None

    def tune(self, t: Uniform) -> list[float]:
        """The loss of the average of 1, 2, 3 … points of the star domain on the validation images."""

        def measure() -> dict[str, Tensor]:
            predict, labels = self.evaluator([VALIDATION]).log_probabilities, self.labels(VALIDATION)
            drawn = draw_points(list(self.zoo.sources), self.config.bma_samples, self.config.seed, t)
            means = running_average(self.zoo.star, self.models.aligned, drawn, predict)
            losses = [negative_log_likelihood(mean[VALIDATION], labels) for mean in means]
            return {"loss": torch.tensor(losses, dtype=torch.float64)}

        key = {"tune": self.models.domain_identity(t, self.config.bma_samples), "images": self._digests[VALIDATION]}
        losses: list[float] = self.get_or_compute(key, measure)["loss"].tolist()
        return losses

    def domain(self, choice: DomainSampling) -> dict[str, Tensor]:
        """What the average of points of the star domain predicts, as `predict`."""
        key = {"domain": self.models.domain_identity(choice.t, choice.samples)}
        return self._predict(key, lambda: self._average(choice))

    def evaluator(self, splits: Iterable[str]) -> Evaluator:
        """Predicts the images of some splits with any weights."""
        config, data = self.config, self.data
        return Evaluator(
            self.network,
            {name: (partial(self._images, name), self.labels(name)) for name in splits},
            partial(data.statistics_images, config),
            repairs=config.repair,
            precision=config.precision,
        )

    def get_or_compute(self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """A result from the cache, measured if it is not there; the key need not name what every result depends on."""
        return self.cache.get_or_compute({**key, **self._settings}, measure)

    @cached_property
    def network(self) -> nn.Module:
        """The architecture, whose weights every evaluator overwrites."""
        return self.architecture.build().to(default_device())

    def _images(self, split: str) -> Iterator[Tensor]:
        limit = self.limits.get(split)
        return self.splits[split].images(self.config.batch_size, limit=limit, seed=self.config.seed)

    def _rows(self, split: str) -> Tensor:
        return self.splits[split].sample_indices(self.limits.get(split), self.config.seed)

    def _predict(self, key: Mapping[str, Any], run: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        measured: dict[str, Tensor] = {}

        def measure(split: str) -> dict[str, Tensor]:
            if not measured:  # one model predicts all splits, since its statistics are estimated once
                measured.update(run())
            return {"log_probabilities": measured[split]}

        return {
            split: self.get_or_compute({**key, "images": digest}, partial(measure, split))["log_probabilities"]
            for split, digest in self._digests.items()
        }

    def _predict_as(self, name: str, *, estimated: bool) -> dict[str, Tensor]:
        key = {"model": self.models.identity(name), "estimated": estimated}
        return self._predict(key, lambda: self._run(name, self.models.state(name), estimate=estimated))

    def _run(self, name: str, state: StateDict, *, estimate: bool = True) -> Mapping[str, Tensor]:
        with name_errors(name):
            return self.evaluator(self.splits).log_probabilities(state, estimate=estimate)

    def _average(self, choice: DomainSampling) -> Mapping[str, Tensor]:
        predict = self.evaluator(self.splits).log_probabilities
        drawn = draw_points(list(self.zoo.sources), choice.samples, self.config.seed, choice.t)
        with name_errors("a point of the star domain"):
            *_, mean = running_average(self.zoo.star, self.models.aligned, drawn, predict)
        return mean

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What every result depends on."""
        config = self.config
        return {
            "architecture": self.architecture.model_dump(mode="json", exclude={"label_names"}),
            "data": self.data.fingerprint,
            "classes": self.data.class_names,  # the fingerprint is about the labels in the stored order
            "statistics": [config.batch_norm_images, config.batch_size, config.seed, config.batch_norm_augment],
            "device": default_device().type,
            "precision": config.precision,
        }

    @cached_property
    def _digests(self) -> dict[str, str]:
        """What tells the images of each split: the data's fingerprint is about the training and test images alone."""
        return {
            split: hash_tensors({"pixels": images.pixels[self._rows(split)], "labels": self.labels(split)})
            if split in {VALIDATION, OOD}
            else split
            for split, images in self.splits.items()
        }


def points(config: EvalConfig) -> tuple[float, ...]:
    """The places on a path where it is measured, from 0 to 1."""
    return tuple(float(at) for at in np.linspace(0, 1, config.points))


@contextmanager
def name_errors(what: str) -> Iterator[None]:
    """Say which model or path a numerical error belongs to."""
    try:
        yield
    except NumericalError as error:
        raise NumericalError(what, f"{error.message}", hint=error.hint) from error
