"""Make a Typer command of a function: its generated options, and the output."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from starzoo.hub.offline import offline_mode

from .field_options import FieldOptions

__all__ = ["command"]

_HUB = {
    "offline": Annotated[
        bool,
        typer.Option(
            "--offline",
            help="Send no request: use what is on this machine and in the local cache.",
            rich_help_panel="Hub",
        ),
    ]
}
_OUTPUT = {  # `Output.from_arguments` reads these before the command line is parsed
    name: Annotated[bool, typer.Option(f"--{name}", help=help, rich_help_panel="Output")]
    for name, help in {
        "json": "Print one JSON document on stdout.",
        "quiet": "Print only what a script needs, and no progress.",
        "debug": "Show the traceback of an error, and the warnings of libraries.",
    }.items()
}


def command(function: Callable[..., None], *, reads_hub: bool = False) -> Callable[..., None]:
    """Make a function that Typer understands.

    The parameter `out` is not an option but the `Output` of the call. A parameter annotated with `FieldOptions` stands
    for one option per field. Every command gets the options of `_OUTPUT`, and one that reads the Hub those of `_HUB`.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, FieldOptions] = {}
    parameters = [_keyword("context", typer.Context)]
    for name, parameter in inspect.signature(function).parameters.items():
        metadata = getattr(hints[name], "__metadata__", (None,))
        if isinstance(metadata[0], FieldOptions):
            groups[name] = metadata[0]
            parameters += [_keyword(field, annotation, None) for field, annotation in groups[name].annotations()]
        elif name != "out":
            parameters.append(_keyword(name, hints[name], parameter.default))
    flags = {**(_HUB if reads_hub else {}), **_OUTPUT}
    parameters += [_keyword(name, annotation, False) for name, annotation in flags.items()]

    def run(context: typer.Context, **values: Any) -> None:
        for name in _OUTPUT:
            del values[name]
        offline = values.pop("offline", False)
        for name, group in groups.items():
            values[name] = group.collect(values)
        with offline_mode(offline):
            function(out=context.obj, **values)

    run.__name__, run.__doc__ = function.__name__.rstrip("_"), function.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect looks for it
    return run


def _keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
