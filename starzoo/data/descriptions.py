"""What says how to read a data set, checked before `datasets` follows it: it may name files of its own folder alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from starzoo.errors import HubError, UntrustedInputError
from starzoo.files import is_inside, read_file
from starzoo.hub.names import is_commit
from starzoo.hub.offline import cache_ref
from starzoo.strict_json import parse_json
from starzoo.strict_yaml import front_matter, parse_yaml

__all__ = ["check_builder", "check_folder", "check_repository"]

_README, _YAML, _JSON = "README.md", ".huggingface.yaml", "dataset_infos.json"
_TIMEOUT = 100  # seconds, as `datasets` waits for an answer
_LIMIT = 10_000_000  # bytes of one of these files
_OPTIONS = {  # that a description may set; others of `datasets` take any amount of memory, such as skiprows
    *("name", "version", "description", "data_dir", "data_files", "features", "drop_labels", "drop_metadata"),
    *("metadata_filenames", "sep", "delimiter", "names", "column_names", "columns", "field", "encoding"),
    *("quotechar", "escapechar", "doublequote", "skipinitialspace", "keep_linebreaks"),
}
_LONGEST_SEPARATOR = 3  # characters: pandas takes a longer one for a regular expression, which may take for ever


def check_folder(folder: Path) -> bool:
    """Check what describes a folder, and that no link in it leads out."""

    def read(name: str) -> bytes | None:
        file = folder / name
        return read_file(file, _LIMIT, inside=[folder]) if os.path.lexists(file) else None

    is_described = _check(read, str(folder))
    if link := next((link for link in _links(str(folder)) if not is_inside(link, folder)), None):
        raise UntrustedInputError(
            link,
            f"expected a file in {folder}, got a link to {os.path.realpath(link)}",
            hint="put the file itself there, or remove the link",
        )
    return is_described or (folder / f"{folder.name}.py").exists()


def check_repository(dataset: str, revision: str | None) -> str:
    """Check what describes a data set of the Hub."""
    import datasets
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    hub = HfApi(endpoint=datasets.config.HF_ENDPOINT)
    commit = revision
    if revision is None or not is_commit(revision):
        commit = hub.dataset_info(dataset, revision=revision, timeout=_TIMEOUT).sha
        if not is_commit(commit):
            raise HubError(dataset, "the Hub names no commit", hint="is HF_ENDPOINT a Hub?")
        cache_ref(f"datasets/{dataset}", revision, str(commit))
    sha = str(commit)

    def read(name: str) -> bytes | None:
        with suppress(RemoteEntryNotFoundError):
            url = hf_hub_url(dataset, name, repo_type="dataset", revision=sha, endpoint=hub.endpoint)
            size = hub.get_hf_file_metadata(url=url).size
            if size is not None and size > _LIMIT:
                raise UntrustedInputError(
                    dataset, f"{name}: expected at most {_LIMIT:,} bytes, got {size:,}", hint="use another data set"
                )
            file = Path(hub.hf_hub_download(dataset, name, repo_type="dataset", revision=sha))
            return read_file(file, _LIMIT, inside=[file.parent], subject=f"{dataset}: {name}")
        return None

    _check(read, dataset)
    return sha


def check_builder(builder: Any, dataset: str, folder: Path | None) -> None:
    """Make sure that `datasets` is about to read files of the data set alone, in no way that could take for ever."""
    for option in fields(builder.config):
        usual = option.default if option.default_factory is MISSING else option.default_factory()
        if option.name not in _OPTIONS and getattr(builder.config, option.name) != usual:
            raise UntrustedInputError(
                dataset,
                f"its description sets {option.name!r}, which images need not",
                hint="remove it from the README.md of a local copy",
            )
    for files in (getattr(builder.config, "data_files", None) or {}).values():
        for file in files:
            if not (is_inside(file, folder) if folder else str(file).startswith(f"hf://datasets/{dataset}@")):
                raise UntrustedInputError(
                    dataset, f"expected files of its own, got {file}", hint="use another data set"
                )


def _check(read: Callable[[str], bytes | None], dataset: str) -> bool:
    """Check the three files that `datasets` takes for a description, and say whether they describe anything."""
    card, separate, legacy = read(_README), read(_YAML), read(_JSON)
    block = front_matter(card) if card else None
    described = [
        _check_yaml(content, f"{dataset}: {name}")
        for content, name in ((block, _README), (separate, _YAML))
        if content is not None
    ]
    if legacy is not None:
        parse_json(legacy, f"{dataset}: {_JSON}")
    keys = {key for each in described for key in each}
    return separate is not None or legacy is not None or not keys.isdisjoint({"configs", "dataset_info"})


def _check_yaml(content: bytes, subject: str) -> Mapping[str, Any]:
    description = parse_yaml(content, subject)
    if not isinstance(description, dict):
        return {}
    for field in ("configs", "dataset_info"):
        stated = description.get(field)
        for each in stated if isinstance(stated, list) else [stated]:
            if isinstance(each, dict):
                _check_configuration(each, subject)
    return description


def _check_configuration(values: Mapping[str, Any], subject: str) -> None:
    for field in ("data_dir", "data_files", "config_name", "metadata_filenames"):
        for path in _texts(values.get(field)):
            if _leads_out(path):
                raise UntrustedInputError(
                    subject,
                    f"{field}: expected paths in the data set's own folder, got {path!r}",
                    hint="write paths relative to that folder, or remove the entry",
                )
    for field in ("sep", "delimiter"):
        if any(len(text) > _LONGEST_SEPARATOR for text in _texts(values.get(field))):
            raise UntrustedInputError(
                subject,
                f"{field}: expected at most {_LONGEST_SEPARATOR} characters, got more",
                hint="separate columns by a comma or tab",
            )


def _texts(value: Any) -> Iterator[str]:
    """All text in a value, whatever its shape; the reader has bounded its depth."""
    match value:
        case str():
            yield value
        case list():
            for each in value:
                yield from _texts(each)
        case dict():
            for key, each in value.items():
                yield from (key, *_texts(each))


def _leads_out(path: str) -> bool:
    """Whether a path or pattern could be understood as one outside: absolute, upwards, a URL, or a chain of these."""
    first, *_ = parts = path.replace("\\", "/").split("/")
    return (
        path.startswith(("/", "\\", "~"))
        or ".." in parts
        or ":" in first
        or "::" in path
        or "://" in path
        or not path.isprintable()
    )


def _links(folder: str) -> Iterator[str]:
    """All links in a folder; none is followed."""
    folders = [folder]
    while folders:
        with suppress(PermissionError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    yield entry.path
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
