"""The plan of an evaluation: which paths and predictors are measured.

Every model, path, average and row of a plane is one item. The items are shared among the processes of a run and among
the jobs of an array. Each is kept in the cache as soon as it is measured.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self, TypeVar

import numpy as np
import torch

from starzoo.config import Baseline, EvalConfig, Uniform
from starzoo.errors import UsageError
from starzoo.evaluate.baselines import BaselineResults
from starzoo.evaluate.cached_evaluation import VALIDATION, CachedEvaluation
from starzoo.evaluate.domain_average import FULL_RANGE, NEAR_STAR, T_RANGES, choose_t_range
from starzoo.evaluate.ensembles import (
    EnsembleCurve,
    add_equivalents,
    contributions,
    ensemble_curves,
    ensemble_sizes,
    grow_ensembles,
    starts,
)
from starzoo.evaluate.evaluator import CURVE_ROWS, Curve
from starzoo.evaluate.loss_plane import LossPlaneSampler
from starzoo.evaluate.model_pool import EvaluatedModels, PathSpec
from starzoo.evaluate.results import (
    Bf16Error,
    DomainSampling,
    Evaluation,
    LossPlane,
    PathCurve,
    PathKind,
    PredictionScores,
    Role,
    Split,
)
from starzoo.evaluate.scores import ScoredPredictor, score_baseline, score_domain, score_ensembles, score_model
from starzoo.evaluate.trained_baselines import RECIPES
from starzoo.metrics import accuracy, negative_log_likelihood
from starzoo.parallel import split_across_processes, world_size
from starzoo.progress import Progress, no_progress

__all__ = ["Shard", "evaluate", "evaluate_shard", "measure_path"]

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Shard:
    """One of several jobs, which measures each `of`-th item.

    Attributes:
        number: Which one, from 1.
        of: Number of jobs.
    """

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a shard such as `2/8`."""
        parts = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        number, of = (int(parts[1]), int(parts[2])) if parts else (0, 0)
        if not 1 <= number <= of:
            raise UsageError("--shard", f"expected a shard such as 1/8, got {text!r}", hint="write --shard I/N")
        return cls(number, of)


def evaluate(evaluation: CachedEvaluation, *, progress: Progress = no_progress) -> Evaluation:
    """Measure the paths between models and the scores of every predictor.

    The models on a path are aligned by the same method, the first one staying fixed. Source-source pairs are measured
    without alignment as well. Temperatures, and which points of the star domain are averaged, are chosen on validation
    images: those of the training split that nothing was fitted on.
    """
    config, run = evaluation.config, _ShardedMap(Shard(), progress)
    items = _measure_items(evaluation, run)
    sampling = _choose_sampling(config, items.domain_losses)
    samplings = _samplings(sampling)
    averages = run(
        "averaging over the star domain", list(samplings.items()), lambda item: score_domain(evaluation, *item)
    )
    [ensembles] = run("scoring ensembles", [""], lambda _: list(score_ensembles(evaluation))).values()
    models = evaluation.models
    grown = run("comparing with ensembles", starts(evaluation), partial(grow_ensembles, evaluation))
    curves = ensemble_curves(list(grown.values()), config.splits)
    names = [*models.sources, *models.holdouts, "naive mean", "aligned mean", "star"]
    scored = [*map(items.models.__getitem__, names), *averages.values(), *items.baselines.values(), *ensembles]
    return Evaluation(
        paths=tuple(
            curve for path, inner in items.paths.items() for curve in _path_curves(evaluation, path, items.ends, inner)
        ),
        qualities=tuple(row for split in config.splits for row in _with_equivalents(scored, split, curves, config)),
        images={split: len(evaluation.labels(split)) for split in config.splits},
        validation_images=len(evaluation.labels(VALIDATION)) if VALIDATION in evaluation.splits else 0,
        domain=sampling,
        ood_images=tuple(len(evaluation.labels(name)) for name in evaluation.ood),
        planes=tuple(
            _loss_plane(sampler, config.splits[-1], list(rows.values())) for sampler, rows in items.planes.items()
        ),
        repaired=config.repair,
        rounding=items.rounding.get("star"),
        ensembles=tuple(ensemble_sizes(curves)),
        contributions=tuple(contributions(list(models.sources), curves)),
    )


