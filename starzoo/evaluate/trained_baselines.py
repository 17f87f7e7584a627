"""Baselines that are trained at the star's cost: SWA and a distilled student."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from starzoo.config import Baseline, OptimizationConfig, StarConfig, TrainConfig
from starzoo.data.task import ImageTask
from starzoo.errors import NumericalError
from starzoo.models.architecture import Architecture
from starzoo.models.memory_format import channels_last
from starzoo.models.training.optimizer import make_average, make_optimizer, train_epoch
from starzoo.models.training.targets import Targets, criterion, mix_labels, probabilities
from starzoo.models.weights import StateDict
from starzoo.parallel import default_device, rng_devices
from starzoo.progress import Progress, no_progress

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3

__all__ = ["baseline_recipe", "baseline_steps", "train_baseline"]

_STAGE: Mapping[Baseline, str] = {"swa": "averaging weights (SWA)", "student": "distilling a student"}


def baseline_steps(kind: Baseline, data: ImageTask, star: StarConfig) -> int:
    """Return the number of steps that cost what the star's fit costs.

    Forward and backward pass count as three. The forward pass of a teacher, for a student and a star with κ, counts as
    one.
    """
    return baseline_recipe(kind, star).epochs * len(data.train.loader(star.batch_size, epoch=0, seed=0))


def baseline_recipe(kind: Baseline, star: StarConfig) -> TrainConfig:
    """Configure a baseline as the star, but with SGD at the rate of `starzoo train` and steps of the same cost."""
    star_cost, own_cost = 4 if star.kappa else 3, 3 if kind == "swa" else 4
    own = {"lr", "ema_decay"} if kind == "swa" else {"lr"}
    shared = star.model_dump(include=OptimizationConfig.model_fields.keys() - own)
    rate = TrainConfig().lr if star.optimizer == "sgd" else star.lr
    epochs = max(1, round(star.epochs * star_cost / own_cost))
    return TrainConfig(lr=rate / 2 if kind == "swa" else rate, epochs=epochs, **shared)


def train_baseline(
    kind: Baseline,
    architecture: Architecture,
    sources: Sequence[StateDict],
    data: ImageTask,
    star: StarConfig,
    *,
    progress: Progress = no_progress,
) -> dict[str, Tensor]:
    """Train a baseline of a star with the star's optimizer, batch size, weight decay and seed.

    `swa` trains the first source further at a constant rate, half that of training, and averages the ends of the epochs
    (Izmailov et al. 2018). `student` starts at random. It learns labels mixed with the predictions of the sources in
    turn (Hinton et al. 2015), as a star with κ does; its κ is 1 where the star has none.
    """
    with torch.random.fork_rng(devices=rng_devices()):
        torch.manual_seed(star.seed)
        model = channels_last(architecture.build()).to(default_device())
        epochs = partial(_epochs, model, data, star, baseline_recipe(kind, star), partial(progress, _STAGE[kind]))
        trained = _train_swa(model, sources[0], epochs) if kind == "swa" else _distill(model, sources, star, epochs)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.state_dict().items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        hint = "leave it out of evaluate.baselines; the star is not affected"
        raise NumericalError(f"baseline {kind}", "its weights are not finite", hint=hint)
    return state


def _train_swa(model: nn.Module, start: StateDict, epochs: Callable[..., Iterator[None]]) -> nn.Module:
    """Average the ends of all epochs at a constant rate."""
    model.load_state_dict(dict(start))
    averaged = AveragedModel(model)
    for _ in epochs(constant=True):
        averaged.update_parameters(model)
    return averaged.module


def _distill(
    model: nn.Module, sources: Sequence[StateDict], star: StarConfig, epochs: Callable[..., Iterator[None]]
) -> nn.Module:
    """Train on labels mixed with the predictions of the sources, each once per shuffled round."""
    teachers, rng = [_frozen(model, source) for source in sources], np.random.default_rng(star.seed)
    order = itertools.chain.from_iterable(rng.permutation(len(sources)) for _ in itertools.count())

    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        return probabilities(star, teachers[next(order)](images))

    average = make_average(model, star.ema_decay)
    for _ in epochs(predict=predict, average=average):
        pass
    return average.module if average else model


def _epochs(
    model: nn.Module,
    data: ImageTask,
    star: StarConfig,
    recipe: TrainConfig,
    progress: Callable[[int, int], None],
    *,
    predict: Callable[[Tensor], Tensor] | None = None,
    average: ModelEmaV3 | None = None,
    constant: bool = False,
) -> Iterator[None]:
    """Train a model and yield after every epoch; the rate is constant or follows the schedule of `starzoo train`."""
    optimizer, compare = make_optimizer(model, recipe), criterion(recipe)
    targets = Targets(recipe, len(data.class_names), star.batch_size, star.seed)

    def loss(images: Tensor, labels: Tensor, step: int) -> Tensor:
        images, labels = targets(images, labels, step)
        return compare(model(images), mix_labels(labels, predict(images) if predict else None, star.kappa or 1.0))

    for epoch in range(recipe.epochs):
        batches = data.train.loader(
            star.batch_size, epoch=epoch, seed=star.seed, augment=data.config.augment, device=default_device()
        )
        schedule = None if constant else recipe
        train_epoch(
            model,
            optimizer,
            batches,
            loss,
            schedule=schedule,
            epoch=epoch,
            clip_grad_norm=star.clip_grad_norm,
            average=average,
        )
        progress(epoch + 1, recipe.epochs)
        yield


def _frozen(model: nn.Module, state: StateDict) -> nn.Module:
    teacher = deepcopy(model)
    teacher.load_state_dict(dict(state))
    return teacher.eval().requires_grad_(False)
