"""Measure a star again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from starzoo.data.corruption import check_corruptions
from starzoo.data.task import ImageTask
from starzoo.errors import UsageError
from starzoo.evaluate.chance_check import name_classes
from starzoo.evaluate.evaluate import Shard, evaluate_shard
from starzoo.evaluate.result_cache import ResultCache
from starzoo.evaluate.source_check import check_sources
from starzoo.hub.ref import ModelRef
from starzoo.models.class_order import reorder_classes
from starzoo.models.compatibility import check_compatible
from starzoo.models.sources import Source, load_sources
from starzoo.parallel import ignore_other_launchers, is_main_process
from starzoo.progress import Progress, no_progress
from starzoo.report.card import check_overwritable
from starzoo.star.inputs import reload_data, reload_models, reload_ood_data, star_as_source
from starzoo.star.manifest import StarManifest
from starzoo.star.run.local_paths import resolve_records
from starzoo.star.star import Star, load_star, write_manifest
from starzoo.workflows.cards import render_card
from starzoo.workflows.fit import StarResult
from starzoo.workflows.measure import (
    evaluate_manifest,
    override_eval_config,
    prepare_evaluation,
    validation_is_unseen,
    with_ood_splits,
)
from starzoo.workflows.refs import expand_refs

__all__ = ["evaluate_star"]


def evaluate_star(
    star: str,
    *,
    holdouts: Sequence[str] = (),
    other_stars: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    use_cache: bool = True,
    shard: Shard | None = None,
    progress: Progress = no_progress,
) -> StarResult:
    """Measure a star again: on other data, more points, or held-outs that it was not published with.

    Results of an earlier evaluation, interrupted or by the jobs of an array, are taken from the cache.

    Args:
        star: The star's folder, or its repository.
        holdouts: References of models to test against instead of the star's own held-outs.
        other_stars: References of other stars of the same models, whose paths to this one are measured.
        data: Values of `DataConfig` that differ from those of the star.
        evaluate: Values of `EvalConfig` that differ.
        use_cache: Whether the cache of results is read and written.
        shard: Which share of the items to measure, for a job of an array; nothing but the cache is written then.
        progress: Told about every stage.

    Returns:
        The manifest with the new evaluation; star.json and the card of a local star are written again.

    Raises:
        UsageError: A shard was asked for without the cache, where its results would be lost.
    """
    ignore_other_launchers()  # before anything is downloaded
    if shard and not use_cache:
        raise UsageError("--shard", "a shard leaves its results in the cache", hint="leave --no-cache out")
    holdouts = expand_refs(holdouts, of="holdouts")
    loaded, folder = load_star(star), ModelRef.parse(star).folder
    if folder is not None and not shard:
        check_overwritable(folder)
    config = override_eval_config(loaded.manifest.config.evaluate, evaluate or {})
    sources, unseen, stars = _load_models(loaded, holdouts, other_stars, progress)
    images = reload_data(loaded, data)
    if holdouts:
        unseen = name_classes(unseen, images, progress=progress)
    order = loaded.manifest.architecture.label_names
    sources, unseen, stars = (reorder_classes(models, order) for models in (sources, unseen, stars))
    images = _check_images(loaded.manifest, images, trains_baselines=bool(config.baselines))
    check_corruptions(config.corruptions, loaded.manifest.architecture.preprocessing.input_size)
    ood = reload_ood_data(loaded, config.ood, (evaluate or {}).get("ood"))
    cache = ResultCache.default() if use_cache else ResultCache(None)
    check = check_sources(
        sources, unseen, images, with_ood_splits(config, ood), keep_weak=True, cache=cache, progress=progress
    )
    manifest = loaded.manifest.model_copy(
        update={
            "config": loaded.manifest.config.model_copy(update={"evaluate": check.config}),
            "holdouts": tuple(model.record for model in check.holdouts),
        }
    )
    evaluation = prepare_evaluation(
        replace(loaded, manifest=manifest),
        check.sources,
        check.holdouts,
        images,
        other_stars=stars,
        ood=ood,
        cache=cache,
    )
    if shard:
        evaluate_shard(evaluation, shard, progress=progress)
        return StarResult(folder=folder or Path(star), manifest=loaded.manifest)
    manifest = evaluate_manifest(manifest, evaluation, progress)
    if folder is not None and is_main_process():
        write_manifest(folder, manifest)
        loaded.local_paths.updated(holdouts, check.config.ood).write(folder)
        render_card(folder)
    return StarResult(folder=folder or Path(star), manifest=manifest)


def _load_models(
    star: Star, holdouts: Sequence[str], other_stars: Sequence[str], progress: Progress
) -> tuple[list[Source], list[Source], list[Source]]:
    """Load the sources of a star, the held-outs and other stars, and check that they are compatible."""
    manifest, paths, image_size = star.manifest, star.local_paths, star.manifest.config.data.image_size
    sources = reload_models(star, manifest.sources, resolve_records(manifest.sources, paths.sources), progress=progress)
    names = [source.name for source in sources]
    if holdouts:
        unseen = load_sources(holdouts, reserved_names=names, image_size=image_size, progress=progress)
    else:
        unseen = reload_models(
            star, manifest.holdouts, resolve_records(manifest.holdouts, paths.holdouts), progress=progress
        )
    names += [model.name for model in unseen]
    stars: list[Source] = []
    if other_stars:
        stars = load_sources(other_stars, reserved_names=names, image_size=image_size, progress=progress)
    check_compatible([star_as_source(star), *sources, *unseen, *stars])
    return sources, unseen, stars


def _check_images(manifest: StarManifest, images: ImageTask, *, trains_baselines: bool) -> ImageTask:
    """Return the images without those for validation that the star may have been fitted on."""
    fitted = manifest.config.data
    is_augmented_alike = all(getattr(images.config, name) == getattr(fitted, name) for name in ("augment", "transform"))
    if images.fingerprint == manifest.data_fingerprint and is_augmented_alike:
        # Another commit may hold the same images.
        return replace(images, config=images.config.model_copy(update={"revision": fitted.revision}))
    if trains_baselines:
        raise UsageError(
            manifest.name,
            "its baselines would be trained on other images than it was",
            hint="leave --baseline out, or measure on the star's own data",
        )
    return images if validation_is_unseen(images.config, fitted) else replace(images, validation=None)
