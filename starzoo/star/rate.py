"""A learning rate for a star by short trials: what connects a star most is its rate, and a user cannot know it."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starzoo.align.probe import Probe
from starzoo.config import RunConfig, TrainConfig
from starzoo.errors import NumericalError, StarzooError
from starzoo.files import write_text
from starzoo.models.sources import Source
from starzoo.models.weights import interpolate
from starzoo.parallel import on_main_process
from starzoo.progress import Progress, no_progress
from starzoo.star.fit import CHECKPOINTS, fit, identity
from starzoo.star.manifest import RateTrial

if TYPE_CHECKING:
    from starzoo.data.task import ImageTask

__all__ = ["best_rate", "midpoint_loss", "try_rates"]

_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_STEPS, _SHARE = 100, 0.125  # of a trial: the greater of a number and a share of the fit's
_IMAGES = 1000
_FILE = "rates.json"


def best_rate(trials: Sequence[RateTrial]) -> float:
    """Return the rate for the whole fit: the best of the trials, times how much longer the fit is.

    The rate with the least loss half-way to the sources grows in proportion to the steps (`benchmarks/tuning.py`). It
    is at most the highest that was tried.

    Raises:
        NumericalError: No trial has a finite loss.
    """
    finite = [trial for trial in trials if trial.midpoint_loss is not None]
    if not finite:
        raise NumericalError("star.lr=auto", "no rate has a finite loss", hint="set star.lr to a number")
    best = min(finite, key=lambda trial: trial.midpoint_loss or 0.0)
    return min(best.lr / best.share, finite[-1].lr)


def try_rates(
    sources: Sequence[Source],
    data: ImageTask,
    config: RunConfig,
    *,
    folder: Path | None = None,
    progress: Progress = no_progress,
) -> list[RateTrial]:
    """Fit short stars at rates around that of the sources, and measure each half-way to the sources.

    A trial has an eighth of the fit's steps, but a hundred at least, with the whole schedule of the rate. It is
    measured on validation images, or on training images without them. Rates are from a quarter to eight times that of
    the sources' own training, where it is recorded for the same optimizer, and else of a usual one.

    Args:
        sources: The sources.
        data: The task.
        config: The run's configuration.
        folder: The run's folder, where finished trials are kept for a run that is resumed.
        progress: Told after every trial.

    Returns:
        One trial for each rate, in rising order.
    """
    base = _usual_rate(sources, config)
    data, epochs, share = _shorten(data, config)
    trials = list[RateTrial]()
    for number, factor in enumerate(_FACTORS, start=1):
        changes = {"lr": base * factor, "epochs": epochs, "midpoint_every": 0, "patience": None}
        trial = config.model_copy(update={"star": config.star.model_copy(update=changes)})
        file = folder / CHECKPOINTS / _FILE if folder else None
        key = _key(sources, data, trial)
        known = on_main_process(partial(_read, file))
        loss = known[key] if key in known else midpoint_loss(sources, data, trial)
        trials.append(RateTrial(lr=base * factor, share=share, midpoint_loss=loss))
        if file and key not in known:
            on_main_process(partial(_write, file, {**known, key: loss}))
        progress("choosing the learning rate", number, len(_FACTORS))
    return trials


def _usual_rate(sources: Sequence[Source], config: RunConfig) -> float:
    optimizer = config.star.optimizer
    recorded = [source.record.lr for source in sources if source.record.optimizer == optimizer and source.record.lr]
    if recorded:
        return statistics.median_low(recorded)
    return {"sgd": TrainConfig().peak_lr, "muon": 0.02}.get(optimizer, 0.001)


def _shorten(data: ImageTask, config: RunConfig) -> tuple[ImageTask, int, float]:
    """Return the task with as many training images as a trial needs, its epochs, and its share of the fit's steps."""
    batch, per_epoch = config.star.batch_size, max(1, len(data.train) // config.star.batch_size)
    steps = config.star.epochs * per_epoch
    wanted = min(max(_STEPS, round(_SHARE * steps)), max(1, steps))
    if wanted < per_epoch:
        rows = data.train.sample_indices(wanted * batch, config.star.seed)
        return replace(data, train=data.train.subset(rows)), 1, wanted / steps
    epochs = math.ceil(wanted / per_epoch)
    return data, epochs, min(1.0, epochs / max(1, config.star.epochs))


def midpoint_loss(sources: Sequence[Source], data: ImageTask, trial: RunConfig) -> float | None:
    """Fit a star and return its mean loss half-way to the sources, in nats; None where it is not finite."""
    try:
        star = fit(sources, data, trial)
    except NumericalError:
        return None
    split = data.validation or data.train
    probe = Probe(sources[0].architecture.build(), *split.labeled_images(limit=_IMAGES, seed=trial.star.seed))
    ends = [permutation.apply(source.state) for permutation, source in zip(star.permutations, sources, strict=True)]
    loss = on_main_process(lambda: statistics.fmean(probe.loss(interpolate(star.state, end, 0.5)) for end in ends))
    return loss if math.isfinite(loss) else None


def _key(sources: Sequence[Source], data: ImageTask, trial: RunConfig) -> str:
    content = [identity(sources, data, trial), len(data.train)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(file: Path | None) -> dict[str, Any]:
    with suppress(OSError, ValueError, TypeError):
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file else {}
    return {}


def _write(file: Path, known: dict[str, Any]) -> None:
    with suppress(OSError, StarzooError):  # it is measured again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(known))
