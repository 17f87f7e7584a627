"""Open data sets with the `datasets` library, with retries and starzoo's errors."""

from __future__ import annotations

import logging
import lzma
import math
import re
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import yaml

from starzoo.config import DataConfig
from starzoo.data.descriptions import check_builder, check_folder, check_repository
from starzoo.data.folders import find_split, scan_folder, spread_classes
from starzoo.errors import HubError, StarzooError, UntrustedInputError, UsageError
from starzoo.hub.error_mapping import (
    HubUnavailableError,
    as_hub_error,
    disk_full_error,
    is_client_error,
    is_disk_full,
)
from starzoo.hub.names import is_commit
from starzoo.hub.offline import ONLINE_HINT, is_offline, offline_mode
from starzoo.hub.retry import with_retries

__all__ = ["LoadedSplits", "load_splits", "warn_once"]

_logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_DESCRIPTION_ERRORS = (  # `datasets` does not validate descriptions
    *(yaml.YAMLError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, ImportError),
)
_ARCHIVE_ERRORS = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError)
_TYPE = re.compile(
    r"json|null|bool_?|u?int(8|16|32|64)|float(16|32|64)|(large_)?(binary|string|utf8)|(binary|string)_view|date(32|64)|"
    r"(time(32|64)|timestamp|duration|decimal(32|64|128|256)|fixed_size_binary)[\[(].*"
)
_READERS = {"arrow", "cache", "csv", "hdf5", "imagefolder", "json", "parquet", "webdataset"}
_LOG_LEVELS = {  # `huggingface_hub` logs READMEs without metadata, and what it reads from the cache
    "datasets": logging.CRITICAL,
    "huggingface_hub.repocard": logging.ERROR,
    "huggingface_hub.hf_api": logging.ERROR,
}


@dataclass(frozen=True)
class LoadedSplits:
    """Splits of a data set."""

    rows: Sequence[Any]  # one `datasets.Dataset` per split
    names: Sequence[str]  # as in the data set: `validation` or `train[:80%]`
    revision: str | None = None  # the commit on the Hub
    folder: Path | None = None  # of a local data set
    image_folders: Sequence[Path] = ()  # that image files may lie in; empty if tables must contain their images


def load_splits(config: DataConfig, splits: Sequence[str]) -> LoadedSplits:
    """Open splits of a local folder or of a data set of the Hub."""
    import datasets

    dataset, folder = config.dataset, Path(config.dataset).expanduser()
    if folder.is_dir():
        with _translate_errors(dataset):
            folder = folder.resolve()
            is_described = check_folder(folder) or config.name is not None
            names = [name for split in splits for name in _split_names(split)]
            files = None if is_described else scan_folder(folder, names)
            if files is not None:
                return _load_class_folders(dataset, folder, files, splits)
            return _load_prepared(dataset, datasets.load_dataset_builder(str(folder), config.name), splits, folder)
    # A bare word would name one of the loaders of `datasets` ("json"), which reads any file of the current folder.
    if not _HUB_ID.fullmatch(dataset):
        raise UsageError(
            dataset,
            "no such folder, and no data set id of the Hub",
            hint="give `digits`, a folder, or an id such as uoft-cs/cifar10",
        )

    def download() -> LoadedSplits:
        with _translate_errors(dataset, config.revision):
            return _load_prepared(dataset, _dataset_builder(config), splits)

    return with_retries(download, dataset, config.revision, max_wait=math.inf)


def _split_names(split: str) -> list[str]:
    """Return the names in an instruction of `datasets`, `train[:80%]+extra`."""
    return [part.strip().partition("[")[0] for part in split.split("+")]


@cache
def warn_once(message: str) -> None:
    """Log a warning once per process, because a run opens a data set several times."""
    _logger.warning("%s", message)


def _load_prepared(dataset: str, builder: Any, splits: Sequence[str], folder: Path | None = None) -> LoadedSplits:
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if builder.name not in _READERS:
        raise UsageError(
            dataset,
            f"expected images or tables, got files of the kind {builder.name}",
            hint="use a data set of image files or Parquet files",
        )
    check_builder(builder, dataset, folder)
    builder.download_and_prepare()
    names = _resolve_names(dataset, splits, builder.info.splits)
    image_folders = [folder] if folder else []
    if builder.info.builder_name == "imagefolder":  # it writes the paths itself; a table may hold any path
        downloads = Path(datasets.config.HF_DATASETS_CACHE) / "downloads"
        if folder:
            image_folders.append(downloads / "extracted")
        else:
            repo_folder = repo_folder_name(repo_id=dataset, repo_type="dataset")
            image_folders += [downloads, Path(constants.HF_HUB_CACHE, repo_folder)]
    return LoadedSplits(builder.as_dataset(split=names), names, None if folder else builder.hash, folder, image_folders)


