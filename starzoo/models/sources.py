"""Load models from folders or the Hub, and check that they fit together."""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, get_args

from torch import Tensor, nn

from starzoo.config import Augmentation
from starzoo.data.class_names import list_names, match_names
from starzoo.data.preprocessing import Preprocessing
from starzoo.errors import IncompatibleError, UntrustedInputError, UsageError
from starzoo.files import open_file
from starzoo.hub.listing import CARD, without
from starzoo.hub.ref import ModelRef
from starzoo.models.architecture import Architecture
from starzoo.models.class_order import permute_outputs
from starzoo.models.licenses import AND, is_identifier
from starzoo.models.pull import Snapshot, pull_all
from starzoo.models.record import RESERVED_NAMES, ModelRecord
from starzoo.models.safetensors_header import read_header, stored_dtype
from starzoo.models.timm_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    find_weights,
    load_state,
    read_architecture,
    read_json,
    sha256_file,
)
from starzoo.progress import Progress, no_progress
from starzoo.strict_yaml import YAML_LIMIT, front_matter, parse_yaml

__all__ = [
    "HasArchitecture",
    "Provenance",
    "Source",
    "check_architectures",
    "check_compatible",
    "check_files",
    "check_have_classes",
    "common_label_names",
    "load_source",
    "load_sources",
    "named_classes",
    "read_license",
    "reorder_classes",
]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Provenance:
    """Where weights come from, in words that may be published.

    Attributes:
        ref: The reference as the user wrote it; of a local folder only its name, because paths tell about the user.
        repo: The repository on the Hub, with the folder in it that holds the model; None for a local folder.
        sha: The commit, or None for a local folder.
        files: The SHA-256 of config.json and model.safetensors, by file name.
        license: What the model's card says, or None.
        preprocessing: The transform that config.json states, where the models loaded together share another.
        label_names: The class names in the order of the file, where `reorder_classes` brought them into another.
        steps: Training steps, by the record that `starzoo train` leaves in a local folder; None where it does not say.
        images: The fingerprint of the data that it was trained on, by the same record.
        augment: How these images were augmented, by the same record.
        estimated: Whether its batch-norm statistics were broken, and are estimated anew.
    """

    ref: str
    repo: str | None
    sha: str | None
    files: Mapping[str, str]
    license: str | None = None
    preprocessing: Preprocessing | None = None
    label_names: tuple[str, ...] | None = None
    steps: int | None = None
    images: str | None = None
    augment: Augmentation | None = None
    estimated: bool = False


