"""Checkpoints of a run: written whole or not at all, hashed, and refused when they belong to another run.

One folder per checkpoint, safetensors and JSON only. It is written under a temporary name, with the SHA-256 of every
file in `manifest.json`, and renamed when complete; older ones are removed only after that.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from starzoo.errors import CheckpointError, ResourceError, UntrustedInputError, UsageError
from starzoo.files import new_folder, read_file, translate_write_errors
from starzoo.models.timm_folder import save_tensors, sha256_file
from starzoo.text import json_differences

__all__ = ["Checkpoint", "load_newest", "optimizer_tensors", "restore_optimizer", "save_checkpoint"]

_SCHEMA = 4
_JSON_LIMIT = 100_000_000  # bytes
_KEEP = 2  # the newest, and one to fall back on
_MANIFEST = "manifest.json"
_DRAFT = ".draft-"
_TENSORS = ("star", "average", "optimizer", "permutations")
_OF_OPTIMIZER = ("config.star.optimizer ", "config.star.filter_bias_and_bn ")
_NUMBERS = {torch.int64, torch.float64, torch.bool}
_VALUES = ("step", "history", "epoch_sums", "scaler", "loss_monitor", "changes")
_FILES = {"state.json", *(f"{part}.safetensors" for part in _TENSORS)}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a run needs to resume.

    Attributes:
        step: Optimizer steps taken.
        star: The star's parameters.
        average: Their exponential moving average; empty where none is kept.
        optimizer: The optimizer's state, flattened to named tensors.
        permutations: One set of index vectors per source, in the order of the sources.
        history: One record per finished epoch.
        epoch_sums: The sums of the unfinished epoch, one list per process.
        scaler: The state of the loss scaler of half precision, or None.
        loss_monitor: The state of the `LossMonitor`.
        changes: What was changed when the run was resumed, in words; empty for a run that its configuration replays.
    """

    step: int
    star: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    permutations: Sequence[Mapping[str, Tensor]]
    history: Sequence[Mapping[str, float]]
    epoch_sums: Sequence[Sequence[float]]
    scaler: Mapping[str, float] | None = None
    loss_monitor: Mapping[str, Any]
    changes: Sequence[str] = ()

    def with_change(self, change: str) -> Checkpoint:
        """Return the same checkpoint with a record of what is different from now on."""
        return replace(self, changes=[*self.changes, f"from step {self.step}: {change}"])


