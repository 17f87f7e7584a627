"""Ensembles of all sizes, and the size that a predictor is worth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from starzoo.config import AlignConfig, EvalConfig, RunConfig, StarConfig
from starzoo.data.task import ImageTask
from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.evaluate.ensembles import (
    add_equivalents,
    contributions,
    ensemble_curves,
    ensemble_sizes,
    grow_ensembles,
    starts,
)
from starzoo.evaluate.evaluate import evaluate
from starzoo.evaluate.model_pool import EvaluatedModels
from starzoo.evaluate.results import PredictionScores
from starzoo.metrics import deep_ensemble_equivalent, tempered_losses
from starzoo.models.sources import Source


def test_equivalents_are_interpolated() -> None:
    curve = np.array([1.0, 0.6, 0.5, 0.45])
    found = deep_ensemble_equivalent(np.array([1.0, 0.8, 0.6, 0.475, 0.45, 0.3, 1.2, 2.0]), curve)
    assert found == pytest.approx([1, 1.5, 2, 3.5, 4, 4, 0.5, 0])
    uneven = np.array([1.0, 0.6, 0.7, 0.4])  # the third size is no better than the second
    assert deep_ensemble_equivalent(np.array([0.6, 0.5]), uneven) == pytest.approx([3, 3.5])


def test_an_ensemble_of_k_is_worth_k() -> None:
    """Members that are the truth and independent noise, of which every ensemble of k is alike."""
    rng, images, members = np.random.default_rng(0), 60_000, 12
    truth = torch.from_numpy(rng.normal(size=(images, 4)) * 1.5)
    labels = torch.from_numpy(np.array([rng.choice(4, p=row) for row in truth.softmax(1).numpy()]))
    logs = torch.stack([
        (truth + torch.from_numpy(rng.normal(size=(images, 4)))).log_softmax(1) for _ in range(members)
    ])

    def losses(chosen: list[int]) -> Tensor:
        return tempered_losses(logs[chosen].exp().mean(0).log(), labels)

    sizes = range(1, 7)
    curve = torch.stack([
        torch.stack([losses([(start + step) % members for step in range(size)]) for start in range(members)]).mean(0)
        for size in sizes
    ])
    rows = [PredictionScores(name=str(k), role="ensemble", split="test", nll=1, ece=0, accuracy=0.5) for k in sizes]
    means = [torch.stack([losses([3 * part + step for step in range(k)]) for part in range(2)]).mean(0) for k in sizes]
    found = add_equivalents(rows, [*curve], curve, seed=0)
    assert [row.dee for row in found] == pytest.approx(list(sizes), abs=0.05)
    other = add_equivalents(rows, means, curve, seed=0)
    for size, row in zip(sizes, other, strict=True):
        assert row.dee == pytest.approx(size, abs=0.35)  # two other subsets
        assert row.dee_interval is not None
        low, high = row.dee_interval
        assert low <= row.dee <= high
        assert high - low < 1


def test_every_size_and_what_a_source_adds(models: list[Source], data: ImageTask) -> None:
    star, sources = models[0], models
    zoo = EvaluatedModels(
        architecture=star.architecture, star=star.state, sources={each.name: each.state for each in sources}
    )
    config = EvalConfig(points=3, source_pairs=0, sources=0, bma_samples=2, validation_images=50)
    run = RunConfig(evaluate=config, align=AlignConfig(method="balanced-weights"), star=StarConfig(epochs=1))
    evaluation = CachedEvaluation(zoo, data, run)
    names, labels = list(zoo.sources), evaluation.labels("test")
    predicted = {name: evaluation.predict(name) for name in names}

    def nll(chosen: tuple[str, ...]) -> float:
        means = {
            split: torch.stack([predicted[name][split].double().exp() for name in chosen]).mean(0).log()
            for split in ("validation", "test")
        }
        grid = np.geomspace(0.05, 20, 4000)
        held = evaluation.labels("validation")
        fits = [float(tempered_losses(means["validation"].float(), held, t).mean()) for t in grid]
        return float(tempered_losses(means["test"].float(), labels, grid[int(np.argmin(fits))]).mean())

    grown = [grow_ensembles(evaluation, start) for start in starts(evaluation)]
    curves = ensemble_curves(grown, ["test"])
    sizes = list(ensemble_sizes(curves))
    assert [(size.size, size.subsets) for size in sizes] == [(1, 4), (2, 4), (3, 4), (4, 1)]
    assert sizes[0].nll == pytest.approx(np.mean([nll((name,)) for name in names]), abs=1e-4)
    assert sizes[2].nll == pytest.approx(np.mean([nll(each) for each in itertools.combinations(names, 3)]), abs=1e-4)
    assert sizes[3].nll == pytest.approx(nll(tuple(names)), abs=1e-4)
    for found in contributions(names, curves):
        without = tuple(name for name in names if name != found.name)
        assert found.nll == pytest.approx(nll(without) - nll(tuple(names)), abs=1e-4)
    assert {found.name for found in contributions(names, curves)} == set(names)
    result = evaluate(evaluation)
    assert list(result.ensembles) == sizes
    assert all(row.dee is not None and row.dee_interval is not None for row in result.qualities)
