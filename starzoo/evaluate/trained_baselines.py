"""Baselines that are trained at the star's cost: SWA and a distilled student."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.optim.swa_utils import AveragedModel

from starzoo.config import Baseline, StarConfig, TrainConfig
from starzoo.data.task import ImageTask
from starzoo.errors import NumericalError
from starzoo.models.architecture import Architecture
from starzoo.models.memory_format import channels_last
from starzoo.models.training.optimizer import make_optimizer, train_epoch
from starzoo.models.weights import StateDict
from starzoo.parallel import default_device, rng_devices
from starzoo.progress import Progress, no_progress

__all__ = ["baseline_recipe", "baseline_steps", "train_baseline"]

_STAGE: Mapping[Baseline, str] = {"swa": "averaging weights (SWA)", "student": "distilling a student"}


def baseline_steps(kind: Baseline, data: ImageTask, star: StarConfig) -> int:
    """How many steps a baseline is trained for.

    As many as cost what the star's cost: forward and backward pass count as three, the forward pass of a teacher, which
    a student has and a star with κ, as one.
    """
    return baseline_recipe(kind, star).epochs * len(data.train.loader(star.batch_size, epoch=0, seed=0))


def baseline_recipe(kind: Baseline, star: StarConfig) -> TrainConfig:
    """Configure a baseline as the star, but with SGD at the rate of `starzoo train` and steps of the same cost."""
    cost, own = 4 if star.kappa else 3, 3 if kind == "swa" else 4
    shared = star.model_dump(include={"optimizer", "momentum", "nesterov", "weight_decay", "warmup"})
    rate = TrainConfig().lr if star.optimizer == "sgd" else star.lr
    epochs = max(1, round(star.epochs * cost / own))
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

    `swa` goes on from the first source at a constant rate, half that of training, and averages the ends of the epochs
    (Izmailov et al. 2018). `student` starts at random and learns, as a star with κ does, labels that are mixed with the
    prediction of one source after the other (Hinton et al. 2015); its κ is 1 where the star has none.
    """
    with torch.random.fork_rng(devices=rng_devices()):
        torch.manual_seed(star.seed)
        model = channels_last(architecture.build()).to(default_device())
        epochs = partial(_epochs, model, data, star, baseline_recipe(kind, star), partial(progress, _STAGE[kind]))
        found = _average(model, sources[0], epochs) if kind == "swa" else _distil(model, sources, star, epochs)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in found.state_dict().items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        hint = "leave it out of evaluate.baselines; the star is not concerned"
        raise NumericalError(f"baseline {kind}", "its weights are not finite", hint=hint)
    return state


def _average(model: nn.Module, start: StateDict, epochs: Callable[..., Iterator[None]]) -> nn.Module:
    """The mean of the ends of all epochs at a constant rate."""
    model.load_state_dict(dict(start))
    averaged = AveragedModel(model)
    for _ in epochs(lambda images, labels: cross_entropy(model(images), labels), constant=True):
        averaged.update_parameters(model)
    return averaged.module


def _distil(
    model: nn.Module, sources: Sequence[StateDict], star: StarConfig, epochs: Callable[..., Iterator[None]]
) -> nn.Module:
    """The model after training on labels that are mixed with the predictions of sources from a shuffled deck."""
    teachers, rng = [_frozen(model, source) for source in sources], np.random.default_rng(star.seed)
    deck = itertools.chain.from_iterable(rng.permutation(len(sources)) for _ in itertools.count())
    kappa = star.kappa or 1.0

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            prediction = teachers[next(deck)](images).softmax(1)
        truth = one_hot(labels, prediction.shape[1]).to(prediction)
        return cross_entropy(model(images), torch.lerp(truth, prediction, kappa / (1 + kappa)))

    for _ in epochs(loss):
        pass
    return model


def _epochs(
    model: nn.Module,
    data: ImageTask,
    star: StarConfig,
    recipe: TrainConfig,
    tell: Callable[[int, int], None],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    constant: bool = False,
) -> Iterator[None]:
    """Train a model, with a stop after every epoch: at a constant rate, or as `starzoo train` varies it."""
    optimizer = make_optimizer(model.parameters(), recipe)
    for epoch in range(recipe.epochs):
        batches = data.train.loader(star.batch_size, epoch=epoch, seed=star.seed, augment=data.config.augment)
        schedule = None if constant else recipe
        train_epoch(model, optimizer, batches, loss, schedule=schedule, epoch=epoch, clip_grad_norm=star.clip_grad_norm)
        tell(epoch + 1, recipe.epochs)
        yield


def _frozen(model: nn.Module, state: StateDict) -> nn.Module:
    teacher = deepcopy(model)
    teacher.load_state_dict(dict(state))
    return teacher.eval().requires_grad_(False)
