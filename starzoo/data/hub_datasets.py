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
from starzoo.errors import HubError, ResourceError, StarzooError, UntrustedInputError, UsageError
from starzoo.hub.error_mapping import as_hub_error, is_client_error, is_disk_full
from starzoo.hub.names import is_commit
from starzoo.hub.offline import ONLINE_HINT, is_offline, offline_mode
from starzoo.hub.retry import with_retries

__all__ = ["LoadedSplits", "load_splits", "warn_once"]

_logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_BROKEN_DESCRIPTIONS = (  # which `datasets` trusts
    *(yaml.YAMLError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, ImportError),
)
_TYPE = re.compile(
    r"json|null|bool_?|u?int(8|16|32|64)|float(16|32|64)|(large_)?(binary|string|utf8)|(binary|string)_view|date(32|64)|"
    r"(time(32|64)|timestamp|duration|decimal(32|64|128|256)|fixed_size_binary)[\[(].*"
)
_READERS = {"arrow", "cache", "csv", "hdf5", "imagefolder", "json", "parquet", "webdataset"}
_BROKEN_ARCHIVES = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError)


@dataclass(frozen=True)
class LoadedSplits:
    """Some splits of a data set.

    Attributes:
        rows: Each a `datasets.Dataset`.
        names: What each is called where it is, such as `validation` or `train[:80%]`.
        revision: The commit that they are from, 40 hexadecimal digits; None where they are not from the Hub.
        folder: Where relative paths of images start; None where they are not from a local folder.
        image_folders: The folders in which images may lie as files of their own; none where they must be in the tables.
    """

    rows: Sequence[Any]
    names: Sequence[str]
    revision: str | None = None
    folder: Path | None = None
    image_folders: Sequence[Path] = ()


def load_splits(config: DataConfig, splits: Sequence[str]) -> LoadedSplits:
    """Open some splits of a data set."""
    import datasets

    folder = Path(config.dataset).expanduser()
    if folder.is_dir():
        with _translate_errors(config.dataset):
            folder = folder.resolve()
            is_described = check_folder(folder) or config.name is not None
            found = None if is_described else scan_folder(folder, [name for each in splits for name in _names(each)])
            if found is not None:
                return _open_class_folders(config.dataset, folder, found, splits)
            return _prepare(config.dataset, datasets.load_dataset_builder(str(folder), config.name), splits, folder)
    # A bare word would name one of the loaders of `datasets` ("json"), which reads whatever lies in the current folder.
    if not _HUB_ID.fullmatch(config.dataset):
        raise UsageError(
            config.dataset,
            "no such folder, and no data set id of the Hub",
            hint="give `digits`, a folder, or an id such as uoft-cs/cifar10",
        )

    def download() -> LoadedSplits:
        with _translate_errors(config.dataset, config.revision):
            return _prepare(config.dataset, _dataset_builder(config), splits)

    return with_retries(download, config.dataset, config.revision, max_wait=math.inf)


@cache
def warn_once(message: str) -> None:
    """Warn once in a process, since a data set is opened more than once in a run."""
    _logger.warning("%s", message)


def _prepare(dataset: str, builder: Any, splits: Sequence[str], folder: Path | None = None) -> LoadedSplits:
    import datasets

    if builder.name not in _READERS:
        raise UsageError(
            dataset,
            f"expected images or tables, got files of the kind {builder.name}",
            hint="use a data set of image files or Parquet files",
        )
    check_builder(builder, dataset, folder)
    builder.download_and_prepare()
    names = _resolve(dataset, splits, builder.info.splits)
    image_folders = [folder] if folder else []
    if builder.info.builder_name == "imagefolder":  # which writes the paths itself; into a table anybody may write them
        downloads = Path(datasets.config.HF_DATASETS_CACHE) / "downloads"
        image_folders += [downloads / "extracted"] if folder else [downloads, _hub_cache(dataset)]
    return LoadedSplits(builder.as_dataset(split=names), names, None if folder else builder.hash, folder, image_folders)


