"""Measure a star again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from starzoo.errors import UsageError
from starzoo.evaluate.evaluate import Shard, evaluate_shard
from starzoo.evaluate.result_cache import ResultCache
from starzoo.hub.ref import ModelRef
from starzoo.models.class_order import reorder_classes
from starzoo.models.compatibility import check_compatible
from starzoo.models.sources import load_sources
from starzoo.parallel import ignore_other_launchers, is_main_process
from starzoo.progress import Progress, no_progress
from starzoo.report.card import refuse_other_card
from starzoo.star.inputs import reload_data, reload_models, reload_ood_data
from starzoo.star.join import star_as_source
from starzoo.star.run.local_paths import resolve_records
from starzoo.star.star import load_star, write_manifest
from starzoo.workflows.cards import render_card
from starzoo.workflows.fit import StarResult
from starzoo.workflows.measure import (
    leaves_the_same,
    look_at,
    make_zoo,
    measure,
    name_classes,
    override_eval_config,
    with_split_of,
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

    What was measured before, by an evaluation that was cut off or by the jobs of an array, is taken from the cache.

    Args:
        star: The star's folder, or its repository.
        holdouts: References of models to test against instead of the star's own held-outs.
        other_stars: References of other stars of the same models, whose paths to this one are measured.
        data: Values of `DataConfig` that differ from those of the star.
        evaluate: Values of `EvalConfig` that differ.
        use_cache: Whether results are kept, and taken from those that were.
        shard: Which share of the items to measure, for a job of an array; nothing but the cache is written then.
        progress: Told about every stage.

    Returns:
        The manifest with the new evaluation; a local star's folder is written anew, its card too.

    Raises:
        UsageError: A shard was asked for without the cache, where its results would be lost.
    """
    ignore_other_launchers()  # before anything is downloaded
    if shard and not use_cache:
        raise UsageError("--shard", "a shard leaves its results in the cache", hint="leave --no-cache out")
    holdouts = expand_refs(holdouts, of="holdouts")
    loaded, folder = load_star(star), ModelRef.parse(star).folder
    if folder is not None and not shard:
        refuse_other_card(folder)
    then, places = loaded.manifest, loaded.local_paths
    settings = override_eval_config(then.config.evaluate, evaluate or {})
    members = reload_models(then.sources, resolve_records(then.sources, places.sources), progress=progress)
    names = [member.name for member in members]
    if holdouts:
        unseen = load_sources(holdouts, reserved_names=names, progress=progress)
    else:
        unseen = reload_models(then.holdouts, resolve_records(then.holdouts, places.holdouts), progress=progress)
    taken = [*names, *(model.name for model in unseen)]
    stars = load_sources(other_stars, reserved_names=taken, progress=progress) if other_stars else []
    check_compatible([star_as_source(loaded), *members, *unseen, *stars])
    images = reload_data(loaded, data)
    if holdouts:
        unseen = name_classes(unseen, images, progress)
    order = then.architecture.label_names
    members, unseen, stars = (reorder_classes(models, order) for models in (members, unseen, stars))
    same = images.fingerprint == then.data_fingerprint and images.config.augment == then.config.data.augment
    if same:  # though another commit may hold them
        images = replace(images, config=images.config.model_copy(update={"revision": then.config.data.revision}))
    if settings.baselines and not same:
        raise UsageError(
            star,
            "its baselines would be trained on other images than it was",
            hint="leave --baseline out, or measure on the star's own data",
        )
    if not same and not leaves_the_same(images.config, then.config.data):
        images = replace(images, validation=None)  # the star may have been fitted on them
    outside = reload_ood_data(loaded, settings.ood, (evaluate or {}).get("ood"))
    settings = with_split_of(outside, settings)
    cache = ResultCache.of_user() if use_cache else ResultCache(None)
    models, settings = look_at([*members, *unseen], len(members), images, settings, cache, True, progress)
    members, unseen = models[: len(members)], models[len(members) :]
    manifest = then.model_copy(
        update={
            "config": then.config.model_copy(update={"evaluate": settings}),
            "holdouts": tuple(model.record for model in unseen),
        }
    )
    permutations = [loaded.permutation(name) for name in names]
    zoo = make_zoo(loaded.state, members, permutations, unseen, stars)
    if shard:
        arguments = (then.architecture, zoo, images, settings, then.config.align, shard)
        evaluate_shard(*arguments, star_config=then.fitted_config, outside=outside, cache=cache, progress=progress)
        return StarResult(folder=folder or Path(star), manifest=then)
    manifest = measure(manifest, zoo, images, outside, cache, progress)
    if folder is not None and is_main_process():
        write_manifest(folder, manifest)
        places.updated(holdouts, settings.ood).write(folder)
        render_card(folder)
    return StarResult(folder=folder or Path(star), manifest=manifest)
