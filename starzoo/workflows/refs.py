"""Zoo files: references of sources and held-outs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from starzoo.config import FrozenModel
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.files import read_file
from starzoo.strict_yaml import YAML_LIMIT, parse_yaml

__all__ = ["ZooFile", "is_zoo_file", "read_zoo_file"]

Ref = Annotated[str, Field(min_length=1)]


class ZooFile(FrozenModel):
    """References of models.

    Attributes:
        sources: The models that a star is fitted on.
        holdouts: The models that it never sees.
    """

    sources: tuple[Ref, ...] = ()
    holdouts: tuple[Ref, ...] = ()


def is_zoo_file(ref: str) -> bool:
    """Whether a reference means a zoo file rather than a model."""
    return ref.endswith((".yaml", ".yml"))


def read_zoo_file(file: Path) -> ZooFile:
    """Read a YAML file with the lists `sources` and `holdouts`."""
    hint = "write `sources:` and `holdouts:`, each a list of user/repo@revision or ./folder"
    if not os.path.lexists(file):
        raise UsageError(str(file), "is no zoo file: No such file or directory", hint=hint)
    content = read_file(file, YAML_LIMIT, inside=[file.parent])
    try:
        zoo = ZooFile.model_validate(parse_yaml(content, str(file)))
    except UntrustedInputError as error:
        raise UsageError(str(file), error.problem, hint=hint) from error
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        raise UsageError(str(file), f"is no zoo file: {reason}", hint=hint) from error
    if not zoo.sources and not zoo.holdouts:
        raise UsageError(str(file), "names no model", hint=hint)
    near = [
        tuple(str((file.parent / ref).absolute()) if ref.startswith(("./", "../")) else ref for ref in refs)
        for refs in (zoo.sources, zoo.holdouts)
    ]
    return ZooFile(sources=near[0], holdouts=near[1])
