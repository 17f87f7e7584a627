"""Fit a star: load, check, align, fit, measure, save and publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import yaml

from starzoo.config import RunConfig, validate
from starzoo.data.split import Split
from starzoo.data.task import ImageTask
from starzoo.errors import UsageError
from starzoo.evaluate.result_cache import ResultCache
from starzoo.hub.names import check_repo
from starzoo.models.class_order import named_classes
from starzoo.models.compatibility import check_compatible
from starzoo.models.sources import Source, load_sources
from starzoo.models.timm_folder import WEIGHTS_FILE, write_text
from starzoo.parallel import join, on_main_process, raise_everywhere
from starzoo.progress import Progress, no_progress
from starzoo.star.fit import FittedStar, fit
from starzoo.star.inputs import load_data_for, load_ood_data
from starzoo.star.manifest import MANIFEST, StarManifest, read_manifest
from starzoo.star.run.local_paths import (
    OF_A_RUN,
    LocalPaths,
    check_folder_unused,
    check_not_overwriting,
    redact_paths,
)
from starzoo.star.run.lock import RunLock
from starzoo.star.run.signals import ignore_signals, raise_on_signals
from starzoo.star.run.status import Status
from starzoo.star.star import Star, write_manifest
from starzoo.workflows.cards import render_card
from starzoo.workflows.measure import (
    look_at,
    make_zoo,
    match_to_data,
    measure,
    with_split_of,
)
from starzoo.workflows.publish import check_license, publish_star
from starzoo.workflows.refs import resolve_zoo

__all__ = ["StarResult", "fit_star"]

CONFIG_FILE = "run.yaml"  # the resolved configuration, as `--config` reads it


@dataclass(frozen=True, kw_only=True)
class StarResult:
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
    accept_license: str | None = None,
    keep_weak_sources: bool = False,
    override: bool = False,
    allow_world_size_change: bool = False,
    progress: Progress = no_progress,
) -> StarResult:
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
        accept_license: The license to publish the star under, where a person must decide.
        keep_weak_sources: Use sources that are far worse than the others.
        override: Go on from checkpoints that were made with another configuration.
        allow_world_size_change: Go on from checkpoints that were made by another number of processes.
        progress: Told about every stage.

    Returns:
        The folder, the manifest with the evaluation, and where it was pushed to.

    Raises:
        UsageError: There are fewer than two sources, or another run is at work in the folder.
    """
    sources, holdouts = resolve_zoo(sources, holdouts)
    if len(sources) < 2:
        raise UsageError("SOURCE", "a star needs at least two sources", hint="give more model references")
    if push_to:
        check_repo(push_to)
    check_not_overwriting(out, [*sources, *holdouts], unless=OF_A_RUN)
    check_folder_unused(out)
    status = Status(out, watcher=progress)
    with RunLock(out) as lock, ignore_signals(), status.recording(), raise_on_signals():
        join(config.runtime)
        status.met()
        with raise_everywhere():
            models = load_sources([*sources, *holdouts], progress=status)
            check_compatible(models)
            began = LocalPaths.read(out)
            asked, architecture = began.at_its_commit(config.data), models[0].architecture
            models, data = match_to_data(models, partial(load_data_for, architecture, asked), status)
        cache = ResultCache.of_user()
        models, settings = look_at(models, len(sources), data, config.evaluate, cache, keep_weak_sources, status)
        config = config.model_copy(update={"evaluate": settings})
        with raise_everywhere():
            members, unseen = models[: len(sources)], models[len(sources) :]
            outside = load_ood_data(config.evaluate.ood, members[0].architecture)
            config = config.model_copy(update={"evaluate": with_split_of(outside, config.evaluate)})
            manifest = _describe(name or out.resolve().name, members, unseen, config, data)
            if push_to:
                check_license(manifest, accept_license)  # before the fit
            weights = [member.record.files[WEIGHTS_FILE] for member in members]
            refs = [model.record.pinned or ref for model, ref in zip(models, [*sources, *holdouts], strict=True)]
            pinned = refs[: len(sources)], refs[len(sources) :]
            places = LocalPaths.of(*pinned, data.config, config.evaluate.ood, weights)
            if not override:
                began.check_unchanged(places)
        if not on_main_process(lambda: _is_finished(out, manifest)):
            with raise_everywhere():
                data.train.loader(config.star.batch_size, epoch=0, seed=0)  # refused before anything is written
            on_main_process(lock.take)
            on_main_process(lambda: None if LocalPaths.read(out).sources else places.write(out))
            fitted = fit(
                manifest.architecture,
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
            _save(out, manifest, places, fitted, members, unseen, data, outside, cache, status)

        def publish() -> str | None:
            places.write(out)
            if push_to:
                return publish_star(out, push_to, private=private, accept_license=accept_license).url
            render_card(out)
            return None

        pushed = on_main_process(publish)
        found = on_main_process(lambda: read_manifest(out / MANIFEST))
    return StarResult(folder=out, manifest=found, pushed=pushed)


def _describe(
    name: str, members: Sequence[Source], unseen: Sequence[Source], config: RunConfig, data: ImageTask
) -> StarManifest:
    """All that is known about a star before it is fitted."""
    described = {
        "name": name,
        "architecture": named_classes(members[0], data.class_names).architecture,
        "sources": tuple(model.record for model in members),
        "holdouts": tuple(model.record for model in unseen),
        "config": redact_paths(config.model_copy(update={"data": data.config})),
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
    places: LocalPaths,
    fitted: FittedStar,
    members: Sequence[Source],
    unseen: Sequence[Source],
    data: ImageTask,
    outside: Split | None,
    cache: ResultCache,
    progress: Progress,
) -> None:
    """Save a fitted star and its configuration, then measure it on all processes and save what was measured."""
    sizes = {name: parameter.numel() for name, parameter in manifest.architecture.build().named_parameters()}
    spec = manifest.architecture.spec
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
        member.name: permutation.to_tensors() for member, permutation in zip(members, fitted.permutations, strict=True)
    }
    star = Star(manifest=manifest, state=fitted.state, permutations=permutations)

    def save() -> None:
        config = places.found(manifest.config).model_dump(mode="json")
        write_text(out / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False))
        star.save_timm_folder(out)

    on_main_process(save)
    zoo = make_zoo(fitted.state, members, fitted.permutations, unseen)
    measured = measure(manifest, zoo, data, outside, cache, progress)
    on_main_process(lambda: write_manifest(out, measured))
