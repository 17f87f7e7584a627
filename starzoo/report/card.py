"""The model card of a star: a README.md whose numbers come from star.json.

The template escapes all values for Markdown and HTML, since names, labels, repositories and licenses may come from a
stranger. Nothing here marks a text as safe. Imports neither torch nor the network.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from starzoo.config import Beta, Constant, DataConfig, Method, RunConfig, Uniform
from starzoo.errors import UsageError
from starzoo.evaluate.results import KIND_LABELS, ROLE_LABELS, Evaluation, Measure, PathKind, Role, Scores
from starzoo.files import check_inside, write_text
from starzoo.hub.names import METRICS, PLOTS, is_commit, is_repo, split_repo
from starzoo.models.licenses import is_identifier, license_of_sources
from starzoo.models.record import ModelRecord
from starzoo.report.markdown import check_generated, load_template
from starzoo.report.summary import (
    bf16_note,
    dee_text,
    has_costs,
    purposes,
    summarize_paths,
    summarize_predictors,
    summary,
)
from starzoo.star.manifest import StarManifest
from starzoo.text import clean, pluralize

__all__ = ["check_overwritable", "describe_data", "render", "write_card"]

_METHOD_LABELS: dict[Method, str] = {
    "weights": "matching the weights as they are",
    "balanced-weights": "matching the weights, with layers of norm 1",
    "activations": "matching activations",
    "activations-gradients": "matching activations and gradients",
}
_EXPECTED: tuple[PathKind | Role, ...] = (  # the card says which of these were not measured
    *("star-source", "star-heldout", "source-source", "source-source-unaligned"),
    *("source", "held-out", "aligned-mean", "star", "domain", "ensemble"),
)
_GENERATED_MARKER = b"A **star model**: one "  # in the template
_MAX_CHANGES = 20  # of a run
_FORMULA = re.compile(r"[=+\-@＝＋－＠]")


def render(manifest: StarManifest, repo: str | None = None, *, complete: bool = True) -> str:
    """Write the card of a star."""
    if repo is not None and not is_repo(repo):
        raise UsageError(repo, "not the name of a repository", hint="write user/name")
    evaluation = manifest.evaluation or Evaluation(paths=(), qualities=())
    portable = _portable(manifest)
    splits = sorted(evaluation.splits, key=lambda split: split != "test")
    text = load_template("star.md.jinja").render(
        front_matter=_front_matter(manifest),
        manifest=manifest,
        config=manifest.config,
        evaluation=evaluation,
        splits=splits,
        summary=summary(evaluation, splits[0]) if splits else {},
        purposes=purposes(evaluation, splits[0]) if splits else [],
        dee_text=dee_text,
        ensemble_sizes={
            split: max((row.size for row in evaluation.ensembles if row.split == split), default=0) for split in splits
        },
        rounding=bf16_note(evaluation),
        trained=_training(manifest),
        costs={split: has_costs(evaluation, split) for split in splits},
        connections={split: summarize_paths(evaluation, split) for split in splits},
        predictors={split: summarize_predictors(evaluation, split) for split in splits},
        kind_labels=KIND_LABELS,
        role_labels=ROLE_LABELS,
        expected=_EXPECTED,
        shown=lambda row: row.role != "sub-ensemble" or row.passes & (row.passes - 1) == 0,
        data=describe_data(manifest.config.data),
        ood_data=_ood_names(manifest),
        shared_license=_shared_license(manifest),
        licenses=Counter(source.license for source in manifest.sources),
        measured={
            split: _describe_split(split, evaluation.data or manifest.config.data, evaluation.images.get(split))
            for split in splits
        },
        recipe=list(_recipe(manifest)),
        repository=_repository,
        location=f"hf-hub:{repo}" if repo else "local-dir:FOLDER",
        star=repo or "FOLDER",
        complete=complete,
        images_option=_images_option(portable.data),
        mode={1: "L", 3: "RGB"}.get(manifest.architecture.preprocessing.input_size[0]),
        command=_command(manifest),
        elsewhere=describe_data(evaluation.data) if evaluation.data else None,
        apart={model.images for model in (*manifest.sources, *manifest.holdouts)} == {manifest.data_fingerprint},
        run_config=portable.model_dump(mode="json", exclude_none=True),
    )
    return re.sub(r"\n{3,}", "\n\n", text)  # parts that are left out leave blank lines


def write_card(folder: Path, manifest: StarManifest, repo: str | None = None) -> Path:
    """Write README.md, plots/ and metrics/ into the folder of a star; the same manifest gives the same bytes."""
    check_overwritable(folder)
    readme = folder / "README.md"
    text = render(manifest, repo, complete=is_complete(folder, manifest))
    for name in ("plots", "metrics"):
        check_inside(folder / name, folder)
    for name in (*PLOTS, *METRICS):  # the new evaluation may have fewer
        (folder / name).unlink(missing_ok=True)
    if manifest.evaluation is not None:
        _write_plots(folder / "plots", manifest.evaluation)
        _write_metrics(folder / "metrics", manifest.evaluation, _ood_names(manifest))
    write_text(readme, text)
    return readme


def check_overwritable(folder: Path) -> None:
    """Make sure that the README.md of a folder is a card that starzoo wrote, if it is there."""
    check_generated(folder / "README.md", _GENERATED_MARKER)


def is_complete(folder: Path, manifest: StarManifest) -> bool:
    """Whether a folder holds the star's own files, and not only its card."""
    return all((folder / name).is_file() for name in manifest.files)


