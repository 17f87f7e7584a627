"""Optimizer and learning rate from a configuration, and one epoch of ordinary training by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from starzoo.config import StarConfig, TrainConfig

__all__ = ["Batches", "make_optimizer", "set_learning_rate", "train_epoch"]


class Batches(Protocol):
    """The batches of one epoch, such as a `starzoo.data.split.Loader`."""

    def __len__(self) -> int:
        """How many there are."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images of shape (batch, channels, height, width) and labels of shape (batch,)."""


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig | StarConfig) -> torch.optim.Optimizer:
    """The optimizer that a configuration names."""
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
    """
    warmup = config.warmup * total
    if step < warmup:
        factor = (step + 1) / (warmup + 1)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    schedule: TrainConfig | None = None,
    epoch: int = 0,
    clip_grad_norm: float | None = None,
) -> float:
    """Train a model on every batch once."""
    device, losses = next(model.parameters()).device, []
    model.train()
    for number, (images, labels) in enumerate(batches):
        if schedule:
            step, total = epoch * len(batches) + number, schedule.epochs * len(batches)
            set_learning_rate(optimizer, schedule, step=step, total=total)
        found = loss(images.to(device), labels.to(device))
        optimizer.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        if clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
        optimizer.step()
        losses.append(found.detach())
    return float(torch.stack(losses).mean())
