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

from starzoo.errors import CheckpointError, ResourceError, UntrustedInputError, UsageError
from starzoo.files import new_folder, read_file
from starzoo.models.timm_folder import save_tensors, sha256_file, translate_write_errors
from starzoo.text import json_differences

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
        step: Optimizer steps taken.
        star: The star's parameters.
        optimizer: The optimizer's state, flattened to named tensors.
        permutations: One set of index vectors per source, in the order of the sources.
        history: One record per finished epoch.
        sums: What the unfinished epoch has summed up, one list per process.
        scaler: The state of the loss scaler of half precision, or None.
        loss_monitor: What the watch over the losses goes by (`starzoo.star.loss_monitor.LossMonitor`), or None.
        changes: What was changed when the run was resumed, in words: it is not the run that its configuration tells.
    """

    step: int
    star: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    permutations: Sequence[Mapping[str, Tensor]]
    history: Sequence[Mapping[str, float]]
    sums: Sequence[Sequence[float]] = ()
    scaler: Mapping[str, float] | None = None
    loss_monitor: Mapping[str, Any] | None = None
    changes: Sequence[str] = ()


def save_checkpoint(folder: Path, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> Path:
    """Publish a checkpoint, then remove all but it and the one before: those of later steps are what was given up."""
    target = folder / f"step-{checkpoint.step:09d}"
    with translate_write_errors(target):
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
                str(target),
                f"cannot be written: {error.message.rpartition(': ')[2]}",
                hint=f"{free / 2**20:.0f} MB are free there; older checkpoints are kept",
            ) from error
    published = _published(folder)
    last = published.index(target) + 1
    for old in (*published[: max(0, last - _KEEP)], *published[last:]):
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_newest(folder: Path, identity: Mapping[str, Any], *, override: bool = False) -> Checkpoint | None:
    """Find the newest checkpoint whose files are whole; a damaged one is passed over with a warning."""
    candidates = _published(folder)
    for candidate in reversed(candidates):
        if _is_whole(candidate):
            return _read(candidate, identity, override)
        _log.warning("%s: damaged, the one before it is used", candidate)
    if candidates:
        raise CheckpointError(
            str(folder), f"no valid checkpoint among {len(candidates)}", hint="remove the folder to start the run again"
        )
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors, `position.key`; the learning rate is a function of the step."""
    state = optimizer.state_dict()["state"]
    return {
        f"{position}.{key}": value
        for position, values in state.items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> bool:
    """Give an optimizer the state that `optimizer_tensors` took from one of its kind."""
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
        "vigil": checkpoint.loss_monitor,
        "changes": list(checkpoint.changes),
        "identity": identity,
    }
    (draft / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True), encoding="utf-8")
    hashes = {file.name: sha256_file(file) for file in sorted(draft.iterdir())}
    (draft / _MANIFEST).write_text(json.dumps(hashes, indent=1), encoding="utf-8")


def _read(folder: Path, identity: Mapping[str, Any], override: bool) -> Checkpoint:
    state = _json(folder / "state.json")
    changes = list(state["changes"])
    then, now = state["identity"], json.loads(json.dumps(identity))
    if differences := json_differences(then, now):
        only_config = all(difference.startswith("config.") for difference in differences)
        if not (override and only_config):
            raise UsageError(
                str(folder.parent),
                f"holds checkpoints of another run: {'; '.join(differences)}",
                hint="use another --out, or the configuration of that run"
                + ("; --override goes on with the new one" if only_config else ""),
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
        loss_monitor=state.get("vigil"),
        changes=changes,
    )


def _published(folder: Path) -> list[Path]:
    # `epoch-…` were those of the first versions
    return [*sorted(folder.glob("epoch-*")), *sorted(folder.glob("step-*"))] if folder.is_dir() else []


def _is_whole(folder: Path) -> bool:
    try:
        hashes = dict(_json(folder / _MANIFEST))
        damaged = {name for name in _FILES if sha256_file(folder / name) != hashes.get(name)}
    except (OSError, ValueError, TypeError, UntrustedInputError):
        hashes, damaged = {}, _FILES
    if "state.json" not in damaged:
        _check_schema(folder)  # first, as another version may keep other files
    strange = sorted({path.name for path in folder.iterdir()} - _FILES - {_MANIFEST})
    if strange:
        raise UntrustedInputError(
            str(folder),
            f"holds {strange[0]}, which starzoo does not write there",
            hint="do not resume from a stranger's checkpoints; remove the folder to start the run again",
        )
    return not damaged and hashes.keys() == _FILES


def _check_schema(folder: Path) -> None:
    schema = _json(folder / "state.json")["schema"]
    if schema != _SCHEMA:
        newer = schema > _SCHEMA
        raise UsageError(
            str(folder),
            f"written by {'a newer' if newer else 'an older'} starzoo (schema {schema})",
            hint="update starzoo" if newer else f"remove {folder.parent} to start the run again",
        )


def _json(file: Path) -> Any:
    return json.loads(read_file(file, _JSON_LIMIT, inside=[file.parent]))