class HasArchitecture(Protocol):
    """A model whose name and architecture are known."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    @property
    def architecture(self) -> Architecture:
        """Its architecture."""


@dataclass(frozen=True)
class Source:
    """One trained model.

    Attributes:
        name: A short name, unique among the models that were loaded together.
        architecture: The architecture with its preprocessing and label names.
        state: The full state dict on the CPU; floating-point tensors as float32.
        provenance: Where it comes from.
        dtype: The type of the stored weights, such as `float32` or `bfloat16`.
    """

    name: str
    architecture: Architecture
    state: Mapping[str, Tensor]
    provenance: Provenance
    dtype: str = "float32"

    def model(self) -> nn.Module:
        """Build the module with these weights.

        Returns:
            A new module on the CPU in evaluation mode.
        """
        model = self.architecture.build()
        model.load_state_dict(dict(self.state), strict=True)
        return model.eval()

    def with_statistics(self, state: Mapping[str, Tensor]) -> Source:
        """The same model with batch-norm statistics that were estimated anew."""
        return replace(self, state=state, provenance=replace(self.provenance, estimated=True))

    @property
    def record(self) -> ModelRecord:
        """What star.json says of it."""
        origin = self.provenance
        return ModelRecord(
            name=self.name,
            repo=origin.repo,
            sha=origin.sha,
            files=dict(origin.files),
            license=origin.license,
            dtype=self.dtype,
            preprocessing=origin.preprocessing or self.architecture.preprocessing,
            label_names=origin.label_names,
            steps=origin.steps,
            images=origin.images,
            estimated=origin.estimated,
        )


_SEEN = ("input_size", "mean", "std")  # what of the preprocessing the network sees
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_MOST_LICENSES = 8
_MOST_STEPS = 10**12  # more than any training has; a stranger may write any number


def load_source(ref: str | Path, *, progress: Progress = no_progress) -> Source:
    """Load a model from a folder in timm format or from the Hub.

    Every check that needs no weights comes first; nothing is unpickled and no code of the repository runs.

    Args:
        ref: `user/repo[@revision]`, or a folder.
        progress: Told about downloads.

    Returns:
        The model.
    """
    [source] = _load_all([ref], progress)
    return source


def load_sources(
    refs: Sequence[str | Path], *, taken: Collection[str] = (), progress: Progress = no_progress
) -> list[Source]:
    """Load several models under names that tell them apart, with one evaluation transform.

    What a network sees is a tensor of some size and scale: `input_size`, `mean` and `std` belong to its weights, and
    models in which they differ are not compatible. How a picture is brought to that size (`interpolation`, `crop_pct`,
    `crop_mode`) changes the picture a little, not its meaning to the network: there the models take what most of them
    state, or else the first of them, and a warning says so.
    """
    sources: list[Source] = []
    used = {*RESERVED_NAMES, *taken}
    for index, source in enumerate(_load_all(refs, progress)):
        name = next(name for name in _numbered(source.name) if name not in used)
        used.add(name)
        sources.append(replace(source, name=name))
        progress("loading models", index + 1, len(refs))
    return _with_one_transform(sources)


def _with_one_transform(sources: Sequence[Source]) -> list[Source]:
    """Let models that differ only in how a picture is cut and resized do it in one way."""
    stated = [source.architecture.preprocessing for source in sources]
    if len({tuple(getattr(each, field) for field in _SEEN) for each in stated}) != 1 or len(set(stated)) == 1:
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
        replace(
            source,
            architecture=source.architecture.model_copy(update={"preprocessing": chosen}),
            provenance=replace(source.provenance, preprocessing=own),
        )
        for source, own in zip(sources, stated, strict=True)
    ]


def _load_all(refs: Sequence[str | Path], progress: Progress) -> Iterator[Source]:
    """Download what is on the Hub, all of it at the same time, and read the models one after another."""
    wheres = [ModelRef.parse(ref) for ref in refs]
    remote = [where for where in wheres if where.folder is None]
    snapshots = dict(zip(remote, pull_all(remote, progress=progress) if remote else (), strict=True))
    for where, ref in zip(wheres, refs, strict=True):
        if where.folder is None:
            yield _read_snapshot(where, snapshots[where])
        else:
            name = where.folder.resolve().name
            provenance = Provenance(name, None, None, {}, **_read_training(where.folder))
            yield _read_source(where.folder, name, provenance, str(ref), where.folder / CARD)


def _read_training(folder: Path) -> dict[str, Any]:
    """What the record of `starzoo train` says about a model: its steps, its images, and how they were augmented."""
    try:
        record = read_json(folder / "training.json")
        steps, images = record["result"].get("steps"), record["data"]["fingerprint"]
        augment = record["data"].get("augment")
    except (UntrustedInputError, AttributeError, LookupError, TypeError):
        return {}
    return {
        "steps": steps if isinstance(steps, int) and 0 < steps < _MOST_STEPS else None,
        "images": images if isinstance(images, str) and _FINGERPRINT.fullmatch(images) else None,
        "augment": augment if augment in get_args(Augmentation) else None,
    }


def _read_snapshot(where: ModelRef, snapshot: Snapshot) -> Source:
    provenance = Provenance(str(where), where.model_id, snapshot.sha, {})
    return _read_source(snapshot.folder, where.model_id.rpartition("/")[2], provenance, str(where), snapshot.card)


def check_compatible(sources: Sequence[Source]) -> None:
    """Make sure that models differ in nothing but their weights."""
    check_architectures(sources)
    seen: dict[str, Source] = {}
    for source in sources:
        digest = source.provenance.files[WEIGHTS_FILE]
        if digest in seen:
            raise UsageError(
                f"{seen[digest].name} and {source.name}",
                "expected different models, got the same weights twice",
                hint="give every model once, as a source or as a held-out",
            )
        seen[digest] = source


def check_architectures(models: Sequence[HasArchitecture]) -> None:
    """Make sure that models are of one architecture, for the same classes and preprocessing."""
    for model in models[1:]:
        for what, ours, theirs in _differences(models[0].architecture, model.architecture):
            raise IncompatibleError(
                f"{models[0].name} and {model.name}",
                f"cannot be combined: {what} {ours} and {theirs}",
                hint="give models of one architecture, trained for the same classes and preprocessing",
            )
    named = [model for model in models if model.architecture.label_names]
    for model in named[1:]:
        _class_order(model, named[0].architecture.label_names or (), named[0].name)


def check_have_classes(models: Sequence[HasArchitecture]) -> None:
    """Make sure that models classify: images say nothing of one without a classifier."""
    for model in models:
        if not model.architecture.num_classes:
            raise IncompatibleError(
                model.name,
                "has no classifier (num_classes is 0), so that no star can be fitted or measured",
                hint="give models with a classifier; `inspect`, and `align` without --dataset, take this one",
            )


def common_label_names(models: Sequence[HasArchitecture]) -> tuple[str, ...] | None:
    """The class names of models that belong together."""
    return next(filter(None, (model.architecture.label_names for model in models)), None)


def reorder_classes(sources: Sequence[Source], names: Sequence[str] | None) -> list[Source]:
    """Bring the outputs of models into one order, by the names of their classes."""
    ordered, permuted = [], []
    for source in sources:
        order = _class_order(source, names or (), "the other models")
        if order != sorted(order):
            state = permute_outputs(source.architecture, source.state, order)
            provenance = replace(source.provenance, label_names=source.architecture.label_names)
            source = replace(named_classes(source, names), state=state, provenance=provenance)
            permuted.append(source.name)
        ordered.append(source)
    if permuted:
        _logger.warning(
            "classes are matched by name: %d of %d models had another order%s",
            len(permuted),
            len(sources),
            list_names(permuted),
        )
    return ordered


def named_classes(source: Source, names: Sequence[str] | None) -> Source:
    """A model whose outputs have these names."""
    label_names = tuple(names) if names else None
    return replace(source, architecture=source.architecture.model_copy(update={"label_names": label_names}))


def _class_order(model: HasArchitecture, names: Sequence[str], owner: str) -> list[int]:
    """For each of some class names the output of a model; nothing where there are no names to match."""
    own = model.architecture.label_names
    return match_names(names, own, owner=owner, subject=model.name) if names and own else []


def _differences(first: Architecture, second: Architecture) -> list[tuple[str, object, object]]:
    ours, theirs = first.preprocessing, second.preprocessing
    pairs: list[tuple[str, object, object]] = [
        ("the architectures are", first.name, second.name),
        ("the class counts are", first.num_classes, second.num_classes),
        *((f"{field} of the preprocessing is", getattr(ours, field), getattr(theirs, field)) for field in _SEEN),
    ]
    if first.name == second.name and first.num_classes == second.num_classes and first.network != second.network:
        pairs.append(("the model arguments are", first.model_args, second.model_args))
    return [(what, a, b) for what, a, b in pairs if a != b]


def _read_source(folder: Path, name: str, provenance: Provenance, subject: str, card: Path | None) -> Source:
    check_files(folder, subject)
    architecture = read_architecture(folder, subject)
    weights = find_weights(folder)
    return Source(
        name=name,
        architecture=architecture,
        state=load_state(folder, architecture, subject),
        provenance=replace(
            provenance,
            files={CONFIG_FILE: sha256_file(folder / CONFIG_FILE), WEIGHTS_FILE: sha256_file(weights)},
            license=read_license(card),
        ),
        dtype=stored_dtype(read_header(weights, subject)),
    )


def check_files(folder: Path, subject: str) -> None:
    """Make sure that a folder has the two files of a model."""
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if (find_weights(folder) if file == WEIGHTS_FILE else folder / file).is_file():
            continue
        pickles = sorted(path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in folder.glob(pattern))
        if file == WEIGHTS_FILE and pickles:
            what = f"holds its weights only as {pickles[0]}, which could run code when opened"
            hint = "save them as model.safetensors with safetensors.torch.save_file, on a machine that may be harmed"
        else:
            what, hint = without(file, {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()})
        raise UntrustedInputError(subject, f"{what}", hint=hint)


def read_license(card: Path | None) -> str | None:
    """Read the license in the front matter of a model's card, as the Hub finds it."""
    if card is None or not card.is_file():
        return None
    try:
        with open_file(card, inside=[card.parent]) as file:
            block = front_matter(file.read(2 * YAML_LIMIT))
        matter = parse_yaml(block, str(card)) if block else None
    except UntrustedInputError:
        return None
    stated = matter.get("license") if isinstance(matter, dict) else None
    listed = stated if isinstance(stated, list) else [stated]
    licenses = [license for license in listed if isinstance(license, str) and is_identifier(license.lower())]
    return AND.join(dict.fromkeys(licenses)) if 0 < len(licenses) == len(listed) <= _MOST_LICENSES else None


def _numbered(name: str) -> Iterator[str]:
    """A name, then the name with a number: never with more of its path, which tells about a machine and its user."""
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))