def evaluate_shard(evaluation: CachedEvaluation, shard: Shard, *, progress: Progress = no_progress) -> None:
    """Measure the share of one job into the cache, where `evaluate` finds it.

    The average over the star domain depends on the results of other jobs, and is left to `evaluate`.
    """
    _measure_items(evaluation, _ShardedMap(shard, progress))


def measure_path(evaluation: CachedEvaluation, path: PathSpec) -> tuple[PathCurve, ...]:
    """Measure one path, on every split."""
    ends = {name: evaluation.curve_of(evaluation.predict_end(name)) for name in (path.a, path.b)}
    return tuple(_path_curves(evaluation, path, ends, evaluation.path(path)))


@dataclass(frozen=True)
class _ShardedMap:
    """Measures the items of one job, shared among its processes."""

    shard: Shard
    progress: Progress

    def __call__(self, stage: str, items: Sequence[Item], work: Callable[[Item], Result]) -> dict[Item, Result]:
        own = items[self.shard.number - 1 :: self.shard.of]
        results = split_across_processes(own, partial(map, work), tell=partial(self.progress, stage))
        return dict(zip(own, results, strict=True))


@dataclass(frozen=True, kw_only=True)
class _Items:
    """The results that do not depend on each other, each by its item; predictions are left in the cache."""

    models: dict[str, ScoredPredictor]
    ends: dict[str, Curve]
    baselines: dict[Baseline, ScoredPredictor]
    domain_losses: dict[Uniform, list[float]]
    paths: dict[PathSpec, Curve]
    rounding: dict[str, Bf16Error]
    planes: dict[LossPlaneSampler, dict[int, list[float]]]


def _measure_items(evaluation: CachedEvaluation, run: _ShardedMap) -> _Items:
    config, paths = evaluation.config, list(_paths_to_measure(evaluation.models, evaluation.config))
    end_names = list(dict.fromkeys(name for path in paths for name in (path.a, path.b)))
    if world_size() > 1 or run.shard.of > 1:  # otherwise, an image is decoded at its first use
        run("decoding images", evaluation.shared_images(), lambda part: part[0].prepare(part[1]))
    models = run("evaluating models", evaluation.pool.names, partial(score_model, evaluation))
    results = BaselineResults(evaluation, run.progress)
    baselines = run("evaluating baselines", config.baselines, partial(score_baseline, results, evaluation))
    for kind in _baselines_with_paths(config):
        evaluation.pool.add_baseline(kind, results.state(kind))
    if evaluation.reestimates:
        ends = run(
            "evaluating the ends of paths", end_names, lambda name: evaluation.curve_of(evaluation.predict_end(name))
        )
    else:
        scored = [*models.items(), *baselines.items()]
        ends = {name: _curve_of_scores(predictor.rows) for name, predictor in scored}
    chooses_domain = config.bma_samples and VALIDATION in evaluation.splits
    return _Items(
        models=models,
        ends=ends,
        baselines=baselines,
        domain_losses=run(
            "choosing points of the star domain", T_RANGES if chooses_domain else (), evaluation.domain_losses
        ),
        paths=run("measuring paths", paths, evaluation.path),
        rounding=run(
            "evaluating the star in float32",
            ["star"] if config.precision != "fp32" else [],
            partial(_bf16_error, evaluation),
        ),
        planes={
            sampler: run("measuring a plane", range(config.loss_plane_points), sampler.row)
            for sampler in _plane_samplers(evaluation)
        },
    )


def _paths_to_measure(models: EvaluatedModels, config: EvalConfig) -> Iterator[PathSpec]:
    for name in list(models.sources)[: config.sources]:
        yield PathSpec("star-source", "star", name)
    for name in models.holdouts:
        yield PathSpec("star-heldout", "star", name)
    for name in models.other_stars:
        yield PathSpec("star-star", "star", name)
    if config.baselines:
        for start, name in itertools.product(["aligned mean", *_baselines_with_paths(config)], models.holdouts):
            yield PathSpec("baseline-heldout", start, name)
    pairs = list(itertools.combinations([*models.sources, *models.holdouts], 2))
    chosen = sorted(np.random.default_rng(config.seed).permutation(len(pairs))[: config.source_pairs])
    kinds: Sequence[PathKind] = ("source-source", "source-source-unaligned")
    for kind in kinds:
        for index in chosen:
            yield PathSpec(kind, *pairs[index])


