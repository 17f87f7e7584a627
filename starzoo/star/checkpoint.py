"""Checkpoints of a run: written whole or not at all, hashed, and refused when they belong to another run.

One folder per checkpoint, safetensors and JSON only. It is written beside its place under a temporary name, with the
SHA-256 of every file in `manifest.json`, and renamed when complete; older ones are removed only after that. There is no
state of a random number generator in it: all random numbers of a run are functions of its seed and of the step.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from starzoo.differences import all_differences
from starzoo.errors import CheckpointError, ResourceError, UntrustedInputError, UsageError
from starzoo.files import new_folder, read_file
from starzoo.folder import file_hash, save_tensors, writing

__all__ = ["Checkpoint", "load_newest", "optimizer_tensors", "restore_optimizer", "save_checkpoint"]

_SCHEMA = 2
_JSON_LIMIT = 100_000_000  # bytes
_KEEP = 2  # the newest, and one to fall back on
_MANIFEST = "manifest.json"
_DRAFT = ".draft-"
_TENSORS = ("star", "optimizer", "permutations")
_FILES = {"state.json", *(f"{part}.safetensors" for part in _TENSORS)}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on.

    Attributes:
        step: Optimiser steps taken.
        star: The star's parameters.
        optimizer: The optimiser's state, flattened to named tensors.
        permutations: One set of index vectors per source, in the order of the sources.
        history: One record per finished epoch.
        sums: What the unfinished epoch has summed up, one list per process.
        scaler: The state of the loss scaler of half precision, or None.
        vigil: What the watch over the losses goes by (`starzoo.star.health.Vigil`), or None.
        changes: What was changed when the run was resumed, in words: it is not the run that its configuration tells.
    """

    step: int
    star: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    permutations: Sequence[Mapping[str, Tensor]]
    history: Sequence[Mapping[str, float]]
    sums: Sequence[Sequence[float]] = ()
    scaler: Mapping[str, float] | None = None
    vigil: Mapping[str, Any] | None = None
    changes: Sequence[str] = ()