def describe_data(data: DataConfig) -> str:
    """Describe a data set in a few words, without the path of a local one."""
    if data.dataset == "digits":
        return "digits of scikit-learn"
    return clean(data.dataset) if _is_hub_data(data) else f"a local folder, {_folder_name(data)}"


def _ood_names(manifest: StarManifest) -> list[str]:
    """Describe the data sets of out-of-distribution images."""
    names = [describe_data(data) for data in manifest.config.evaluate.ood]
    images = manifest.evaluation.ood_images if manifest.evaluation else ()
    return [*names, *["another data set"] * len(images)][: len(images)]


def _write_plots(folder: Path, evaluation: Evaluation) -> None:
    from starzoo.report.plots import all_figures, save

    for name, figure in all_figures(evaluation):
        save(figure, folder / name)


def _write_metrics(folder: Path, evaluation: Evaluation, ood: Sequence[str]) -> None:
    ends = ("kind", "a", "b", "split")
    paths = [[getattr(path, column) for column in (*ends, *get_args(Measure))] for path in evaluation.paths]
    _write_csv(folder / "paths.csv", (*ends, *get_args(Measure)), paths)
    curves = [
        [*(getattr(path, column) for column in ends), *point]
        for path in evaluation.paths
        for point in zip(path.t, path.loss, path.accuracy, path.tempered_loss or [None] * len(path.t), strict=True)
    ]
    _write_csv(folder / "curves.csv", (*ends, "t", "loss", "accuracy", "tempered_loss"), curves)
    scores = ("name", "role", "split", "accuracy", *Scores.model_fields, "passes", "bytes")
    scaled = ("temperature", *Scores.model_fields)
    rows = [
        [*(getattr(row, score) for score in scores), *(getattr(row.tempered, score, None) for score in scaled)]
        for row in evaluation.qualities
    ]
    _write_csv(folder / "qualities.csv", (*scores, *(f"{score}_scaled" for score in scaled)), rows)
    if evaluation.ood_images:
        _write_ood(folder / "ood.csv", evaluation, ood)


def _write_ood(file: Path, evaluation: Evaluation, names: Sequence[str]) -> None:
    """Write how each predictor tells the images of other data sets, by uncertainty."""
    rows = [
        [row.name, row.role, row.split, name, uncertainty, found.auroc, found.fpr95]
        for row in evaluation.qualities
        for name, scores in zip(names, row.ood, strict=False)
        for uncertainty, found in scores
        if found
    ]
    _write_csv(file, ("name", "role", "split", "dataset", "uncertainty", "auroc", "fpr95"), rows)


def _write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_text_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    write_text(file, table.getvalue())


@lru_cache(maxsize=256)  # curves.csv has the ends of a path in a row for each of its points
def _text_cell(text: str) -> str:
    """A text for a table, quoted where a spreadsheet would compute it as a formula."""
    text = clean(text)
    return f"'{text}" if _FORMULA.match(text) else text


def _front_matter(manifest: StarManifest) -> dict[str, Any]:
    """The card's metadata, by the Hub's specification of model cards."""
    repos = [split_repo(source.repo) for source in manifest.sources if source.repo]
    bases = dict.fromkeys(repo[0] for repo in repos if repo)
    data = manifest.config.data
    entries: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["timm", "starzoo", "star-model", "linear-mode-connectivity"],
        "license": _license(manifest),
        "base_model": list(bases),
        "base_model_relation": "merge" if bases else None,
        "datasets": [data.dataset] if _is_hub_data(data) else None,
        "model-index": _model_index(manifest),
    }
    return {key: value for key, value in entries.items() if value}