def _hub_cache(dataset: str) -> Path:
    """Where the client keeps the files of a data set of the Hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"datasets--{dataset.replace('/', '--')}"


def _open_class_folders(
    dataset: str, folder: Path, found: Mapping[str, Sequence[str]], splits: Sequence[str]
) -> LoadedSplits:
    """Splits of a folder of class folders."""
    import datasets

    names = _resolve(dataset, splits, found)
    wanted = {name: found[name] for each in names for name in _names(each) if name in found}
    class_of = {path: normalize("NFC", path.split("/")[-2]) for paths in wanted.values() for path in paths}
    classes = sorted(set(class_of.values()))
    index = {name: label for label, name in enumerate(classes)}
    features = datasets.Features({
        "image": datasets.Image(decode=False),
        "label": datasets.ClassLabel(names=classes),
    })
    rows = {
        name: datasets.Dataset.from_dict(
            {"image": [f"{folder}/{path}" for path in paths], "label": [index[class_of[path]] for path in paths]},
            features=features,
        )
        for name, paths in wanted.items()
    }
    sizes = {name: len(paths) for name, paths in found.items()}

    # A folder has no order but that of its classes: a plain train[:80%] would hold other ones than train[80%:].
    def take(split: str) -> Any:
        parts = []
        for part in datasets.ReadInstruction.from_spec(split).to_absolute(sizes):
            whole, chosen = rows[part.splitname], slice(part.from_, part.to)
            if chosen != slice(0, len(whole)):
                warn_once(
                    f"{dataset}: parts of a split are drawn at random, always the same, in proportion from each class"
                )
                whole = whole.select(np.sort(spread_classes(np.array(whole["label"]))[chosen]))
            parts.append(whole)
        return datasets.concatenate_datasets(parts)

    return LoadedSplits([take(name) for name in names], names, folder=folder, image_folders=[folder])


def _resolve(dataset: str, splits: Sequence[str], available: Collection[str]) -> list[str]:
    """The wanted splits, with their slices, under the names that they have; one that is not there keeps its name."""
    resolved = []
    for split in splits:
        parts = []
        for part in split.split("+"):
            name, bracket, rest = part.strip().partition("[")
            found = find_split(name, available) or name
            if found != name:
                warn_once(f"{dataset}: has no split {name!r}; {found!r} is taken")
            parts.append(f"{found}{bracket}{rest}")
        resolved.append("+".join(parts))
    return resolved


def _names(split: str) -> list[str]:
    """The names in an instruction such as `train[:80%]+extra`."""
    return [part.strip().partition("[")[0] for part in split.split("+")]


@contextmanager
def _translate_errors(dataset: str, revision: str | None = None) -> Iterator[None]:
    """Let `datasets` work quietly, and raise its failures as ours."""
    import datasets

    try:
        with _quiet(), _only_types():
            yield
    except (
        OSError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        datasets.exceptions.DatasetsError,
        *_BROKEN_ARCHIVES,
        *_BROKEN_DESCRIPTIONS,
    ) as error:
        raise _explain(dataset, error, revision) from error


# Where `datasets` cannot have what is asked for, it takes what its cache made last, of whatever commit. That is left to
# it offline alone, and for a data set of which no commit is asked for or known.


def _dataset_builder(config: DataConfig) -> Any:
    """What makes a data set of the Hub, from there or, where it cannot differ, from the cache."""
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    name, revision, offline = config.dataset, config.revision, _is_offline()
    commit = revision if is_commit(revision) else _commit_in_cache(config) if offline else None
    if offline and (commit or revision):
        if kept := _prepared_in_cache(config, commit):
            return kept
        what = f"revision {revision!r} is" if revision else "it is"
        hint = f"{ONLINE_HINT}, and run it once"
        raise HubError(name, f"{what} not in the local cache, and offline", hint=hint)
    if offline:
        builder = datasets.load_dataset_builder(name, config.name)
        if not is_commit(builder.hash):  # a local folder can be called as the cache calls a data set of the Hub
            raise HubError(name, "not in the local cache, and offline", hint=f"{ONLINE_HINT}, and run it once")
        return builder
    try:
        builder = datasets.load_dataset_builder(name, config.name, revision=check_repository(name, revision))
    except Exception as error:
        if not (isinstance(error, HubError) or is_client_error(error)) or not _cache(name).is_dir():
            raise
        builder = None
    if builder is not None and not isinstance(builder, Cache):
        return builder
    if kept := _prepared_in_cache(config, commit):
        return kept
    _raise_access_error(name)
    raise HubError(
        name,
        "the Hub does not give it now, and it may have changed since it came into the cache",
        hint="try again later; --offline takes what is in the cache",
    )


def _is_offline() -> bool:
    import datasets

    return is_offline() or bool(datasets.config.HF_HUB_OFFLINE)  # which HF_DATASETS_OFFLINE is too


def _commit_in_cache(config: DataConfig) -> str | None:
    """The commit that a revision was at when the client last asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionResolutionError

    with offline_mode(), suppress(RevisionResolutionError, OSError):
        found: str = HfApi().resolve_revision(config.dataset, repo_type="dataset", revision=config.revision).resolved
        return found
    return None


def _prepared_in_cache(config: DataConfig, commit: str | None) -> Any | None:
    """What the cache of `datasets` has made of one commit."""
    from datasets.packaged_modules.cache.cache import Cache

    if commit is None:
        return None
    whole = [
        file.parent.parts for file in _cache(config.dataset).glob(f"{config.name or '*'}/*/{commit}/dataset_info.json")
    ]
    if len(whole) != 1:
        return None
    *_, configuration, version, _ = whole[0]
    return Cache(
        repo_id=config.dataset,
        dataset_name=config.dataset.split("/")[1],
        config_name=configuration,
        version=version,
        hash=commit,
    )


