"""From an experiment to its rows: one per seed and variant, each kept as soon as it is measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.study.experiment import Experiment
from benchmarks.zoos import RECIPES, train
from starzoo.config import AlignConfig, RunConfig
from starzoo.data.task import load_data
from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.evaluate.evaluate import evaluate
from starzoo.evaluate.model_pool import EvaluatedModels
from starzoo.evaluate.result_cache import ResultCache
from starzoo.evaluate.results import Evaluation
from starzoo.models.sources import Source, load_sources
from starzoo.models.timm_folder import WEIGHTS_FILE
from starzoo.star.fit import fit

Row = dict[str, Any]
SECONDS = "seconds"  # beside the tensors of a model that is kept
MEASURES = ("barrier", "accuracy_barrier", "highest_loss", "excess", "worst_accuracy")
SCORES = ("accuracy", "nll", "ece", "brier", "auroc")
ROLES = ("star", "source", "held-out", "aligned-mean", "sub-ensemble", "ensemble")


def rows(
    experiment: Experiment,
    dataset: str,
    zoos: Path,
    seeds: Iterable[int],
    variants: Collection[str],
    done: Collection[Row],
) -> Iterator[Row]:
    """Measure what is not done yet.

    Args:
        experiment: What is compared.
        dataset: CIFAR-10, on the Hub or in a folder.
        zoos: The folder of all zoos; members that it lacks are trained.
        seeds: Which of the experiment's.
        variants: Which of them.
        done: The rows that there are.

    Yields:
        One row for each seed and variant: paths by kind, predictions by role, seconds of the fit on one core.
    """
    known = {(row["variant"], row["seed"]) for row in done}
    paired = {row["zoo"] for row in done if "source-source" in row["paths"]}
    for seed in seeds:
        for variant in variants:
            if (variant, seed) in known:
                continue
            zoo = experiment.zoo_of(variant)
            yield measure(experiment, variant, seed, dataset, zoos, pairs=0 if zoo in paired else 6)
            paired.add(zoo)


def measure(experiment: Experiment, variant: str, seed: int, dataset: str, zoos: Path, *, pairs: int) -> Row:
    """Make one variant's model and measure it."""
    name, used = experiment.zoo_of(variant), experiment.sources_of(variant)
    recipe = RECIPES[name]
    models = members(name, experiment.sources + experiment.holdouts, dataset, zoos)
    sources, holdouts = models[:used], models[experiment.sources :]
    labels = dict.fromkeys((model.name for model in holdouts), "star-heldout")
    for label, other in experiment.strangers.items():
        strangers = members(other, RECIPES[other].members, dataset, zoos)
        strangers = [model.with_record(name=f"{other}/{model.name}") for model in strangers]  # seed-0 is a source too
        holdouts = [*holdouts, *strangers]
        labels |= dict.fromkeys((model.name for model in strangers), label)
    architecture = models[0].architecture
    data = load_data(recipe.on(dataset), architecture.preprocessing)
    state, seconds = make(experiment, variant, seed, sources, dataset, zoos.parent / "study")
    evaluated = EvaluatedModels(
        architecture=architecture,
        star=state,
        sources={source.name: source.state for source in sources},
        holdouts={holdout.name: holdout.state for holdout in holdouts},
    )
    found = evaluate(CachedEvaluation(evaluated, data, RunConfig(evaluate=experiment.evaluation(pairs))))
    paths, qualities = paths_of(found, labels), qualities_of(found)
    return {"variant": variant, "seed": seed, "zoo": name, "seconds": seconds, "paths": paths, "qualities": qualities}


def make(
    experiment: Experiment, variant: str, seed: int, sources: Sequence[Source], dataset: str, folder: Path
) -> tuple[dict[str, Tensor], float]:
    """One variant's model, and the seconds that it took on one core; what was made before is read from the folder."""
    chosen, star = experiment.variants[variant], experiment.star_of(variant, seed)
    recipe, architecture = RECIPES[experiment.zoo_of(variant)], sources[0].architecture
    align = AlignConfig.model_validate(chosen.align)
    deciding = {
        "sources": [source.record.files[WEIGHTS_FILE] for source in sources],
        "data": recipe.data.model_dump(mode="json"),
        "star": star.model_dump(mode="json"),
        "align": align.model_dump(mode="json"),
    }

    def fresh() -> dict[str, Tensor]:
        data, before = load_data(recipe.on(dataset), architecture.preprocessing), time.process_time()
        run = RunConfig(data=recipe.on(dataset), align=align, star=star)
        state = fit(sources, data, run).state
        return {**state, SECONDS: torch.tensor(time.process_time() - before)}

    state = ResultCache(folder).get_or_compute(deciding, fresh)
    return state, float(state.pop(SECONDS))


@cache
def members(name: str, count: int, dataset: str, zoos: Path) -> list[Source]:
    """The first members of a zoo."""
    return load_sources(train(name, RECIPES[name].seeds(count), dataset, zoos))


def paths_of(found: Evaluation, labels: Mapping[str, str]) -> dict[str, Any]:
    """Each measure's mean over the paths of a kind, and the mean curves; held-outs by what they are called."""
    groups: dict[str, list[Any]] = {}
    for path in found.paths:
        groups.setdefault(labels[path.b] if path.kind == "star-heldout" else path.kind, []).append(path)
    return {
        kind: {
            "count": len(paths),
            **{measure: statistics.fmean(getattr(path, measure) for path in paths) for measure in MEASURES},
            "t": list(paths[0].t),
            "loss": [statistics.fmean(values) for values in zip(*(path.loss for path in paths), strict=True)],
            "accuracy": [statistics.fmean(values) for values in zip(*(path.accuracy for path in paths), strict=True)],
        }
        for kind, paths in groups.items()
    }


def qualities_of(found: Evaluation) -> dict[str, Any]:
    """The mean scores of each role, also after temperature scaling; an ensemble of n sources is its own role."""
    groups: dict[str, list[Any]] = {}
    for quality in found.qualities:
        if quality.role in ROLES and quality.split == "test":
            role = f"ensemble of {quality.passes}" if quality.role.endswith("ensemble") else quality.role
            groups.setdefault(role, []).append(quality)

    def scores(each: Sequence[Any]) -> dict[str, float]:
        found = {score: [getattr(one, score, None) for one in each] for score in SCORES}
        known = {score: [value for value in values if value is not None] for score, values in found.items()}
        return {score: statistics.fmean(values) for score, values in known.items() if len(values) == len(each)}

    return {
        role: scores(each)
        | ({"tempered": scores([one.tempered for one in each])} if all(one.tempered for one in each) else {})
        for role, each in groups.items()
    }
