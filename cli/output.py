"""The output of a command: its result on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from starzoo.errors import StarzooError, without_password
from starzoo.parallel import rank

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table as RichTable

__all__ = ["Output", "RawText", "Table", "clean"]

_ANY_WIDTH = 10_000


@dataclass(frozen=True)
class Table:
    """Rows under a title; columns but the first are aligned to the right. A column may have a name of several lines."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class RawText:
    """Text for another program, which is printed unchanged."""

    text: str


class Output:
    """The only way of a command to print.

    For a person, results are tables and progress is a bar. With `--json`, stdout is exactly one document, errors
    included. With `--quiet`, stdout is only what a script needs next. Of several processes only the first one prints.

    Attributes:
        debug: Whether a failure shows its traceback.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        self.debug = debug
        self._json = as_json
        self._quiet = quiet
        self._first = rank() == 0
        self._has_result = False  # whether the JSON document is written
        self._stdout = sys.stdout
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._context = contextlib.ExitStack()

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Output:
        """Read the three flags before the command line is parsed, so that they apply to its errors too."""
        options = arguments[: arguments.index("--")] if "--" in arguments else arguments
        return cls(as_json="--json" in options, quiet="--quiet" in options, debug="--debug" in options)

    def __enter__(self) -> Output:
        """Redirect what libraries print away from a stdout that a program reads, and show each warning as one line.

        Warnings of libraries, and those of child processes, are shown with `--debug` only.
        """
        if self._json or self._quiet:
            self._context.enter_context(contextlib.redirect_stdout(sys.stderr))
        handler = _WarningLines(self)
        logger = logging.getLogger("starzoo")
        logger.addHandler(handler)
        self._context.callback(logger.removeHandler, handler)
        self._context.callback(setattr, warnings, "showwarning", warnings.showwarning)
        warnings.showwarning = self._show_warning
        if not self.debug:
            self._context.enter_context(_no_warnings_of_children())
        self._context.callback(self._stop_bars)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.close()

    def result(
        self, document: Mapping[str, Any], *, brief: Iterable[object], human: Iterable[Table | RawText | str]
    ) -> None:
        """Show the result of a command, once, at its end."""
        self._stop_bars()
        if not self._first:
            return
        if self._json:
            self._print_json(document)
            self._has_result = True
        elif self._quiet:
            self._print("".join(value.text if isinstance(value, RawText) else f"{clean(value)}\n" for value in brief))
        else:
            self._print("\n".join(_render(part, self._stdout.isatty()) for part in human))

    def progress(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Show the progress of a stage: a bar, or without a terminal a line at its end."""
        if self._quiet or not self._first:
            return
        numbers = "  ".join(f"{clean(name)} {value:.4g}" for name, value in figures.items())
        if sys.stderr.isatty() or self._bars:
            self._show_bar(clean(stage), done, total, numbers)
        elif done >= total:
            self.note(f"{stage}: {done}/{total}  {numbers}")

    def note(self, text: str) -> None:
        """Print a line for a person."""
        if self._first and not self._quiet:
            print(clean(text), file=sys.stderr, flush=True)  # noqa: T201

    def fail(self, failure: StarzooError, error: BaseException) -> int:
        """Show a failure: one line on stderr, and with `--json` a document on stdout unless there is one."""
        self._stop_bars()
        if self.debug:
            for line in "".join(traceback.format_exception(error)).splitlines():
                print(_visible(line), file=sys.stderr)  # noqa: T201
        hint = f" (hint: {failure.hint})" if failure.hint else ""
        print(clean(f"error: {failure.message}{hint}"), file=sys.stderr, flush=True)  # noqa: T201
        if self._json and self._first and not self._has_result:
            fields = "message", "hint", "subject", "exit_code"
            values = {name: getattr(failure, name) for name in fields}
            self._print_json({"error": {"kind": type(failure).__name__, **values}})
        return failure.exit_code

    def _show_warning(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
    ) -> None:
        """Replace `warnings.showwarning`."""
        if self.debug:
            self.note(warnings.formatwarning(message, category, filename, lineno, line=""))

    def _print_json(self, document: Mapping[str, Any]) -> None:
        self._print(without_password(json.dumps(document, indent=2, default=_as_json, allow_nan=False)) + "\n")

    def _print(self, text: str) -> None:
        self._stdout.write(text)
        self._stdout.flush()

    def _show_bar(self, stage: str, done: int, total: int, numbers: str) -> None:
        if self._bars is None:
            self._bars = _make_bars()
            self._bars.start()
        task = self._tasks.get(stage)
        if task is None or (self._bars.tasks[task].finished and done < total):
            task = self._tasks[stage] = self._bars.add_task(stage, total=total, numbers="")
        self._bars.update(task, completed=done, total=total, numbers=numbers)

    def _stop_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()


def _as_json(value: Any) -> Any:
    """Return the fields of a configuration, a record or a report, and anything else as text."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return vars(value) if is_dataclass(value) else str(value)


def clean(value: object) -> str:
    """Return one printable line, so that text from strangers cannot control the terminal."""
    return _visible(str(value)).strip()


def _visible(text: str) -> str:
    return without_password("".join(letter if letter.isprintable() else " " * letter.isspace() for letter in text))


@contextlib.contextmanager
def _no_warnings_of_children() -> Iterator[None]:
    """Hide the warnings of Python processes that are started inside the block."""
    previous = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        yield
    finally:
        del os.environ["PYTHONWARNINGS"]
        if previous is not None:
            os.environ["PYTHONWARNINGS"] = previous


class _WarningLines(logging.Handler):
    """Shows warnings that starzoo logs."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        self._output.note(f"{record.levelname.lower()}: {record.getMessage()}")


def _render(part: Table | RawText | str, is_terminal: bool) -> str:
    from rich.console import Console

    if isinstance(part, str):
        return clean(part) + "\n"
    if isinstance(part, RawText):
        return part.text
    console = Console(width=None if is_terminal else _ANY_WIDTH, highlight=False)
    with console.capture() as captured:
        console.print(_rich_table(part))
    lines = (line.rstrip() for line in captured.get().splitlines())
    return "".join(f"{line}\n" for line in lines if line)


def _rich_table(table: Table) -> RichTable:
    """Return a table whose cells are plain text, never Rich's markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    rich = RichTable(box=SIMPLE_HEAD, title=Text(clean(table.title)), title_justify="left", padding=(0, 0, 0, 1))
    for index, column in enumerate(table.columns):
        title = "\n".join(map(clean, column.split("\n")))
        rich.add_column(Text(title), justify="right" if index else "left", overflow="fold")
    for row in table.rows:
        rich.add_row(*(Text(clean(cell)) for cell in row))
    return rich


def _make_bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[numbers]}", markup=False),
        console=Console(stderr=True),
    )
