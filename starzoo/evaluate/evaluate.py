"""The plan of an evaluation: which paths and models are measured.

Every model, path, average and row of a plane is one item. The items are shared out among the processes of a run, and
among the jobs of an array; each is kept in the cache as soon as it is measured.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
from torch import Tensor

from starzoo.config import AlignConfig, EvalConfig, StarConfig
from starzoo.errors import UsageError
from starzoo.evaluate.cached_evaluation import OOD, VALIDATION, CachedEvaluation, name_errors, points
from starzoo.evaluate.domain_average import FULL_RANGE, NEAR_STAR, choose, ranges
from starzoo.evaluate.evaluator import Curve, Evaluator
from starzoo.evaluate.loss_plane import LossPlaneSampler
from starzoo.evaluate.model_pool import Line, Zoo
from starzoo.evaluate.result_cache import ResultCache
from starzoo.evaluate.results import Bf16Error, DomainSampling, Evaluation, LossPlane, PathCurve, PathKind, Role
from starzoo.evaluate.scores import measure_qualities
from starzoo.metrics import accuracy, negative_log_likelihood
from starzoo.models.architecture import Architecture
from starzoo.models.weights import StateDict
from starzoo.parallel import default_device, split_across_processes
from starzoo.progress import Progress, no_progress

if TYPE_CHECKING:
    from starzoo.data.split import Split
    from starzoo.data.task import ImageTask

__all__ = ["Shard", "Zoo", "evaluate", "evaluate_shard", "measure_path"]

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Shard:
    """One of several jobs, which measures each `of`-th item.

    Attributes:
        number: Which one, from 1.
        of: How many there are.
    """

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a share such as `2/8`."""
        parts = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        number, of = (int(parts[1]), int(parts[2])) if parts else (0, 0)
        if not 1 <= number <= of:
            raise UsageError("--shard", f"{text!r} is no share", hint="write --shard 1/8 to --shard 8/8")
        return cls(number, of)