def save_checkpoint(folder: Path, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> Path:
    """Publish a checkpoint, then remove all but it and the one before: those of later steps were given up."""
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
        except ResourceError as error:  # it names a file of the draft, which is gone
            free = shutil.disk_usage(folder).free
            raise ResourceError(
                str(target),
                f"cannot be written: {error.message.rpartition(': ')[2]}",
                hint=f"{free / 2**20:.0f} MB are free there; older checkpoints are kept",
            ) from error
    checkpoints = _list(folder)
    end = checkpoints.index(target) + 1
    for old in (*checkpoints[: max(0, end - _KEEP)], *checkpoints[end:]):
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_newest(folder: Path, identity: Mapping[str, Any], *, override: bool = False) -> Checkpoint | None:
    """Load the newest intact checkpoint; a damaged one is skipped with a warning."""
    candidates = _list(folder)
    for candidate in reversed(candidates):
        if _is_intact(candidate):
            return _read(candidate, identity, override)
        _logger.warning("%s: damaged, the one before it is used", candidate)
    if candidates:
        raise CheckpointError(
            str(folder), f"no valid checkpoint among {len(candidates)}", hint="remove the folder to start the run again"
        )
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state as named tensors: `index.key` of a parameter, `group.index.key` of a group.

    Numbers become scalars of 64 bits. The settings of a group are left out: they are those of the configuration.
    """
    state = optimizer.state_dict()
    owners = {str(index): values for index, values in state["state"].items()}
    for index, group in enumerate(state["param_groups"]):
        owners[f"group.{index}"] = {key: value for key, value in group.items() if key not in optimizer.defaults}
    return {
        f"{owner}.{key}": torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
        for owner, values in owners.items()
        for key, value in values.items()
        if isinstance(value, Tensor | float | int)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the state that `optimizer_tensors` returned, each tensor with the strides of its parameter.

    The norm of a tensor depends on the order of its elements in memory, in the last digits.
    """
    state, parameters = optimizer.state_dict(), [value for group in optimizer.param_groups for value in group["params"]]
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition(".")
        of_group, _, index = owner.rpartition(".")
        values = state["param_groups"][int(index)] if of_group else state["state"].setdefault(int(index), {})
        if tensor.ndim > 1 and not of_group and tensor.shape == parameters[int(index)].shape:
            tensor = torch.empty_like(parameters[int(index)], dtype=tensor.dtype).copy_(tensor)
        values[key] = tensor.item() if tensor.ndim == 0 and tensor.dtype in _NUMBERS else tensor
    optimizer.load_state_dict(state)


def _write(draft: Path, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    indices = {
        f"{source}.{group}": index
        for source, permutation in enumerate(checkpoint.permutations)
        for group, index in permutation.items()
    }
    parts = checkpoint.star, checkpoint.average, checkpoint.optimizer, indices
    for name, tensors in zip(_TENSORS, parts, strict=True):
        save_tensors(draft / f"{name}.safetensors", tensors)
    values = {name: getattr(checkpoint, name) for name in _VALUES}
    state = {"schema": _SCHEMA, "sources": len(checkpoint.permutations), "identity": identity, **values}
    (draft / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True), encoding="utf-8")
    hashes = {file.name: sha256_file(file) for file in sorted(draft.iterdir())}
    (draft / _MANIFEST).write_text(json.dumps(hashes, indent=1), encoding="utf-8")


def _read(folder: Path, identity: Mapping[str, Any], override: bool) -> Checkpoint:
    state = _json(folder / "state.json")
    permutations: list[dict[str, Tensor]] = [{} for _ in range(state["sources"])]
    for name, index in load_file(folder / "permutations.safetensors").items():
        source, _, group = name.partition(".")
        permutations[int(source)][group] = index
    checkpoint = Checkpoint(
        star=load_file(folder / "star.safetensors"),
        average=load_file(folder / "average.safetensors"),
        optimizer=load_file(folder / "optimizer.safetensors"),
        permutations=permutations,
        **{name: state[name] for name in _VALUES},
    )
    if differences := list(json_differences(state["identity"], json.loads(json.dumps(identity)))):
        only_config = all(difference.startswith("config.") for difference in differences)
        if not (override and only_config):
            raise UsageError(
                str(folder.parent),
                f"holds checkpoints of another run: {'; '.join(differences)}",
                hint="use another --out, or the configuration of that run"
                + ("; --override resumes with the new one" if only_config else ""),
            )
    if any(difference.startswith(_OF_OPTIMIZER) for difference in differences):
        differences.append("the new optimizer begins without a state")
        checkpoint = replace(checkpoint, optimizer={})
    for difference in differences:
        checkpoint = checkpoint.with_change(difference)
    return checkpoint


def _list(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _is_intact(folder: Path) -> bool:
    try:
        hashes = dict(_json(folder / _MANIFEST))
        damaged = {name for name in _FILES if sha256_file(folder / name) != hashes.get(name)}
    except (OSError, ValueError, TypeError, UntrustedInputError):
        hashes, damaged = {}, _FILES
    if "state.json" not in damaged:
        _check_schema(folder)  # first, as another version may keep other files
    foreign = sorted({path.name for path in folder.iterdir()} - _FILES - {_MANIFEST})
    if foreign:
        raise UntrustedInputError(
            str(folder),
            f"holds {foreign[0]}, which starzoo does not write there",
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
