"""Ensembles of the sources: how good each size is, what a predictor is worth, and what each source adds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from starzoo.evaluate.cached_evaluation import VALIDATION, CachedEvaluation
from starzoo.evaluate.domain_average import running_average
from starzoo.evaluate.results import EnsembleSize, PredictionScores, SourceContribution, Split
from starzoo.metrics import accuracy, deep_ensemble_equivalent, fit_temperature, tempered_losses

__all__ = [
    "EnsembleCurve",
    "add_equivalents",
    "contributions",
    "ensemble_curves",
    "ensemble_sizes",
    "grow_ensembles",
    "starts",
]

_MOST_STARTS = 20
_RESAMPLES = 500

EnsembleCurve = Mapping[str, Tensor]
"""Of ensembles of 1, 2 … sources: `losses`, the mean over subsets for each image, shape (sizes, images); `nll` and
`accuracy` of each subset, shape (starts, sizes)."""


def starts(evaluation: CachedEvaluation) -> range:
    """Return from which sources ensembles grow, at most twenty; none for fewer than two sources.

    The sources stand in a circle, and each ensemble grows by the next one. So every size has as many subsets as there
    are starts, with each source equally often, and that of all but one source is among them.
    """
    sources = len(evaluation.models.sources)
    return range(min(sources, _MOST_STARTS) if sources > 1 else 0)


def grow_ensembles(evaluation: CachedEvaluation, start: int) -> dict[str, Tensor]:
    """Measure the ensembles of 1, 2 … sources from one on; the predictions of one source at a time are in memory.

    Returns:
        For each split `losses.SPLIT`, of every image, shape (sizes, images), and `accuracy.SPLIT`, shape (sizes,).
    """
    names = list(evaluation.models.sources)
    order = [*names[start:], *names[:start]]
    labels = {split: evaluation.labels(split) for split in evaluation.config.splits}

    def measure() -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = defaultdict(list)
        for _, mean in running_average(map(evaluation.predict, order), range(1, len(order) + 1)):
            temperature = 1.0
            if VALIDATION in mean:
                temperature = fit_temperature(mean[VALIDATION], evaluation.labels(VALIDATION))
            for split, classes in labels.items():
                found[f"losses.{split}"].append(tempered_losses(mean[split], classes, temperature))
                found[f"accuracy.{split}"].append(torch.tensor(accuracy(mean[split], classes)))
        return {name: torch.stack(values) for name, values in found.items()}

    key = {"grown": [evaluation.pool.hashes[name] for name in order], "images": evaluation.split_hashes}
    return evaluation.get_or_compute(key, measure)


def ensemble_curves(grown: Sequence[Mapping[str, Tensor]], splits: Sequence[Split]) -> dict[Split, EnsembleCurve]:
    """Join the ensembles from all starts, by split."""
    curves: dict[Split, EnsembleCurve] = {}
    for split in splits if grown else ():
        losses = [each[f"losses.{split}"].double() for each in grown]
        curves[split] = {
            "losses": torch.stack(losses).mean(0),
            "nll": torch.stack([each.mean(1) for each in losses]),
            "accuracy": torch.stack([each[f"accuracy.{split}"] for each in grown]),
        }
    return curves


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
