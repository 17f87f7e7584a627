"""Check each source before a fit: as it is, and with estimated batch-norm statistics.

One that is far worse than the others, one whose statistics are broken, and one whose logits have another scale would
spoil a star, its alignment or its proof without a word. What the look finds also says how the images for statistics
are to be augmented: a network trained on crops has other statistics than on whole images.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from starzoo.config import Augmentation, EvalConfig
from starzoo.errors import IncompatibleError
from starzoo.evaluate.cached_evaluation import name_errors
from starzoo.evaluate.result_cache import ResultCache
from starzoo.metrics import accuracy, negative_log_likelihood
from starzoo.models.architecture import Architecture
from starzoo.models.batch_norm import has_batch_norm, reestimate_batch_norm
from starzoo.models.memory_format import as_channels_last, channels_last
from starzoo.models.weights import StateDict, hash_tensors
from starzoo.parallel import default_device, split_across_processes
from starzoo.progress import Progress, no_progress

if TYPE_CHECKING:
    from starzoo.data.task import ImageTask

__all__ = ["Look", "SourceCheck", "check_sources", "estimate_statistics"]

_IMAGES = 1000  # un-augmented training images that models predict
_BATCH = 100
_FAR = 0.5  # less than this share of the others' lead over chance is far worse
_OTHER_SCALE = 2.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen of one model on some training images.

    Attributes:
        name: The model.
        loss: Cross-entropy with its own statistics, in nats.
        accuracy: Share of right answers with its own statistics.
        scale: Standard deviation of an image's logits, the mean over images.
        estimated: Loss and accuracy with statistics that are estimated anew, by the augmentation of the images.
    """

    name: str
    loss: float
    accuracy: float
    scale: float
    estimated: Mapping[Augmentation, tuple[float, float]]

    @property
    def best(self) -> float:
        """The highest accuracy, whatever the statistics."""
        return max([self.accuracy, *(right for _, right in self.estimated.values())])


@dataclass(frozen=True, kw_only=True)
class SourceCheck:
    """What a look at the models of a star found.

    Attributes:
        looks: One for every model, in their order.
        augment: How the images for batch-norm statistics are augmented.
        broken: Models whose own statistics are broken, which are used with estimated ones.
        scaled: For models whose logits have another scale, how many times that of the sources it is.
    """

    looks: tuple[Look, ...]
    augment: Augmentation
    broken: tuple[str, ...]
    scaled: Mapping[str, float]


def check_sources(
    architecture: Architecture,
    sources: Mapping[str, StateDict],
    holdouts: Mapping[str, StateDict],
    data: ImageTask,
    config: EvalConfig,
    *,
    trained_with: Sequence[Augmentation | None] = (),
    keep_weak: bool = False,
    cache: ResultCache | None = None,
    progress: Progress = no_progress,
) -> SourceCheck:
    """Look at the models of a star, and say what is unusual."""
    models, measure = {**sources, **holdouts}, _Looker(architecture, data, config, cache or ResultCache(None))

    def look(names: Sequence[str]) -> Iterator[Look]:
        return (measure(name, models[name]) for name in names)

    looks = split_across_processes(list(models), look, tell=partial(progress, "checking models"))
    augment = _choose_augment(looks[: len(sources)], config, data, trained_with)
    images = f"{min(_IMAGES, len(data.train))} training images of {data.config.dataset}"
    chance = _Chance(1 / max(1, architecture.num_classes), min(_IMAGES, len(data.train)))
    broken, scaled = list[str](), dict[str, float]()
    for each in looks:
        others = [other for other in looks[: len(sources)] if other.name != each.name] or [each]
        usual, anew = statistics.median(other.best for other in others), each.estimated.get(augment, (0.0, 0.0))[1]
        if chance.lead(each.best) < _FAR * chance.lead(usual):
            problem = (
                f"is far worse than the other sources: {each.best:.1%} of {images} are right, "
                f"{usual:.1%} for the others (an untrained head, another order of classes, or broken weights?)"
            )
            if each.name in sources and not keep_weak:
                hint = "leave it out, or use it all the same: --keep-weak-sources (runtime.keep_weak_sources=true)"
                raise IncompatibleError(each.name, problem, hint=hint)
            _logger.warning("%s: %s", each.name, problem)
            continue
        if chance.lead(each.accuracy) < _FAR * chance.lead(anew):
            broken.append(each.name)
            _logger.warning(
                "%s: its batch-norm statistics are broken and are estimated anew: %.1f %% of %s are right as it "
                "stands, %.1f %% then",
                each.name,
                100 * each.accuracy,
                images,
                100 * anew,
            )
            continue
        ratio = each.scale / statistics.median(other.scale for other in others)
        if not 1 / _OTHER_SCALE < ratio < _OTHER_SCALE:
            scaled[each.name] = ratio
            _logger.warning(
                "%s: its logits are %.2f times as large as those of the other sources: see the tempered scores",
                each.name,
                ratio,
            )
    return SourceCheck(looks=tuple(looks), augment=augment, broken=tuple(broken), scaled=scaled)


