"""The Accelerator of a fit: its device, precision, processes and trackers. No other file builds one."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from starzoo.config import RunConfig
from starzoo.errors import UsageError
from starzoo.parallel import runs_on_cpu

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["compile_network", "make_accelerator"]


def make_accelerator(config: RunConfig, folder: Path | None) -> Accelerator:
    """Build the Accelerator that a configuration asks for; trackers write into the run's folder."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs, InitProcessGroupKwargs

    if config.star.precision == "fp16" and runs_on_cpu():
        raise UsageError("star.precision", "fp16 needs a GPU", hint="use bf16 or fp32")
    trackers = list(config.runtime.trackers)
    _check_trackers(trackers)
    AcceleratorState._reset_state()  # it would hold every later fit of this process to the precision of the first
    accelerator = Accelerator(
        cpu=runs_on_cpu(),
        mixed_precision="no" if config.star.precision == "fp32" else config.star.precision,
        log_with=trackers or None,
        project_dir=folder / "logs" if folder and trackers else None,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=datetime.timedelta(minutes=config.runtime.timeout_minutes)),
            AutocastKwargs(cache_enabled=False),
        ],
    )
    if trackers:
        settings = {f"star.{name}": value for name, value in config.star.model_dump(mode="json").items()}
        scalars = {name: value for name, value in settings.items() if isinstance(value, int | float | str)}
        accelerator.init_trackers("starzoo", config={**scalars, "align.method": config.align.method})
    return accelerator


def compile_network(network: nn.Module) -> nn.Module:
    """Compile a network, where that is possible."""
    if runs_on_cpu() and not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        raise UsageError("runtime.compile", "needs a C++ compiler on a CPU", hint="install g++, or leave it out")
    return torch.compile(network)  # type: ignore[return-value]


def _check_trackers(names: Sequence[str]) -> None:
    """Make sure that trackers are installed, and that Weights & Biases sends nothing unless it was told to."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in available:
            supported = sorted(map(str, LOGGER_TYPE_TO_CLASS))
            hint = f"pip install {name}" if name in supported else f"the trackers are {', '.join(supported)}"
            raise UsageError(f"tracker {name!r}", "is not installed", hint=hint)
    os.environ.setdefault("WANDB_MODE", "offline")
