"""Scores of all predictors on every split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from starzoo.config import Baseline
from starzoo.evaluate.cached_evaluation import OOD, VALIDATION, CachedEvaluation, Predictions
from starzoo.evaluate.domain_average import ensemble_sizes
from starzoo.evaluate.results import DomainSampling, PredictionScores, Role, TemperatureScaled
from starzoo.evaluate.trained_baselines import baseline_steps
from starzoo.metrics import (
    accuracy,
    brier_score,
    ensemble_log_probabilities,
    expected_calibration_error,
    fit_temperature,
    misclassification_auroc,
    negative_log_likelihood,
    ood_auroc,
    scale_temperature,
)
from starzoo.text import pluralize

__all__ = ["score_predictors", "scores"]


def score_predictors(
    evaluation: CachedEvaluation,
    predictions: Mapping[str, Predictions],
    averages: Mapping[Role, tuple[DomainSampling, Predictions]],
    baselines: Mapping[Baseline, Predictions],
) -> Iterator[PredictionScores]:
    """Score models, means of weights, ensembles, baselines and averages over the star domain."""
    models = evaluation.models
    size = sum(tensor.numel() * tensor.element_size() for tensor in models.star.values())
    roles: dict[str, Role] = dict.fromkeys(models.sources, "source")
    roles |= dict.fromkeys(models.holdouts, "held-out")
    roles |= {"naive mean": "naive-mean", "aligned mean": "aligned-mean", "star": "star"}
    predictors: list[tuple[str, Role, int, Predictions]] = [
        (name, role, 1, predictions[name]) for name, role in roles.items()
    ]
    for role, (sampling, mean) in averages.items():
        t, samples = sampling.t, sampling.samples
        name = f"{pluralize(samples, 'point')} of the star domain, t from {t.low:g} to {t.high:g}"
        predictors.append((name, role, samples, mean))
    predictors += [(kind, kind, 1, predicted) for kind, predicted in baselines.items()]
    members = [predictions[name] for name in models.sources]
    for count in ensemble_sizes(len(members)) or [1]:
        role = "ensemble" if count == len(members) else "sub-ensemble"
        mean = {
            split: ensemble_log_probabilities(torch.stack([member[split] for member in members[:count]]))
            for split in members[0]
        }
        predictors.append((f"ensemble of {count}", role, count, mean))
    temperatures = [_fit_temperature(evaluation, predicted) for *_, predicted in predictors]
    steps: dict[Role, int] = {
        kind: baseline_steps(kind, evaluation.data, evaluation.run_config.star) for kind in baselines
    }
    for split in evaluation.config.splits:
        labels = evaluation.labels(split)
        for (name, role, passes, predicted), temperature in zip(predictors, temperatures, strict=True):
            yield PredictionScores(
                name=name,
                role=role,
                split=split,
                accuracy=accuracy(predicted[split], labels),
                passes=passes,
                bytes=passes * size,
                steps=steps.get(role),
                tempered=None
                if temperature is None
                else TemperatureScaled(temperature=temperature, **scores(predicted, split, labels, temperature)),
                **scores(predicted, split, labels),
            )


def _fit_temperature(evaluation: CachedEvaluation, predicted: Predictions) -> float | None:
    return fit_temperature(predicted[VALIDATION], evaluation.labels(VALIDATION)) if VALIDATION in predicted else None


def scores(predicted: Predictions, split: str, labels: Tensor, temperature: float = 1.0) -> dict[str, float | None]:
    """Return all scores of a predictor but its accuracy."""
    if temperature != 1:
        predicted = {name: scale_temperature(values, temperature) for name, values in predicted.items()}
    own, ood = predicted[split], predicted.get(OOD)
    return {
        "nll": negative_log_likelihood(own, labels),
        "ece": expected_calibration_error(own, labels),
        "brier": brier_score(own, labels),
        "auroc": misclassification_auroc(own, labels),
        "ood_auroc": None if ood is None else ood_auroc(own, ood),
        "ood_auroc_entropy": None if ood is None else ood_auroc(own, ood, "entropy"),
    }
