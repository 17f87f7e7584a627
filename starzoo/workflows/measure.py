"""Choose models, images and settings for the evaluation of a star."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from starzoo.config import DataConfig, EvalConfig, validate
from starzoo.data.split import Split
from starzoo.data.task import ImageTask
from starzoo.evaluate.chance_check import find_class_orders
from starzoo.evaluate.evaluate import Zoo, evaluate
from starzoo.evaluate.result_cache import ResultCache
from starzoo.evaluate.source_check import check_sources, estimate_statistics
from starzoo.models.class_order import common_label_names, named_classes, reorder_classes
from starzoo.models.compatibility import check_have_classes
from starzoo.models.sources import Source
from starzoo.progress import Progress, no_progress
from starzoo.star.manifest import StarManifest
from starzoo.star.run.local_paths import is_local_dataset, resolve_path
from starzoo.symmetry import Permutation

__all__ = [
    "leaves_the_same",
    "look_at",
    "make_zoo",
    "match_to_data",
    "measure",
    "name_classes",
    "override_eval_config",
    "with_split_of",
]


def match_to_data(
    models: Sequence[Source], load: Callable[[Sequence[str] | None], ImageTask], progress: Progress = no_progress
) -> tuple[list[Source], ImageTask]:
    """Bring models and images into one class order: the first one that has label names."""
    check_have_classes(models)
    data = load(common_label_names(models))
    named = name_classes(models, data, progress)
    names = common_label_names(models) or common_label_names(named)
    return reorder_classes(named, names), data if names == data.class_names else load(names)


def name_classes(models: Sequence[Source], data: ImageTask, progress: Progress = no_progress) -> list[Source]:
    """Give models without label names those of the data, in the order in which they are better than chance."""
    unnamed = {model.name: model.state for model in models if not model.architecture.label_names}
    if not unnamed:
        return list(models)
    orders = find_class_orders(models[0].architecture, unnamed, data, progress=progress)
    return [named_classes(model, orders[model.name]) if model.name in orders else model for model in models]


def look_at(
    models: Sequence[Source],
    count: int,
    data: ImageTask,
    config: EvalConfig,
    cache: ResultCache,
    keep_weak: bool,
    progress: Progress,
) -> tuple[list[Source], EvalConfig]:
    """Look at the models of a star before it is fitted or measured (`starzoo.evaluate.source_check`)."""
    architecture, states = models[0].architecture, [(model.name, model.state) for model in models]
    found = check_sources(
        architecture,
        dict(states[:count]),
        dict(states[count:]),
        data,
        config,
        trained_with=[model.record.augment for model in models[:count]],
        keep_weak=keep_weak,
        cache=cache,
        progress=progress,
    )
    config = config.model_copy(update={"batch_norm_augment": found.augment})
    return [
        replace(model.with_record(estimated=True), state=estimate_statistics(architecture, model.state, data, config))
        if model.name in found.broken
        else model
        for model in models
    ], config


def make_zoo(
    state: Mapping[str, Tensor],
    members: Sequence[Source],
    permutations: Sequence[Permutation],
    unseen: Sequence[Source],
    stars: Sequence[Source] = (),
) -> Zoo:
    """The models of an evaluation."""
    sources, holdouts, others = ({model.name: model.state for model in models} for models in (members, unseen, stars))
    known = dict(zip(sources, permutations, strict=True))
    return Zoo(star=state, sources=sources, holdouts=holdouts, others=others, permutations=known)


def override_eval_config(known: EvalConfig, changes: Mapping[str, Any]) -> EvalConfig:
    """How a star is measured again: single values of its other data set change that one."""
    ood, other = known.ood, changes.get("ood")
    if ood and isinstance(other, Mapping) and "dataset" not in other:
        changes = {**changes, "ood": {**ood.model_dump(), **other}}
        return validate(EvalConfig, {**known.model_dump(), **changes})
    config = validate(EvalConfig, {**known.model_dump(), **changes})
    return config.model_copy(update={"ood": resolve_path(config.ood)}) if config.ood and other else config


def leaves_the_same(data: DataConfig, of: DataConfig) -> bool:
    """Whether the images that `train_size` leaves out are certain to be new to a star."""
    of_test = {"test_split", "test_size", "augment"}
    if data.model_dump(exclude=of_test) == of.model_dump(exclude=of_test):
        return True
    return data.dataset != of.dataset and not is_local_dataset(data)


def measure(
    manifest: StarManifest,
    zoo: Zoo,
    data: ImageTask,
    outside: Split | None,
    cache: ResultCache,
    progress: Progress,
) -> StarManifest:
    """Measure a star as its manifest says."""
    measured = evaluate(
        manifest.architecture,
        zoo,
        data,
        manifest.config.evaluate,
        manifest.config.align,
        star_config=manifest.fitted_config,
        outside=outside,
        cache=cache,
        progress=progress,
    )
    if data.config != manifest.config.data:
        measured = measured.model_copy(update={"data": data.config})
    return manifest.model_copy(update={"evaluation": measured})


def with_split_of(outside: Split | None, settings: EvalConfig) -> EvalConfig:
    """The settings with the name that the split of the other data set has, such as `validation` for `test`."""
    if settings.ood is None or outside is None:
        return settings
    return settings.model_copy(update={"ood": settings.ood.model_copy(update={"test_split": outside.name})})