def save_checkpoint(folder: Path, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> Path:
    """Publish a checkpoint, then remove all but it and the one before: those of later steps are what was given up.

    Args:
        folder: Where the run keeps its checkpoints.
        checkpoint: What to keep.
        identity: JSON value that a resuming run must share: configuration, data and sources.

    Returns:
        The checkpoint's own folder.

    Raises:
        UsageError: There can be no such folder.
        ResourceError: The disk is full; older checkpoints are untouched.
    """
    target = folder / f"step-{checkpoint.step:09d}"
    with writing(target):
        folder.mkdir(parents=True, exist_ok=True)
        for orphan in folder.glob(f"{_DRAFT}*"):  # of a process that was killed
            shutil.rmtree(orphan, ignore_errors=True)
        try:
            with new_folder(folder, _DRAFT) as draft:
                _write(draft, checkpoint, identity)
                shutil.rmtree(target, ignore_errors=True)  # damaged, or of a run that was given up
                draft.rename(target)
        except ResourceError as error:  # it names a file of the draft, which nobody will find
            free = shutil.disk_usage(folder).free
            raise ResourceError(
                f"{target}: cannot be written: {error.message.rpartition(': ')[2]}",
                hint=f"{free / 2**20:.0f} MB are free there; older checkpoints are kept",
                subject=str(target),
            ) from error
    published = _published(folder)
    last = published.index(target) + 1
    for old in (*published[: max(0, last - _KEEP)], *published[last:]):
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_newest(folder: Path, identity: Mapping[str, Any], *, override: bool = False) -> Checkpoint | None:
    """Find the newest checkpoint whose files are whole; a damaged one is passed over with a warning.

    Args:
        folder: Where the run keeps its checkpoints.
        identity: What this run is; a checkpoint of another run is refused.
        override: Go on with another configuration, and note that in the checkpoint's `changes`.

    Returns:
        The checkpoint, or None where there is none yet.

    Raises:
        CheckpointError: There are checkpoints, and all are damaged.
        UntrustedInputError: A checkpoint holds a file that starzoo does not write there.
        UsageError: The newest whole one belongs to a run with another configuration, other data or other sources, or
            another version of starzoo wrote it.
    """
    candidates = _published(folder)
    for candidate in reversed(candidates):
        if _is_whole(candidate):
            return _read(candidate, identity, override)
        _log.warning("%s: damaged, the one before it is used", candidate)
    if candidates:
        raise CheckpointError(
            f"{folder}: no valid checkpoint among {len(candidates)}",
            hint="remove the folder to start the run again",
            subject=str(folder),
        )
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors, `position.key`; the learning rate is a function of the step.

    Args:
        optimizer: Its per-parameter state holds tensors only, as SGD's and AdamW's does.

    Returns:
        The tensors.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{position}.{key}": value
        for position, values in state.items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> bool:
    """Give an optimiser the state that `optimizer_tensors` took from one of its kind.

    Args:
        optimizer: A fresh optimiser over the same parameters.
        tensors: The named tensors.

    Returns:
        Whether it has that state; False where one of another kind left it, which this one cannot go on from.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        position, _, key = name.partition(".")
        state.setdefault(int(position), {})[key] = tensor
    averages = isinstance(optimizer, torch.optim.AdamW)
    if any(("exp_avg" in values) != averages for values in state.values()):
        return False
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return True


def _write(draft: Path, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    indices = {
        f"{source}.{group}": index
        for source, permutation in enumerate(checkpoint.permutations)
        for group, index in permutation.items()
    }
    for name, tensors in zip(_TENSORS, (checkpoint.star, checkpoint.optimizer, indices), strict=True):
        save_tensors(draft / f"{name}.safetensors", tensors)
    state = {
        "schema": _SCHEMA,
        "step": checkpoint.step,
        "sources": len(checkpoint.permutations),
        "history": list(checkpoint.history),
        "sums": list(checkpoint.sums),
        "scaler": checkpoint.scaler,
        "vigil": checkpoint.vigil,
        "changes": list(checkpoint.changes),
        "identity": identity,
    }
    (draft / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True), encoding="utf-8")
    hashes = {file.name: file_hash(file) for file in sorted(draft.iterdir())}
    (draft / _MANIFEST).write_text(json.dumps(hashes, indent=1), encoding="utf-8")


def _read(folder: Path, identity: Mapping[str, Any], override: bool) -> Checkpoint:
    state = _json(folder / "state.json")
    changes = list(state["changes"])
    then, now = state["identity"], json.loads(json.dumps(identity))
    if differences := all_differences(then, now):
        only_config = all(difference.startswith("config.") for difference in differences)
        if not (override and only_config):
            raise UsageError(
                f"{folder.parent}: holds checkpoints of another run: {'; '.join(differences)}",
                hint="use another --out, or the configuration of that run"
                + ("; --override goes on with the new one" if only_config else ""),
                subject=str(folder.parent),
            )
        changes += [f"from step {state['step']}: {difference}" for difference in differences]
    permutations: list[dict[str, Tensor]] = [{} for _ in range(state["sources"])]
    for name, index in load_file(folder / "permutations.safetensors").items():
        source, _, group = name.partition(".")
        permutations[int(source)][group] = index
    return Checkpoint(
        step=state["step"],
        star=load_file(folder / "star.safetensors"),
        optimizer=load_file(folder / "optimizer.safetensors"),
        permutations=permutations,
        history=state["history"],
        sums=state["sums"],
        scaler=state.get("scaler"),  # as of the next two, the first checkpoints of this schema say nothing of it
        vigil=state.get("vigil"),
        changes=changes,
    )


def _published(folder: Path) -> list[Path]:
    # `epoch-…` were those of the first versions
    return [*sorted(folder.glob("epoch-*")), *sorted(folder.glob("step-*"))] if folder.is_dir() else []


def _is_whole(folder: Path) -> bool:
    try:
        hashes = dict(_json(folder / _MANIFEST))
        damaged = {name for name in _FILES if file_hash(folder / name) != hashes.get(name)}
    except (OSError, ValueError, TypeError, UntrustedInputError):
        hashes, damaged = {}, _FILES
    if "state.json" not in damaged:
        _check_schema(folder)  # first, as another version may keep other files
    strange = sorted({path.name for path in folder.iterdir()} - _FILES - {_MANIFEST})
    if strange:
        raise UntrustedInputError(
            f"{folder}: holds {strange[0]}, which starzoo does not write there",
            hint="do not resume from a stranger's checkpoints; remove the folder to start the run again",
            subject=str(folder),
        )
    return not damaged and hashes.keys() == _FILES


def _check_schema(folder: Path) -> None:
    schema = _json(folder / "state.json")["schema"]
    if schema != _SCHEMA:
        newer = schema > _SCHEMA
        raise UsageError(
            f"{folder}: written by {'a newer' if newer else 'an older'} starzoo (schema {schema})",
            hint="update starzoo" if newer else f"remove {folder.parent} to start the run again",
            subject=str(folder),
        )


def _json(file: Path) -> Any:
    return json.loads(read_file(file, _JSON_LIMIT, inside=[file.parent]))