def _load_class_folders(
    dataset: str, folder: Path, files: Mapping[str, Sequence[str]], splits: Sequence[str]
) -> LoadedSplits:
    """Open splits of a folder of class folders, whose image files are listed by split."""
    import datasets

    names = _resolve_names(dataset, splits, files)
    wanted = {name: files[name] for split in names for name in _split_names(split) if name in files}
    class_of = {path: normalize("NFC", path.split("/")[-2]) for paths in wanted.values() for path in paths}
    label = datasets.ClassLabel(names=sorted(set(class_of.values())))
    features = datasets.Features({"image": datasets.Image(decode=False), "label": label})
    rows = {
        name: datasets.Dataset.from_dict(
            {
                "image": [f"{folder}/{path}" for path in paths],
                "label": label.str2int([class_of[path] for path in paths]),
            },
            features=features,
        )
        for name, paths in wanted.items()
    }
    sizes = {name: len(paths) for name, paths in files.items()}

    # The rows are sorted by class: a plain train[:80%] would hold other classes than train[80%:].
    def select(split: str) -> Any:
        parts = []
        for part in datasets.ReadInstruction.from_spec(split).to_absolute(sizes):
            subset, chosen = rows[part.splitname], slice(part.from_, part.to)
            if chosen != slice(0, len(subset)):
                warn_once(
                    f"{dataset}: parts of a split are drawn at random, always the same, in proportion from each class"
                )
                subset = subset.select(np.sort(spread_classes(np.array(subset["label"]))[chosen]))
            parts.append(subset)
        return datasets.concatenate_datasets(parts)

    return LoadedSplits([select(name) for name in names], names, folder=folder, image_folders=[folder])


def _resolve_names(dataset: str, splits: Sequence[str], available: Collection[str]) -> list[str]:
    """Replace the names in the wanted splits by those of the data set; unknown names stay."""
    resolved = []
    for split in splits:
        parts = []
        for part in split.split("+"):
            wanted, bracket, rest = part.strip().partition("[")
            name = find_split(wanted, available) or wanted
            if name != wanted:
                warn_once(f"{dataset}: has no split {wanted!r}; {name!r} is taken")
            parts.append(f"{name}{bracket}{rest}")
        resolved.append("+".join(parts))
    return resolved


def _dataset_builder(config: DataConfig) -> Any:
    """Return the builder of a data set of the Hub, online from the Hub and offline from the cache.

    Where `datasets` cannot reach the Hub, it silently takes the last commit in its cache. Here a cached commit is used
    only offline, or if the configuration names it.
    """
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    dataset, revision = config.dataset, config.revision
    if is_offline() or datasets.config.HF_HUB_OFFLINE:  # HF_DATASETS_OFFLINE sets the latter alone
        commit = revision if is_commit(revision) else _commit_in_cache(config)
        cached = _cached_builder(config, commit) if commit or not revision else None
        if cached is None:
            problem = "not in the local cache, and offline"
            problem = f"revision {revision!r} is {problem}" if revision else problem
            raise HubError(dataset, problem, hint=f"{ONLINE_HINT}, and run it once")
        return cached
    pinned = _cached_builder(config, revision) if is_commit(revision) else None
    try:
        builder = datasets.load_dataset_builder(dataset, config.name, revision=check_repository(dataset, revision))
    except Exception as error:
        if pinned is None or not (isinstance(error, HubError) or is_client_error(error)):
            raise
        return pinned
    if isinstance(builder, Cache):
        if pinned is None:
            raise HubUnavailableError(
                dataset,
                "the Hub did not deliver it, and the copy in the cache may be outdated",
                hint="try again later, or use the cache with --offline",
            )
        return pinned
    return builder


