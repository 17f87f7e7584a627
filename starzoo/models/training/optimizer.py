"""Optimizer and learning rate from a configuration, and one epoch of ordinary training by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from starzoo.config import StarConfig, TrainConfig
from starzoo.errors import UsageError

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3

__all__ = [
    "Batches",
    "check_optimizer",
    "forward",
    "make_average",
    "make_optimizer",
    "set_learning_rate",
    "train_epoch",
]

_UNSUPPORTED = ["adahessian", "kron*"]  # second derivatives; random numbers that no checkpoint holds


class Batches(Protocol):
    """The batches of one epoch, for example a `starzoo.data.split.Loader`."""

    def __len__(self) -> int:
        """The number of batches."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images of shape (batch, channels, height, width) and labels of shape (batch,)."""


def check_optimizer(name: str) -> None:
    """Make sure that timm has an optimizer of this name."""
    from timm.optim import list_optimizers  # type: ignore[attr-defined]  # lacks a re-export

    names = [str(optimizer) for optimizer in list_optimizers(exclude_filters=_UNSUPPORTED)]
    if name not in names:
        close = " or ".join(get_close_matches(name.lower(), names, cutoff=0.5)) or "sgd or adamw"
        hint = f"use {close}; `timm.optim.list_optimizers()` lists all of them"
        raise UsageError("optimizer", f"expected an optimizer of timm, got {name!r}", hint=hint)


def make_optimizer(
    network: nn.Module, config: TrainConfig | StarConfig, parameters: Mapping[str, nn.Parameter] | None = None
) -> torch.optim.Optimizer:
    """Make the optimizer that a configuration names, for a network's parameters or for others of the same names."""
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # lacks a re-export

    check_optimizer(config.optimizer)
    named = parameters or dict(network.named_parameters())
    groups: list[Any] = list(named.values())
    if config.filter_bias_and_bn:
        exempt: Collection[str] = getattr(network, "no_weight_decay", set)()
        bare = {name for name, value in named.items() if value.ndim < 2 or name.endswith(".bias") or name in exempt}
        groups = [
            {"params": [named[name] for name in named if name in bare], "weight_decay": 0.0},
            {"params": [named[name] for name in named if name not in bare]},
        ]
    options: dict[str, Any] = {"nesterov": config.nesterov and config.momentum > 0} if config.optimizer == "sgd" else {}
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups,
            config.optimizer,
            lr=config.peak_lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            **options,
        )
    except (AssertionError, ImportError, ValueError) as error:  # no GPU, no package, an impossible value
        raise UsageError("optimizer", f"cannot make {config.optimizer}: {error}", hint="use another one") from error
    return optimizer


def forward(model: nn.Module, images: Tensor, config: TrainConfig) -> Tensor:
    """Return the logits of a batch in float32, from a forward pass of the configured precision."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits: Tensor = model(images)
    return logits.float()


def make_average(model: nn.Module, decay: float | None) -> ModelEmaV3 | None:
    """Make the exponential moving average of a network's weights and buffers, if there is a decay."""
    from timm.utils.model_ema import ModelEmaV3

    return None if decay is None else ModelEmaV3(model, decay=decay)


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
        group["lr"] = config.peak_lr * factor


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    loss: Callable[[Tensor, Tensor, int], Tensor],
    *,
    schedule: TrainConfig | None = None,
    epoch: int = 0,
    clip_grad_norm: float | None = None,
    average: ModelEmaV3 | None = None,
) -> float:
    """Train a model on every batch once; the loss is a function of images, labels and step."""
    device, losses = next(model.parameters()).device, []
    model.train()
    for number, (images, labels) in enumerate(batches):
        step = epoch * len(batches) + number
        if schedule:
            set_learning_rate(optimizer, schedule, step=step, total=schedule.epochs * len(batches))
        batch_loss = loss(images.to(device), labels.to(device), step)
        optimizer.zero_grad()
        batch_loss.backward()  # type: ignore[no-untyped-call]
        if clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
        optimizer.step()
        if average:
            average.update(model)
        losses.append(batch_loss.detach())
    return float(torch.stack(losses).mean())
