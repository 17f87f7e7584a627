"""The program `starzoo`: its commands, and the exit codes of exceptions."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from starzoo import __version__
from starzoo.errors import InterruptedRunError, StarzooError, UsageError, to_starzoo_error

from .align import align
from .card import card
from .command import command
from .doctor import doctor
from .evaluate import evaluate
from .fit_star import fit_star
from .import_ import import_
from .inspect import inspect
from .join import join
from .list import list as list_stars
from .output import Output
from .plan import plan
from .predict import predict
from .pull import pull
from .push import push
from .quickstart import quickstart
from .train import train
from .verify import verify

__all__ = ["app", "main"]

_FIRST_STEPS = """\
starzoo quickstart                    makes a star of small networks, without a network connection, in minutes
starzoo plan MODEL MODEL …            says what a star of your own models takes
starzoo --help                        lists all commands"""

app = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})
for _command in (
    quickstart,
    train,
    import_,
    pull,
    plan,
    inspect,
    align,
    fit_star,
    evaluate,
    predict,
    join,
    verify,
    card,
    push,
    list_stars,
    doctor,
):
    _offline = _command not in (quickstart, import_, card, push, list_stars)
    app.command()(command(_command, reads_hub=_offline))


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"starzoo {__version__}")
        raise typer.Exit


@app.callback()
@command
def starzoo(
    out: Output,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """One star model for a zoo of independently trained timm models.

    Start with: starzoo quickstart
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments and "_STARZOO_COMPLETE" not in os.environ:
        typer.echo(_FIRST_STEPS)
        return 0
    # Progress bars of other libraries would break ours; both read these variables on import.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    with Output.from_arguments(arguments) as out:
        try:
            # Without standalone mode Typer raises its errors, and returns 130 after Ctrl-C.
            code = app(arguments, prog_name="starzoo", standalone_mode=False, obj=out)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the boundary
            return out.fail(explain(error), error)
        if code == InterruptedRunError.exit_code:
            return out.fail(explain(KeyboardInterrupt()), KeyboardInterrupt())
        return code or 0


def explain(error: BaseException) -> StarzooError:
    """Return the error of starzoo for any exception."""
    if translated := to_starzoo_error(error):
        return translated
    if hasattr(error, "format_message"):  # Typer's own, whose class is private
        message = error.format_message() or "no command given"
        program = getattr(getattr(error, "ctx", None), "command_path", "starzoo")
        return UsageError("", message.rstrip("."), hint=f"see {program} --help")
    problem = f"internal error: {type(error).__name__}: {error}"
    return StarzooError("", problem, hint="rerun with --debug and report it")