def _model_index(manifest: StarManifest) -> list[dict[str, Any]]:
    evaluation = manifest.evaluation
    if evaluation is None:
        return []
    data = evaluation.data or manifest.config.data
    results = []
    barrier = "loss barrier of a repaired path" if evaluation.repaired else "loss barrier"
    for split in evaluation.splits:
        metrics = [
            {"type": score, "value": round(getattr(row, score), 6), "name": f"{score_name} of the star"}
            for row in evaluation.qualities_of("star", split)
            for score, score_name in (("accuracy", "accuracy"), ("nll", "negative log-likelihood"), ("ece", "ECE"))
        ]
        metrics += [
            {
                "type": "loss_barrier",
                "value": round(row.barrier.mean, 6),
                "name": f"{barrier}, {KIND_LABELS[row.kind]} (mean of {row.barrier.count})",
            }
            for row in summarize_paths(evaluation, split)
        ]
        dataset = {
            "type": data.dataset if _is_hub_data(data) else "digits" if data.dataset == "digits" else "imagefolder",
            "name": describe_data(data),
            "config": data.name,
            "split": data.test_split if split == "test" else data.train_split,
            "revision": data.revision,
        }
        results.append({
            "task": {"type": "image-classification", "name": "Image classification"},
            "dataset": {key: clean(value) for key, value in dataset.items() if value},
            "metrics": metrics,
        })
    return [{"name": clean(manifest.name), "results": results}] if results else []


def _license(manifest: StarManifest) -> str | None:
    """The license that the publisher chose, or that of the sources."""
    chosen = manifest.chosen_license
    return chosen if chosen and is_identifier(chosen) else _shared_license(manifest)


def _shared_license(manifest: StarManifest) -> str | None:
    """The most restrictive license of the sources, if it is an identifier of the Hub."""
    license = license_of_sources(manifest.sources).license
    return license if license and is_identifier(license) else None


def _is_hub_data(data: DataConfig) -> bool:
    """Whether a data set is on the Hub; a manifest names local folders as `./NAME`."""
    return is_repo(data.dataset)


def _folder_name(data: DataConfig) -> str:
    """The name of a local folder, without its path, which would tell about the machine and its user."""
    return clean(PurePosixPath(data.dataset.replace("\\", "/")).name) or "images"


def _describe_split(split: str, data: DataConfig, count: int | None) -> str:
    name, size = (data.test_split, data.test_size) if split == "test" else (data.train_split, data.train_size)
    number = count or size
    images = f"{number:,} images" if number else "images"
    share = f"all {images}" if size is None else f"a class-balanced subset of {images}"
    return f"{share} of the split {clean(name)!r}"


def _repository(model: ModelRecord) -> tuple[str, str | None, str]:
    """The text of the link to a model's repository, its target on the Hub, and a note on what is missing."""
    parts = split_repo(model.repo) if model.repo else None
    if parts is None:
        return model.repo or "local folder", None, ""
    repo, folder = parts
    if model.sha is None or not is_commit(model.sha):
        return f"{model.repo}", repo, ", no commit recorded"
    return f"{model.repo} at {model.sha[:12]}", f"{repo}/tree/{model.sha}/{folder}".removesuffix("/"), ""


def _recipe(manifest: StarManifest) -> Iterator[str]:
    """Say how the star was fitted, in terms of the configuration."""
    fit = manifest.config.star
    inits = {
        "aligned-average": "the mean of the aligned sources",
        "random": "random weights",
        "source": "the first source",
    }
    yield f"Start: {inits[fit.init]}."
    match fit.t:
        case Uniform():
            law = f"uniform from {fit.t.low:g} to {fit.t.high:g}"
        case Beta():
            law = f"from a Beta({fit.t.a:g}, {fit.t.b:g}) distribution"
        case Constant():
            law = f"always {fit.t.value:g}"
    epochs = len(manifest.history) or fit.epochs
    early = f" (of {fit.epochs}: it was stopped when the midpoint losses no longer fell)" if epochs < fit.epochs else ""
    chosen = f" (by {len(manifest.rate_trials)} short trials)" if manifest.rate_trials else ""
    draws = "one source and one position t on the line to it"
    if manifest.draws is not None and manifest.draws > 1:
        draws = f"{manifest.draws} sources, each with a position t on the line to it and its share of the batch"
    rate = f"{manifest.fitted_config.peak_lr:g}{chosen}"
    taught = "the source's prediction has" if fit.teachers == "drawn" else "the mean prediction of all sources has"
    yield (
        f"Fit: {pluralize(epochs, 'epoch')}{early} in batches of {fit.batch_size}, "
        f"{fit.optimizer.upper()} with learning rate {rate} and weight decay {fit.weight_decay:g}; every step "
        f"takes {draws}, t {law}; the star's own loss has weight μ = {fit.mu:g}"
        + (f", and {taught} weight κ = {fit.kappa:g} beside the label." if fit.kappa else ".")
    )
    frequency = {0: "once", 1: "every epoch"}.get(fit.realign_every, f"every {fit.realign_every} epochs")
    method = manifest.config.align.method
    yield (
        f"Alignment: by {_METHOD_LABELS[method]}, {frequency}; {manifest.groups} "
        f"{'group of neurons is' if manifest.groups == 1 else 'groups of neurons are'} permuted, in tensors that hold "
        f"{100 * manifest.coverage:.1f} % of the parameters."
    )
    yield from _differences(manifest)
    if manifest.changes:
        more = len(manifest.changes) - _MAX_CHANGES
        yield (
            f"The run was resumed with changes, so that its command does not replay it bit for bit: "
            f"{'; '.join(manifest.changes[:_MAX_CHANGES])}{f'; and {more} more' if more > 0 else ''}."
        )


