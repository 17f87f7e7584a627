"""A star: weights, permutations of its sources, and its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file

from starzoo.errors import UntrustedInputError
from starzoo.files import write_text
from starzoo.hub.ref import ModelRef
from starzoo.models.pull import pull
from starzoo.models.safetensors_header import TENSOR_LIMIT, read_header
from starzoo.models.timm_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    load_state,
    read_architecture,
    save_tensors,
    save_timm_folder,
    sha256_file,
)
from starzoo.progress import Progress, no_progress
from starzoo.star.manifest import MANIFEST, StarManifest, read_manifest
from starzoo.star.run.local_paths import LocalPaths, redact_paths
from starzoo.symmetry import Permutation

if TYPE_CHECKING:
    from torch import Tensor, nn

    from starzoo.star.domain import StarDomain

__all__ = ["HASHED_FILES", "PERMUTATIONS", "Star", "download_star", "load_star", "load_star_folder", "write_manifest"]

PERMUTATIONS = "permutations.safetensors"
HASHED_FILES = (CONFIG_FILE, WEIGHTS_FILE, PERMUTATIONS)
"""The files of a star whose hashes its star.json names."""

_PERMUTATIONS_LIMIT = 1_000_000_000  # bytes; those of a thousand ResNet-50s take a fifth of it


@dataclass(frozen=True, kw_only=True)
class Star:
    """A star model.

    Attributes:
        manifest: Architecture, provenance, configuration, history and evaluation.
        state: Its state dict.
        permutations: For every source, by name, one index vector per group that brings it to the star.
        folder: Where it was loaded from: its own folder, or that of the local cache; None for a star that was not.
        local_paths: Where the models and images of its fit lie on this machine, as far as that is known.
    """

    manifest: StarManifest
    state: Mapping[str, Tensor]
    permutations: Mapping[str, Mapping[str, Tensor]]
    folder: Path | None = None
    local_paths: LocalPaths = LocalPaths()

    def model(self) -> nn.Module:
        """The star as a timm model in evaluation mode, a drop-in for any of its sources.

        Returns:
            The module.
        """
        model = self.manifest.architecture.build()
        model.load_state_dict(dict(self.state))
        return model

    def permutation(self, source: str) -> Permutation:
        """The permutation that aligns a source to the star.

        Args:
            source: The name of the source.

        Returns:
            The permutation, checked against the symmetries of the architecture.
        """
        spec = self.manifest.architecture.spec
        return Permutation.from_tensors(spec, self.permutations[source], subject=source)

    def domain(self, folders: Sequence[str | Path] | None = None, *, progress: Progress = no_progress) -> StarDomain:
        """Load the star domain: the sources from where they are pinned, checked, and aligned to the star.

        Args:
            folders: Local folders of the sources, in their order, instead of where the star was fitted on them.
            progress: Told after every source.

        Returns:
            The domain.

        Raises:
            UsageError: A source cannot be found, or `folders` are not as many as the sources.
        """
        from starzoo.star.domain import StarDomain

        return StarDomain.load(self, folders, progress=progress)

    def save_timm_folder(self, folder: Path) -> None:
        """Write the star in timm's folder format, with star.json and permutations.safetensors beside.

        Args:
            folder: Where to; made if missing, other files in it are left alone.
        """
        save_timm_folder(folder, self.manifest.architecture, self.state)
        indices = {
            f"{number}/{group}": index.contiguous()
            for number, source in enumerate(self.manifest.sources)
            for group, index in self.permutations[source.name].items()
        }
        save_tensors(folder / PERMUTATIONS, indices)
        write_manifest(folder, self.manifest.model_copy(update={"files": {}}))


def write_manifest(folder: Path, manifest: StarManifest) -> None:
    """Write star.json alone, whole or not at all; nothing of this machine is in it."""
    if not manifest.files:
        files = {name: sha256_file(folder / name) for name in HASHED_FILES if (folder / name).is_file()}
        manifest = manifest.model_copy(update={"files": files})
    write_text(folder / MANIFEST, redact_paths(manifest).model_dump_json(indent=1) + "\n")


def load_star(ref: str | Path) -> Star:
    """Load a star from its folder or from the Hub.

    Args:
        ref: The folder that `fit-star` wrote, or `user/repo[@revision]`.

    Returns:
        The star.
    """
    return load_star_folder(download_star(ref))


def download_star(ref: str | Path) -> Path:
    """Return the folder of a star: its own, or its snapshot of the Hub in the local cache."""
    model_ref = ModelRef.parse(ref)
    return model_ref.folder if model_ref.folder is not None else pull(model_ref).folder


def load_star_folder(folder: Path) -> Star:
    """Read a star from the folder that `Star.save_timm_folder` wrote."""
    manifest = read_manifest(folder / MANIFEST)
    architecture = read_architecture(folder)  # nothing but what this lets through is given to timm
    if architecture != manifest.architecture:
        raise UntrustedInputError(
            str(folder),
            f"{MANIFEST} names another architecture than {CONFIG_FILE}",
            hint="fetch the star again, or ask its author",
        )
    file = folder / PERMUTATIONS
    header = read_header(file, limit=TENSOR_LIMIT * max(1, len(manifest.sources)))
    if max((info.end for info in header.values()), default=0) > _PERMUTATIONS_LIMIT:
        raise UntrustedInputError(
            str(file), f"is larger than {_PERMUTATIONS_LIMIT:,} bytes", hint="fetch the star again"
        )
    try:
        indices = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UntrustedInputError(str(file), "cannot be read", hint="fetch the star again") from error
    names = {str(number): source.name for number, source in enumerate(manifest.sources)}
    permutations: dict[str, dict[str, Tensor]] = {name: {} for name in names.values()}
    for key, index in indices.items():
        number, _, group = key.partition("/")
        if number not in names:
            raise UntrustedInputError(
                str(file), f"permutes source {number!r}, which this star does not have", hint="fetch the star again"
            )
        permutations[names[number]][group] = index
    local_paths = LocalPaths.read(folder)
    return Star(
        manifest=manifest.model_copy(update={"config": local_paths.restore(manifest.config)}),
        state=load_state(folder, architecture),
        permutations=permutations,
        folder=folder,
        local_paths=local_paths,
    )