def estimate_statistics(
    architecture: Architecture, state: StateDict, data: ImageTask, config: EvalConfig
) -> dict[str, Tensor]:
    """Give a model batch-norm statistics that are estimated anew."""
    network = _network(architecture)
    network.load_state_dict(dict(state))
    device = next(network.parameters()).device
    reestimate_batch_norm(network, (as_channels_last(images.to(device)) for images in data.statistics_images(config)))
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in network.state_dict().items()}


class _Looker:
    """Runs models on the same training images."""

    def __init__(self, architecture: Architecture, data: ImageTask, config: EvalConfig, cache: ResultCache) -> None:
        self.network, self.data, self.config, self.cache = _network(architecture), data, config, cache
        self.settings = {
            "architecture": architecture.model_dump(mode="json", exclude={"label_names", "preprocessing"}),
            "input": architecture.preprocessing.model_dump(mode="json"),
            "images": [_IMAGES, config.seed],
            "statistics": [config.batch_norm_images, config.batch_size, config.seed],
            "device": next(self.network.parameters()).device.type,
        }

    @property
    def augmentations(self) -> tuple[Augmentation, ...]:
        """How the images for statistics may be augmented; none for a network without batch norm."""
        if not has_batch_norm(self.network):
            return ()
        if self.config.batch_norm_augment:
            return (self.config.batch_norm_augment,)
        return ("none", self.data.config.augment if self.data.config.augment != "none" else "crop-flip")

    def __call__(self, name: str, state: StateDict) -> Look:
        with name_errors(name):
            return self._look(name, state)

    def _look(self, name: str, state: StateDict) -> Look:
        key = {"look": hash_tensors(state), "data": self.data.fingerprint, **self.settings}
        loss, right, scale = self._measure({**key, "augment": None}, state, None)
        estimated = {each: self._measure({**key, "augment": each}, state, each)[:2] for each in self.augmentations}
        return Look(name=name, loss=loss, accuracy=right, scale=scale, estimated=estimated)

    def _measure(
        self, key: Mapping[str, object], state: StateDict, augment: Augmentation | None
    ) -> tuple[float, float, float]:
        def run() -> dict[str, Tensor]:
            self.network.load_state_dict(dict(state))
            self.network.eval()  # which also drops what some networks cache of the weights before
            if augment:
                how = self.config.model_copy(update={"batch_norm_augment": augment})
                reestimate_batch_norm(self.network, self._on_device(self.data.statistics_images(how)))
            images = self.data.train.images(_BATCH, limit=_IMAGES, seed=self.config.seed)
            with torch.inference_mode():
                logits = torch.cat([self.network(batch).float().cpu() for batch in self._on_device(images)]).double()
            labels = self.data.train.labels[self.data.train.sample_indices(_IMAGES, self.config.seed)]
            numbers = [
                negative_log_likelihood(logits.log_softmax(1), labels),
                accuracy(logits, labels),
                float(logits.std(1).mean()),
            ]
            return {"numbers": torch.tensor(numbers, dtype=torch.float64)}

        loss, right, scale = self.cache.get_or_compute(key, run)["numbers"].tolist()
        return loss, right, scale

    def _on_device(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        device = next(self.network.parameters()).device
        return (as_channels_last(images.to(device)) for images in batches)


@dataclass(frozen=True)
class _Chance:
    """What a model is right on that answers blindly."""

    rate: float
    images: int

    def lead(self, accuracy: float) -> float:
        """How far an accuracy is above chance: 0 where it may be chance."""
        error = math.sqrt(self.rate * (1 - self.rate) / self.images)
        return max(0.0, accuracy - self.rate) if accuracy > self.rate + 5 * error else 0.0


def _choose_augment(
    sources: Sequence[Look], config: EvalConfig, data: ImageTask, trained_with: Sequence[Augmentation | None]
) -> Augmentation:
    """As the sources were trained where all say so; otherwise as it leaves them closest to their own loss."""
    known, candidates = set(trained_with), list(sources[0].estimated) if sources else []
    if config.batch_norm_augment or not candidates:
        return config.batch_norm_augment or data.config.augment
    if len(known) == 1 and (said := known.pop()):
        return said

    def change(augment: Augmentation) -> float:
        return statistics.median(abs(look.estimated[augment][0] - look.loss) for look in sources)

    return min(candidates, key=change)


def _network(architecture: Architecture) -> nn.Module:
    network = architecture.build().requires_grad_(False)
    return channels_last(network.to(default_device())).eval()
