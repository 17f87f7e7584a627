"""Data sets as the library `datasets` opens them: without its noise, patiently, and with its failures as ours."""

from __future__ import annotations

import errno
import logging
import lzma
import math
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starzoo.config import DataConfig
from starzoo.errors import HubError, ResourceError, StarzooError, UntrustedInputError, UsageError
from starzoo.hub.failures import HubBusyError, as_hub_error, is_of_the_client
from starzoo.hub.offline import GO_ONLINE, is_offline
from starzoo.hub.patience import patiently

__all__ = ["Splits", "load_splits"]

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_BROKEN_ARCHIVES = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError)


@dataclass(frozen=True)
class Splits:
    """Some splits of a data set.

    Attributes:
        rows: Each a `datasets.Dataset`.
        revision: The commit that they are from, 40 hexadecimal digits; None where they are not from the Hub.
    """

    rows: Sequence[Any]
    revision: str | None = None


def load_splits(config: DataConfig, splits: Sequence[str]) -> Splits:
    """Open some splits of a data set.

    Args:
        config: Names a local folder or a data set of the Hub.
        splits: The names of the splits, or what `datasets` understands as such (`train[:80%]`).

    Returns:
        The splits, in this order.

    Raises:
        UsageError: There is no such folder, configuration or split.
        HubError: There is no such data set or revision on the Hub, or it cannot be reached.
        UntrustedInputError: It is damaged, or comes with a loading script.
        ResourceError: The disk is full.
    """
    import datasets

    folder = Path(config.dataset).expanduser()
    if folder.is_dir():
        with _understood(config.dataset):
            return Splits(datasets.load_dataset(str(folder.resolve()), config.name, split=list(splits)))
    # A bare word would name one of the loaders of `datasets` ("json"), which reads whatever lies in the current folder.
    if not _HUB_ID.fullmatch(config.dataset):
        raise UsageError(
            f"{config.dataset}: no such folder, and no data set id of the Hub",
            hint="give `digits`, a folder, or an id such as uoft-cs/cifar10",
            subject=config.dataset,
        )

    def download() -> Splits:
        with _understood(config.dataset):
            builder = datasets.load_dataset_builder(config.dataset, config.name, revision=config.revision)
            _refuse_another_revision(config, builder)
            builder.download_and_prepare()
            return Splits(builder.as_dataset(split=list(splits)), builder.hash)

    return patiently(download, config.dataset, config.revision, patience=math.inf)


@contextmanager
def _understood(dataset: str) -> Iterator[None]:
    """Let `datasets` work quietly, and raise its failures as ours."""
    import datasets

    try:
        with _quiet():
            yield
    except (
        OSError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        datasets.exceptions.DatasetsError,
        *_BROKEN_ARCHIVES,
    ) as error:
        raise _explain(dataset, error) from error


def _refuse_another_revision(config: DataConfig, builder: Any) -> None:
    """Refuse what `datasets` takes where the Hub does not give a data set: that of the cache which was opened last.

    Raises:
        HubBusyError: The Hub should have given it.
        HubError: Offline, and it is not known to be the revision that is asked for.
    """
    from datasets.packaged_modules.cache.cache import Cache
    from huggingface_hub import HfApi

    name, revision = config.dataset, config.revision
    if not isinstance(builder, Cache):
        return
    if not is_offline():
        raise HubBusyError(
            f"{name}: the Hub does not give it now, and it may have changed since it came into the cache",
            hint="try again later; --offline takes what is in the cache",
            subject=name,
        )
    if revision and builder.hash != HfApi().resolve_revision(name, repo_type="dataset", revision=revision).resolved:
        raise HubError(
            f"{name}: the cache has another revision than {revision!r}, and offline",
            hint=f"{GO_ONLINE}, and run it once",
            subject=name,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep `datasets` from drawing its own bars, and all from logging what our error will say, or what is no matter."""
    import datasets

    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    cards = logging.getLogger("huggingface_hub.repocard")  # warns of every README without metadata
    level_of_cards = cards.level
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    cards.setLevel(logging.ERROR)
    try:
        yield
    finally:
        cards.setLevel(level_of_cards)
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def _explain(dataset: str, error: Exception) -> StarzooError:
    """What went wrong inside `datasets.load_dataset`, in the terms of the exit codes."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub import constants
    from pyarrow import ArrowException

    reasons, reason = list(_behind(error)), _first_line(error)
    if any(isinstance(each, OSError) and each.errno == errno.ENOSPC for each in reasons):
        return ResourceError(f"{dataset}: the disk is full", hint="free space or set HF_HOME", subject=dataset)
    if isinstance(error, DatasetNotFoundError):  # which does not keep the client's error
        if "gated" in reason:
            page = f"{constants.ENDPOINT}/datasets/{dataset}"
            what, hint = "is gated", f"ask for access at {page} and set HF_TOKEN"
        elif "Revision" in reason:
            what, hint = reason, f"see {constants.ENDPOINT}/datasets/{dataset}/commits for the revisions there are"
        else:
            what = "no such data set on the Hub, or a private one, and no such folder"
            hint = "check the name, or set HF_TOKEN if it is private"
        return HubError(f"{dataset}: {what}", hint=hint, subject=dataset)
    if isinstance(error, RuntimeError) and "scripts are no longer supported" in reason:
        return UntrustedInputError(
            f"{dataset}: comes with a loading script, which is never run",
            hint="use a data set of image files or Parquet files",
            subject=dataset,
        )
    if isinstance(error, (ArrowException, *_BROKEN_ARCHIVES)) or (
        isinstance(error, DatasetsError) and not isinstance(error, FileNotFoundError)
    ):
        return UntrustedInputError(
            f"{dataset}: cannot be read: {_first_line(error.__cause__ or error)}",
            hint="repair the files",
            subject=dataset,
        )
    if isinstance(error, ConnectionError | TimeoutError):  # after the client has tried often, or not at all
        what, hint = "the Hub cannot be reached", "check the network; HF_HUB_OFFLINE=1 uses the cache"
        if is_offline():
            what, hint = "not in the local cache, and offline", f"{GO_ONLINE}, and run it once"
        return HubError(f"{dataset}: {what}", hint=hint, subject=dataset)
    known = next((as_hub_error(each, dataset) for each in reasons if is_of_the_client(each)), None)
    if known is not None:
        return known
    return UsageError(f"{dataset}: {reason}", hint="check the data set, its configuration and splits", subject=dataset)


def _behind(error: BaseException) -> Iterator[BaseException]:
    """An exception and what led to it, also what `from None` hides."""
    seen: list[BaseException] = []
    while error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__ or error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
