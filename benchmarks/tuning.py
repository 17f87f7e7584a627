"""Choose defaults and presets: stars of several settings, measured on validation images of zoos that no table reports.

    python -m benchmarks.tuning rates tuning-resnet --dataset DIR
    python -m benchmarks.tuning tradeoff tuning-digits

Four sources and two held-outs of a zoo (benchmarks/zoos.py trains what is missing). `rates` varies the
learning rate of whole fits, `horizon` that of fits of several lengths, and `tradeoff` μ and κ, also without any path
(t = 0). Rows are kept in benchmarks/results/tuning.json as soon as they are measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.zoos import DATASET, OUT, RECIPES, train
from starzoo.config import AlignConfig, EvalConfig, RunConfig, StarConfig
from starzoo.data.task import ImageTask, load_data
from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.evaluate.evaluate import evaluate
from starzoo.evaluate.model_pool import EvaluatedModels
from starzoo.models.sources import Source, load_sources
from starzoo.models.weights import StateDict
from starzoo.report.plots import plot_style, save
from starzoo.star.fit import fit
from starzoo.star.rate import midpoint_loss

RESULTS = Path(__file__).parent / "results" / "tuning.json"
PLOT = Path(__file__).parents[1] / "docs" / "results" / "tradeoff"
COLORS = ("#777777", "#0072b2", "#d55e00", "#009e73")  # Okabe and Ito
SOURCES, HOLDOUTS, SEEDS = 4, 2, (0,)
STARS = {
    "tuning-digits": StarConfig(epochs=40),
    "tuning-resnet": StarConfig(epochs=8, batch_size=128, lr=0.8),
}
RATES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
HORIZONS = {"tuning-digits": (5, 10, 20, 40), "tuning-resnet": (1, 2, 4, 8)}
MANY = 1e6  # μ or κ so high that the other term is nothing beside it
PICTURED = "tuning-resnet"
KAPPAS = (0.0, 1.0, 3.0, MANY)
NO_PATH = {"t": {"kind": "constant", "value": 0.0}, "mu": 0.0}


def variants(study: str, zoo: str) -> Iterator[dict[str, Any]]:
    """Yield the settings of the stars of a study."""
    if study == "horizon":
        yield from ({"epochs": epochs, "lr": lr} for epochs in HORIZONS[zoo] for lr in RATES[1:])
        return
    if study == "rates":
        yield from ({"lr": lr} for lr in RATES)
        return
    for kappa in KAPPAS[:3]:
        yield from ({"kappa": kappa, "mu": mu} for mu in (0.0, 0.2, 1.0, 3.0))
    for kappa in KAPPAS:
        yield from ({"kappa": kappa, "teachers": "all", "lr": lr, **NO_PATH} for lr in (0.1, 0.2, 0.4, 0.8))


def on_validation_images(data: ImageTask) -> ImageTask:
    """Return the task with half of its validation images, at most 2,000, in the place of the test images."""
    assert data.validation
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(data.validation)))
    half = min(len(order) // 2, 2000)

    validation = data.validation
    return replace(data, test=validation.subset(order[:half]), validation=validation.subset(order[half : 2 * half]))


def measure(state: StateDict, models: Sequence[Source], data: ImageTask) -> dict[str, float]:
    """Measure a star: barrier and tempered barrier to held-outs, accuracy, NLL without and with temperature scaling."""
    evaluated = EvaluatedModels(
        architecture=models[0].architecture,
        star=state,
        sources={model.name: model.state for model in models[:SOURCES]},
        holdouts={model.name: model.state for model in models[SOURCES:]},
    )
    config = RunConfig(evaluate=EvalConfig(points=9, source_pairs=0, sources=0, bma_samples=0))
    found = evaluate(CachedEvaluation(evaluated, data, config))
    [star], paths = found.qualities_of("star"), found.paths_of("star-heldout")
    assert star.tempered
    return {
        "barrier": statistics.fmean(path.barrier for path in paths),
        "tempered_barrier": statistics.fmean(path.tempered_barrier or 0.0 for path in paths),
        "halfway": statistics.fmean(path.loss[len(path.loss) // 2] for path in paths),
        "accuracy": star.accuracy,
        "nll": star.nll,
        "tempered_nll": star.tempered.nll,
        "dee": star.dee or 0.0,
    }


def run(study: str, zoo: str, dataset: str, zoos: Path) -> None:
    """Measure what a study lacks."""
    recipe = RECIPES[zoo]
    models = load_sources(train(zoo, recipe.seeds(SOURCES + HOLDOUTS), dataset, zoos))
    data = load_data(recipe.on(dataset), models[0].architecture.preprocessing)
    validation = on_validation_images(data)
    for seed in SEEDS:
        for settings in variants(study, zoo):
            star = StarConfig.model_validate({**STARS[zoo].model_dump(), **settings, "seed": seed})
            rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
            key = {"study": study, "zoo": zoo, "seed": seed, "settings": settings}
            if any(all(row[name] == value for name, value in key.items()) for row in rows):
                continue
            config = RunConfig(data=recipe.on(dataset), align=AlignConfig(), star=star)
            if study == "horizon":
                row = {**key, "midpoint_loss": midpoint_loss(models[:SOURCES], data, config)}
            else:
                row = {**key, **measure(fit(models[:SOURCES], data, config).state, models, validation)}
            RESULTS.write_text(json.dumps([*rows, row], indent=1) + "\n", encoding="utf-8")
            print(row, flush=True)


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the barrier to held-outs against the tempered negative log-likelihood, for all weights of the loss."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    with plot_style():
        axes = figure.subplots()
        for has_path, kappa in itertools.product((True, False), KAPPAS):
            group = [row for row in rows if _is_of(row["settings"], kappa, has_path)]
            if not group:
                continue
            group.sort(key=lambda row: row["settings"]["mu"] if has_path else row["settings"]["lr"])
            x, y = ([row[name] for row in group] for name in ("tempered_nll", "barrier"))
            weight = "∞" if kappa == MANY else f"{kappa:g}"
            label = f"{'with paths' if has_path else 'no path'}, κ = {weight}"
            color = COLORS[KAPPAS.index(kappa)]
            marker, line = ("o", "-") if has_path else ("s", ":")
            axes.plot(x, y, color=color, marker=marker, ls=line, ms=7, mew=0, label=label)
            for row, left, low in zip(group, x, y, strict=True):
                text = f"μ {row['settings']['mu']:g}" if has_path else f"rate {row['settings']['lr']:g}"
                axes.annotate(text, (left, low), (5, 4), textcoords="offset points", fontsize=7, color=color)
        axes.set_xlabel("NLL after temperature scaling (nats), less is better")
        axes.set_ylabel("barrier to held-outs (nats), less is better")
        axes.legend(frameon=False, fontsize=8, loc="center right")
    return figure


def _is_of(settings: Mapping[str, Any], kappa: float, has_path: bool) -> bool:
    return bool(settings["kappa"] == kappa and ("t" not in settings) == has_path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=("horizon", "rates", "tradeoff"))
    parser.add_argument("zoo", choices=STARS)
    parser.add_argument("--dataset", default=DATASET, help="CIFAR-10: a Hub data set or a local folder")
    parser.add_argument("--zoos", type=Path, default=OUT, help="the folder of all zoos")
    options = parser.parse_args()
    run(options.study, options.zoo, options.dataset, options.zoos)
    found = [row for row in json.loads(RESULTS.read_text()) if (row["study"], row["zoo"]) == ("tradeoff", PICTURED)]
    save(draw(found), PLOT)


if __name__ == "__main__":
    main()
