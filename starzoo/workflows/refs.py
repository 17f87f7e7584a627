"""References of models: folders of them, and zoo files that list them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from starzoo.config import FrozenModel
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.files import check_inside, read_file
from starzoo.star.manifest import MANIFEST
from starzoo.strict_yaml import YAML_LIMIT, parse_yaml

__all__ = ["ZooFile", "expand_refs", "read_zoo_file", "resolve_zoo"]

Ref = Annotated[str, Field(min_length=1)]


class ZooFile(FrozenModel):
    """References of models.

    Attributes:
        sources: The models that a star is fitted on.
        holdouts: The models that it never sees.
    """

    sources: tuple[Ref, ...] = ()
    holdouts: tuple[Ref, ...] = ()


def resolve_zoo(sources: Sequence[str], holdouts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return references of single models; a zoo file among the sources also names held-outs."""
    files = [ref for ref in sources if _is_zoo_file(ref) and read_zoo_file(Path(ref)).holdouts]
    return expand_refs(sources, of="sources"), expand_refs([*files, *holdouts], of="holdouts")


def expand_refs(refs: Sequence[str], *, of: Literal["sources", "holdouts", "all"] = "all") -> list[str]:
    """Replace zoo files and folders of models, as `starzoo train` writes them, by references of single models."""
    models: list[str] = []
    for ref in refs:
        models += _models_of_file(ref, of) if _is_zoo_file(ref) else _models_in(Path(ref)) or [ref]
    return models


def _is_zoo_file(ref: str) -> bool:
    return ref.endswith((".yaml", ".yml")) and not Path(ref).is_dir()


def _models_of_file(file: str, of: Literal["sources", "holdouts", "all"]) -> list[str]:
    zoo = read_zoo_file(Path(file))
    refs = {"sources": zoo.sources, "holdouts": zoo.holdouts, "all": (*zoo.sources, *zoo.holdouts)}[of]
    if of == "holdouts" and not refs:
        raise UsageError(file, "names no held-outs", hint="list them under `holdouts:`")
    for ref in filter(_is_zoo_file, refs):
        raise UsageError(file, f"names {ref}, another zoo file", hint="list its models")
    return expand_refs(refs)


def _models_in(folder: Path) -> list[str]:
    """Return the models in a folder of models, without stars."""
    if (folder / "config.json").exists():  # the folder is a model
        return []
    models = [config.parent for config in folder.glob("*/config.json") if not (config.parent / MANIFEST).exists()]
    for model in models:
        check_inside(model, folder)
    return [str(model) for model in sorted(models, key=_natural_key)]


def _natural_key(path: Path) -> list[tuple[int, str]]:
    """Sort seed-2 before seed-10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]


def read_zoo_file(file: Path) -> ZooFile:
    """Read a YAML file with the lists `sources` and `holdouts`; relative folders are relative to the file."""
    hint = "write `sources:` and `holdouts:`, each a list of user/repo@revision or ./folder"
    if not os.path.lexists(file):
        raise UsageError(str(file), "cannot read it as a zoo file: No such file or directory", hint=hint)
    content = read_file(file, YAML_LIMIT, inside=[file.parent])
    try:
        zoo = ZooFile.model_validate(parse_yaml(content, str(file)))
    except UntrustedInputError as error:
        raise UsageError(str(file), error.problem, hint=hint) from error
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        raise UsageError(str(file), f"cannot read it as a zoo file: {reason}", hint=hint) from error
    if not zoo.sources and not zoo.holdouts:
        raise UsageError(str(file), "names no model", hint=hint)

    def resolve(ref: str) -> str:
        return str((file.parent / ref).absolute()) if ref.startswith(("./", "../")) else ref

    return ZooFile(sources=tuple(map(resolve, zoo.sources)), holdouts=tuple(map(resolve, zoo.holdouts)))
