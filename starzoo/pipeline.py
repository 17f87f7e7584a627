"""Each command as one function: rooms put together, from names to a finished folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from starzoo.card import refuse_other_card, write_card
from starzoo.config import DataConfig, EvalConfig, RunConfig, StarConfig, TrainConfig, validate
from starzoo.data import ImageData, Split
from starzoo.errors import UsageError
from starzoo.evaluate.cache import ResultCache
from starzoo.evaluate.evaluate import Shard, evaluate_shard
from starzoo.folder import WEIGHTS_FILE, write_text
from starzoo.gallery import find_stars, write_gallery
from starzoo.hub.names import check_repo
from starzoo.hub.ref import ModelRef
from starzoo.measuring import leaves_the_same, look_at, make_zoo, match_to_data, measure, measured_as, name_classes
from starzoo.origins import load_data_for, load_images, load_models, load_named_images, load_other_images
from starzoo.places import (
    OF_A_RUN,
    RunPlaces,
    find_models,
    refuse_other_files,
    refuse_overwriting,
    without_paths,
)
from starzoo.processes import all_or_none, from_first, ignore_other_launchers, is_first, join
from starzoo.progress import Progress, silent
from starzoo.publishing import check_licence, publish_star
from starzoo.report import write_report
from starzoo.sources import Source, check_compatible, load_sources, named_classes, order_classes
from starzoo.specs import infer_architecture
from starzoo.star.joining import as_source
from starzoo.star.lock import RunLock
from starzoo.star.manifest import MANIFEST, StarManifest, read_manifest
from starzoo.star.star import Star, load_star, write_manifest
from starzoo.star.stopping import ignoring_signals, obeying_signals
from starzoo.star.train import FittedStar, fit
from starzoo.status import Status
from starzoo.symmetry import Permutation, PermutationSpec
from starzoo.zoo import architecture_for, train_zoo

__all__ = [
    "StarReport",
    "evaluate_star",
    "fit_star",
    "load_star",
    "publish_star",
    "quickstart",
    "render_card",
    "render_gallery",
    "render_html",
]

CONFIG_FILE = "run.yaml"  # the resolved configuration, as `--config` reads it
QUICKSTART_ARGS = {"layers": [1, 1, 0, 0], "channels": [32, 64, 64, 64], "zero_init_last": False}
QUICKSTART_SOURCES, QUICKSTART_HOLDOUTS = 12, 4


@dataclass(frozen=True, kw_only=True)
class StarReport:
    """What `fit_star` and `quickstart` made.

    Attributes:
        folder: The star's folder.
        manifest: What stands in its star.json, the evaluation included.
        pushed: URL of the commit on the Hub, or None.
    """

    folder: Path
    manifest: StarManifest
    pushed: str | None = None


def fit_star(
    sources: Sequence[str],
    holdouts: Sequence[str],
    config: RunConfig,
    out: Path,
    *,
    name: str | None = None,
    push_to: str | None = None,
    private: bool = False,
    accept_licence: str | None = None,
    keep_weak_sources: bool = False,
    override: bool = False,
    allow_world_size_change: bool = False,
    progress: Progress = silent,
) -> StarReport:
    """The main job: load, align, fit, evaluate, write the card and push. The same call again resumes.

    Called by every process that torchrun has started, it is one run on all of them. How far it is and how it ended
    stands in status.json, one line per epoch in training.log.

    Args:
        sources: References of the models that the star is fitted on, at least two.
        holdouts: References of models that it never sees, for the proof.
        config: The run's configuration.
        out: The star's folder.
        name: The star's name; the folder's when not given.
        push_to: The Hub repository to publish in, `user/name`.
        private: Whether a new repository is private.
        accept_licence: The licence to publish the star under, where a person must decide.
        keep_weak_sources: Use sources that are far worse than the others.
        override: Go on from checkpoints that were made with another configuration.
        allow_world_size_change: Go on from checkpoints that were made by another number of processes.
        progress: Told about every stage.

    Returns:
        The folder, the manifest with the evaluation, and where it was pushed to.

    Raises:
        UsageError: There are fewer than two sources, or another run is at work in the folder.
    """
    if len(sources) < 2:
        raise UsageError("a star needs at least two sources", hint="give more model references", subject="SOURCE")
    if push_to:
        check_repo(push_to)
    refuse_overwriting(out, [*sources, *holdouts], unless=OF_A_RUN)
    refuse_other_files(out)
    status = Status(out, watcher=progress)
    with RunLock(out) as lock, ignoring_signals(), status.recording(), obeying_signals():
        join(config.runtime)
        status.met()
        with all_or_none():
            models = load_sources([*sources, *holdouts], progress=status)
            check_compatible(models)
            began = RunPlaces.read(out)
            asked, architecture = began.at_its_commit(config.data), models[0].architecture
            models, data = match_to_data(models, partial(load_data_for, architecture, asked), status)
        cache = ResultCache.of_user()
        models, settings = look_at(models, len(sources), data, config.evaluate, cache, keep_weak_sources, status)
        config = config.model_copy(update={"evaluate": settings})
        with all_or_none():
            members, unseen = models[: len(sources)], models[len(sources) :]
            outside = load_other_images(config.evaluate.ood, members[0].architecture)
            config = config.model_copy(update={"evaluate": _with_split_of(outside, config.evaluate)})
            manifest = _describe(name or out.resolve().name, members, unseen, config, data)
            if push_to:
                check_licence(manifest, accept_licence)  # before the fit
            weights = [member.provenance.files[WEIGHTS_FILE] for member in members]
            refs = [model.record.pinned or ref for model, ref in zip(models, [*sources, *holdouts], strict=True)]
            pinned = refs[: len(sources)], refs[len(sources) :]
            places = RunPlaces.of(*pinned, data.config, config.evaluate.ood, weights)
            if not override:
                began.check_unchanged(places)
        if not from_first(lambda: _is_finished(out, manifest)):
            with all_or_none():
                spec = infer_architecture(manifest.architecture)
                data.train.loader(config.star.batch_size, epoch=0, seed=0)  # refused before anything is written
            from_first(lock.take)
            from_first(lambda: None if RunPlaces.read(out).sources else places.write(out))
            fitted = fit(
                manifest.architecture,
                spec,
                [member.state for member in members],
                data,
                manifest.config,
                folder=out,
                names=[member.name for member in members],
                identity=manifest.identity,
                override=override,
                allow_world_size_change=allow_world_size_change,
                progress=status,
            )
            _save(out, manifest, places, spec, fitted, members, unseen, data, outside, cache, status)

        def publish() -> str | None:
            places.write(out)
            if push_to:
                return publish_star(out, push_to, private=private, accept_licence=accept_licence).url
            render_card(out)
            return None

        pushed = from_first(publish)
        found = from_first(lambda: read_manifest(out / MANIFEST))
    return StarReport(folder=out, manifest=found, pushed=pushed)


def quickstart(out: Path, *, seed: int = 0, progress: Progress = silent) -> StarReport:
    """The whole flow on embedded digits, without a network: train a zoo, fit its star, prove it on held-outs.

    Args:
        out: Folder for the zoo (`zoo/`) and the star (`star/`).
        seed: Seed of the star; the zoo is always the same.
        progress: Told about every stage.

    Returns:
        What `fit_star` returns for the star.
    """
    data = DataConfig(dataset="digits")
    star = validate(StarConfig, {"seed": seed})
    architecture = architecture_for("resnet18", data, model_args=QUICKSTART_ARGS, image_size=16)
    members = range(QUICKSTART_SOURCES + QUICKSTART_HOLDOUTS)
    zoo = from_first(lambda: train_zoo(architecture, data, TrainConfig(), members, out / "zoo", progress=progress))
    refs = [str(member.folder) for member in zoo]
    sources, holdouts = refs[:QUICKSTART_SOURCES], refs[QUICKSTART_SOURCES:]
    return fit_star(
        sources, holdouts, RunConfig(data=data, star=star), out / "star", name="digits-star", progress=progress
    )


def evaluate_star(
    star: str,
    *,
    holdouts: Sequence[str] = (),
    other_stars: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    use_cache: bool = True,
    shard: Shard | None = None,
    progress: Progress = silent,
) -> StarReport:
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
        raise UsageError("a shard leaves its results in the cache", hint="leave --no-cache out", subject="--shard")
    loaded, folder = load_star(star), ModelRef.parse(star).folder
    if folder is not None and not shard:
        refuse_other_card(folder)
    then, places = loaded.manifest, RunPlaces.read(folder)
    settings = measured_as(places.found(then.config).evaluate, evaluate or {})
    members = load_models(then.sources, find_models(then.sources, places.sources), progress=progress)
    names = [member.name for member in members]
    if holdouts:
        unseen = load_sources(holdouts, taken=names, progress=progress)
    else:
        unseen = load_models(then.holdouts, find_models(then.holdouts, places.holdouts), progress=progress)
    taken = [*names, *(model.name for model in unseen)]
    stars = load_sources(other_stars, taken=taken, progress=progress) if other_stars else []
    check_compatible([as_source(then, loaded.state), *members, *unseen, *stars])
    images = load_images(then, places, data)
    if holdouts:
        unseen = name_classes(unseen, images, progress)
    order = then.architecture.label_names
    members, unseen, stars = (order_classes(models, order) for models in (members, unseen, stars))
    same = images.fingerprint == then.data_fingerprint and images.config.augment == then.config.data.augment
    if same:  # though another commit may hold them
        images = replace(images, config=images.config.model_copy(update={"revision": then.config.data.revision}))
    if settings.rivals and not same:
        raise UsageError(
            f"{star}: its rivals would be trained on other images than it was",
            hint="leave --rival out, or measure on the star's own data",
            subject=star,
        )
    if not same and not leaves_the_same(images.config, places.found(then.config).data):
        images = replace(images, validation=None)  # the star may have been fitted on them
    outside = load_named_images(then, places, settings.ood, (evaluate or {}).get("ood"))
    settings = _with_split_of(outside, settings)
    cache = ResultCache.of_user() if use_cache else ResultCache(None)
    models, settings = look_at([*members, *unseen], len(members), images, settings, cache, True, progress)
    members, unseen = models[: len(members)], models[len(members) :]
    manifest = then.model_copy(
        update={
            "config": without_paths(then.config.model_copy(update={"evaluate": settings})),
            "holdouts": tuple(model.record for model in unseen),
        }
    )
    spec = infer_architecture(then.architecture)
    permutations = [Permutation.from_tensors(spec, loaded.permutations[name]) for name in names]
    zoo = make_zoo(loaded.state, members, permutations, unseen, stars)
    if shard:
        arguments = (then.architecture, spec, zoo, images, settings, then.config.align, shard)
        evaluate_shard(*arguments, star_config=then.fitted_config, outside=outside, cache=cache, progress=progress)
        return StarReport(folder=folder or Path(star), manifest=then)
    manifest = measure(manifest, spec, zoo, images, outside, cache, progress)
    if folder is not None and is_first():
        write_manifest(folder, manifest)
        places.with_changes(holdouts, settings.ood).write(folder)
        render_card(folder)
    return StarReport(folder=folder or Path(star), manifest=manifest)


def render_card(folder: Path) -> Path:
    """Write a star's card, plots and tables again from its star.json.

    Args:
        folder: The star's folder.

    Returns:
        The card.
    """
    manifest = read_manifest(folder / MANIFEST)
    return write_card(folder, manifest, manifest.repo)


def render_html(folder: Path) -> Path:
    """Write a star's card as one HTML page that needs nothing else, from its star.json.

    Args:
        folder: The star's folder.

    Returns:
        The page.
    """
    manifest = read_manifest(folder / MANIFEST)
    return write_report(folder, manifest, manifest.repo)


def render_gallery(folder: Path) -> list[Path]:
    """Write the cards of all stars in a folder again, and one page for all of them.

    Args:
        folder: The folder; each star lies in a folder of its own in it.

    Returns:
        The page, and the cards.
    """
    page = write_gallery(folder)
    return [page, *map(render_card, find_stars(folder))]


def _with_split_of(outside: Split | None, settings: EvalConfig) -> EvalConfig:
    """The settings with the name that the split of the other data set has, such as `validation` for `test`."""
    if settings.ood is None or outside is None:
        return settings
    return settings.model_copy(update={"ood": settings.ood.model_copy(update={"test_split": outside.name})})


def _describe(
    name: str, members: Sequence[Source], unseen: Sequence[Source], config: RunConfig, data: ImageData
) -> StarManifest:
    """All that is known about a star before it is fitted."""
    described = {
        "name": name,
        "architecture": named_classes(members[0], data.class_names).architecture,
        "sources": tuple(model.record for model in members),
        "holdouts": tuple(model.record for model in unseen),
        "config": without_paths(config.model_copy(update={"data": data.config})),
        "data_fingerprint": data.fingerprint,
        "data_label_names": data.label_names,
        "software": {package: metadata.version(package) for package in ("starzoo", "torch", "timm")},
    }
    return validate(StarManifest, described, origin="the command, or the names of models and classes")


def _is_finished(out: Path, manifest: StarManifest) -> bool:
    """Whether `out` holds the very star that is asked for, evaluation included."""
    if not (out / MANIFEST).is_file():
        return False
    found = read_manifest(out / MANIFEST)
    asked, had = (
        (
            one.identity,
            one.name,
            [(model.name, model.repo, model.sha, model.files) for model in one.holdouts],
            one.config.model_dump(exclude={"runtime": True, "data": {"revision"}}),
        )
        for one in (manifest, found)
    )
    same = asked == had
    return same and found.evaluation is not None and found.evaluation.data is None


def _save(
    out: Path,
    manifest: StarManifest,
    places: RunPlaces,
    spec: PermutationSpec,
    fitted: FittedStar,
    members: Sequence[Source],
    unseen: Sequence[Source],
    data: ImageData,
    outside: Split | None,
    cache: ResultCache,
    progress: Progress,
) -> None:
    """Save a fitted star and its configuration, then measure it on all processes and save what was measured."""
    sizes = {name: parameter.numel() for name, parameter in manifest.architecture.build().named_parameters()}
    manifest = manifest.model_copy(
        update={
            "parameters": sum(sizes.values()),
            "groups": len(spec.groups),
            "coverage": spec.coverage(sizes),
            "history": tuple(fitted.history),
            "changes": tuple(fitted.changes),
            "steps": fitted.steps,
            "draws": fitted.draws,
        }
    )
    permutations = {
        member.name: permutation.tensors() for member, permutation in zip(members, fitted.permutations, strict=True)
    }
    star = Star(manifest=manifest, state=fitted.state, permutations=permutations)

    def save() -> None:
        config = places.found(manifest.config).model_dump(mode="json")
        write_text(out / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False))
        star.save_folder(out)

    from_first(save)
    zoo = make_zoo(fitted.state, members, fitted.permutations, unseen)
    measured = measure(manifest, spec, zoo, data, outside, cache, progress)
    from_first(lambda: write_manifest(out, measured))
