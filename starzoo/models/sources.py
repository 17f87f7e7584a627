"""Load models from folders and from the Hub."""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, get_args

from torch import Tensor, nn

from starzoo.config import Augmentation
from starzoo.errors import IncompatibleError, UntrustedInputError
from starzoo.hub.listing import CARD
from starzoo.hub.ref import ModelRef
from starzoo.models.architecture import INPUT_FIELDS, Architecture
from starzoo.models.licenses import read_license
from starzoo.models.pull import pull_all
from starzoo.models.record import RESERVED_NAMES, ModelRecord
from starzoo.models.safetensors_header import read_header, stored_dtype
from starzoo.models.timm_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    check_files,
    find_weights,
    load_state,
    read_architecture,
    sha256_file,
)
from starzoo.progress import Progress, no_progress
from starzoo.strict_json import read_json

__all__ = ["Source", "load_source", "load_sources"]

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_OPTIMIZER = re.compile(r"\w{1,40}")
_MAX_RATE = 1e38
_MAX_STEPS = 10**12  # more than any training has; a stranger may write any number

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One trained model.

    Attributes:
        record: Its name, unique among the models that were loaded together, and its origin.
        architecture: The architecture with its preprocessing and label names.
        state: The full state dict on the CPU; floating-point tensors as float32.
    """

    record: ModelRecord
    architecture: Architecture
    state: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """Its name in messages, tables and plots."""
        return self.record.name

    def with_record(self, **changes: Any) -> Self:
        """The same model with other values in its record."""
        return replace(self, record=self.record.model_copy(update=changes))

    def model(self) -> nn.Module:
        """Build the module with these weights.

        Returns:
            A new module on the CPU in evaluation mode.
        """
        model = self.architecture.build()
        model.load_state_dict(dict(self.state), strict=True)
        return model.eval()


def load_source(ref: str | Path, *, progress: Progress = no_progress) -> Source:
    """Load a model from a folder in timm format or from the Hub.

    Every check that needs no weights comes first; nothing is unpickled and no code of the repository runs.

    Args:
        ref: `user/repo[@revision]`, or a folder.
        progress: Called during downloads.

    Returns:
        The model.
    """
    [source] = _load_all([ref], progress)
    return source


def load_sources(
    refs: Sequence[str | Path],
    *,
    reserved_names: Collection[str] = (),
    image_size: int | None = None,
    progress: Progress = no_progress,
) -> list[Source]:
    """Load several models under unique names, with one evaluation transform, and at one size where it is given."""
    sources: list[Source] = []
    names = {*RESERVED_NAMES, *reserved_names}
    for index, source in enumerate(_load_all(refs, progress, image_size)):
        # Never with more of its path, which tells about a machine and its user.
        candidates = itertools.chain([source.name], (f"{source.name}-{number}" for number in itertools.count(2)))
        name = next(candidate for candidate in candidates if candidate not in names)
        names.add(name)
        sources.append(source.with_record(name=name))
        progress("loading models", index + 1, len(refs))
    return _unify_preprocessing(sources)


def _unify_preprocessing(sources: Sequence[Source]) -> list[Source]:
    """Let models that differ only in how an image is resized and cropped do it in one way.

    `input_size`, `mean` and `std` belong to the weights: models in which they differ are not compatible, and stay as
    they are. Interpolation and crop change the image a little, not its meaning to the network.
    """
    stated = [source.architecture.preprocessing for source in sources]
    inputs = {tuple(getattr(preprocessing, field) for field in INPUT_FIELDS) for preprocessing in stated}
    if len(inputs) != 1 or len(set(stated)) == 1:
        return list(sources)
    [(chosen, count)] = Counter(stated).most_common(1)
    _logger.warning(
        "the models cut and resize images differently; all are evaluated with interpolation %s, crop_pct %g and "
        "crop_mode %s, as %d of %d state",
        chosen.interpolation,
        chosen.crop_pct,
        chosen.crop_mode,
        count,
        len(sources),
    )
    return [
        replace(source, architecture=source.architecture.model_copy(update={"preprocessing": chosen}))
        for source in sources
    ]


def _load_all(refs: Sequence[str | Path], progress: Progress, image_size: int | None = None) -> Iterator[Source]:
    """Download what is on the Hub, all of it at the same time, and read the models one after another."""
    parsed = [ModelRef.parse(ref) for ref in refs]
    remote = [ref for ref in parsed if ref.folder is None]
    snapshots = dict(zip(remote, pull_all(remote, progress=progress) if remote else (), strict=True))
    for ref, text in zip(parsed, refs, strict=True):
        if ref.folder is None:
            snapshot, name = snapshots[ref], ref.model_id.rpartition("/")[2]
            origin = {"name": name, "repo": ref.model_id, "sha": snapshot.sha}
            yield _read_source(snapshot.folder, str(ref), snapshot.card, image_size, **origin)
        else:
            name = ref.folder.resolve().name
            training = _read_training(ref.folder)
            yield _read_source(ref.folder, str(text), ref.folder / CARD, image_size, name=name, **training)


def _read_source(folder: Path, subject: str, card: Path | None, image_size: int | None, **origin: Any) -> Source:
    check_files(folder, subject)
    stated, weights = read_architecture(folder, subject), find_weights(folder)
    architecture, state = _load_at_size(folder, subject, stated, image_size)
    record = ModelRecord(
        files={CONFIG_FILE: sha256_file(folder / CONFIG_FILE), WEIGHTS_FILE: sha256_file(weights)},
        license=read_license(card),
        dtype=stored_dtype(read_header(weights, subject)),
        preprocessing=stated.preprocessing,
        **origin,
    )
    return Source(record, architecture, state)


def _load_at_size(
    folder: Path, subject: str, stated: Architecture, image_size: int | None
) -> tuple[Architecture, dict[str, Tensor]]:
    """Load the weights of a folder, resampled by timm where images have another size than the folder states."""
    if image_size is None:
        return stated, load_state(folder, stated, subject)
    try:
        architecture = read_architecture(folder, subject, image_size=image_size)
        return architecture, load_state(folder, architecture, subject, image_size=image_size)
    except UntrustedInputError as error:
        load_state(folder, stated, subject)  # which says what is wrong with the file itself
        raise IncompatibleError(
            subject,
            f"cannot take images of {image_size} x {image_size} pixels: {error.problem}",
            hint="leave --image-size out, or give models that take images of any size",
        ) from error


def _read_training(folder: Path) -> dict[str, Any]:
    """Return what the record of `starzoo train` says about a model: its steps, images and augmentation."""
    try:
        record = read_json(folder / "training.json")
        steps, images = record["result"].get("steps"), record["data"]["fingerprint"]
        augment, recipe = record["data"].get("augment"), record.get("train", {})
        optimizer, lr = recipe.get("optimizer"), recipe.get("lr")
    except (UntrustedInputError, AttributeError, LookupError, TypeError):
        return {}
    return {
        "steps": steps if isinstance(steps, int) and 0 < steps < _MAX_STEPS else None,
        "images": images if isinstance(images, str) and _FINGERPRINT.fullmatch(images) else None,
        "augment": augment if augment in get_args(Augmentation) else None,
        "optimizer": optimizer if isinstance(optimizer, str) and _OPTIMIZER.fullmatch(optimizer) else None,
        "lr": lr if isinstance(lr, float) and 0 < lr < _MAX_RATE else None,
    }