def evaluate(
    architecture: Architecture,
    zoo: Zoo,
    data: ImageTask,
    config: EvalConfig,
    align_config: AlignConfig,
    *,
    star_config: StarConfig | None = None,
    outside: Split | None = None,
    cache: ResultCache | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure a star: the paths between models, and the quality of every way to predict.

    Star–source, star–held-out, star–star and regular–regular paths are aligned by the same method, the star (or the
    first model) staying fixed; regular–regular pairs are measured raw as well. Temperatures, and which points of the
    star domain are averaged, are chosen on validation images: those of the training split that nothing was fitted on.
    """
    measurement = CachedEvaluation(
        architecture, zoo, data, config, align_config, star_config=star_config, outside=outside, cache=cache
    )
    share, lines = _Sharing(Shard(), progress), list(_plan(zoo, config))
    names = measurement.models.names
    predicted = dict(zip(names, share("evaluating models", names, measurement.predict), strict=True))
    ends = predicted | dict(zip(*_ends(measurement, lines, share), strict=True))
    baselines = share("evaluating baselines", config.baselines, partial(measurement.baseline, progress=progress))
    choice = _choose_domain(measurement, share) if config.bma_samples else None
    averages = _averages(choice)
    means = share("averaging over the star domain", [each for _, each in averages], measurement.domain)
    found = share("measuring paths", lines, measurement.path)
    exact = share("evaluating the star in float32", *_exactly(measurement))
    return Evaluation(
        paths=tuple(itertools.chain.from_iterable(map(partial(_paths, measurement, ends), lines, found))),
        qualities=tuple(
            measure_qualities(
                measurement,
                predicted,
                [(*each, mean) for each, mean in zip(averages, means, strict=True)],
                dict(zip(config.baselines, baselines, strict=True)),
            )
        ),
        images={split: len(measurement.labels(split)) for split in config.splits},
        validation_images=len(measurement.labels(VALIDATION)) if VALIDATION in measurement.splits else 0,
        domain=choice,
        ood_images=len(measurement.labels(OOD)) if outside else 0,
        planes=tuple(_plane(measurement, triangle, share) for triangle in _triangles(measurement)),
        repaired=config.repair,
        rounding=_rounding(measurement, predicted["star"], exact[0]) if exact else None,
    )


def evaluate_shard(
    architecture: Architecture,
    zoo: Zoo,
    data: ImageTask,
    config: EvalConfig,
    align_config: AlignConfig,
    shard: Shard,
    *,
    star_config: StarConfig | None = None,
    outside: Split | None = None,
    cache: ResultCache,
    progress: Progress = no_progress,
) -> int:
    """Measure the share of one job and keep it in the cache, where `evaluate` finds it.

    What depends on the results of other jobs, the average over the star domain, is left to `evaluate`.
    """
    measurement = CachedEvaluation(
        architecture, zoo, data, config, align_config, star_config=star_config, outside=outside, cache=cache
    )
    share, lines = _Sharing(shard, progress), list(_plan(zoo, config))
    done = len(share("evaluating models", measurement.models.names, measurement.predict))
    done += len(_ends(measurement, lines, share)[1])
    done += len(share("evaluating baselines", config.baselines, partial(measurement.baseline, progress=progress)))
    if config.bma_samples and VALIDATION in measurement.splits:
        done += len(share("choosing points of the star domain", ranges(tuned=True), measurement.tune))
    done += len(share("measuring paths", lines, measurement.path))
    done += len(share("evaluating the star in float32", *_exactly(measurement)))
    for triangle in _triangles(measurement):
        done += len(share("measuring a plane", range(config.loss_plane_points), triangle.row))
    return done


def measure_path(
    architecture: Architecture,
    kind: PathKind,
    ends: Mapping[str, StateDict],
    data: ImageTask,
    config: EvalConfig,
) -> tuple[PathCurve, ...]:
    """Measure one path, on every split."""
    (a, start), (b, end) = ends.items()
    evaluator, t = _make_evaluator(architecture, data, config), points(config)
    with name_errors(f"the path from {a} to {b}"):
        curve = evaluator.curve(start, end, t)
    return tuple(
        PathCurve(kind=kind, a=a, b=b, split=split, t=t, loss=curve.loss[split], accuracy=curve.accuracy[split])
        for split in config.splits
    )


@dataclass(frozen=True)
class _Sharing:
    """Measures items: those of one job, shared out among its processes."""

    shard: Shard
    progress: Progress

    def __call__(self, what: str, items: Sequence[Item], work: Callable[[Item], Found]) -> list[Found]:
        mine = items[self.shard.number - 1 :: self.shard.of]
        return split_across_processes(mine, partial(map, work), tell=partial(self.progress, what))


def _plan(zoo: Zoo, config: EvalConfig) -> Iterator[Line]:
    rng = np.random.default_rng(config.seed)
    for name in list(zoo.sources)[: config.sources]:
        yield Line("star-source", "star", name)
    for name in zoo.holdouts:
        yield Line("star-heldout", "star", name)
    for name in zoo.others:
        yield Line("star-star", "star", name)
    pairs = list(itertools.combinations([*zoo.sources, *zoo.holdouts], 2))
    chosen = sorted(rng.permutation(len(pairs))[: config.source_pairs])
    kinds: Sequence[PathKind] = ("source-source", "source-source-unaligned")
    for kind in kinds:
        for number in chosen:
            yield Line(kind, *pairs[number])


def _ends(
    measurement: CachedEvaluation, lines: Sequence[Line], share: _Sharing
) -> tuple[list[str], list[dict[str, Tensor]]]:
    """The models at the ends of paths, and what they predict with statistics that are estimated as between the ends."""
    names = list(dict.fromkeys(name for line in lines for name in (line.a, line.b))) if measurement.estimates else []
    found = share("evaluating the ends of paths", names, measurement.predict_end)
    return names[: len(found)], found


def _paths(
    measurement: CachedEvaluation, ends: Mapping[str, Mapping[str, Tensor]], line: Line, inner: Curve
) -> Iterator[PathCurve]:
    """A path on every split: the ends are models that predict, and between them lies what `inner` says."""
    start, end = (measurement.curve_of(ends[name]) for name in (line.a, line.b))
    for split in measurement.config.splits:
        yield PathCurve(
            kind=line.kind,
            a=line.a,
            b=line.b,
            split=split,
            t=points(measurement.config),
            loss=start.loss[split] + inner.loss[split] + end.loss[split],
            accuracy=start.accuracy[split] + inner.accuracy[split] + end.accuracy[split],
            tempered_loss=tuple(value for part in (start, inner, end) for value in part.tempered_loss.get(split, ())),
        )


def _choose_domain(measurement: CachedEvaluation, share: _Sharing) -> DomainSampling:
    """Which points of the star domain to average: chosen on validation images, or by default where there are none."""
    if VALIDATION not in measurement.splits:
        return DomainSampling(t=NEAR_STAR, samples=measurement.config.bma_samples)
    tried = ranges(tuned=True)
    return choose(dict(zip(tried, share("choosing points of the star domain", tried, measurement.tune), strict=True)))


def _averages(choice: DomainSampling | None) -> list[tuple[Role, DomainSampling]]:
    """The average over the star domain, and for comparison as many points from whole lines."""
    if choice is None:
        return []
    found: list[tuple[Role, DomainSampling]] = [("domain", choice)]
    if choice.t != FULL_RANGE:
        found.append(("domain-whole-lines", DomainSampling(t=FULL_RANGE, samples=choice.samples)))
    return found


def _exactly(measurement: CachedEvaluation) -> tuple[list[str], Callable[[str], dict[str, Tensor]]]:
    """What is measured in float32 too, and how: the star where all else is in bfloat16, or nothing."""
    if measurement.config.precision == "fp32":
        return [], measurement.predict
    config = measurement.config.model_copy(update={"precision": "fp32"})
    models, zoo = measurement.models, Zoo(star=measurement.zoo.star, sources={}, holdouts={})
    exact = CachedEvaluation(
        measurement.architecture, zoo, measurement.data, config, models.config, cache=measurement.cache
    )
    return ["star"], exact.predict


def _rounding(measurement: CachedEvaluation, found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> Bf16Error:
    """By how much the star's scores differ from those in float32, on the split where they differ most."""
    pairs = [(found[split], exact[split], measurement.labels(split)) for split in measurement.config.splits]
    return Bf16Error(
        nll=max(abs(negative_log_likelihood(a, y) - negative_log_likelihood(b, y)) for a, b, y in pairs),
        accuracy=max(abs(accuracy(a, y) - accuracy(b, y)) for a, b, y in pairs),
    )


def _triangles(measurement: CachedEvaluation) -> list[LossPlaneSampler]:
    """That of the star with a source and a held-out; none where no plane is wanted, or they lie on a line."""
    if not measurement.config.loss_plane_points:
        return []
    pairs = zip(measurement.zoo.sources, measurement.zoo.holdouts, strict=False)
    triangles = [LossPlaneSampler(measurement, pair) for pair in itertools.islice(pairs, 1)]
    return [triangle for triangle in triangles if not triangle.is_degenerate]


def _plane(measurement: CachedEvaluation, triangle: LossPlaneSampler, share: _Sharing) -> LossPlane:
    rows = share("measuring a plane", range(measurement.config.loss_plane_points), triangle.row)
    x, y = triangle.grid
    return LossPlane(
        names=("star", *triangle.names),
        corners=((0.0, 0.0), *triangle.corners),
        split=measurement.config.splits[-1],
        x=tuple(x),
        y=tuple(y),
        loss=tuple(map(tuple, rows)),
    )


def _make_evaluator(architecture: Architecture, data: ImageTask, config: EvalConfig) -> Evaluator:
    splits: dict[str, Split] = {"train": data.train, "test": data.test}
    return Evaluator(
        architecture.build().to(default_device()),
        {name: (partial(splits[name].images, config.batch_size), splits[name].labels) for name in config.splits},
        partial(data.statistics_images, config),
        repairs=config.repair,
        precision=config.precision,
    )
