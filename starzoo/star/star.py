"""A star: weights, the permutations of its sources, and where it comes from. One folder, and one plain timm model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from starzoo.errors import UntrustedInputError
from starzoo.folder import load_state, save_folder, save_tensors, write_text
from starzoo.star.manifest import MANIFEST, StarManifest, read_manifest

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["PERMUTATIONS", "Star", "load_folder", "write_manifest"]

PERMUTATIONS = "permutations.safetensors"


@dataclass(frozen=True, kw_only=True)
class Star:
    """A star model.

    Attributes:
        manifest: Architecture, provenance, configuration, history and evaluation.
        state: Its state dict.
        permutations: For every source, by name, one index vector per group that brings it to the star.
    """

    manifest: StarManifest
    state: Mapping[str, Tensor]
    permutations: Mapping[str, Mapping[str, Tensor]]

    def model(self) -> nn.Module:
        """The star as a timm model in evaluation mode, a drop-in for any of its sources.

        Returns:
            The module.
        """
        model = self.manifest.architecture.build()
        model.load_state_dict(dict(self.state))
        return model

    def save_folder(self, folder: Path) -> None:
        """Write the star in timm's folder format, with star.json and permutations.safetensors beside.

        Args:
            folder: Where to; made if missing, other files in it are left alone.
        """
        save_folder(folder, self.manifest.architecture, self.state)
        indices = {
            f"{number}/{group}": index.contiguous()
            for number, source in enumerate(self.manifest.sources)
            for group, index in self.permutations[source.name].items()
        }
        save_tensors(folder / PERMUTATIONS, indices)
        write_manifest(folder, self.manifest)


def write_manifest(folder: Path, manifest: StarManifest) -> None:
    """Write star.json alone, whole or not at all.

    Args:
        folder: The star's folder.
        manifest: The manifest.
    """
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


def load_folder(folder: Path) -> Star:
    """Read a star from the folder that `Star.save_folder` wrote.

    Args:
        folder: The folder.

    Returns:
        The star.

    Raises:
        UntrustedInputError: A file is missing, damaged, or does not belong to the others.
    """
    manifest = read_manifest(folder / MANIFEST)
    file = folder / PERMUTATIONS
    try:
        indices = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UntrustedInputError(f"{file}: cannot be read", hint="fetch the star again", subject=str(file)) from error
    names = {str(number): source.name for number, source in enumerate(manifest.sources)}
    permutations: dict[str, dict[str, Tensor]] = {name: {} for name in names.values()}
    for key, index in indices.items():
        number, _, group = key.partition("/")
        if number not in names:
            raise UntrustedInputError(
                f"{file}: permutes source {number!r}, which this star does not have",
                hint="fetch the star again",
                subject=str(file),
            )
        permutations[names[number]][group] = index
    return Star(manifest=manifest, state=load_state(folder, manifest.architecture), permutations=permutations)


def _check_permutations(permutations: Mapping[str, Mapping[str, Tensor]], file: Path) -> None:
    """Every source has the groups of the first, and every row of every index vector is a permutation."""
    first = next(iter(permutations.values()), {})
    for source, indices in permutations.items():
        whole = indices.keys() == first.keys() and all(
            bool((index.long().sort(dim=-1).values == torch.arange(index.shape[-1])).all())
            for index in indices.values()
        )
        if not whole:
            raise UntrustedInputError(
                f"{file}: holds no permutation of source {source!r}", hint="fetch the star again", subject=str(file)
            )


def _permutes(index: Tensor) -> bool:
    return bool((index.long().sort(dim=-1).values == torch.arange(index.shape[-1])).all())
