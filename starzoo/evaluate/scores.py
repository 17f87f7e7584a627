"""Scores of all predictors on every split."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from starzoo.config import Baseline
from starzoo.evaluate.cached_evaluation import OOD, VALIDATION, CachedEvaluation, Predictions
from starzoo.evaluate.domain_average import ensemble_sizes, running_average
from starzoo.evaluate.results import DomainSampling, PredictionScores, Role, TemperatureScaled
from starzoo.evaluate.trained_baselines import baseline_steps
from starzoo.metrics import (
    accuracy,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    misclassification_auroc,
    negative_log_likelihood,
    ood_auroc,
    scale_temperature,
)
from starzoo.progress import Progress, no_progress
from starzoo.text import pluralize

__all__ = ["score_baseline", "score_domain", "score_ensembles", "score_model", "scores"]


def score_model(evaluation: CachedEvaluation, name: str) -> list[PredictionScores]:
    """Score a model or a mean of weights, on every split."""
    models = evaluation.models
    roles: dict[str, Role] = {"naive mean": "naive-mean", "aligned mean": "aligned-mean"}
    roles |= dict.fromkeys(models.sources, "source")
    roles |= dict.fromkeys(models.holdouts, "held-out")
    return _score(evaluation, name, roles.get(name, "star"), evaluation.predict(name))


def score_baseline(
    evaluation: CachedEvaluation, kind: Baseline, progress: Progress = no_progress
) -> list[PredictionScores]:
    """Score a baseline, trained if it is not in the cache."""
    steps = baseline_steps(kind, evaluation.data, evaluation.run_config.star)
    return _score(evaluation, kind, kind, evaluation.baseline(kind, progress), steps=steps)


def score_domain(evaluation: CachedEvaluation, role: Role, sampling: DomainSampling) -> list[PredictionScores]:
    """Score an average over the star domain."""
    t, samples = sampling.t, sampling.samples
    name = f"{pluralize(samples, 'point')} of the star domain, t from {t.low:g} to {t.high:g}"
    return _score(evaluation, name, role, evaluation.domain(sampling), passes=samples)


def score_ensembles(evaluation: CachedEvaluation) -> Iterator[list[PredictionScores]]:
    """Score the ensembles of the first 2, 4, 8 … sources; the predictions of one source at a time are in memory."""
    sources = list(evaluation.models.sources)
    sizes = ensemble_sizes(len(sources)) or [1]
    for count, mean in running_average(map(evaluation.predict, sources), sizes):
        role: Role = "ensemble" if count == len(sources) else "sub-ensemble"
        yield _score(evaluation, f"ensemble of {count}", role, mean, passes=count)
        del mean  # before the next source is read


def _score(
    evaluation: CachedEvaluation,
    name: str,
    role: Role,
    predicted: Predictions,
    *,
    passes: int = 1,
    steps: int | None = None,
) -> list[PredictionScores]:
    """Score a predictor; its temperature is fitted on validation images, where there are any."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in evaluation.models.star.values())
    temperature = None
    if VALIDATION in predicted:
        temperature = fit_temperature(predicted[VALIDATION], evaluation.labels(VALIDATION))
    return [
        PredictionScores(
            name=name,
            role=role,
            split=split,
            accuracy=accuracy(predicted[split], labels),
            passes=passes,
            bytes=passes * size,
            steps=steps,
            tempered=None
            if temperature is None
            else TemperatureScaled(temperature=temperature, **scores(predicted, split, labels, temperature)),
            **scores(predicted, split, labels),
        )
        for split in evaluation.config.splits
        for labels in [evaluation.labels(split)]
    ]


def scores(predicted: Predictions, split: str, labels: Tensor, temperature: float = 1.0) -> dict[str, float | None]:
    """Return all scores of a predictor but its accuracy."""
    if temperature != 1:
        used = predicted.keys() & {split, OOD}
        predicted = {name: scale_temperature(predicted[name], temperature) for name in used}
    own, ood = predicted[split], predicted.get(OOD)
    return {
        "nll": negative_log_likelihood(own, labels),
        "ece": expected_calibration_error(own, labels),
        "brier": brier_score(own, labels),
        "auroc": misclassification_auroc(own, labels),
        "ood_auroc": None if ood is None else ood_auroc(own, ood),
        "ood_auroc_entropy": None if ood is None else ood_auroc(own, ood, "entropy"),
    }
