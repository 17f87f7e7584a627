"""Check the models of a star before a fit: with their own batch-norm statistics, and with re-estimated ones.

A model that is far worse than the others, broken statistics, and logits of another scale would silently spoil a star,
its alignment or its proof. The check also finds how the images for statistics are augmented: a network trained on crops
has other statistics than on whole images.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from starzoo.config import Augmentation, EvalConfig
from starzoo.data.augmentation import transform_key
from starzoo.errors import IncompatibleError
from starzoo.evaluate.evaluator import Evaluator, name_errors
from starzoo.evaluate.result_cache import ResultCache
from starzoo.metrics import accuracy, negative_log_likelihood
from starzoo.models.architecture import Architecture
from starzoo.models.batch_norm import has_batch_norm, reestimate_batch_norm
from starzoo.models.memory_format import as_channels_last, channels_last
from starzoo.models.sources import Source
from starzoo.models.weights import hash_tensors
from starzoo.parallel import default_device, split_across_processes
from starzoo.progress import Progress, no_progress

if TYPE_CHECKING:
    from starzoo.data.task import ImageTask

__all__ = ["SourceCheck", "SourceScores", "check_sources", "reestimate_statistics"]

_IMAGES = 1000  # un-augmented training images that models predict
_BATCH = 100
_FAR_WORSE = 0.5  # of the others' lead over chance
_OTHER_SCALE = 2.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SourceScores:
    """The scores of one model on some training images.

    Attributes:
        name: The model.
        loss: Cross-entropy with its own statistics, in nats.
        accuracy: Share of right answers with its own statistics.
        scale: Standard deviation of an image's logits, the mean over images.
        reestimated: Loss and accuracy with re-estimated statistics, by the augmentation of the images.
    """

    name: str
    loss: float
    accuracy: float
    scale: float
    reestimated: Mapping[Augmentation, tuple[float, float]]

    @property
    def best(self) -> float:
        """The highest accuracy with any statistics."""
        return max([self.accuracy, *(accuracy for _, accuracy in self.reestimated.values())])


@dataclass(frozen=True, kw_only=True)
class SourceCheck:
    """The result of a check.

    Attributes:
        sources: The sources, with re-estimated statistics where their own are broken.
        holdouts: The same for the held-outs.
        config: The evaluation's settings, with the augmentation of the images for batch-norm statistics.
        scores: The scores of every model, in their order.
        scaled: For models whose logits have another scale, how many times that of the sources it is.
    """

    sources: list[Source]
    holdouts: list[Source]
    config: EvalConfig
    scores: tuple[SourceScores, ...]
    scaled: Mapping[str, float]


def check_sources(
    sources: Sequence[Source],
    holdouts: Sequence[Source],
    data: ImageTask,
    config: EvalConfig,
    *,
    keep_weak: bool = False,
    cache: ResultCache | None = None,
    progress: Progress = no_progress,
) -> SourceCheck:
    """Refuse sources that are far worse than the others, re-estimate broken statistics, and warn of other scales."""
    architecture = sources[0].architecture
    measure = _ScoreMeasurer(architecture, data, config, cache or ResultCache(None))
    all_scores = split_across_processes(
        [*sources, *holdouts], partial(map, measure), tell=partial(progress, "checking models")
    )
    source_scores = all_scores[: len(sources)]
    augment = config.batch_norm_augment or _choose_augment(sources, source_scores, data)
    count = min(_IMAGES, len(data.train))
    images, lead = f"{count} training images of {data.config.dataset}", partial(_lead, architecture.num_classes, count)
    broken, scaled = set[str](), dict[str, float]()
    for scores in all_scores:
        others = [other for other in source_scores if other.name != scores.name] or [scores]
        usual = statistics.median(other.best for other in others)
        _, reestimated = scores.reestimated.get(augment, (0.0, 0.0))
        usual_scale = statistics.median(other.scale for other in others)
        if lead(scores.best) < _FAR_WORSE * lead(usual):
            problem = (
                f"is far worse than the other sources: {scores.best:.1%} of {images} are right, "
                f"{usual:.1%} for the others (an untrained head, another order of classes, or broken weights?)"
            )
            if scores in source_scores and not keep_weak:
                hint = "leave it out, or use it all the same: --keep-weak-sources (runtime.keep_weak_sources=true)"
                raise IncompatibleError(scores.name, problem, hint=hint)
            _logger.warning("%s: %s", scores.name, problem)
        elif lead(scores.accuracy) < _FAR_WORSE * lead(reestimated):
            broken.add(scores.name)
            _logger.warning(
                "%s: its batch-norm statistics are broken and are re-estimated: %.1f %% of %s are right as it stands, "
                "%.1f %% then",
                scores.name,
                100 * scores.accuracy,
                images,
                100 * reestimated,
            )
        elif usual_scale and not 1 / _OTHER_SCALE < scores.scale / usual_scale < _OTHER_SCALE:
            scaled[scores.name] = scores.scale / usual_scale
            _logger.warning(
                "%s: its logits are %.2f times as large as those of the other sources: see the tempered scores",
                scores.name,
                scaled[scores.name],
            )
    config = config.model_copy(update={"batch_norm_augment": augment})
    repaired_sources, repaired_holdouts = (
        [reestimate_statistics(model, data, config) if model.name in broken else model for model in models]
        for models in (sources, holdouts)
    )
    return SourceCheck(
        sources=repaired_sources, holdouts=repaired_holdouts, config=config, scores=tuple(all_scores), scaled=scaled
    )


def reestimate_statistics(model: Source, data: ImageTask, config: EvalConfig) -> Source:
    """Give a model re-estimated batch-norm statistics."""
    network, device = channels_last(model.architecture.build().to(default_device())), default_device()
    network.load_state_dict(dict(model.state))
    reestimate_batch_norm(network, (as_channels_last(images.to(device)) for images in data.batch_norm_images(config)))
    state = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in network.state_dict().items()}
    return replace(model.with_record(estimated=True), state=state)


class _ScoreMeasurer:
    """Measures the scores of models on the same training images, with the cache."""

    def __init__(self, architecture: Architecture, data: ImageTask, config: EvalConfig, cache: ResultCache) -> None:
        self.data, self.config, self.cache = data, config, cache
        self.network = architecture.build().to(default_device())
        self.images = partial(data.train.images, _BATCH, limit=_IMAGES, seed=config.seed)
        self.labels = data.train.labels[data.train.sample_indices(_IMAGES, config.seed)]
        self.common_key = {
            "architecture": architecture.model_dump(mode="json", exclude={"label_names", "preprocessing"}),
            "input": architecture.preprocessing.model_dump(mode="json"),
            "images": [_IMAGES, config.seed],
            "statistics": [config.batch_norm_images, config.batch_size, config.seed],
            "device": default_device().type,
            "data": data.fingerprint,
        }

    def __call__(self, model: Source) -> SourceScores:
        """Measure one model."""
        with name_errors(model.name):
            loss, accuracy, scale = self._measure(model, None)
            reestimated = {augment: self._measure(model, augment)[:2] for augment in self._augmentations}
        return SourceScores(name=model.name, loss=loss, accuracy=accuracy, scale=scale, reestimated=reestimated)

    @property
    def _augmentations(self) -> tuple[Augmentation, ...]:
        """How the images for statistics may be augmented; none for a network without batch norm."""
        if not has_batch_norm(self.network):
            return ()
        if self.config.batch_norm_augment:
            return (self.config.batch_norm_augment,)
        return ("none", self.data.config.augment if self.data.config.augment != "none" else "crop-flip")

    def _measure(self, model: Source, augment: Augmentation | None) -> tuple[float, float, float]:
        def measure() -> dict[str, Tensor]:
            config = self.config.model_copy(update={"batch_norm_augment": augment})
            statistics_images = partial(self.data.batch_norm_images, config)
            evaluator = Evaluator(self.network, {"train": (self.images, self.labels)}, statistics_images)
            predicted = evaluator.log_probabilities(model.state, estimate=augment is not None)["train"].double()
            values = [
                negative_log_likelihood(predicted, self.labels),
                accuracy(predicted, self.labels),
                float(predicted.std(1).mean()),  # equal to that of the logits
            ]
            return {"numbers": torch.tensor(values, dtype=torch.float64)}

        key = {"look": hash_tensors(model.state), "augment": augment, **self.common_key}
        key |= transform_key(self.data.config, augment)
        loss, share, scale = self.cache.get_or_compute(key, measure)["numbers"].tolist()
        return loss, share, scale


def _lead(classes: int, images: int, accuracy: float) -> float:
    """How far an accuracy is above chance: 0 where it may be chance."""
    rate = 1 / max(1, classes)
    error = math.sqrt(rate * (1 - rate) / images)
    return accuracy - rate if accuracy > rate + 5 * error else 0.0


def _choose_augment(sources: Sequence[Source], scores: Sequence[SourceScores], data: ImageTask) -> Augmentation:
    """Choose the augmentation that all sources were trained with, or that leaves them closest to their own loss."""
    candidates = list(scores[0].reestimated)
    if not candidates:
        return data.config.augment
    recorded = {source.record.augment for source in sources}
    if len(recorded) == 1 and (augment := recorded.pop()):
        return augment

    def change(augment: Augmentation) -> float:
        return statistics.median(abs(row.reestimated[augment][0] - row.loss) for row in scores)

    return min(candidates, key=change)
