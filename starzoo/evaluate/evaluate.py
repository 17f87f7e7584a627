"""The plan of an evaluation: which paths and which models, measured once each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from starzoo.align.align import Aligner, average
from starzoo.align.probe import Probe
from starzoo.architecture import Architecture
from starzoo.config import AlignConfig, EvalConfig
from starzoo.errors import NumericalError
from starzoo.evaluate.barrier import Evaluator
from starzoo.evaluate.measures import Evaluation, Path, PathKind, Quality, Role
from starzoo.evaluate.predictive import (
    accuracy,
    ensemble_log_probabilities,
    expected_calibration_error,
    negative_log_likelihood,
)
from starzoo.processes import share_out
from starzoo.progress import Progress, silent
from starzoo.symmetry.spec import PermutationSpec

if TYPE_CHECKING:
    from starzoo.data import ImageData, Split

__all__ = ["Zoo", "evaluate", "measure_path"]

StateDict = Mapping[str, Tensor]
SplitName = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """The models of an evaluation, by name; batch-norm statistics are estimated anew for all of them.

    Attributes:
        star: The star's state dict.
        sources: The models that the star was fitted on.
        holdouts: The models that it never saw.
    """

    star: StateDict
    sources: Mapping[str, StateDict]
    holdouts: Mapping[str, StateDict]


@dataclass(frozen=True)
class _Line:
    """One path to measure: a function of two models, aligned or not."""

    kind: PathKind
    a: str
    b: str


def evaluate(
    architecture: Architecture,
    spec: PermutationSpec,
    zoo: Zoo,
    data: ImageData,
    config: EvalConfig,
    align_config: AlignConfig,
    *,
    progress: Progress = silent,
) -> Evaluation:
    """Measure a star: the paths between models, and the quality of every way to predict.

    Star–source, star–held-out and regular–regular paths are aligned by the same method, the star (or the first model)
    staying fixed; regular–regular pairs are measured raw as well. Several processes share the paths out among them.

    Args:
        architecture: What all models have in common.
        spec: Its symmetries.
        zoo: The models.
        data: The task's images.
        config: What is measured, and on how much data.
        align_config: How models are aligned before a path is drawn.
        progress: Told after every model and path.

    Returns:
        The evaluation.
    """
    evaluator = _make_evaluator(architecture, data, config)
    lines = list(_plan(zoo, config))
    probe = None
    if align_config.needs_images:
        some = data.train.labelled_images(limit=align_config.images, seed=align_config.seed)
        probe = Probe(architecture.build(), *some)
    models = {**zoo.sources, **zoo.holdouts, "star": zoo.star}
    predicted: dict[str, dict[str, Tensor]] = {}
    for done, (name, state) in enumerate(models.items(), start=1):
        with _naming(name):
            predicted[name] = evaluator.log_probabilities(state)
        progress("evaluating models", done, len(models))
    aligner = Aligner(spec, align_config.to_one, probe)

    def bring(names: Sequence[str], fixed: str) -> dict[str, dict[str, Tensor]]:
        """Some models, aligned to another one."""
        seen = map(aligner.evidence.of, map(models.__getitem__, (fixed, *names)))
        return {
            name: found.permutation.apply(models[name])
            for name, found in zip(names, aligner.match(next(seen), seen), strict=True)
        }

    to_star = bring([*zoo.sources, *zoo.holdouts], "star")
    predicted["aligned mean"] = evaluator.log_probabilities(average([to_star[name] for name in zoo.sources]))
    t = _points(config)

    def measure(line: _Line) -> list[Path]:
        end = models[line.b]
        if line.kind == "regular-regular":
            end = bring([line.b], line.a)[line.b]
        elif line.kind != "regular-regular-raw":
            end = to_star[line.b]
        with _naming(f"the path from {line.a} to {line.b}"):
            inner = evaluator.curve(models[line.a], end, t[1:-1])
        paths = []
        for split in config.splits:
            ends = [_measure(predicted[name][split], evaluator.labels(split)) for name in (line.a, line.b)]
            loss = (ends[0][0], *inner.loss[split], ends[1][0])
            right = (ends[0][1], *inner.accuracy[split], ends[1][1])
            paths.append(Path(kind=line.kind, a=line.a, b=line.b, split=split, t=t, loss=loss, accuracy=right))
        return paths

    measured = share_out(lines, partial(map, measure), tell=partial(progress, "measuring paths"))
    return Evaluation(
        paths=tuple(itertools.chain.from_iterable(measured)),
        qualities=tuple(_qualities(zoo, predicted, evaluator, config.splits)),
        images={split: len(evaluator.labels(split)) for split in config.splits},
        repaired=config.repair,
    )


def measure_path(
    architecture: Architecture,
    kind: PathKind,
    ends: Mapping[str, StateDict],
    data: ImageData,
    config: EvalConfig,
) -> tuple[Path, ...]:
    """Measure one path, on every split.

    Args:
        architecture: What both models have in common.
        kind: Which kinds of models they are.
        ends: The model at t = 0 and the one at t = 1, by name; already aligned where that is wanted.
        data: The task's images.
        config: What is measured, and on how much data.

    Returns:
        One path per split.
    """
    evaluator, t = _make_evaluator(architecture, data, config), _points(config)
    (a, start), (b, end) = ends.items()
    with _naming(f"the path from {a} to {b}"):
        curve = evaluator.curve(start, end, t)
    return tuple(
        Path(kind=kind, a=a, b=b, split=split, t=t, loss=curve.loss[split], accuracy=curve.accuracy[split])
        for split in config.splits
    )


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Say which model or path a numerical error belongs to."""
    try:
        yield
    except NumericalError as error:
        raise NumericalError(f"{what}: {error.message}", hint=error.hint, subject=what) from error


