"""Scores of all predictors on every split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from starzoo.config import Baseline
from starzoo.data.corruption import CORRUPTIONS, SEVERITIES
from starzoo.evaluate.baselines import BaselineResults
from starzoo.evaluate.cached_evaluation import CORRUPTED, VALIDATION, CachedEvaluation, Predictions
from starzoo.evaluate.domain_average import entropy_of, powers_of_two, running_average
from starzoo.evaluate.results import (
    CorruptionScores,
    DomainSampling,
    OodDetection,
    OodScores,
    PredictionScores,
    Role,
    Split,
    TemperatureScaled,
)
from starzoo.metrics import (
    accuracy,
    accuracy_at_coverage,
    area_under_risk_coverage,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    misclassification_auroc,
    negative_log_likelihood,
    ood_detection,
    prediction_entropy,
    scale_temperature,
    tempered_losses,
)
from starzoo.text import pluralize

__all__ = [
    "ScoredPredictor",
    "score_baseline",
    "score_corruption",
    "score_domain",
    "score_ensembles",
    "score_model",
    "scores",
]


class ScoredPredictor(NamedTuple):
    """The scores of a predictor on each split, and its loss for every image, after temperature scaling if it can be."""

    rows: list[PredictionScores]
    losses: dict[Split, Tensor]


def score_model(evaluation: CachedEvaluation, name: str) -> ScoredPredictor:
    """Score a model or a mean of weights, on every split."""
    models = evaluation.models
    roles: dict[str, Role] = {"naive mean": "naive-mean", "aligned mean": "aligned-mean"}
    roles |= dict.fromkeys(models.sources, "source")
    roles |= dict.fromkeys(models.holdouts, "held-out")
    return _score(evaluation, name, roles.get(name, "star"), evaluation.predict(name))


def score_baseline(baselines: BaselineResults, evaluation: CachedEvaluation, kind: Baseline) -> ScoredPredictor:
    """Score a baseline, trained if it is not in the cache."""
    predicted, passes = baselines.predict(kind), baselines.passes(kind)
    return _score(evaluation, kind, kind, predicted, passes=passes, networks=1, cost=baselines.cost(kind))


def score_domain(evaluation: CachedEvaluation, role: Role, sampling: DomainSampling) -> ScoredPredictor:
    """Score an average over the star domain."""
    t, samples = sampling.t, sampling.samples
    name = f"{pluralize(samples, 'point')} of the star domain, t from {t.low:g} to {t.high:g}"
    return _score(evaluation, name, role, evaluation.domain(sampling), passes=samples)


def score_ensembles(evaluation: CachedEvaluation) -> Iterator[ScoredPredictor]:
    """Score the ensembles of the first 2, 4, 8 … sources; the predictions of one source at a time are in memory."""
    sources = list(evaluation.models.sources)
    sizes = powers_of_two(len(sources)) or [1]
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
    networks: int | None = None,
    cost: float | None = None,
) -> ScoredPredictor:
    """Score a predictor; its temperature is fitted on validation images, where there are any."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in evaluation.models.star.values())
    temperature = None
    if VALIDATION in predicted:
        temperature = fit_temperature(predicted[VALIDATION], evaluation.labels(VALIDATION))
    labels = {split: evaluation.labels(split) for split in evaluation.config.splits}
    rows = [
        PredictionScores(
            name=name,
            role=role,
            split=split,
            accuracy=accuracy(predicted[split], labels[split]),
            passes=passes,
            bytes=(networks or passes) * size,
            corrupted=score_corruption(evaluation, predicted) if split == "test" else None,
            cost=cost,
            ood=tuple(_ood_scores(predicted, split, other) for other in evaluation.ood),
            tempered=None
            if temperature is None
            else TemperatureScaled(temperature=temperature, **scores(predicted, split, labels[split], temperature)),
            **scores(predicted, split, labels[split]),
        )
        for split in labels
    ]
    losses = {split: tempered_losses(predicted[split], labels[split], temperature or 1.0) for split in labels}
    return ScoredPredictor(rows, losses)


def scores(predicted: Predictions, split: str, labels: Tensor, temperature: float = 1.0) -> dict[str, float | None]:
    """Return all scores of a predictor's probabilities but its accuracy."""
    own = predicted[split] if temperature == 1 else scale_temperature(predicted[split], temperature)
    return {
        "nll": negative_log_likelihood(own, labels),
        "ece": expected_calibration_error(own, labels),
        "brier": brier_score(own, labels),
        "auroc": misclassification_auroc(own, labels),
        "aurc": area_under_risk_coverage(own, labels),
        "accuracy_80": accuracy_at_coverage(own, labels, 0.8),
        "accuracy_90": accuracy_at_coverage(own, labels, 0.9),
    }


def score_corruption(evaluation: CachedEvaluation, predicted: Predictions) -> CorruptionScores | None:
    """Score a predictor on corrupted images, which are ordered by corruption, then severity."""
    if CORRUPTED not in predicted:
        return None
    logs, labels = predicted[CORRUPTED], evaluation.labels(CORRUPTED)
    shape = len(CORRUPTIONS), len(SEVERITIES), -1
    right = (logs.argmax(1) == labels).double().reshape(shape).mean(2)
    losses = tempered_losses(logs, labels).double().reshape(shape).mean(2)
    worst = int(right.mean(1).argmin())
    return CorruptionScores(
        accuracy=right.mean(0).tolist(),
        nll=losses.mean(0).tolist(),
        worst=CORRUPTIONS[worst],
        worst_accuracy=float(right[worst].mean()),
    )


def _ood_scores(predicted: Predictions, split: str, other: str) -> OodScores:
    """Score how a predictor tells the images of another data set from those of a split."""
    logs = predicted[split], predicted[other]
    entropies = tuple(map(prediction_entropy, logs))

    def detect(uncertainties: Sequence[Tensor]) -> OodDetection:
        area, fpr95 = ood_detection(*uncertainties)
        return OodDetection(auroc=area, fpr95=fpr95)

    information = None
    if entropy_of(other) in predicted:
        means = predicted[entropy_of(split)], predicted[entropy_of(other)]
        information = detect([(whole - mean).clamp_min(0) for whole, mean in zip(entropies, means, strict=True)])
    confidence = detect([-log.max(dim=1).values for log in logs])
    return OodScores(confidence=confidence, entropy=detect(entropies), mutual_information=information)
