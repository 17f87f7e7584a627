"""Command-line options generated from the fields of a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from starzoo.config import FrozenModel

__all__ = ["FieldOptions"]


@dataclass(frozen=True, kw_only=True)
class FieldOptions:
    """One option for each of some fields of a configuration.

    A parameter `star: Annotated[dict[str, Any], FieldOptions(...)]` of a command gets the values that were given.

    Attributes:
        title: Heading of the options in the help.
        config: The configuration.
        fields: Names of its fields that have an option.
        flags: The option of a field that is not called as the field is.
        default: What the help shows instead of the fields' defaults; empty for nothing.
    """

    title: str
    config: type[FrozenModel]
    fields: Sequence[str]
    flags: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None

    def annotations(self) -> Iterator[tuple[str, Any]]:
        """Yield the name of each field and its option as Typer reads it."""
        for name in self.fields:
            info = self.config.model_fields[name]
            kind, choices = _option_type(info.annotation), _choices(info.annotation)
            option = typer.Option(
                self.flags.get(name, f"--{name.replace('_', '-')}"),
                help=(info.description or "")
                + (f" One of: {', '.join(choices)}." if choices else "")
                + (" Repeatable." if kind == list[str] else ""),
                show_default=_shown(info.default) if self.default is None else self.default or False,
                rich_help_panel=self.title,
            )
            yield name, Annotated[kind | None, option]

    def collect(self, values: dict[str, Any]) -> dict[str, Any]:
        """Move the options of this group out of a command's values, and return those that were given."""
        options = {name: values.pop(name) for name in self.fields}
        return {name: value for name, value in options.items() if value is not None}


def _option_type(annotation: Any) -> Any:
    """Return the type of a field's option: a number, repeated texts or a text, which the configuration checks."""
    if get_origin(annotation) is tuple:
        return list[str]
    return next((kind for kind in (int, float) if annotation in (kind, kind | None)), str)


def _choices(annotation: Any) -> tuple[str, ...]:
    """Return the values of a `Literal`, alone or inside of another type."""
    if get_origin(annotation) is Literal:
        return get_args(annotation) if len(get_args(annotation)) > 1 else ()
    return next(filter(None, map(_choices, get_args(annotation))), ())


def _shown(default: Any) -> str | bool:
    """Return a default as the help shows it; False shows nothing."""
    if isinstance(default, tuple):
        default = ", ".join(default)
    return False if default in (None, "") else str(default)
