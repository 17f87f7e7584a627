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
from starzoo.models.architecture import Architecture, registry_entry
from starzoo.models.convert_pickle import convert
from starzoo.models.safetensors_header import read_header
from starzoo.models.timm_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    load_state,
    read_architecture,
    read_json,
    save_timm_folder,
    sha256_file,
)
from starzoo.models.unpickle import EMA, TRAINING
from starzoo.progress import Progress, no_progress
from starzoo.strict_yaml import YAML_LIMIT, parse_yaml

__all__ = ["ImportedModel", "import_checkpoints"]

_ARGUMENTS = "args.yaml"  # which timm's train.py writes beside its checkpoints
_USUAL = re.compile(r"(model[-_])?(best|last|final)|checkpoint([-_]\d+)?|(pytorch_)?model|weights|state_dict")
_HEAD = re.compile(r"(.*\.)?(fc|head|head\.fc|classifier(\.\d)?)\.weight")  # of many an implementation
_MARK = "checkpoint_sha256"  # a key of config.json that says that a folder was imported, and from what


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
    *,
    arch: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    label_names: Sequence[str] | None = None,
    ema: bool = True,
    progress: Progress = no_progress,
) -> list[ImportedModel]:
    """Write checkpoints as folders that plain timm loads, one for each.

    A checkpoint of timm's train.py says what it is, itself or in the args.yaml beside it. Of one of torchvision,
    Lightning or a plain state dict the architecture must be given. Pickles are opened by a process of their own.
    """
    for checkpoint in checkpoints:
        if not checkpoint.is_file():
            raise UsageError(str(checkpoint), "is not a file", hint="give the checkpoint files themselves")
    folders = [out / name for name in _folder_names(checkpoints)]
    marks = [{_MARK: sha256_file(checkpoint)} for checkpoint in checkpoints]
    for folder, mark in zip(folders, marks, strict=True):
        _check_unused(folder, mark)
    imported = []
    for checkpoint, folder, mark in zip(checkpoints, folders, marks, strict=True):
        subject = str(checkpoint)
        with tempfile.TemporaryDirectory(prefix="starzoo-") as scratch:
            weights = Path(scratch) / WEIGHTS_FILE
            if checkpoint.suffix == ".safetensors":
                shutil.copyfile(checkpoint, weights)
            else:
                convert(checkpoint, weights, subject, ema=ema)
            noted = _read_notes(checkpoint, weights)
            config = _describe(noted, weights, subject, arch, model_args or {}, num_classes)
            if label_names:
                config["label_names"] = list(label_names)
            (Path(scratch) / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
            architecture = read_architecture(Path(scratch), subject)
            if label_names and not architecture.label_names:
                raise UsageError(
                    subject,
                    f"has {architecture.num_classes} classes, and {len(label_names)} names are given",
                    hint="give one name for each, in the order of the outputs",
                )
            state = load_state(Path(scratch), architecture, subject)
        save_timm_folder(folder, architecture, state, mark)
        imported.append(
            ImportedModel(checkpoint=checkpoint, folder=folder, architecture=architecture, ema=noted.get(EMA, False))
        )
        progress("importing", len(imported), len(checkpoints))
    return imported


def _folder_names(checkpoints: Sequence[Path]) -> list[str]:
    """A name for each: that of the file, or of the folder that it lies in where every training calls its file so."""
    stems = [Path(path.name.removesuffix(".tar")).stem for path in checkpoints]
    counts = Counter(stems)
    names = [
        path.resolve().parent.name if counts[stem] > 1 or _USUAL.fullmatch(stem) else stem
        for path, stem in zip(checkpoints, stems, strict=True)
    ]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(twice[0], "two checkpoints would become this folder", hint="import them one by one")
    return names


def _check_unused(folder: Path, mark: Mapping[str, Any]) -> None:
    """Make sure that a folder is not there yet, or holds what was imported from the same file."""
    known = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    if folder.exists() and any(known.get(key) != value for key, value in mark.items()):
        raise UsageError(
            str(folder), "exists, and was not imported from this checkpoint", hint="choose another --out, or remove it"
        )


def _read_notes(checkpoint: Path, weights: Path) -> dict[str, Any]:
    """What the training noted: in the checkpoint, and in args.yaml beside it."""
    metadata = _metadata(weights)
    noted = {EMA: metadata.get(EMA) == "true", **json.loads(metadata.get(TRAINING, "{}"))}
    beside = checkpoint.parent / _ARGUMENTS
    if not os.path.lexists(beside):
        return noted
    values = parse_yaml(read_file(beside, YAML_LIMIT, inside=[beside.parent]), str(beside), plain=_value)
    return {**(values if isinstance(values, dict) else {}), **noted}


def _value(text: str) -> Any:
    """What timm wrote as `text`: a number, a truth value, nothing, or the text itself."""
    if text in {"", "~"}:
        return None
    with suppress(ValueError):
        return json.loads(text, parse_constant=str)
    return text


def _metadata(weights: Path) -> dict[str, str]:
    from safetensors import safe_open

    read_header(weights)  # a strict pass first
    with safe_open(weights, "pt") as file:
        return dict(file.metadata() or {})


def _describe(
    noted: Mapping[str, Any],
    weights: Path,
    subject: str,
    arch: str | None,
    model_args: Mapping[str, Any],
    num_classes: int | None,
) -> dict[str, Any]:
    """The config.json that belongs to a checkpoint."""
    name = arch or noted.get("model")
    if not isinstance(name, str):
        raise UsageError(subject, "does not say which architecture it is", hint="name it: --arch resnet50")
    registry = registry_entry(name)
    channels, *size = registry.input_size
    arguments = {**_table(noted.get("model_kwargs")), **model_args}
    for key, note in (("global_pool", "gp"), ("bn_eps", "bn_eps"), ("in_chans", "in_chans")):
        if noted.get(note) is not None:
            arguments.setdefault(key, noted[note])
    if isinstance(given := noted.get("input_size"), list | tuple) and len(given) == 3:
        size = list(given[1:])
    elif isinstance(noted.get("img_size"), int):
        size = [noted["img_size"]] * 2
    classes = num_classes if num_classes is not None else noted.get("num_classes")
    if classes is None:
        classes = _count_classes(weights, registry.classifier)
    transform = {key: noted[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode") if noted.get(key)}
    return {
        "architecture": name,
        "num_classes": registry.num_classes if classes is None else classes,
        "model_args": arguments,
        "pretrained_cfg": {
            **{key: getattr(registry, key) for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode")},
            **transform,
            "input_size": [arguments.get("in_chans", channels), *size],
            "fixed_input_size": registry.fixed_input_size,
            "first_conv": registry.first_conv,
            "classifier": registry.classifier,
        },
    }


def _table(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _count_classes(weights: Path, classifier: str | Sequence[str] | None) -> int | None:
    """How many rows the classifier of a checkpoint has; None where it goes by another name."""
    shapes = {name: info.shape for name, info in read_header(weights).items()}
    named = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    known = [name for name in shapes if any(f".{name}".endswith(f".{head}.weight") for head in named)]
    heads = known or sorted(name for name in shapes if _HEAD.fullmatch(name))
    return shapes[heads[-1]][0] if heads else None
