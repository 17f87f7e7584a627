"""Each command as one function: rooms put together, from names to a finished folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from starzoo.align.align import align
from starzoo.architecture import Architecture
from starzoo.card import write_card
from starzoo.config import AlignConfig, DataConfig, EvalConfig, RunConfig, StarConfig, TrainConfig, validate
from starzoo.data import ImageData, load_data
from starzoo.errors import IncompatibleError, UsageError
from starzoo.evaluate.evaluate import Zoo, evaluate
from starzoo.folder import save_folder, write_text
from starzoo.hub.pull import pull
from starzoo.hub.push import push
from starzoo.hub.ref import ModelRef
from starzoo.places import RunPlaces, find_models, without_path
from starzoo.progress import Progress, silent
from starzoo.sources import Source, check_compatible, load_sources
from starzoo.star.manifest import ModelRecord, StarManifest, read_manifest
from starzoo.star.star import MANIFEST, PERMUTATIONS, Star, load_folder
from starzoo.star.train import FittedStar, fit
from starzoo.symmetry import PermutationSpec, infer
from starzoo.zoo import architecture_for, train_zoo

__all__ = [
    "AlignmentReport",
    "StarReport",
    "align_models",
    "evaluate_star",
    "fit_star",
    "load_star",
    "quickstart",
    "render_card",
]

CONFIG_FILE = "run.yaml"  # the resolved configuration, as `--config` reads it
QUICKSTART_ARGS = {"layers": [1, 1, 0, 0], "channels": [32, 64, 64, 64], "zero_init_last": False}
QUICKSTART_SOURCES, QUICKSTART_HOLDOUTS = 12, 4
QUICKSTART_RATE = 0.4


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


@dataclass(frozen=True, kw_only=True)
class AlignmentReport:
    """One permutee after alignment.

    Attributes:
        name: The permutee.
        folder: Its aligned weights, in timm's folder format, with permutations.safetensors.
        distance_before: Euclidean distance to the fixed model over the tensors that can be permuted.
        distance_after: The same after alignment.
        sweeps: Passes over the permutation groups.
    """

    name: str
    folder: Path
    distance_before: float
    distance_after: float
    sweeps: float


def fit_star(
    sources: Sequence[str],
    holdouts: Sequence[str],
    config: RunConfig,
    out: Path,
    *,
    name: str | None = None,
    push_to: str | None = None,
    private: bool = False,
    progress: Progress = silent,
) -> StarReport:
    """The main job: load, align, fit, evaluate, write the card and push. The same call again resumes.

    Args:
        sources: References of the models that the star is fitted on, at least two.
        holdouts: References of models that it never sees, for the proof.
        config: The run's configuration.
        out: The star's folder.
        name: The star's name; the folder's when not given.
        push_to: The Hub repository to publish in, `user/name`.
        private: Whether a new repository is private.
        progress: Told about every stage.

    Returns:
        The folder, the manifest with the evaluation, and where it was pushed to.

    Raises:
        UsageError: There are fewer than two sources.
    """
    if len(sources) < 2:
        raise UsageError("a star needs at least two sources", hint="give more model references", subject="SOURCE")
    models = load_sources([*sources, *holdouts], progress=progress)
    check_compatible(models)
    members, unseen = models[: len(sources)], models[len(sources) :]
    data = _load_data_for(members[0].architecture, config.data)
    manifest = _describe(name or out.resolve().name, members, unseen, config, data)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / CONFIG_FILE, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    RunPlaces.of(sources, holdouts, config.data).write(out)
    if _is_finished(out, manifest):
        manifest = read_manifest(out / MANIFEST)
    else:
        spec = infer_architecture(manifest.architecture)
        fitted = fit(
            manifest.architecture,
            spec,
            [member.state for member in members],
            data,
            manifest.config,
            checkpoints=out / "checkpoints",
            identity=_identity(manifest),
            progress=progress,
        )
        manifest = _finish(out, manifest, spec, fitted, members, unseen, data, progress)
    write_card(out, manifest, repo=push_to)
    pushed = push(out, push_to, private=private).url if push_to else None
    return StarReport(folder=out, manifest=manifest, pushed=pushed)


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
    architecture = architecture_for("resnet18", data, model_args=QUICKSTART_ARGS, image_size=16)
    members = range(QUICKSTART_SOURCES + QUICKSTART_HOLDOUTS)
    zoo = train_zoo(architecture, data, TrainConfig(), members, out / "zoo", progress=progress)
    refs = [str(member.folder) for member in zoo]
    sources, holdouts = refs[:QUICKSTART_SOURCES], refs[QUICKSTART_SOURCES:]
    config = RunConfig(data=data, star=StarConfig(lr=QUICKSTART_RATE, seed=seed))
    return fit_star(sources, holdouts, config, out / "star", name="digits-star", progress=progress)


def align_models(
    fixed: str, permutees: Sequence[str], out: Path, config: AlignConfig, *, progress: Progress = silent
) -> list[AlignmentReport]:
    """Permute models towards a fixed one and write them as folders that plain timm loads.

    Args:
        fixed: Reference of the model that stays.
        permutees: References of the models that are permuted.
        out: Gets one folder per permutee, with permutations.safetensors beside the weights.
        config: The method of alignment.
        progress: Told after every permutee.

    Returns:
        One report per permutee.
    """
    anchor, *others = load_sources([fixed, *permutees], progress=progress)
    check_compatible([anchor, *others])
    spec = infer_architecture(anchor.architecture)
    reports = []
    for done, other in enumerate(others, start=1):
        [aligned] = align(spec, anchor.state, [other.state], config)
        folder = out / other.name
        save_folder(folder, other.architecture, aligned.state)
        save_file(aligned.permutation.tensors(), folder / PERMUTATIONS)
        reports.append(
            AlignmentReport(
                name=other.name,
                folder=folder,
                distance_before=aligned.distance_before,
                distance_after=aligned.distance_after,
                sweeps=aligned.sweeps,
            )
        )
        progress("aligning", done, len(others))
    return reports


def load_star(ref: str | Path) -> Star:
    """Load a star from its folder or from the Hub.

    Args:
        ref: The folder that `fit-star` wrote, or `user/repo[@revision]`.

    Returns:
        The star.
    """
    where = ModelRef.parse(ref)
    return load_folder(where.folder if where.folder is not None else pull(where).folder)


def evaluate_star(
    star: str,
    *,
    holdouts: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> StarReport:
    """Measure a star again: on other data, more points, or held-outs that it was not published with.

    Args:
        star: The star's folder, or its repository.
        holdouts: References of models to test against instead of the star's own held-outs.
        data: Values of `DataConfig` that differ from those of the star.
        evaluate: Values of `EvalConfig` that differ.
        progress: Told about every stage.

    Returns:
        The manifest with the new evaluation; a local star's folder is written anew, its card too.
    """
    loaded = load_star(star)
    folder = ModelRef.parse(star).folder
    then, places = loaded.manifest.config, RunPlaces.read(folder)
    known = {"dataset": places.dataset} if places.dataset else {}
    config = then.model_copy(
        update={
            "data": validate(DataConfig, {**then.data.model_dump(), **known, **(data or {})}),
            "evaluate": validate(EvalConfig, {**then.evaluate.model_dump(), **(evaluate or {})}),
        }
    )
    pinned = find_models(loaded.manifest.sources, places.sources)
    others = list(holdouts) or find_models(loaded.manifest.holdouts, places.holdouts)
    models = load_sources([*pinned, *others], progress=progress)
    check_compatible(models)
    members, unseen = models[: len(pinned)], models[len(pinned) :]
    images = _load_data_for(loaded.manifest.architecture, config.data)
    spec = infer_architecture(loaded.manifest.architecture)
    published = config.model_copy(update={"data": without_path(config.data)})
    manifest = loaded.manifest.model_copy(update={"config": published, "holdouts": tuple(map(_record, unseen))})
    manifest = _evaluate(manifest, spec, loaded.state, members, unseen, images, progress)
    if folder is not None:
        replace(loaded, manifest=manifest).save_manifest(folder)
        write_card(folder, manifest)
    return StarReport(folder=folder or Path(star), manifest=manifest)


def render_card(folder: Path, *, repo: str | None = None) -> Path:
    """Write a star's card, plots and tables again from its star.json.

    Args:
        folder: The star's folder.
        repo: The repository that the card's snippets name; the folder itself when not given.

    Returns:
        The card.
    """
    return write_card(folder, read_manifest(folder / MANIFEST), repo=repo)


def infer_architecture(architecture: Architecture) -> PermutationSpec:
    """The permutation symmetries of an architecture.

    Args:
        architecture: The architecture.

    Returns:
        Its specification.
    """
    return infer(architecture.build(), architecture.example_input())


def _load_data_for(architecture: Architecture, config: DataConfig) -> ImageData:
    data = load_data(config, architecture.preprocessing, class_names=architecture.label_names)
    if len(data.class_names) != architecture.num_classes:
        raise IncompatibleError(
            f"{config.dataset} has {len(data.class_names)} classes, the models have {architecture.num_classes}",
            hint="give the data set that the models were trained on",
            subject=config.dataset,
        )
    return data


def _describe(
    name: str, members: Sequence[Source], unseen: Sequence[Source], config: RunConfig, data: ImageData
) -> StarManifest:
    """All that is known about a star before it is fitted."""
    architecture = members[0].architecture
    if architecture.label_names is None:
        architecture = architecture.model_copy(update={"label_names": data.class_names})
    return StarManifest(
        name=name,
        architecture=architecture,
        sources=tuple(map(_record, members)),
        holdouts=tuple(map(_record, unseen)),
        config=config.model_copy(update={"data": without_path(config.data)}),
        data_fingerprint=data.fingerprint,
        software={package: metadata.version(package) for package in ("starzoo", "torch", "timm")},
    )


def _record(source: Source) -> ModelRecord:
    origin = source.provenance
    return ModelRecord(
        name=source.name, repo=origin.repo, sha=origin.sha, files=dict(origin.files), licence=origin.licence
    )


def _identity(manifest: StarManifest) -> dict[str, Any]:
    """What tells one fit from another: a checkpoint is resumed, and a finished star kept, only where this is equal."""
    return {
        "architecture": manifest.architecture.model_dump(mode="json"),
        "sources": {source.name: source.files for source in manifest.sources},
        "data": manifest.data_fingerprint,
    }


def _is_finished(out: Path, manifest: StarManifest) -> bool:
    """Whether `out` holds the very star that is asked for, evaluation included."""
    if not (out / MANIFEST).is_file():
        return False
    found = read_manifest(out / MANIFEST)
    asked = (_identity(manifest), manifest.name, manifest.holdouts, manifest.config)
    return (_identity(found), found.name, found.holdouts, found.config) == asked and found.evaluation is not None


def _finish(
    out: Path,
    manifest: StarManifest,
    spec: PermutationSpec,
    fitted: FittedStar,
    members: Sequence[Source],
    unseen: Sequence[Source],
    data: ImageData,
    progress: Progress,
) -> StarManifest:
    """Save a fitted star, then measure it and save it again with what was measured."""
    sizes = {name: parameter.numel() for name, parameter in manifest.architecture.build().named_parameters()}
    manifest = manifest.model_copy(
        update={
            "parameters": sum(sizes.values()),
            "groups": len(spec.groups),
            "coverage": spec.coverage(sizes),
            "history": tuple(fitted.history),
        }
    )
    permutations = {
        member.name: permutation.tensors() for member, permutation in zip(members, fitted.permutations, strict=True)
    }
    star = Star(manifest=manifest, state=fitted.state, permutations=permutations)
    star.save_folder(out)
    star = replace(star, manifest=_evaluate(manifest, spec, fitted.state, members, unseen, data, progress))
    star.save_manifest(out)
    return star.manifest


def _evaluate(
    manifest: StarManifest,
    spec: PermutationSpec,
    state: Mapping[str, Tensor],
    members: Sequence[Source],
    unseen: Sequence[Source],
    data: ImageData,
    progress: Progress,
) -> StarManifest:
    zoo = Zoo(
        star=state,
        sources={member.name: member.state for member in members},
        holdouts={holdout.name: holdout.state for holdout in unseen},
    )
    measured = evaluate(
        manifest.architecture, spec, zoo, data, manifest.config.evaluate, manifest.config.align, progress=progress
    )
    return manifest.model_copy(update={"evaluation": measured})
