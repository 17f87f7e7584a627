"""The baselines of a star: each with the best of some settings on validation images, trained once and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from starzoo.config import Augmentation, Baseline
from starzoo.data.augmentation import transform_key
from starzoo.errors import NumericalError
from starzoo.evaluate.cached_evaluation import VALIDATION, CachedEvaluation, Predictions
from starzoo.evaluate.domain_average import running_average
from starzoo.evaluate.trained_baselines import RECIPES, rates_to_try, train_baseline, training_config
from starzoo.metrics import fit_temperature, negative_log_likelihood, scale_temperature
from starzoo.models.weights import StateDict, average
from starzoo.progress import Progress, no_progress

__all__ = ["BaselineResults"]


class BaselineResults:
    """Trains, chooses and predicts with the baselines of an evaluation; what is in the cache is taken from there.

    Args:
        evaluation: The measurements that they are compared with.
        progress: Told after every epoch of a training.
    """

    def __init__(self, evaluation: CachedEvaluation, progress: Progress = no_progress) -> None:
        self._evaluation, self._progress = evaluation, progress
        self._star, self._pool = evaluation.run_config.star, evaluation.pool

    def predict(self, kind: Baseline) -> Predictions:
        """Predict with a baseline."""
        if kind.endswith("-tta"):
            return self._predict_augmented(self._tta_model(kind), self._choose_augmentation(kind))
        return self._evaluation.predict_state(self._state_key(kind), partial(self.state, kind))

    def passes(self, kind: Baseline) -> int:
        """Return the forward passes of a prediction."""
        return max(2, self._evaluation.config.bma_samples) if kind.endswith("-tta") else 1

    def cost(self, kind: Baseline) -> float:
        """Return the cost of its training in fits of the star, the trials included.

        Forward and backward pass count as three, a teacher's forward pass as one.
        """
        if kind not in RECIPES:
            return 0.0
        evaluation, epochs = self._evaluation, max(1, self._star.epochs)
        teachers: float = {"none": 0, "start": 1, "sources": len(evaluation.models.sources)}[RECIPES[kind].teachers]
        if evaluation.data.config.augment == "none" and not (self._star.mixup or self._star.cutmix):
            teachers /= epochs  # once for each image
        return len(self._rates()) * (3 + teachers) / (4 if self._star.kappa else 3)

    def state(self, kind: Baseline) -> StateDict:
        """Return the weights of a baseline of one network."""
        if kind == "greedy-soup":
            aligned = self._pool.aligned_sources
            return average([aligned[name] for name in self._choose_soup()])
        return self._train(kind, self._choose_rate(kind))

    def _rates(self) -> list[float]:
        trials = self._evaluation.config.trials if VALIDATION in self._evaluation.splits else 1
        return rates_to_try(self._star, trials)

    def _choose_rate(self, kind: Baseline) -> float:
        """Return the rate of the trial with the least validation loss; one that diverges has none."""
        rates = self._rates()
        if len(rates) == 1:
            return rates[0]

        def loss(rate: float) -> float:
            try:
                return self._validation_loss(self._training_key(kind, rate), lambda: self._train(kind, rate))
            except NumericalError:
                return math.inf

        return min(rates, key=loss)

    def _train(self, kind: Baseline, rate: float) -> StateDict:
        evaluation, start = self._evaluation, RECIPES[kind].start

        def train() -> StateDict:
            first = next(iter(evaluation.models.sources))
            return train_baseline(
                kind,
                evaluation.models.architecture,
                None if start == "random" else self._pool.state(first if start == "source" else start),
                list(evaluation.models.sources.values()),
                evaluation.data,
                training_config(self._star, rate),
                seed=self._star.seed,
                progress=self._progress,
            )

        return evaluation.cache.get_or_compute({"weights": self._training_key(kind, rate)}, train)

    def _training_key(self, kind: Baseline, rate: float) -> dict[str, Any]:
        """Return what decides the weights of a trained baseline."""
        evaluation, data, recipe = self._evaluation, self._evaluation.data.config, RECIPES[kind]
        return {
            "baseline": [recipe.start, recipe.teachers, recipe.average],
            "sources": self._pool.cache_key("aligned mean" if recipe.start == "aligned mean" else "naive mean"),
            "seed": self._star.seed,
            "recipe": training_config(self._star, rate).model_dump(mode="json"),
            "augment": data.augment,
            **transform_key(data, data.augment),
            **evaluation.task_key,
        }

    def _state_key(self, kind: Baseline) -> Mapping[str, Any]:
        if kind == "greedy-soup":
            return {"mean": self._choose_soup(), "of": self._pool.cache_key("aligned mean")}
        return self._training_key(kind, self._choose_rate(kind))

    def _choose_soup(self) -> list[str]:
        """Add aligned sources to a mean, the best first, each that does not raise its validation loss.

        The greedy soup of Wortsman et al. 2022; sources that share an ancestor are not permuted.
        """
        names, aligned = list(self._evaluation.models.sources), self._pool.aligned_sources
        of = self._pool.cache_key("aligned mean")

        def loss(chosen: list[str]) -> float:
            return self._validation_loss(
                {"mean": chosen, "of": of}, lambda: average([aligned[name] for name in chosen])
            )

        if VALIDATION not in self._evaluation.splits:
            return names
        losses = {name: loss([name]) for name in names}
        first, *others = sorted(names, key=losses.__getitem__)
        soup, best = [first], losses[first]
        for name in others:
            if (with_it := loss([*soup, name])) <= best:
                soup, best = [*soup, name], with_it
        return soup

    def _validation_loss(self, key: Mapping[str, Any], make_state: Callable[[], StateDict]) -> float:
        predicted = self._evaluation.predict_state(key, make_state, splits=[VALIDATION])
        return self._tempered_loss(predicted)

    def _tempered_loss(self, predicted: Predictions) -> float:
        """Return the validation loss at the temperature of the validation images."""
        labels, log_probabilities = self._evaluation.labels(VALIDATION), predicted[VALIDATION]
        temperature = fit_temperature(log_probabilities, labels)
        return negative_log_likelihood(scale_temperature(log_probabilities, temperature), labels)

    def _tta_model(self, kind: Baseline) -> str:
        return "star" if kind == "star-tta" else next(iter(self._evaluation.models.sources))

    def _choose_augmentation(self, kind: Baseline) -> Augmentation:
        """Return the test-time augmentation with the least validation loss."""
        choices: list[Augmentation] = ["flip", "crop-flip"]
        if VALIDATION not in self._evaluation.splits:
            return choices[0]
        name = self._tta_model(kind)
        return min(
            choices,
            key=lambda augment: self._tempered_loss(self._predict_augmented(name, augment, splits=[VALIDATION])),
        )

    def _predict_augmented(self, name: str, augment: Augmentation, splits: list[str] | None = None) -> Predictions:
        """Average the predictions for an image and for augmented copies of it."""
        passes = self.passes("source-tta")
        predictions = (
            self._evaluation.predict(name, augment=augment if number else "none", draw=number, splits=splits)
            for number in range(passes)
        )
        [(_, mean)] = running_average(predictions, [passes])
        return mean