def _cache(dataset: str) -> Path:
    """Where `datasets` keeps what it has made of a data set of the Hub."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    owner, name = dataset.split("/")
    return Path(datasets.config.HF_DATASETS_CACHE, f"{owner}___{camelcase_to_snakecase(name)}")


def _raise_access_error(dataset: str) -> None:
    """Let the Hub itself say why it does not give a data set, as an error, if it does."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    try:
        HfApi().auth_check(dataset, repo_type="dataset")
    except GatedRepoError as error:
        raise _gated(dataset) from error
    except Exception as error:
        known = as_hub_error(error, dataset)
        if known is None:
            raise
        if isinstance(error, HfHubHTTPError):
            raise known from error
        raise HubError(dataset, known.problem, hint=known.hint) from error  # the client has tried often


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep `datasets` from drawing its own bars, and all from logging what our error will say, or what is no matter."""
    import datasets

    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    loggers = [logging.getLogger(f"huggingface_hub.{name}") for name in ("repocard", "hf_api")]
    levels = [logger.level for logger in loggers]
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    for logger in loggers:  # READMEs without metadata, and what is found in the cache offline
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


@contextmanager
def _only_types() -> Iterator[None]:
    """Keep `datasets` from calling what a stranger names as the type of a column: it calls any function of PyArrow."""
    import pyarrow
    from datasets.features import features

    known = dir(pyarrow)
    make = features.string_to_arrow

    def make_type(name: str) -> Any:
        if not _TYPE.fullmatch(name) and not {name, f"{name}_"}.isdisjoint(known):
            raise UntrustedInputError(
                name[:60], "expected the type of a column, got another word", hint="use another data set"
            )
        return make(name)

    features.string_to_arrow = make_type
    try:
        yield
    finally:
        features.string_to_arrow = make


def _explain(dataset: str, error: Exception, revision: str | None = None) -> StarzooError:
    """What went wrong inside `datasets.load_dataset`, in the terms of the exit codes."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    from pyarrow import ArrowException

    reasons, reason = list(_exception_chain(error)), _first_line(error)
    for each in reasons:
        if isinstance(each, StarzooError):
            return each
        if is_disk_full(each):
            return ResourceError(dataset, "the disk is full", hint="free space or set HF_HOME")
    if isinstance(error, DatasetNotFoundError | RepositoryNotFoundError | RevisionNotFoundError):
        if "gated" in reason or isinstance(error, GatedRepoError):
            return _gated(dataset)
        what = "no such data set on the Hub, or a private one, and no such folder"
        hint = "check the name, or set HF_TOKEN if it is private"
        if isinstance(error, RevisionNotFoundError):
            what = f"no revision {revision!r}"
            hint = f"see {constants.ENDPOINT}/datasets/{dataset}/commits for the revisions there are"
        return HubError(dataset, f"{what}", hint=hint)
    if isinstance(error, RuntimeError) and "scripts are no longer supported" in reason:
        return UntrustedInputError(
            dataset,
            "comes with a loading script, which is never run",
            hint="use a data set of image files or Parquet files",
        )
    if isinstance(error, (ArrowException, *_BROKEN_ARCHIVES, *_BROKEN_DESCRIPTIONS)) or (
        isinstance(error, DatasetsError) and not isinstance(error, FileNotFoundError)
    ):
        return UntrustedInputError(
            dataset, f"cannot be read: {_first_line(error.__cause__ or error)}", hint="repair the files"
        )
    if isinstance(error, ConnectionError | TimeoutError):  # after the client has tried often, or not at all
        what, hint = "the Hub cannot be reached", "check the network; HF_HUB_OFFLINE=1 uses the cache"
        if _is_offline():
            what, hint = "not in the local cache, and offline", f"{ONLINE_HINT}, and run it once"
        return HubError(dataset, f"{what}", hint=hint)
    known = next((as_hub_error(each, dataset) for each in reasons if is_client_error(each)), None)
    if known is not None:
        return known
    hint = "check the data set, its configuration and splits"
    if "Unknown split" in reason:
        hint = "name two of its splits, or two parts of one: train[:80%] and train[80%:]"
    return UsageError(dataset, f"{reason}", hint=hint)


def _gated(dataset: str) -> HubError:
    from huggingface_hub import constants

    page = f"{constants.ENDPOINT}/datasets/{dataset}"
    return HubError(dataset, "is gated", hint=f"ask for access at {page} and set HF_TOKEN")


def _exception_chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what led to it, also what `from None` hides."""
    seen: list[BaseException] = []
    while error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__ or error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
