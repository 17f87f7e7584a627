"""Ensembles of the sources: how good each size is, what a predictor is worth, and what each source adds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from starzoo.evaluate.cached_evaluation import VALIDATION, CachedEvaluation
from starzoo.evaluate.domain_average import running_average
from starzoo.evaluate.results import EnsembleSize, PredictionScores, SourceContribution, Split
from starzoo.metrics import accuracy, deep_ensemble_equivalent, fit_temperature, tempered_losses

__all__ = ["EnsembleCurve", "add_equivalents", "contributions", "ensemble_curves", "ensemble_sizes"]

_MOST_ORDERS = 20
_RESAMPLES = 500

EnsembleCurve = Mapping[str, Tensor]
"""Of ensembles of 1, 2 … sources: `losses`, the mean over subsets for each image, shape (sizes, images); `nll` and
`accuracy` of each subset, shape (orders, sizes)."""


def ensemble_curves(evaluation: CachedEvaluation) -> dict[Split, EnsembleCurve]:
    """Measure ensembles of all sizes, by split.

    The sources stand in a circle. From each of them the ensembles grow by the next one, so that every size has as many
    subsets as there are sources, with each source equally often; that of all but one source is among them. There are at
    most twenty starts.
    """
    names = list(evaluation.models.sources)
    orders = [[*names[start:], *names[:start]] for start in range(min(len(names), _MOST_ORDERS))]
    splits = evaluation.config.splits
    labels = {split: evaluation.labels(split) for split in splits}

    def measure() -> dict[str, Tensor]:
        scores = {
            f"{split}.{name}": torch.zeros(len(orders), len(names), dtype=torch.float64)
            for split in splits
            for name in ("nll", "accuracy")
        }
        scores |= {f"{split}.losses": torch.zeros(len(names), len(labels[split])) for split in splits}
        for row, order in enumerate(orders):
            for size, mean in running_average(map(evaluation.predict, order), range(1, len(names) + 1)):
                temperature = 1.0
                if VALIDATION in mean:
                    temperature = fit_temperature(mean[VALIDATION], evaluation.labels(VALIDATION))
                for split in splits:
                    losses = tempered_losses(mean[split], labels[split], temperature)
                    scores[f"{split}.nll"][row, size - 1] = losses.double().mean()
                    scores[f"{split}.accuracy"][row, size - 1] = accuracy(mean[split], labels[split])
                    scores[f"{split}.losses"][size - 1] += losses / len(orders)
        return scores

    key = {"ensembles": [evaluation.pool.hashes[name] for name in names], "images": evaluation.split_hashes}
    scores = evaluation.get_or_compute(key, measure)
    return {split: {name: scores[f"{split}.{name}"] for name in ("losses", "nll", "accuracy")} for split in splits}


def ensemble_sizes(curves: Mapping[Split, EnsembleCurve]) -> Iterator[EnsembleSize]:
    """Summarize the ensembles of every size."""
    for split, curve in curves.items():
        orders, sizes = curve["nll"].shape
        for size in range(1, sizes + 1):
            nll, accurate = curve["nll"][:, size - 1].numpy(), curve["accuracy"][:, size - 1].numpy()
            is_whole = size == sizes  # all subsets are the same
            yield EnsembleSize(
                split=split,
                size=size,
                subsets=1 if is_whole else orders,
                nll=float(nll.mean()),
                nll_std=0.0 if is_whole or orders == 1 else float(nll.std(ddof=1)),
                accuracy=float(accurate.mean()),
                accuracy_std=0.0 if is_whole or orders == 1 else float(accurate.std(ddof=1)),
            )


def contributions(names: Sequence[str], curves: Mapping[Split, EnsembleCurve]) -> Iterator[SourceContribution]:
    """Compare the ensemble of all sources with those that lack one: from a source on, all but the one before it."""
    for split, curve in curves.items():
        for start in range(len(curve["nll"])):
            without, whole = (
                {name: float(curve[name][start, size]) for name in ("nll", "accuracy")} for size in (-2, -1)
            )
            yield SourceContribution(
                name=names[start - 1],
                split=split,
                nll=without["nll"] - whole["nll"],
                accuracy=whole["accuracy"] - without["accuracy"],
            )


def add_equivalents(
    rows: Sequence[PredictionScores], losses: Sequence[Tensor], curve: Tensor, seed: int
) -> list[PredictionScores]:
    """Add the deep-ensemble equivalent to the scores of predictors on one split, with its interval.

    Args:
        rows: The predictors.
        losses: The loss of each of them for every image, shape (images,).
        curve: The losses of ensembles, shape (sizes, images).
        seed: Seed of the images that the bootstrap draws.

    Returns:
        The rows with `dee` and `dee_interval`.
    """
    sizes, images = curve.shape
    table = torch.cat([curve, torch.stack(list(losses))]).double()
    rng, draws = np.random.default_rng(seed), list[Tensor]()
    for _ in range(_RESAMPLES):
        counts = np.bincount(rng.integers(images, size=images), minlength=images)
        draws.append(table @ torch.from_numpy(counts / images))
    means = [table.mean(1), *draws]
    values = np.stack([deep_ensemble_equivalent(mean[sizes:].numpy(), mean[:sizes].numpy()) for mean in means])
    low, high = np.quantile(values[1:], [0.025, 0.975], axis=0)
    return [
        row.model_copy(update={"dee": float(values[0, index]), "dee_interval": (float(low[index]), float(high[index]))})
        for index, row in enumerate(rows)
    ]
