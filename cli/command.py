"""How a function becomes a Typer command: groups of options, and the output."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, ClassVar, get_type_hints

import typer

from starzoo.hub.offline import offline_mode

__all__ = ["command"]


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How every command shows its result; `Output.from_arguments` has read these before the command line is parsed."""

    title: ClassVar = "Output"
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only what a script needs, and no progress.")] = False
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, and warnings of libraries.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """Whether a command that reads models or images may ask the Hub for them."""

    title: ClassVar = "Hub"
    offline: Annotated[
        bool, typer.Option("--offline", help="Send no request: use what is on this machine and in the local cache.")
    ] = False


def command(function: Callable[..., None], *, reads_hub: bool = False) -> Callable[..., None]:
    """Make what Typer understands of a function whose parameters may be groups of options.

    A parameter annotated with a dataclass stands for one option per field. The parameter `out` is not an option but the
    `Output` of this call. Every command gets the options of `OutputOptions`.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = [_keyword("context", typer.Context)]
    for name, parameter in inspect.signature(function).parameters.items():
        if name in groups:
            parameters += _keywords_of(groups[name])
        elif name != "out":
            parameters.append(_keyword(name, hints[name], parameter.default))
    if reads_hub:
        parameters += _keywords_of(HubOptions)
    parameters += _keywords_of(OutputOptions)

    def run(context: typer.Context, **values: Any) -> None:
        for option in fields(OutputOptions):
            del values[option.name]
        for name, group in groups.items():
            values[name] = group(**{option.name: values.pop(option.name) for option in fields(group)})
        with offline_mode(values.pop("offline", False)):
            function(out=context.obj, **values)

    run.__name__, run.__doc__ = function.__name__.rstrip("_"), function.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect looks for it
    return run


def _keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _keywords_of(group: Any) -> list[inspect.Parameter]:
    """One parameter per field of a group; `--help` shows them together under the group's title."""
    hints = get_type_hints(group, include_extras=True)
    for option in fields(group):
        [info] = hints[option.name].__metadata__
        info.rich_help_panel = group.title
    return [_keyword(option.name, hints[option.name], option.default) for option in fields(group)]