def _baselines_with_paths(config: EvalConfig) -> list[Baseline]:
    """The baselines that may be as well connected as the star: those that start from the aligned mean."""
    return [kind for kind, recipe in RECIPES.items() if kind in config.baselines and recipe.start == "aligned mean"]


def _with_equivalents(
    scored: Sequence[ScoredPredictor], split: Split, curves: Mapping[Split, EnsembleCurve], config: EvalConfig
) -> list[PredictionScores]:
    """Return the rows of a split, compared with ensembles of the sources."""
    rows = [next(row for row in predictor.rows if row.split == split) for predictor in scored]
    if split not in curves:
        return rows
    return add_equivalents(rows, [each.losses[split] for each in scored], curves[split]["losses"], config.seed)


def _path_curves(
    evaluation: CachedEvaluation, path: PathSpec, ends: Mapping[str, Curve], inner: Curve
) -> Iterator[PathCurve]:
    """Join the ends and the curve between them, on every split."""
    parts = ends[path.a], inner, ends[path.b]
    for split in evaluation.config.splits:
        rows = torch.cat([part[split] for part in parts], dim=1).tolist()
        scores = dict(zip(CURVE_ROWS, rows, strict=False))
        yield PathCurve(kind=path.kind, a=path.a, b=path.b, split=split, t=evaluation.t, **scores)


def _choose_sampling(config: EvalConfig, losses: Mapping[Uniform, Sequence[float]]) -> DomainSampling | None:
    """Choose the points of the star domain by their validation losses, or take the default without them."""
    if losses:
        return choose_t_range(losses)
    return DomainSampling(t=NEAR_STAR, samples=config.bma_samples) if config.bma_samples else None


def _samplings(chosen: DomainSampling | None) -> dict[Role, DomainSampling]:
    """The average over the star domain, and for comparison one of as many points on whole lines."""
    if chosen is None:
        return {}
    whole_lines = DomainSampling(t=FULL_RANGE, samples=chosen.samples)
    return {"domain": chosen} if chosen.t == FULL_RANGE else {"domain": chosen, "domain-whole-lines": whole_lines}


def _curve_of_scores(rows: Sequence[PredictionScores]) -> Curve:
    """Return the scores of a model as those of a point of a path."""
    return {
        row.split: torch.tensor(
            [[row.nll], [row.accuracy], *([[row.tempered.nll]] if row.tempered else [])], dtype=torch.float64
        )
        for row in rows
    }


def _bf16_error(evaluation: CachedEvaluation, name: str) -> Bf16Error:
    bf16, float32 = evaluation.predict(name), evaluation.in_float32().predict(name)
    rows = [(bf16[split], float32[split], evaluation.labels(split)) for split in evaluation.config.splits]
    return Bf16Error(
        nll=max(abs(negative_log_likelihood(a, y) - negative_log_likelihood(b, y)) for a, b, y in rows),
        accuracy=max(abs(accuracy(a, y) - accuracy(b, y)) for a, b, y in rows),
    )


def _plane_samplers(evaluation: CachedEvaluation) -> list[LossPlaneSampler]:
    """The plane through the star, a source and a held-out; none where it is not asked for or degenerate."""
    models = evaluation.models
    if not (evaluation.config.loss_plane_points and models.sources and models.holdouts):
        return []
    sampler = LossPlaneSampler(evaluation, (next(iter(models.sources)), next(iter(models.holdouts))))
    return [] if sampler.is_degenerate else [sampler]


def _loss_plane(sampler: LossPlaneSampler, split: str, rows: Sequence[Sequence[float]]) -> LossPlane:
    x, y = sampler.grid
    return LossPlane(
        names=("star", *sampler.names),
        corners=((0.0, 0.0), *sampler.corners),
        split=split,
        x=tuple(x),
        y=tuple(y),
        loss=tuple(map(tuple, rows)),
    )
