"""Turn checkpoints of other programs into timm folders."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starzoo.errors import UsageError
from starzoo.files import read_file
from starzoo.models.architecture import Architecture
from starzoo.models.convert_pickle import convert
from starzoo.models.safetensors_header import read_header
from starzoo.models.timm_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    load_state,
    read_architecture,
    save_timm_folder,
    sha256_file,
)
from starzoo.models.timm_registry import registry_entry
from starzoo.models.unpickle import EMA, TRAINING
from starzoo.progress import Progress, no_progress
from starzoo.strict_json import read_json
from starzoo.strict_yaml import YAML_LIMIT, parse_yaml

__all__ = ["ImportOptions", "ImportedModel", "import_checkpoints"]

_ARGS_FILE = "args.yaml"  # which timm's train.py writes beside its checkpoints
_GENERIC_NAME = re.compile(r"(model[-_])?(best|last|final)|checkpoint([-_]\d+)?|(pytorch_)?model|weights|state_dict")
_CLASSIFIER = re.compile(r"(.*\.)?(fc|head|head\.fc|classifier(\.\d)?)\.weight")  # of many an implementation
_ORIGIN = "checkpoint_sha256"  # a key of config.json that says that a folder was imported, and from which file
_TRANSFORM = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a checkpoint does not say about its model.

    Attributes:
        arch: The timm architecture.
        model_args: Arguments of the architecture.
        num_classes: Number of classes.
        label_names: Names of the classes, in the order of the outputs.
        ema: Take the exponential moving average of the weights, where a checkpoint has it.
    """

    arch: str | None = None
    model_args: Mapping[str, Any] | None = None
    num_classes: int | None = None
    label_names: Sequence[str] | None = None
    ema: bool = True


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """One checkpoint that became a folder.

    Attributes:
        checkpoint: The file.
        folder: The model in timm's folder format.
        architecture: The timm architecture, with its preprocessing and label names.
        ema: Whether its weights are the exponential moving average of the training.
    """

    checkpoint: Path
    folder: Path
    architecture: Architecture
    ema: bool


def import_checkpoints(
    checkpoints: Sequence[Path],
    out: Path,
    options: ImportOptions = ImportOptions(),
    *,
    progress: Progress = no_progress,
) -> list[ImportedModel]:
    """Write checkpoints as folders that plain timm loads, one for each.

    A checkpoint of timm's train.py names its architecture, itself or in the args.yaml beside it. For one of
    torchvision, Lightning or a plain state dict the options must name it. Pickles are opened by a subprocess.
    """
    for checkpoint in checkpoints:
        if not checkpoint.is_file():
            raise UsageError(str(checkpoint), "is not a file", hint="give the checkpoint files themselves")
    folders = [out / name for name in _folder_names(checkpoints)]
    hashes = [sha256_file(checkpoint) for checkpoint in checkpoints]
    for folder, origin in zip(folders, hashes, strict=True):
        _check_unused(folder, origin)
    models = []
    for checkpoint, folder, origin in zip(checkpoints, folders, hashes, strict=True):
        models.append(_import(checkpoint, folder, origin, options))
        progress("importing", len(models), len(checkpoints))
    return models


