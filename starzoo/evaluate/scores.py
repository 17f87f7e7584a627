"""Scores of all predictors on every split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from starzoo.config import Baseline
from starzoo.evaluate.cached_evaluation import OOD, VALIDATION, CachedEvaluation
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
    tempered,
)
from starzoo.text import pluralize

__all__ = ["measure_qualities", "scores"]

Predictions = Mapping[str, Tensor]  # log-probabilities of shape (images, classes) by split


def measure_qualities(
    measurement: CachedEvaluation,
    predicted: Mapping[str, Predictions],
    averages: Sequence[tuple[Role, DomainSampling, Predictions]],
    baselines: Mapping[Baseline, Predictions],
) -> Iterator[PredictionScores]:
    """How well single models, means of weights, ensembles and averages over the star domain predict."""
    zoo = measurement.zoo
    size = sum(tensor.numel() * tensor.element_size() for tensor in zoo.star.values())
    roles: dict[str, Role] = dict.fromkeys(zoo.sources, "source")
    roles |= dict.fromkeys(zoo.holdouts, "held-out")
    roles |= {"naive mean": "naive-mean", "aligned mean": "aligned-mean", "star": "star"}
    ways: list[tuple[str, Role, int, Predictions]] = [(name, role, 1, predicted[name]) for name, role in roles.items()]
    for role, choice, mean in averages:
        name = f"{pluralize(choice.samples, 'point')} of the star domain, t from {choice.t.low:g} to {choice.t.high:g}"
        ways.append((name, role, choice.samples, mean))
    ways += [(kind, kind, 1, found) for kind, found in baselines.items()]
    members = [predicted[name] for name in zoo.sources]
    for count in ensemble_sizes(len(members)) or [1]:
        role = "ensemble" if count == len(members) else "sub-ensemble"
        ways.append((f"ensemble of {count}", role, count, _ensemble(members[:count])))
    temperatures = [_temperature(measurement, way[-1]) for way in ways]
    steps: dict[Role, int] = {
        kind: baseline_steps(kind, measurement.data, measurement.star_config) for kind in baselines
    }
    for split in measurement.config.splits:
        labels = measurement.labels(split)
        for (name, role, passes, found), temperature in zip(ways, temperatures, strict=True):
            yield PredictionScores(
                name=name,
                role=role,
                split=split,
                accuracy=accuracy(found[split], labels),
                passes=passes,
                bytes=passes * size,
                steps=steps.get(role),
                tempered=None
                if temperature is None
                else TemperatureScaled(temperature=temperature, **scores(found, split, labels, temperature)),
                **scores(found, split, labels),
            )


def _ensemble(members: Sequence[Predictions]) -> dict[str, Tensor]:
    return {split: ensemble_log_probabilities(torch.stack([each[split] for each in members])) for split in members[0]}


def _temperature(measurement: CachedEvaluation, found: Predictions) -> float | None:
    return fit_temperature(found[VALIDATION], measurement.labels(VALIDATION)) if VALIDATION in found else None


def scores(found: Predictions, split: str, labels: Tensor, temperature: float = 1.0) -> dict[str, float | None]:
    """All scores of one way to predict but its accuracy."""
    scaled = {key: tempered(each, temperature) if temperature != 1 else each for key, each in found.items()}
    inside, outside = scaled[split], scaled.get(OOD)
    return {
        "nll": negative_log_likelihood(inside, labels),
        "ece": expected_calibration_error(inside, labels),
        "brier": brier_score(inside, labels),
        "auroc": misclassification_auroc(inside, labels),
        "ood_auroc": None if outside is None else ood_auroc(inside, outside),
        "ood_auroc_entropy": None if outside is None else ood_auroc(inside, outside, "entropy"),
    }