def _training(manifest: StarManifest) -> str:
    """Say how many training steps the sources took."""
    steps = [source.steps for source in manifest.sources if source.steps is not None]
    if not steps or len(steps) < len(manifest.sources):
        return "How many training steps the sources took is not recorded."
    each = f" ({steps[0]:,} each)" if len(set(steps)) == 1 and len(steps) > 1 else ""
    return f"The sources took {sum(steps):,} training steps{each}."


def _differences(manifest: StarManifest) -> Iterator[str]:
    """Say how the models' files differ from each other and from what the star was fitted with."""
    models = [*manifest.sources, *manifest.holdouts]
    preprocessings = [model.preprocessing for model in models if model.preprocessing]
    chosen = manifest.architecture.preprocessing
    if any(stated.input_size != chosen.input_size for stated in preprocessings):
        names = defaultdict(list)
        for model in models:
            if model.preprocessing:
                names[model.preprocessing.input_size].append(clean(model.name))
        stated = "; ".join(f"{_pixels(size)} by {', '.join(names[size])}" for size in sorted(names))
        yield f"Input size: all models are used and measured at {_pixels(chosen.input_size)}; stated are {stated}."
        preprocessings = [stated.model_copy(update={"input_size": chosen.input_size}) for stated in preprocessings]
    if len(set(preprocessings)) > 1:
        yield (
            f"Images: the models cut and resize a picture in different ways; all were fitted and measured with "
            f"interpolation {chosen.interpolation}, crop_pct {chosen.crop_pct:g} and crop_mode "
            f"{chosen.crop_mode}, which {preprocessings.count(chosen)} of {len(preprocessings)} state (the most "
            f"frequent one when the star was fitted; of several, the first). Mean and deviation are equal in all."
        )
    types = Counter(model.dtype for model in models if model.dtype)
    if set(types) - {"float32"}:
        counts = ", ".join(f"{dtype} {count}" for dtype, count in sorted(types.items()))
        yield f"Weights: read as float32; types of the models' files: {counts}."
    if reordered := sum(model.label_names is not None for model in models):
        yield f"Classes: matched by name; {reordered} of {len(models)} models had another order."
    if manifest.data_label_names is not None:
        yield "Classes of the data set: matched by name with those of the models; it has another order."


def _pixels(input_size: tuple[int, int, int]) -> str:
    """The height and width of an input."""
    return f"{input_size[1]}x{input_size[2]} pixels"


def _portable(manifest: StarManifest) -> RunConfig:
    """The configuration without local paths, and with the draws of a run of several processes."""
    config = manifest.config
    if manifest.draws is not None and manifest.draws > 1:
        config = config.model_copy(update={"star": config.star.model_copy(update={"draws": manifest.draws})})
    evaluate = config.evaluate.model_copy(update={"ood": tuple(map(_portable_data, config.evaluate.ood))})
    return config.model_copy(update={"data": _portable_data(config.data), "evaluate": evaluate})


def _portable_data(data: DataConfig) -> DataConfig:
    """A data set for another machine, where a local folder has another path."""
    if data.dataset == "digits" or _is_hub_data(data):
        return data
    return data.model_copy(update={"dataset": f"path/to/{_folder_name(data)}"})


def _images_option(data: DataConfig) -> str:
    """The option that a command needs for a local folder of images, whose path is not known."""
    return "" if data.dataset == "digits" or _is_hub_data(data) else f"--dataset {shlex.quote(data.dataset)}"


def _command(manifest: StarManifest) -> str:
    """The command that fits this star again."""
    words = [*map(_reference, manifest.sources)]
    words += [f"--holdout {_reference(model)}" for model in manifest.holdouts]
    return " \\\n    ".join(["starzoo fit-star", *words, "--config run.yaml --out star"])


def _reference(model: ModelRecord) -> str:
    """A model's reference on the command line."""
    if model.repo and split_repo(model.repo):
        return shlex.quote(f"{model.repo}@{clean(model.sha)}" if model.sha else model.repo)
    return shlex.quote(f"path/to/{clean(model.name)}")