def _points(config: EvalConfig) -> tuple[float, ...]:
    return tuple(float(at) for at in np.linspace(0, 1, config.points))


def _make_evaluator(architecture: Architecture, data: ImageData, config: EvalConfig) -> Evaluator:
    splits: dict[str, Split] = {"train": data.train, "test": data.test}
    return Evaluator(
        architecture.build().to("cuda" if torch.cuda.is_available() else "cpu"),
        {name: (partial(splits[name].images, config.batch_size), splits[name].labels) for name in config.splits},
        partial(data.train.images, config.batch_size, limit=config.statistics_images, seed=config.seed),
        repairs=config.repair,
    )


def _plan(zoo: Zoo, config: EvalConfig) -> Iterator[_Line]:
    rng = np.random.default_rng(config.seed)
    for name in list(zoo.sources)[: config.sources]:
        yield _Line("star-source", "star", name)
    for name in zoo.holdouts:
        yield _Line("star-held-out", "star", name)
    pairs = list(itertools.combinations([*zoo.sources, *zoo.holdouts], 2))
    chosen = sorted(rng.permutation(len(pairs))[: config.pairs])
    kinds: Sequence[PathKind] = ("regular-regular", "regular-regular-raw")
    for kind in kinds:
        for number in chosen:
            yield _Line(kind, *pairs[number])


def _qualities(
    zoo: Zoo, predicted: Mapping[str, Mapping[str, Tensor]], evaluator: Evaluator, splits: Sequence[SplitName]
) -> Iterator[Quality]:
    roles: dict[str, Role] = dict.fromkeys(zoo.sources, "member")
    roles |= dict.fromkeys(zoo.holdouts, "held-out")
    roles |= {"aligned mean": "aligned-mean", "star": "star"}
    for split in splits:
        labels = evaluator.labels(split)
        for name, role in roles.items():
            yield _quality(name, role, split, predicted[name][split], labels)
        votes = torch.stack([predicted[name][split] for name in zoo.sources])
        ensemble = f"ensemble of {len(votes)}"
        yield _quality(ensemble, "ensemble", split, ensemble_log_probabilities(votes), labels, passes=len(votes))


def _quality(name: str, role: Role, split: SplitName, predicted: Tensor, labels: Tensor, *, passes: int = 1) -> Quality:
    nll, right = _measure(predicted, labels)
    ece = expected_calibration_error(predicted, labels)
    return Quality(name=name, role=role, split=split, accuracy=right, nll=nll, ece=ece, passes=passes)


def _measure(predicted: Tensor, labels: Tensor) -> tuple[float, float]:
    return negative_log_likelihood(predicted, labels), accuracy(predicted, labels)
