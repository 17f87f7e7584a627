"""Check the descriptions of data sets before `datasets` follows them: they may name files of their own folder only."""

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
_TIMEOUT = 100  # seconds, as in `datasets`
_MAX_BYTES = 10_000_000  # of each of these files
_ALLOWED_OPTIONS = {  # others can take any amount of memory: skiprows becomes a set of as many numbers
    *("name", "version", "description", "data_dir", "data_files", "features", "drop_labels", "drop_metadata"),
    *("metadata_filenames", "sep", "delimiter", "names", "column_names", "columns", "field", "encoding"),
    *("quotechar", "escapechar", "doublequote", "skipinitialspace", "keep_linebreaks"),
}
_MAX_SEPARATOR = 3  # characters: pandas reads a longer one as a regular expression, which may never end


def check_folder(folder: Path) -> bool:
    """Check the descriptions of a folder and that no link leads out of it; return whether it has a description."""

    def read(name: str) -> bytes | None:
        file = folder / name
        return read_file(file, _MAX_BYTES, inside=[folder]) if os.path.lexists(file) else None

    is_described = _check(read, str(folder))
    if link := next((link for link in _links(str(folder)) if not is_inside(link, folder)), None):
        raise UntrustedInputError(
            link,
            f"expected a file in {folder}, got a link to {os.path.realpath(link)}",
            hint="put the file itself there, or remove the link",
        )
    return is_described or (folder / f"{folder.name}.py").exists()


def check_repository(dataset: str, revision: str | None) -> str:
    """Check the descriptions of a data set of the Hub, and return the commit that was checked."""
    import datasets
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    api = HfApi(endpoint=datasets.config.HF_ENDPOINT)
    sha = str(revision)
    if not is_commit(revision):
        sha = str(api.dataset_info(dataset, revision=revision, timeout=_TIMEOUT).sha)
        if not is_commit(sha):
            raise HubError(dataset, "the Hub names no commit", hint="check that HF_ENDPOINT is a Hub")
        cache_ref(f"datasets/{dataset}", revision, sha)

    def read(name: str) -> bytes | None:
        with suppress(RemoteEntryNotFoundError):
            url = hf_hub_url(dataset, name, repo_type="dataset", revision=sha, endpoint=api.endpoint)
            size = api.get_hf_file_metadata(url=url).size
            if size is not None and size > _MAX_BYTES:
                raise UntrustedInputError(
                    dataset, f"{name}: expected at most {_MAX_BYTES:,} bytes, got {size:,}", hint="use another data set"
                )
            file = Path(api.hf_hub_download(dataset, name, repo_type="dataset", revision=sha))
            return read_file(file, _MAX_BYTES, inside=[file.parent], subject=f"{dataset}: {name}")
        return None

    _check(read, dataset)
    return sha


def check_builder(builder: Any, dataset: str, folder: Path | None) -> None:
    """Check that `datasets` will read files of the data set only, and with bounded time and memory."""
    for option in fields(builder.config):
        default = option.default if option.default_factory is MISSING else option.default_factory()
        if option.name not in _ALLOWED_OPTIONS and getattr(builder.config, option.name) != default:
            raise UntrustedInputError(
                dataset,
                f"its description sets {option.name!r}, which a data set of images does not need",
                hint="remove it from the README.md of a local copy",
            )
    for files in (getattr(builder.config, "data_files", None) or {}).values():
        for file in files:
            if not (is_inside(file, folder) if folder else str(file).startswith(f"hf://datasets/{dataset}@")):
                raise UntrustedInputError(
                    dataset, f"expected files of its own, got {file}", hint="use another data set"
                )


def _check(read: Callable[[str], bytes | None], dataset: str) -> bool:
    """Check the three files in which `datasets` looks for a description; return whether there is one."""
    card, standalone, legacy = read(_README), read(_YAML), read(_JSON)
    block = front_matter(card) if card else None
    fields_of_card = {} if block is None else _check_yaml(block, f"{dataset}: {_README}")
    if standalone is not None:
        _check_yaml(standalone, f"{dataset}: {_YAML}")
    if legacy is not None:
        parse_json(legacy, f"{dataset}: {_JSON}")
    is_card_only = standalone is None and legacy is None
    return not is_card_only or not fields_of_card.keys().isdisjoint({"configs", "dataset_info"})


def _check_yaml(content: bytes, subject: str) -> Mapping[str, Any]:
    description = parse_yaml(content, subject)
    if not isinstance(description, dict):
        return {}
    for field in ("configs", "dataset_info"):
        value = description.get(field)
        for section in value if isinstance(value, list) else [value]:
            if isinstance(section, dict):
                _check_section(section, subject)
    return description


def _check_section(section: Mapping[str, Any], subject: str) -> None:
    for field in ("data_dir", "data_files", "config_name", "metadata_filenames"):
        for path in _strings(section.get(field)):
            if _leads_out(path):
                raise UntrustedInputError(
                    subject,
                    f"{field}: expected paths in the data set's own folder, got {path!r}",
                    hint="write paths relative to that folder, or remove the entry",
                )
    for field in ("sep", "delimiter"):
        if any(len(text) > _MAX_SEPARATOR for text in _strings(section.get(field))):
            raise UntrustedInputError(
                subject,
                f"{field}: expected at most {_MAX_SEPARATOR} characters, got more",
                hint="separate columns by a comma or tab",
            )


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings in a parsed value, whose depth the parser has bounded."""
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _strings(item)
        case dict():
            for key, item in value.items():
                yield from (key, *_strings(item))


def _leads_out(path: str) -> bool:
    """Return whether a path or pattern could lead out of its folder: absolute, upwards, a URL, or a chain of these."""
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
    """Yield all links in a folder and follow none."""
    folders = [folder]
    while folders:
        with suppress(PermissionError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    yield entry.path
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
