"""Where the files of a run lie on this machine: kept beside the star to measure it again, never published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from starzoo.config import DataConfig, Frozen
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.folder import write_text
from starzoo.hub.ref import ModelRef
from starzoo.star.manifest import ModelRecord

__all__ = ["RunPlaces", "find_models", "without_path"]

_FILE = "run-places.json"


class RunPlaces(Frozen):
    """Where models and data were found when the star was fitted.

    Attributes:
        sources: One reference per source; a local folder by its absolute path.
        holdouts: The same for the held-outs.
        dataset: The data set; a local folder by its absolute path.
    """

    sources: tuple[str, ...] = ()
    holdouts: tuple[str, ...] = ()
    dataset: str | None = None

    @classmethod
    def of(cls, sources: Sequence[str], holdouts: Sequence[str], data: DataConfig) -> RunPlaces:
        """Note where a run finds its files.

        Args:
            sources: References of the sources.
            holdouts: References of the held-outs.
            data: The data set.

        Returns:
            The places.
        """
        folder = Path(data.dataset).expanduser()
        return cls(
            sources=tuple(map(_absolute, sources)),
            holdouts=tuple(map(_absolute, holdouts)),
            dataset=str(folder.resolve()) if folder.is_dir() else data.dataset,
        )

    @classmethod
    def read(cls, folder: Path | None) -> RunPlaces:
        """Read the places of a star that was fitted on this machine.

        Args:
            folder: The star's folder, or None for a star of the Hub.

        Returns:
            The places; empty where none were kept.

        Raises:
            UntrustedInputError: The file is damaged.
        """
        file = folder / _FILE if folder is not None else None
        if file is None or not file.is_file():
            return cls()
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise UntrustedInputError(f"{file}: is damaged", hint="remove it", subject=str(file)) from error

    def write(self, folder: Path) -> None:
        """Keep the places beside a star.

        Args:
            folder: The star's folder.
        """
        write_text(folder / _FILE, self.model_dump_json(indent=1) + "\n")


def find_models(records: Sequence[ModelRecord], places: Sequence[str]) -> list[str]:
    """References under which a star's models can be loaded again.

    Args:
        records: The models as the star's manifest names them.
        places: Where they lay when the star was fitted, where that is known.

    Returns:
        One reference per model, pinned to a commit where the model is on the Hub.

    Raises:
        UsageError: A model was a local folder of another machine.
    """
    refs = []
    for number, record in enumerate(records):
        if record.repo and record.sha:
            refs.append(f"{record.repo}@{record.sha}")
        elif len(places) == len(records):
            refs.append(places[number])
        else:
            raise UsageError(
                f"{record.name} was a local folder of another machine: it cannot be found again",
                hint="evaluate the star where it was fitted, or fit it on models of the Hub",
                subject=record.name,
            )
    return refs


def without_path(data: DataConfig) -> DataConfig:
    """A local data set by its folder's name alone: where it lies tells about a machine and its user.

    Args:
        data: The data set as the run was given it.

    Returns:
        The data set as it may be published.
    """
    folder = Path(data.dataset).expanduser()
    return data.model_copy(update={"dataset": folder.resolve().name}) if folder.is_dir() else data


def _absolute(ref: str) -> str:
    found = ModelRef.parse(ref)
    return str(found if found.folder is None else found.folder.resolve())
