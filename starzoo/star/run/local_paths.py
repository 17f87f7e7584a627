"""Where the files of a run lie on this machine: kept beside the star to measure it again, never published.

A star's folder may come from a stranger, and its places could be any files of the user's. So they are sealed with a key
that this machine alone knows, and without its seal nothing is believed.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from starzoo.config import DataConfig, FrozenModel, RunConfig
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.files import read_file
from starzoo.hub.ref import ModelRef
from starzoo.models.record import ModelRecord
from starzoo.models.timm_folder import write_text
from starzoo.star.manifest import MANIFEST
from starzoo.star.run.log import LOG
from starzoo.star.run.status import STATUS, is_status

__all__ = [
    "OF_A_RUN",
    "LocalPaths",
    "check_folder_unused",
    "check_not_overwriting",
    "is_folder",
    "redact_path",
    "redact_paths",
    "resolve_records",
]

_FILE = "run-places.json"
_LIMIT = 10_000_000  # bytes
_KEY_LENGTH = 32
OF_A_RUN = (MANIFEST, _FILE)
"""Files of which each tells the folder of a run: the second is there before anything else of it."""

_REPLACED = ("README.md", "run.yaml", "model.safetensors", "permutations.safetensors", "plots", "metrics")


class LocalPaths(FrozenModel):
    """Where models and data were found when the star was fitted.

    Attributes:
        sources: One reference per source; a local folder by its absolute path, a repository after `hf-hub:`.
        holdouts: The same for the held-outs.
        dataset: The data set; a local folder by its absolute path.
        revision: The commit that it was at, where it is from the Hub.
        ood: The same for the other data set that it was evaluated on, if there was one.
        weights: SHA-256 of the sources' weights, one per source.
        seal: What only this machine can write; empty but in the file.
    """

    sources: tuple[str, ...] = ()
    holdouts: tuple[str, ...] = ()
    dataset: str | None = None
    revision: str | None = None
    ood: str | None = None
    weights: tuple[str, ...] = ()
    seal: str = ""

    @classmethod
    def of(
        cls,
        sources: Sequence[str],
        holdouts: Sequence[str],
        data: DataConfig,
        ood: DataConfig | None = None,
        weights: Sequence[str] = (),
    ) -> LocalPaths:
        """Note where a run finds its files."""
        return cls(
            sources=tuple(map(_absolute, sources)),
            holdouts=tuple(map(_absolute, holdouts)),
            dataset=_place(data),
            revision=data.revision,
            ood=ood and _place(ood),
            weights=tuple(weights),
        )

    @classmethod
    def read(cls, folder: Path | None) -> LocalPaths:
        """Read the places of a star that was fitted on this machine."""
        file = folder / _FILE if folder is not None else None
        if file is None or not os.path.lexists(file):
            return cls()
        content = read_file(file, _LIMIT, inside=[file.parent])
        try:
            found = cls.model_validate_json(content)
            places = found.model_copy(update={"seal": ""})
            key = _key()
            return places if key and hmac.compare_digest(found.seal.encode(), places._sealed(key).encode()) else cls()
        except ValidationError as error:
            raise UntrustedInputError(str(file), "is damaged", hint="remove it") from error

    def check_unchanged(self, now: LocalPaths) -> None:
        """Make sure that no local source has other weights than when the run began."""
        for place, before, here, found in zip(self.sources, self.weights, now.sources, now.weights, strict=False):
            (repo, _, commit), (same, _, _) = place.partition("@"), here.partition("@")
            if before != found and commit and repo == same and place.startswith("hf-hub:"):
                name = repo.removeprefix("hf-hub:")
                raise UsageError(
                    name,
                    "is at another commit than when the run began",
                    hint=f"name that one: {name}@{commit}, or use another --out",
                )
            if place == here and before != found and Path(place).is_dir():
                name = Path(place).name
                raise UntrustedInputError(
                    name,
                    "its files are not those that the star was made with",
                    hint="bring the old files back, or fit the star again in another folder",
                )

    def with_changes(self, holdouts: Sequence[str], ood: DataConfig | None) -> LocalPaths:
        """The same run, evaluated again."""
        changes: dict[str, object] = {"holdouts": tuple(map(_absolute, holdouts))} if holdouts else {}
        if ood:
            changes["ood"] = _place(ood)
        return self.model_copy(update=changes)

    def at_its_commit(self, data: DataConfig) -> DataConfig:
        """The data set of a run that goes on: of the commit that it began with, unless another one is asked for."""
        known = data.revision is None and _place(data) == self.dataset
        return data.model_copy(update={"revision": self.revision}) if known else data

    def other_images(self, ood: DataConfig | None) -> DataConfig | None:
        """The other data set of an evaluation, by where it lies on this machine."""
        known = ood and self.ood and ood.dataset == f"./{Path(self.ood).name}"
        return ood.model_copy(update={"dataset": self.ood}) if ood and known else ood

    def found(self, config: RunConfig) -> RunConfig:
        """A run's configuration as it may be published, with its data sets where they lie on this machine."""
        data = config.data.model_copy(update={"dataset": self.dataset}) if self.dataset else config.data
        evaluate = config.evaluate.model_copy(update={"ood": self.other_images(config.evaluate.ood)})
        return config.model_copy(update={"data": data, "evaluate": evaluate})

    def write(self, folder: Path) -> None:
        """Keep the places beside a star."""
        key = _key(make=True)
        sealed = self.model_copy(update={"seal": self._sealed(key) if key else ""})
        write_text(folder / _FILE, sealed.model_dump_json(indent=1) + "\n")

    def _sealed(self, key: bytes) -> str:
        return hmac.new(key, self.model_dump_json().encode(), "sha256").hexdigest()


