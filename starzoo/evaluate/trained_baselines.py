"""Baselines that are trained: what a user could train instead of a star, in as many steps.

A recipe says where the weights start, whose predictions are learned beside the labels, and which average of the weights
is the result. All use the star's optimizer, batch size, weight decay, augmentation and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from starzoo.config import Baseline, OptimizationConfig, StarConfig, TrainConfig
from starzoo.data.task import ImageTask
from starzoo.errors import NumericalError
from starzoo.models.architecture import Architecture
from starzoo.models.memory_format import channels_last
from starzoo.models.training.optimizer import forward, make_average, make_optimizer, train_epoch
from starzoo.models.training.targets import Targets, criterion, mix_labels, probabilities
from starzoo.models.weights import StateDict
from starzoo.parallel import default_device, rng_devices
from starzoo.progress import Progress, no_progress

__all__ = ["RECIPES", "Recipe", "rates_to_try", "train_baseline", "training_config"]

_KAPPA = 3.0  # the weight of the teachers' prediction beside the label
_EMA_HORIZON = 0.1  # of all steps


@dataclass(frozen=True)
class Recipe:
    """How a baseline is trained.

    Attributes:
        start: The weights that it starts from; `source` is the first one.
        teachers: Whose mean prediction it learns beside the labels: nobody's, that of its own start, or all sources'.
        average: Which average of its weights is the result, at a constant learning rate: of the ends of all epochs
            (SWA), or an exponential one of all steps (EMA). Without one the rate falls to zero.
    """

    start: Literal["random", "source", "aligned mean"]
    teachers: Literal["none", "start", "sources"] = "none"
    average: Literal["none", "swa", "ema"] = "none"


RECIPES: Mapping[Baseline, Recipe] = {
    "continued": Recipe("source"),
    "self-distilled": Recipe("source", teachers="start"),
    "swa": Recipe("source", average="swa"),
    "ema": Recipe("source", average="ema"),
    "student-random": Recipe("random", teachers="sources"),
    "student-source": Recipe("source", teachers="sources"),
    "student-mean": Recipe("aligned mean", teachers="sources"),
    "trained-mean": Recipe("aligned mean"),
}
"""SWA: Izmailov et al. 2018. Distillation: Hinton et al. 2015; of itself: Furlanello et al. 2018."""


def rates_to_try(star: StarConfig, trials: int) -> list[float]:
    """Return learning rates for trials: four times apart, from eight times that of `starzoo train` down.

    A single trial takes the rate of `starzoo train`. For other optimizers than SGD the star's rate is in its place.
    """
    rate = TrainConfig().peak_lr if star.optimizer == "sgd" else star.peak_lr
    return [8 * rate / 4**number for number in range(trials)] if trials > 1 else [rate]


def training_config(star: StarConfig, lr: float) -> TrainConfig:
    """Configure a baseline as the star, but with a rate of its own."""
    own = {"lr", "ema_decay", "precision"}
    shared = star.model_dump(include=OptimizationConfig.model_fields.keys() - own)
    precision = "fp32" if star.precision == "fp32" else "bf16"
    return TrainConfig(lr=lr, epochs=max(1, star.epochs), precision=precision, **shared)


def train_baseline(
    kind: Baseline,
    architecture: Architecture,
    start: StateDict | None,
    sources: Sequence[StateDict],
    data: ImageTask,
    config: TrainConfig,
    *,
    seed: int,
    progress: Progress = no_progress,
) -> dict[str, Tensor]:
    """Train a baseline.

    Args:
        kind: Which one.
        architecture: That of the sources.
        start: The initial weights; random ones when not given.
        sources: The teachers, where the recipe has all sources as teachers.
        data: The task.
        config: The optimization.
        seed: Seed of random initial weights, of the order of images and of augmentation.
        progress: Told after every epoch.

    Returns:
        The state dict; batch-norm statistics are not re-estimated.

    Raises:
        NumericalError: The weights are not finite.
    """
    recipe = RECIPES[kind]
    with torch.random.fork_rng(devices=rng_devices()):
        torch.manual_seed(seed)
        model = channels_last(architecture.build()).to(default_device())
        if start is not None:
            model.load_state_dict(dict(start))
        choices: Mapping[str, Sequence[StateDict]] = {"none": [], "start": [model.state_dict()], "sources": sources}
        teachers = choices[recipe.teachers]
        teacher = _Teacher(model, teachers, data, config) if teachers else None
        trained = _train(model, recipe, data, config, teacher, seed, lambda *n: progress(f"training {kind}", *n))
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.state_dict().items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        hint = "leave it out of evaluate.baselines; the star is not affected"
        raise NumericalError(f"baseline {kind}", "its weights are not finite", hint=hint)
    return state


def _train(
    model: nn.Module,
    recipe: Recipe,
    data: ImageTask,
    config: TrainConfig,
    teacher: _Teacher | None,
    seed: int,
    progress: Callable[[int, int], None],
) -> nn.Module:
    """Train a model and return it, or the average of its weights."""
    optimizer, compare = make_optimizer(model, config), criterion(config)
    targets = Targets(config, len(data.class_names), config.batch_size, seed)
    steps = config.epochs * (len(data.train) // config.batch_size)
    ema = make_average(model, max(0.0, 1 - 1 / (_EMA_HORIZON * steps))) if recipe.average == "ema" else None
    swa = AveragedModel(model) if recipe.average == "swa" else None
    for epoch in range(config.epochs):
        batches = data.train.loader(
            config.batch_size, epoch=epoch, seed=seed, augment=data.config.augment, device=default_device()
        )

        def loss(images: Tensor, labels: Tensor, step: int) -> Tensor:
            images, labels = targets(images, labels, step)
            rows = batches.batches[step % len(batches)]  # noqa: B023 - called within this epoch
            prediction = teacher.predict(images, rows) if teacher else None
            return compare(forward(model, images, config), mix_labels(labels, prediction, _KAPPA))

        schedule = config if recipe.average == "none" else None
        train_epoch(model, optimizer, batches, loss, schedule=schedule, epoch=epoch, average=ema)
        if swa:
            swa.update_parameters(model)
        progress(epoch + 1, config.epochs)
    average = swa or ema
    return average.module if average else model


class _Teacher:
    """The mean prediction of some weights; it is computed once for each image where images are never changed."""

    def __init__(self, model: nn.Module, states: Sequence[StateDict], data: ImageTask, config: TrainConfig) -> None:
        self._config, self._networks = config, [_frozen(model, state) for state in states]
        is_constant = data.config.augment == "none" and not (config.mixup or config.cutmix)
        shape = len(data.train), len(data.class_names)
        self._known = torch.full(shape, torch.nan, device=default_device()) if is_constant else None

    @torch.no_grad()
    def predict(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return probabilities of shape (batch, classes)."""
        if self._known is not None and not self._known[rows].isnan().any():
            return self._known[rows]
        predictions = [probabilities(self._config, forward(net, images, self._config)) for net in self._networks]
        mean = torch.stack(predictions).mean(0)
        if self._known is not None:
            self._known[rows] = mean
        return mean


def _frozen(model: nn.Module, state: StateDict) -> nn.Module:
    teacher = deepcopy(model)
    teacher.load_state_dict(dict(state))
    return teacher.eval().requires_grad_(False)
