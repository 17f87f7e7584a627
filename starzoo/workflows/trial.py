"""Take a few steps of a fit on this machine, and estimate from them how long the whole run takes."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch

from starzoo.config import EvalConfig, RunConfig
from starzoo.data.task import ImageTask
from starzoo.evaluate.domain_average import T_RANGES
from starzoo.models.architecture import Architecture
from starzoo.models.batch_norm import has_batch_norm
from starzoo.models.compatibility import check_compatible
from starzoo.models.memory_format import channels_last
from starzoo.models.sources import load_sources
from starzoo.parallel import default_device
from starzoo.progress import Progress, no_progress
from starzoo.star.fit import fit
from starzoo.star.inputs import load_data_for
from starzoo.star.run.local_paths import resolve_paths
from starzoo.workflows.measure import match_to_data
from starzoo.workflows.refs import resolve_zoo

__all__ = ["Trial", "measure_trial"]

_STEPS, _BATCHES, _ROUNDS = 10, 10, 3
_MIN_SECONDS, _MAX_SECONDS = 2.0, 60.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a short trial took on one process of this machine, and estimates from it.

    Attributes:
        used_per_second: Training images that the steps of the fit use per second.
        loaded_per_second: Training images that are loaded per second without a fit; a fit waits for images if this is
            not more than it could use.
        start_seconds: Seconds before the first step, the first alignment included.
        fit_seconds: Estimated seconds of the whole fit.
        evaluation_seconds: Estimated seconds of the evaluation.
        peak_memory: Bytes of memory that the process had at most, without that of a GPU.
    """

    used_per_second: float
    loaded_per_second: float
    start_seconds: float
    fit_seconds: float
    evaluation_seconds: float
    peak_memory: int


class _EnoughError(Exception):
    """Ends the trial's fit."""


class _Stopwatch:
    """Times the steps of a fit as its progress, and ends it after an epoch or a minute."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.reports = epochs, list[tuple[float, int, int]]()

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Report a finished unit of work (`starzoo.progress.Progress`)."""
        if stage != "fitting the star" or done < min(_STEPS, total):  # the first steps take longer
            return
        self.reports.append((time.monotonic(), done, total))
        seconds, steps = self.elapsed
        is_epoch = steps >= total / self.epochs and seconds > _MIN_SECONDS  # with one alignment for each epoch
        if done == total or (steps >= _STEPS and (is_epoch or seconds > _MAX_SECONDS)):
            raise _EnoughError

    @property
    def elapsed(self) -> tuple[float, int]:
        """The seconds and the steps between the first and the last report."""
        (start, first, _), (now, last, _) = self.reports[0], self.reports[-1]
        return now - start, last - first


def measure_trial(
    sources: Sequence[str], holdouts: Sequence[str], config: RunConfig, *, progress: Progress = no_progress
) -> Trial:
    """Load the sources and images of a run, and take the first steps of its fit; no result is kept.

    Args:
        sources: References of the models that the star is fitted on.
        holdouts: References of models that it never sees; only their number matters here.
        config: The run's configuration, with at least one epoch.
        progress: Called while models are loaded.

    Returns:
        What was measured, and estimates from it.
    """
    sources, holdouts = resolve_zoo(sources, holdouts)
    config = resolve_paths(config)
    models = load_sources(sources, image_size=config.data.image_size, progress=progress)
    check_compatible(models)
    models, data = match_to_data(models, partial(load_data_for, models[0].architecture, config.data), progress)
    decoding = time.monotonic()
    if config.data.augment != "timm" and not data.train.pixels.is_shared:
        data.train.pixels.prepare(torch.arange(len(data.train)))  # only the first epoch waits for this
    decoding = time.monotonic() - decoding
    loaded_per_second = _measure_loading(data, config)
    watch, begun = _Stopwatch(config.star.epochs), time.monotonic()
    with suppress(_EnoughError):
        fit(models, data, config, progress=watch)
    seconds, steps = watch.elapsed
    first_report, first_step, total = watch.reports[0]
    step = seconds / max(1, steps)
    start = max(0.0, first_report - begun - first_step * step)
    return Trial(
        used_per_second=config.star.batch_size / step,
        loaded_per_second=loaded_per_second,
        start_seconds=start,
        fit_seconds=decoding + start + total * step,
        evaluation_seconds=_estimate_evaluation(
            models[0].architecture, data, config.evaluate, len(models), len(holdouts)
        ),
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    )


def _measure_loading(data: ImageTask, config: RunConfig) -> float:
    """Return the training images that are loaded per second, after those that start the loader."""
    loader = data.train.loader(
        config.star.batch_size,
        epoch=0,
        seed=config.star.seed,
        augment=config.data.augment,
        workers=config.runtime.workers,
        device=default_device(),
    )
    batches = iter(loader)
    next(batches)
    start, count = time.monotonic(), sum(len(labels) for _, labels in islice(batches, _BATCHES))
    return count / (time.monotonic() - start) if count else math.nan


def _estimate_evaluation(
    architecture: Architecture, data: ImageTask, config: EvalConfig, sources: int, holdouts: int
) -> float:
    """Return the seconds of an evaluation: its passes over all images, at the speed of some of them."""
    network, device = channels_last(architecture.build().to(default_device())).eval(), default_device()
    with torch.inference_mode():
        batches = list(islice(data.test.images(config.batch_size), _BATCHES))
        rounds = []
        for _ in range(_ROUNDS):
            start = time.monotonic()
            for images in batches:
                network(images.to(device, memory_format=torch.channels_last))[0, 0].item()
            rounds.append(time.monotonic() - start)
        per_image = min(rounds) / sum(map(len, batches))  # what disturbs a machine only ever adds
    models, has_statistics = sources + holdouts, has_batch_norm(network)
    paths = (sources if config.sources is None else min(sources, config.sources)) + holdouts
    paths += 2 * min(config.source_pairs, math.comb(models, 2))
    points = paths * (config.points - 2) + 2 * config.bma_samples  # of paths, and of the star domain
    own = (models + 3) * (2 if has_statistics else 1)  # with their own statistics and, at the ends of paths, others
    validation = min(config.validation_images, len(data.validation)) if data.validation else 0
    evaluated = sum(len(getattr(data, split)) for split in config.splits) + validation
    choices = len(T_RANGES) * config.bma_samples if validation else 0  # of the range of t, on these images alone
    statistics = config.batch_norm_images * (points + choices + own / 2) if has_statistics else 0
    return per_image * ((points + own) * evaluated + choices * validation + statistics)
