"""Optimiser and learning rate from a configuration: the same for a member of a zoo and for a star."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from starzoo.config import StarConfig, TrainConfig

__all__ = ["make_optimizer", "set_learning_rate"]


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig | StarConfig) -> torch.optim.Optimizer:
    """The optimiser that a configuration names.

    Args:
        parameters: What it updates.
        config: Names the optimiser and its constants.

    Returns:
        SGD with (Nesterov) momentum, or AdamW.
    """
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov and config.momentum > 0,
        weight_decay=config.weight_decay,
    )


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: TrainConfig | StarConfig, *, step: int, total: int
) -> None:
    """Set the rate of one step: a linear warm-up, then half a cosine down to zero.

    The rate is a function of the step alone, so that a resumed run needs no scheduler state.

    Args:
        optimizer: Its rate is set in every parameter group.
        config: Holds the peak rate and the warm-up's share of all steps.
        step: The step about to be taken, from 0.
        total: Steps in all.
    """
    warmup = config.warmup * total
    if step < warmup:
        factor = (step + 1) / (warmup + 1)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor
