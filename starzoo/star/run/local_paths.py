"""Local paths of a run: kept beside the star to measure it again, never published.

A star's folder may come from a stranger, and its paths could be any files of the user. So they are sealed with a key
that only this machine knows, and nothing is believed without its seal.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from starzoo.config import DataConfig, FrozenModel, RunConfig
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.files import read_file, write_text
from starzoo.hub.ref import ModelRef
from starzoo.models.record import ModelRecord
from starzoo.star.manifest import StarManifest

__all__ = [
    "LOCAL_PATHS",
    "LocalPaths",
    "is_local_dataset",
    "redact_paths",
    "resolve_path",
    "resolve_paths",
    "resolve_records",
]

LOCAL_PATHS = "local-paths.json"
_LIMIT = 10_000_000  # bytes
_KEY_LENGTH = 32


class LocalPaths(FrozenModel):
    """Where models and data were found when the star was fitted.

    Attributes:
        sources: One reference per source; a local folder by its absolute path, a repository after `hf-hub:`.
        holdouts: The same for the held-outs.
        dataset: The data set; a local folder by its absolute path.
        revision: The commit of a data set of the Hub.
        ood: The out-of-distribution data sets, like `dataset`.
        weights: SHA-256 of the weights, one per source.
        seal: What only this machine can write; empty but in the file.
    """

    sources: tuple[str, ...] = ()
    holdouts: tuple[str, ...] = ()
    dataset: str | None = None
    revision: str | None = None
    ood: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    seal: str = ""

    @classmethod
    def from_run(
        cls, sources: Sequence[str], holdouts: Sequence[str], config: RunConfig, weights: Sequence[str] = ()
    ) -> LocalPaths:
        """Note where a run finds its files; its configuration has absolute paths (`resolve_paths`)."""
        return cls(
            sources=tuple(map(_absolute, sources)),
            holdouts=tuple(map(_absolute, holdouts)),
            dataset=config.data.dataset,
            revision=config.data.revision,
            ood=tuple(ood.dataset for ood in config.evaluate.ood),
            weights=tuple(weights),
        )

    @classmethod
    def read(cls, folder: Path | None) -> LocalPaths:
        """Read the paths of a star that was fitted on this machine; they are empty for any other star."""
        file = folder / LOCAL_PATHS if folder is not None else None
        if file is None or not os.path.lexists(file):
            return cls()
        content = read_file(file, _LIMIT, inside=[file.parent])
        try:
            sealed = cls.model_validate_json(content)
        except ValidationError as error:
            raise UntrustedInputError(str(file), "is damaged", hint="remove it") from error
        paths, key = sealed.model_copy(update={"seal": ""}), _key()
        return paths if key and hmac.compare_digest(sealed.seal.encode(), paths._sign(key).encode()) else cls()

    def write(self, folder: Path) -> None:
        """Write the sealed paths beside a star."""
        key = _key(create=True)
        sealed = self.model_copy(update={"seal": self._sign(key) if key else ""})
        write_text(folder / LOCAL_PATHS, sealed.model_dump_json(indent=1) + "\n")

    def check_unchanged(self, current: LocalPaths) -> None:
        """Make sure that no source has other weights than when the run began."""
        for old, old_hash, new, new_hash in zip(
            self.sources, self.weights, current.sources, current.weights, strict=False
        ):
            if old_hash == new_hash:
                continue
            (repo, _, commit), (new_repo, _, _) = old.partition("@"), new.partition("@")
            if commit and repo == new_repo and old.startswith("hf-hub:"):
                name = repo.removeprefix("hf-hub:")
                raise UsageError(
                    name,
                    "is at another commit than when the run began",
                    hint=f"name that one: {name}@{commit}, or use another --out",
                )
            if old == new and Path(old).is_dir():
                raise UntrustedInputError(
                    Path(old).name,
                    "its files are not those that the star was made with",
                    hint="bring the old files back, or fit the star again in another folder",
                )

    def updated(self, holdouts: Sequence[str], ood: Sequence[DataConfig]) -> LocalPaths:
        """Return the paths of the same run, evaluated again."""
        changes: dict[str, object] = {"holdouts": tuple(map(_absolute, holdouts))} if holdouts else {}
        if ood:
            changes["ood"] = tuple(data.dataset for data in ood)
        return self.model_copy(update=changes)

    def pin_dataset(self, data: DataConfig) -> DataConfig:
        """Return the data set of a resumed run at the commit that it began with, unless another one is named."""
        if data.revision is None and data.dataset == self.dataset:
            return data.model_copy(update={"revision": self.revision})
        return data

    def restore(self, config: RunConfig) -> RunConfig:
        """Return the configuration of a star.json with its data sets where they lie on this machine."""
        data, evaluate = config.data, config.evaluate
        if self.dataset:
            data = data.model_copy(update={"dataset": self.dataset})
        ood = list(evaluate.ood)
        for index, (known, path) in enumerate(zip(evaluate.ood, self.ood, strict=False)):
            if known.dataset == _redacted(path):  # two folders may have one name
                ood[index] = known.model_copy(update={"dataset": path})
        evaluate = evaluate.model_copy(update={"ood": tuple(ood)})
        return config.model_copy(update={"data": data, "evaluate": evaluate})

    def _sign(self, key: bytes) -> str:
        return hmac.new(key, self.model_dump_json().encode(), "sha256").hexdigest()


def resolve_records(records: Sequence[ModelRecord], paths: Sequence[str]) -> list[str]:
    """Return references under which a star's models can be loaded again."""
    refs = []
    for index, record in enumerate(records):
        if record.pinned:
            refs.append(record.pinned)
        elif len(paths) == len(records):
            refs.append(paths[index])
        else:
            raise UsageError(
                record.name,
                "was a local folder of another machine: it cannot be found again",
                hint="give the command that fitted it here once more, or fit it on models of the Hub",
            )
    return refs


def is_local_dataset(data: DataConfig) -> bool:
    """Whether a data set is a local folder; `digits` never is, whatever lies in the current folder."""
    return data.dataset != "digits" and Path(data.dataset).expanduser().is_dir()


def resolve_path(data: DataConfig) -> DataConfig:
    """Return a local data set by its absolute path, as every configuration inside the program names it."""
    if not is_local_dataset(data):
        return data
    return data.model_copy(update={"dataset": str(Path(data.dataset).expanduser().resolve())})


def resolve_paths(config: RunConfig) -> RunConfig:
    """Return a run's configuration with the absolute paths of its data sets."""
    return _map_datasets(config, resolve_path)


def redact_paths(manifest: StarManifest) -> StarManifest:
    """Return a star's record as star.json holds it: paths would tell about this machine and its user."""
    evaluation = manifest.evaluation
    if evaluation and evaluation.data:
        evaluation = evaluation.model_copy(update={"data": _redact_path(evaluation.data)})
    return manifest.model_copy(
        update={"config": _map_datasets(manifest.config, _redact_path), "evaluation": evaluation}
    )


def _redact_path(data: DataConfig) -> DataConfig:
    return data.model_copy(update={"dataset": _redacted(data.dataset)})


def _redacted(dataset: str) -> str:
    return f"./{Path(dataset).name}" if Path(dataset).is_absolute() else dataset


def _map_datasets(config: RunConfig, change: Callable[[DataConfig], DataConfig]) -> RunConfig:
    evaluate = config.evaluate.model_copy(update={"ood": tuple(map(change, config.evaluate.ood))})
    return config.model_copy(update={"data": change(config.data), "evaluate": evaluate})


def _key(*, create: bool = False) -> bytes:
    """Return the secret of this machine's user; empty where it is missing or cannot be kept."""
    from huggingface_hub import constants

    file = Path(constants.HF_HOME) / "starzoo" / "key"
    with suppress(OSError):
        if create and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as created:
                created.write(secrets.token_bytes(_KEY_LENGTH))
    with suppress(OSError):
        key = file.read_bytes()
        return key if len(key) == _KEY_LENGTH else b""
    return b""


def _absolute(ref: str) -> str:
    model = ModelRef.parse(ref)
    return f"hf-hub:{model}" if model.folder is None else str(model.folder.resolve())