def _key(*, make: bool = False) -> bytes:
    """What only this machine's user knows; empty where it is not there, or cannot be kept."""
    from huggingface_hub import constants

    file = Path(constants.HF_HOME) / "starzoo" / "key"
    with suppress(OSError):
        if make and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as created:
                created.write(secrets.token_bytes(_KEY_LENGTH))
    with suppress(OSError):
        key = file.read_bytes()
        return key if len(key) == _KEY_LENGTH else b""
    return b""


def check_folder_unused(target: Path) -> None:
    """Make sure that a folder in which a run is about to begin holds no files of somebody that it would replace."""
    if _holds_any(target, [*OF_A_RUN, "checkpoints/*/manifest.json"]):
        return
    found = [name for name in _REPLACED if os.path.lexists(target / name)]
    if os.path.lexists(target / STATUS) and not is_status(target / STATUS):
        found.append(STATUS)
    if os.path.lexists(target / LOG) and (target / LOG).lstat().st_size:  # our own is empty before the run has begun
        found.append(LOG)
    if found:
        raise UsageError(str(target), f"holds {found[0]}, which would be overwritten", hint="choose another --out")


def resolve_records(records: Sequence[ModelRecord], places: Sequence[str]) -> list[str]:
    """References under which a star's models can be loaded again."""
    refs = []
    for number, record in enumerate(records):
        if record.pinned:
            refs.append(record.pinned)
        elif len(places) == len(records):
            refs.append(places[number])
        else:
            raise UsageError(
                record.name,
                "was a local folder of another machine: it cannot be found again",
                hint="give the command that fitted it here once more, or fit it on models of the Hub",
            )
    return refs


def check_not_overwriting(target: Path, inputs: Sequence[str], *, unless: Sequence[str]) -> None:
    """Make sure that a folder which is about to be written holds no model of somebody."""
    mine = {Path(_absolute(ref)) for ref in inputs if ModelRef.parse(ref).folder is not None}
    if target.resolve() in mine or ((target / "config.json").exists() and not _holds_any(target, unless)):
        raise UsageError(str(target), "holds another model, which would be overwritten", hint="choose another --out")


def is_folder(data: DataConfig) -> bool:
    """Whether a data set is a local folder; `digits` never is, whatever lies in the current one."""
    return data.dataset != "digits" and Path(data.dataset).expanduser().is_dir()


def redact_path(data: DataConfig) -> DataConfig:
    """A local data set by its folder's name alone: where it lies tells about a machine and its user."""
    if not is_folder(data):
        return data
    return data.model_copy(update={"dataset": f"./{Path(data.dataset).expanduser().resolve().name}"})


def redact_paths(config: RunConfig) -> RunConfig:
    """A run's configuration as it may be published."""
    ood = config.evaluate.ood and redact_path(config.evaluate.ood)
    changes = {"data": redact_path(config.data), "evaluate": config.evaluate.model_copy(update={"ood": ood})}
    return config.model_copy(update=changes)


def _holds_any(folder: Path, patterns: Sequence[str]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)


def _place(data: DataConfig) -> str:
    return str(Path(data.dataset).expanduser().resolve()) if is_folder(data) else data.dataset


def _absolute(ref: str) -> str:
    found = ModelRef.parse(ref)
    return f"hf-hub:{found}" if found.folder is None else str(found.folder.resolve())