def _import(checkpoint: Path, folder: Path, origin: str, options: ImportOptions) -> ImportedModel:
    subject, names = str(checkpoint), options.label_names
    with tempfile.TemporaryDirectory(prefix="starzoo-") as scratch:
        weights = Path(scratch) / WEIGHTS_FILE
        if checkpoint.suffix == ".safetensors":
            shutil.copyfile(checkpoint, weights)
        else:
            convert(checkpoint, weights, subject, ema=options.ema)
        notes = _read_notes(checkpoint, weights)
        config = _make_config(notes, weights, subject, options)
        (Path(scratch) / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
        architecture = read_architecture(Path(scratch), subject)
        if names and not architecture.label_names:
            raise UsageError(
                subject,
                f"has {architecture.num_classes} classes, and {len(names)} names are given",
                hint="give one name for each, in the order of the outputs",
            )
        state = load_state(Path(scratch), architecture, subject)
    save_timm_folder(folder, architecture, state, {_ORIGIN: origin})
    return ImportedModel(checkpoint=checkpoint, folder=folder, architecture=architecture, ema=notes[EMA])


def _folder_names(checkpoints: Sequence[Path]) -> list[str]:
    """Return a folder name for each checkpoint: that of its file, or of the file's folder where that says more."""
    stems = [Path(path.name.removesuffix(".tar")).stem for path in checkpoints]
    counts = Counter(stems)
    names = [
        path.resolve().parent.name if counts[stem] > 1 or _GENERIC_NAME.fullmatch(stem) else stem
        for path, stem in zip(checkpoints, stems, strict=True)
    ]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(repeated[0], "two checkpoints would become this folder", hint="import them one by one")
    return names


def _check_unused(folder: Path, origin: str) -> None:
    """Make sure that a folder does not exist, or holds what was imported from the same file."""
    config = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    if folder.exists() and config.get(_ORIGIN) != origin:
        raise UsageError(
            str(folder), "exists, and was not imported from this checkpoint", hint="choose another --out, or remove it"
        )


def _read_notes(checkpoint: Path, weights: Path) -> dict[str, Any]:
    """Return what the training recorded: in the checkpoint, and in args.yaml beside it."""
    metadata, args_file = _read_metadata(weights), checkpoint.parent / _ARGS_FILE
    notes = {EMA: metadata.get(EMA) == "true", **json.loads(metadata.get(TRAINING, "{}"))}
    if not os.path.lexists(args_file):
        return notes
    content = read_file(args_file, YAML_LIMIT, inside=[args_file.parent])
    arguments = parse_yaml(content, str(args_file), plain=_parse_value)
    return {**(arguments if isinstance(arguments, dict) else {}), **notes}


def _parse_value(text: str) -> Any:
    """Parse a value of timm's args.yaml: a number, a truth value, nothing, or the text itself."""
    if text in {"", "~"}:
        return None
    with suppress(ValueError):
        return json.loads(text, parse_constant=str)
    return text


def _read_metadata(weights: Path) -> dict[str, str]:
    from safetensors import safe_open

    read_header(weights)  # a strict pass first
    with safe_open(weights, "pt") as file:
        return dict(file.metadata() or {})


def _make_config(notes: Mapping[str, Any], weights: Path, subject: str, options: ImportOptions) -> dict[str, Any]:
    """Return the config.json that belongs to a checkpoint."""
    name = options.arch or notes.get("model")
    if not isinstance(name, str):
        raise UsageError(subject, "does not say which architecture it is", hint="name it: --arch resnet50")
    registry = registry_entry(name)
    recorded_args = notes.get("model_kwargs")
    model_args = {**(recorded_args if isinstance(recorded_args, Mapping) else {}), **(options.model_args or {})}
    for key, note in (("global_pool", "gp"), ("bn_eps", "bn_eps"), ("in_chans", "in_chans")):
        if notes.get(note) is not None:
            model_args.setdefault(key, notes[note])
    channels, *size = registry.input_size
    input_size, image_size = notes.get("input_size"), notes.get("img_size")
    if isinstance(input_size, list | tuple) and len(input_size) == 3:
        size = list(input_size[1:])
    elif isinstance(image_size, int):
        size = [image_size] * 2
    counts = (options.num_classes, notes.get("num_classes"), _count_classes(weights, registry.classifier))
    return {
        "architecture": name,
        "num_classes": next((count for count in counts if count is not None), registry.num_classes),
        "model_args": model_args,
        "pretrained_cfg": {
            **{key: notes.get(key) or getattr(registry, key) for key in _TRANSFORM},
            "input_size": [model_args.get("in_chans", channels), *size],
            "fixed_input_size": registry.fixed_input_size,
            "first_conv": registry.first_conv,
            "classifier": registry.classifier,
        },
        **({"label_names": list(options.label_names)} if options.label_names else {}),
    }


def _count_classes(weights: Path, classifier: str | Sequence[str] | None) -> int | None:
    """Return the number of rows of a checkpoint's classifier; None where it has another name."""
    shapes = {name: info.shape for name, info in read_header(weights).items()}
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    named = [name for name in shapes if any(f".{name}".endswith(f".{head}.weight") for head in heads)]
    matching = named or sorted(name for name in shapes if _CLASSIFIER.fullmatch(name))
    return shapes[matching[-1]][0] if matching else None
