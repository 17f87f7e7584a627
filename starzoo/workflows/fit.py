"""Fit a star: load, check, align, fit, measure, save and publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from starzoo.config import RunConfig, validate
from starzoo.data.corruption import check_corruptions
from starzoo.data.split import Split
from starzoo.data.task import ImageTask
from starzoo.errors import UsageError
from starzoo.evaluate.result_cache import ResultCache
from starzoo.evaluate.source_check import check_sources
from starzoo.files import write_text
from starzoo.hub.names import check_repo
from starzoo.models.class_order import named_classes
from starzoo.models.compatibility import check_compatible
from starzoo.models.sources import Source, load_sources
from starzoo.models.timm_folder import WEIGHTS_FILE
from starzoo.models.training.optimizer import check_optimizer
from starzoo.parallel import init_processes, on_main_process, raise_everywhere
from starzoo.progress import Progress, no_progress
from starzoo.star.fit import FittedStar, ResumeOptions, fit
from starzoo.star.inputs import load_data_for, load_ood_data
from starzoo.star.manifest import MANIFEST, StarManifest, read_manifest
from starzoo.star.rate import best_rate, try_rates
from starzoo.star.run.folder import RUN_MARKERS, check_folder_unused, check_not_overwriting
from starzoo.star.run.local_paths import LocalPaths, redact_paths, resolve_paths
from starzoo.star.run.lock import RunLock
from starzoo.star.run.signals import ignore_signals, raise_on_signals
from starzoo.star.run.status import Status
from starzoo.star.star import Star, write_manifest
from starzoo.workflows.cards import render_card
from starzoo.workflows.measure import evaluate_manifest, match_to_data, prepare_evaluation, with_ood_splits
from starzoo.workflows.publish import check_license, publish_star
from starzoo.workflows.refs import resolve_zoo

__all__ = ["FitInputs", "PublishOptions", "ResumeOptions", "StarResult", "fit_star"]

CONFIG_FILE = "run.yaml"  # the resolved configuration, as `--config` reads it


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """How a star is named, and where it is published once it is measured.

    Attributes:
        name: The star's name, the title of its card; the folder's when not given.
        push_to: The Hub repository to publish in, `user/name`.
        private: Whether a new repository is private.
        accept_license: The license to publish the star under, where its sources leave that open.
    """

    name: str | None = None
    push_to: str | None = None
    private: bool = False
    accept_license: str | None = None


@dataclass(frozen=True, kw_only=True)
class StarResult:
    """The result of `fit_star`, `quickstart` and `evaluate_star`.

    Attributes:
        folder: The star's folder.
        manifest: The star's record, the evaluation included.
        pushed: URL of the commit on the Hub, or None.
    """

    folder: Path
    manifest: StarManifest
    pushed: str | None = None


@dataclass(frozen=True, kw_only=True)
class FitInputs:
    """Everything that a fit needs, loaded and checked; the models and `data` are in one class order.

    Attributes:
        ood: Other images, which uncertainty should tell from those of the task.
        manifest: The star's record as far as it is known before the fit.
        local_paths: Where all of it lies on this machine.
    """

    sources: Sequence[Source]
    holdouts: Sequence[Source]
    data: ImageTask
    ood: Sequence[Split]
    manifest: StarManifest
    local_paths: LocalPaths
    cache: ResultCache


def fit_star(
    sources: Sequence[str],
    holdouts: Sequence[str],
    config: RunConfig,
    out: Path,
    *,
    resume: ResumeOptions = ResumeOptions(),
    publish: PublishOptions = PublishOptions(),
    progress: Progress = no_progress,
) -> StarResult:
    """The main job: load, align, fit, evaluate, write the card and push. The same call again resumes.

    Called by every process that torchrun has started, it is one run on all of them. Its progress and how it ended are
    in status.json, with one line per epoch in training.log.

    Args:
        sources: References of the models that the star is fitted on, at least two.
        holdouts: References of models that it never sees, for the proof.
        config: The run's configuration.
        out: The star's folder.
        resume: What may differ from the run that is resumed.
        publish: The star's name, and where it is published.
        progress: Told about every stage.

    Returns:
        The folder, the manifest with the evaluation, and the URL of the commit.

    Raises:
        UsageError: There are fewer than two sources, or another run is at work in the folder.
    """
    sources, holdouts = resolve_zoo(sources, holdouts)
    _check_request(sources, holdouts, out, publish)
    check_optimizer(config.star.optimizer)
    status = Status(out, progress)
    with RunLock(out) as lock, ignore_signals(), status.record_outcome(), raise_on_signals():
        init_processes(config.runtime)
        status.processes_joined()
        name = publish.name or out.resolve().name
        inputs = _load_inputs(sources, holdouts, resolve_paths(config), out, name, status)
        with raise_everywhere():  # refused before anything is spent
            if publish.push_to:
                check_license(inputs.manifest, publish.accept_license)
            if not resume.override:
                LocalPaths.read(out).check_unchanged(inputs.local_paths)
        if not on_main_process(lambda: _matches_finished_run(out, inputs.manifest)):
            _begin_run(inputs, out, lock)
            inputs = _choose_rate(inputs, out, status)
            config = inputs.manifest.config.model_copy(update={"star": inputs.manifest.star_config})
            fitted = fit(inputs.sources, inputs.data, config, folder=out, resume=resume, progress=status)
            _save_and_evaluate(inputs, fitted, out, status)
        return on_main_process(lambda: _publish(inputs, out, publish))


def _check_request(sources: Sequence[str], holdouts: Sequence[str], out: Path, publish: PublishOptions) -> None:
    """Check what needs no model to be loaded."""
    if len(sources) < 2:
        raise UsageError("SOURCE", "a star needs at least two sources", hint="give more model references")
    if publish.push_to:
        check_repo(publish.push_to)
    check_not_overwriting(out, [*sources, *holdouts], unless=RUN_MARKERS)
    check_folder_unused(out)


def _load_inputs(
    sources: Sequence[str], holdouts: Sequence[str], config: RunConfig, out: Path, name: str, progress: Progress
) -> FitInputs:
    """Load the models and images of a run, in one class order, and check them."""
    with raise_everywhere():
        models = load_sources([*sources, *holdouts], image_size=config.data.image_size, progress=progress)
        check_compatible(models)
        progress("opening images", 0, 1)
        data_config = LocalPaths.read(out).pin_dataset(config.data)
        models, data = match_to_data(models, partial(load_data_for, models[0].architecture, data_config), progress)
        _ = data.fingerprint  # which reads all images where it is not known yet
        progress("opening images", 1, 1)
    count, cache = len(sources), ResultCache.default()
    check = check_sources(
        models[:count],
        models[count:],
        data,
        config.evaluate,
        keep_weak=config.runtime.keep_weak_sources,
        cache=cache,
        progress=progress,
    )
    with raise_everywhere():
        check_corruptions(check.config.corruptions, models[0].architecture.preprocessing.input_size)
        ood = load_ood_data(check.config.ood, models[0].architecture)
        config = config.model_copy(update={"data": data.config, "evaluate": with_ood_splits(check.config, ood)})
        pinned = [model.record.pinned or ref for model, ref in zip(models, [*sources, *holdouts], strict=True)]
        hashes = [source.record.files[WEIGHTS_FILE] for source in check.sources]
        return FitInputs(
            sources=check.sources,
            holdouts=check.holdouts,
            data=data,
            ood=ood,
            manifest=_initial_manifest(name, check.sources, check.holdouts, config, data),
            local_paths=LocalPaths.from_run(pinned[:count], pinned[count:], config, hashes),
            cache=cache,
        )


def _initial_manifest(
    name: str, sources: Sequence[Source], holdouts: Sequence[Source], config: RunConfig, data: ImageTask
) -> StarManifest:
    """Return the record of a star as far as it is known before the fit."""
    values = {
        "name": name,
        "architecture": named_classes(sources[0], data.class_names).architecture,
        "sources": tuple(model.record for model in sources),
        "holdouts": tuple(model.record for model in holdouts),
        "config": config,
        "data_fingerprint": data.fingerprint,
        "data_label_names": data.label_names,
        "software": {package: metadata.version(package) for package in ("starzoo", "torch", "timm")},
    }
    return validate(StarManifest, values, origin="the command, or the names of models and classes")


def _matches_finished_run(out: Path, manifest: StarManifest) -> bool:
    """Whether `out` holds the star that is asked for, evaluation included."""
    if not (out / MANIFEST).is_file():
        return False
    old = read_manifest(out / MANIFEST)
    complete = old.evaluation is not None and old.evaluation.data is None
    return complete and _requested(old) == _requested(redact_paths(manifest))


def _requested(manifest: StarManifest) -> list[Any]:
    """Return what decides the files of a star, and not where its models and images lie."""
    return [
        manifest.name,
        manifest.architecture,
        manifest.data_fingerprint,
        [source.files for source in manifest.sources],
        [(model.name, model.repo, model.sha, model.files) for model in manifest.holdouts],
        manifest.config.model_dump(exclude={"runtime": True, "data": {"revision"}}),
    ]


def _begin_run(inputs: FitInputs, out: Path, lock: RunLock) -> None:
    """Take the folder of a run, once everything that can be refused before the fit was checked."""
    with raise_everywhere():
        _ = inputs.manifest.architecture.spec
        inputs.data.train.loader(inputs.manifest.config.star.batch_size, epoch=0, seed=0)

    def take_folder() -> None:
        lock.acquire()
        if not LocalPaths.read(out).sources:
            inputs.local_paths.write(out)

    on_main_process(take_folder)


def _choose_rate(inputs: FitInputs, out: Path, progress: Progress) -> FitInputs:
    """Choose the learning rate where the configuration leaves it open."""
    manifest = inputs.manifest
    if manifest.config.star.lr != "auto":
        return inputs
    trials = try_rates(inputs.sources, inputs.data, manifest.config, folder=out, progress=progress)
    return replace(
        inputs, manifest=manifest.model_copy(update={"rate": best_rate(trials), "rate_trials": tuple(trials)})
    )


def _save_and_evaluate(inputs: FitInputs, fitted: FittedStar, out: Path, progress: Progress) -> None:
    """Save a fitted star and its configuration, then measure it on all processes and save the result."""
    architecture = inputs.manifest.architecture
    spec = architecture.spec
    sizes = {name: parameter.numel() for name, parameter in architecture.build_uninitialized().named_parameters()}
    manifest = inputs.manifest.model_copy(
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
    names = [source.name for source in inputs.sources]
    permutations = {
        name: permutation.to_tensors() for name, permutation in zip(names, fitted.permutations, strict=True)
    }
    star = Star(manifest=manifest, state=fitted.state, permutations=permutations)

    def save() -> None:
        config = manifest.config.model_dump(mode="json")
        write_text(out / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False))
        star.save_timm_folder(out)

    on_main_process(save)
    evaluation = prepare_evaluation(
        star, inputs.sources, inputs.holdouts, inputs.data, ood=inputs.ood, cache=inputs.cache
    )
    evaluated = evaluate_manifest(manifest, evaluation, progress)
    on_main_process(lambda: write_manifest(out, evaluated))


def _publish(inputs: FitInputs, out: Path, options: PublishOptions) -> StarResult:
    """Write the card of a measured star, and push it where that is asked for."""
    inputs.local_paths.write(out)
    url = None
    if options.push_to:
        license = options.accept_license
        url = publish_star(out, options.push_to, private=options.private, accept_license=license).url
    else:
        render_card(out)
    return StarResult(folder=out, manifest=read_manifest(out / MANIFEST), pushed=url)
