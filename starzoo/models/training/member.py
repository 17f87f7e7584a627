"""Train one member of a zoo from scratch."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from starzoo.config import TrainConfig
from starzoo.data.split import Split
from starzoo.data.task import ImageTask
from starzoo.errors import NumericalError
from starzoo.metrics import accuracy, negative_log_likelihood
from starzoo.models.architecture import Architecture
from starzoo.models.memory_format import channels_last
from starzoo.models.training.optimizer import forward, make_average, make_optimizer, train_epoch
from starzoo.models.training.targets import Targets, criterion
from starzoo.parallel import default_device
from starzoo.progress import Progress, no_progress

__all__ = ["measure", "train_member"]

_EVALUATION_BATCH = 250
_DIVERGED = "lower lr or raise warmup"


def train_member(
    architecture: Architecture,
    data: ImageTask,
    config: TrainConfig,
    seed: int,
    *,
    device: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Tensor]:
    """Train one network from scratch; initialization, order and augmentation are functions of the seed."""
    target = torch.device(device or default_device())
    start, order = (int(number) for number in np.random.SeedSequence(seed).generate_state(2))
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []):
        torch.manual_seed(start)  # for the initial weights and for dropout
        model = channels_last(architecture.build()).to(target)
        optimizer, compare = make_optimizer(model, config), criterion(config)
        targets = Targets(config, architecture.num_classes, config.batch_size, order)
        average = make_average(model, config.ema_decay)

        def full_loss(images: Tensor, labels: Tensor, step: int) -> Tensor:
            images, labels = targets(images, labels, step)
            return compare(forward(model, images, config), labels)

        def small_loss(images: Tensor, labels: Tensor, step: int) -> Tensor:
            return full_loss(interpolate(images, config.small_size, mode="bilinear", antialias=True), labels, step)

        for epoch in range(config.epochs):
            batches = data.train.loader(
                config.batch_size, epoch=epoch, seed=order, augment=data.config.augment, device=target
            )
            objective = small_loss if config.small_size and epoch < config.epochs // 2 else full_loss
            loss = train_epoch(model, optimizer, batches, objective, schedule=config, epoch=epoch, average=average)
            if not math.isfinite(loss):
                raise NumericalError(f"seed {seed}", f"the loss is {loss} in epoch {epoch + 1}", hint=_DIVERGED)
            progress(f"training seed {seed}", epoch + 1, config.epochs, loss=loss)
        result = average.module if average else model
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in result.state_dict().items()}
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            problem = f"tensor {name!r} is not finite after epoch {config.epochs}"
            raise NumericalError(f"seed {seed}", problem, hint=_DIVERGED)
    return state


def measure(model: nn.Module, split: Split) -> tuple[float, float]:
    """Return the negative log-likelihood and the accuracy on a split, without augmentation."""
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        batches = [model(images.to(device)).float().log_softmax(1).cpu() for images in split.images(_EVALUATION_BATCH)]
    log_probabilities = torch.cat(batches)
    return negative_log_likelihood(log_probabilities, split.labels), accuracy(log_probabilities, split.labels)