def _commit_in_cache(config: DataConfig) -> str | None:
    """Return the commit that a revision had at the last request."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionResolutionError

    with offline_mode(), suppress(RevisionResolutionError, OSError):
        ref = HfApi().resolve_revision(config.dataset, repo_type="dataset", revision=config.revision)
        return str(ref.resolved)
    return None


def _cached_builder(config: DataConfig, commit: str | None) -> Any | None:
    """Return the builder of a commit that `datasets` has prepared in its cache, if there is exactly one."""
    import datasets
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    owner, name = config.dataset.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE, f"{owner}___{camelcase_to_snakecase(name)}")
    files = folder.glob(f"{config.name or '*'}/*/{commit or '*'}/dataset_info.json")
    # A local folder of the name `user___name` has a hash of another length.
    prepared = [parts for file in files if is_commit((parts := file.parent.parts[-3:])[-1])]
    if len(prepared) != 1:
        return None
    [(config_name, version, commit_hash)] = prepared
    return Cache(repo_id=config.dataset, dataset_name=name, config_name=config_name, version=version, hash=commit_hash)


@contextmanager
def _translate_errors(dataset: str, revision: str | None = None) -> Iterator[None]:
    """Silence `datasets` and turn its errors into starzoo's."""
    import datasets

    try:
        with _silence(), _allow_only_types():
            yield
    except (
        OSError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        datasets.exceptions.DatasetsError,
        *_ARCHIVE_ERRORS,
        *_DESCRIPTION_ERRORS,
    ) as error:
        raise _explain(dataset, error, revision) from error


@contextmanager
def _silence() -> Iterator[None]:
    """Disable the progress bars of `datasets`, and log messages about failures that become starzoo's errors."""
    import datasets

    had_bars = not datasets.are_progress_bars_disabled()
    loggers = {logging.getLogger(name): level for name, level in _LOG_LEVELS.items()}
    levels = {logger: logger.level for logger in loggers}
    datasets.disable_progress_bars()
    try:
        for logger, level in loggers.items():
            logger.setLevel(level)
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()


@contextmanager
def _allow_only_types() -> Iterator[None]:
    """Keep `datasets` from calling a function of PyArrow that a stranger's file names as the type of a column."""
    import pyarrow
    from datasets.features import features

    attributes = dir(pyarrow)
    string_to_arrow = features.string_to_arrow

    def checked_string_to_arrow(name: str) -> Any:
        if not _TYPE.fullmatch(name) and not {name, f"{name}_"}.isdisjoint(attributes):
            raise UntrustedInputError(
                name[:60], "expected the type of a column, got another word", hint="use another data set"
            )
        return string_to_arrow(name)

    features.string_to_arrow = checked_string_to_arrow
    try:
        yield
    finally:
        features.string_to_arrow = string_to_arrow


def _explain(dataset: str, error: Exception, revision: str | None = None) -> StarzooError:
    """Translate an error of `datasets`, by its class and by the errors that caused it."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import RemoteEntryNotFoundError
    from pyarrow import ArrowException

    # `datasets` tries to download optional files: that one of them is missing causes no failure.
    causes = [cause for cause in _exception_chain(error) if not isinstance(cause, RemoteEntryNotFoundError)]
    for cause in causes:
        if isinstance(cause, StarzooError):
            return cause
        if is_disk_full(cause):
            return disk_full_error(dataset)
    reason = _first_line(error)
    if isinstance(error, RuntimeError) and "scripts are no longer supported" in reason:
        return UntrustedInputError(
            dataset,
            "comes with a loading script, which is never run",
            hint="use a data set of image files or Parquet files",
        )
    if isinstance(error, (ArrowException, *_ARCHIVE_ERRORS, *_DESCRIPTION_ERRORS)) or (
        isinstance(error, DatasetsError) and not isinstance(error, FileNotFoundError)
    ):
        return UntrustedInputError(
            dataset, f"cannot be read: {_first_line(error.__cause__ or error)}", hint="repair the files"
        )
    for cause in causes:
        if isinstance(cause, ConnectionError | TimeoutError) or is_client_error(cause):
            hub_error = as_hub_error(cause, dataset, revision, repo_type="dataset")
            if hub_error is not None:
                return hub_error
    hint = "check the data set, its configuration and splits"
    if "Unknown split" in reason:
        hint = "name two of its splits, or two parts of one: train[:80%] and train[80%:]"
    return UsageError(dataset, reason, hint=hint)


def _exception_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes, including those that `from None` hides."""
    seen: list[BaseException] = []
    while error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__ or error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
