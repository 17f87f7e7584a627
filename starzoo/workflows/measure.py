"""Prepare the evaluation of a star, and measure it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starzoo.config import DataConfig, EvalConfig, validate
from starzoo.data.split import Split
from starzoo.data.task import ImageTask
from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.evaluate.chance_check import name_classes
from starzoo.evaluate.evaluate import evaluate
from starzoo.evaluate.model_pool import EvaluatedModels
from starzoo.evaluate.result_cache import ResultCache
from starzoo.models.class_order import common_label_names, reorder_classes
from starzoo.models.compatibility import check_have_classes
from starzoo.models.sources import Source
from starzoo.progress import Progress, no_progress
from starzoo.star.manifest import StarManifest
from starzoo.star.run.local_paths import is_local_dataset, resolve_path
from starzoo.star.star import Star

__all__ = [
    "evaluate_manifest",
    "match_to_data",
    "override_eval_config",
    "prepare_evaluation",
    "validation_is_unseen",
    "with_ood_splits",
]


def match_to_data(
    models: Sequence[Source], load: Callable[[Sequence[str] | None], ImageTask], progress: Progress = no_progress
) -> tuple[list[Source], ImageTask]:
    """Bring models and images into one class order: the first one that has label names."""
    check_have_classes(models)
    data = load(common_label_names(models))
    named = name_classes(models, data, progress=progress)
    names = common_label_names(models) or common_label_names(named)
    return reorder_classes(named, names), data if names == data.class_names else load(names)


def override_eval_config(config: EvalConfig, changes: Mapping[str, Any]) -> EvalConfig:
    """Override the settings of an evaluation; single values of the out-of-distribution data change only these."""
    ood = changes.get("ood")
    if len(config.ood) == 1 and isinstance(ood, Mapping) and "dataset" not in ood:
        ood = {**config.ood[0].model_dump(), **ood}
        return validate(EvalConfig, {**config.model_dump(), **changes, "ood": ood})
    config = validate(EvalConfig, {**config.model_dump(), **changes})
    return config.model_copy(update={"ood": tuple(map(resolve_path, config.ood))}) if ood else config


def with_ood_splits(config: EvalConfig, ood: Sequence[Split]) -> EvalConfig:
    """Name the splits that the out-of-distribution data sets have, such as `validation` for `test`."""
    named = [data.model_copy(update={"test_split": split.name}) for data, split in zip(config.ood, ood, strict=True)]
    return config.model_copy(update={"ood": tuple(named)})


def validation_is_unseen(data: DataConfig, fitted: DataConfig) -> bool:
    """Whether the images that `train_size` leaves out are certain to be new to a star fitted on other settings."""
    of_test = {"test_split", "test_size", "augment", "transform"}
    if data.model_dump(exclude=of_test) == fitted.model_dump(exclude=of_test):
        return True
    return data.dataset != fitted.dataset and not is_local_dataset(data)


def prepare_evaluation(
    star: Star,
    sources: Sequence[Source],
    holdouts: Sequence[Source],
    data: ImageTask,
    *,
    other_stars: Sequence[Source] = (),
    ood: Sequence[Split] = (),
    cache: ResultCache | None = None,
) -> CachedEvaluation:
    """Return the evaluation that a star's manifest describes."""
    manifest = star.manifest
    models = EvaluatedModels(
        architecture=manifest.architecture,
        star=star.state,
        sources={source.name: source.state for source in sources},
        holdouts={holdout.name: holdout.state for holdout in holdouts},
        other_stars={other.name: other.state for other in other_stars},
        permutations={source.name: star.permutation(source.name) for source in sources},
    )
    config = manifest.config.model_copy(update={"star": manifest.fitted_config})
    return CachedEvaluation(models, data, config, ood=ood, cache=cache)


def evaluate_manifest(manifest: StarManifest, evaluation: CachedEvaluation, progress: Progress) -> StarManifest:
    """Measure a star and return its manifest with the results."""
    results = evaluate(evaluation, progress=progress)
    if evaluation.data.config != manifest.config.data:
        results = results.model_copy(update={"data": evaluation.data.config})
    return manifest.model_copy(update={"evaluation": results})
