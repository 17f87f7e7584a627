"""status.json: how far a run is and how it ended, for whoever started it; torchrun turns every exit code into 1.

On several processes each one also leaves a mark under `processes/`, from which the others tell who was lost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starzoo.errors import (
    HubError,
    IncompatibleError,
    PreemptedError,
    ResourceError,
    RunLockedError,
    StarzooError,
    UntrustedInputError,
    UsageError,
    exit_code_of,
    to_starzoo_error,
    without_password,
)
from starzoo.files import read_file
from starzoo.models.timm_folder import write_text
from starzoo.parallel import is_torchrun, rank, world_size
from starzoo.progress import Progress

__all__ = ["STATUS", "Status", "is_status"]

STATUS = "status.json"
_MARKS = "processes"
_LIMIT = 1_000_000  # bytes
_SECONDS_BETWEEN = 1.0
_SECONDS_TO_END = 3.0  # in which all but a lost process notice that one is lost
_REFUSALS = (UsageError, UntrustedInputError, HubError, IncompatibleError)
_LOOKING = {"downloading", "loading models", "checking models"}  # stages that change nothing in the folder
_LOST = ("onnection closed by peer", "onnection reset by peer", "imed out", "roken pipe", "NCCL", "DistBackendError")


@dataclass
class Status:
    """Tells how one process of a run is doing; itself a `Progress` that passes on what it is told.

    Nothing is written before the run's folder is made, and a finished run's status stays where a call is refused that
    changed nothing; unless torchrun has started it, which knows no other way to ask.

    Attributes:
        folder: The run's folder.
        watcher: Who else wants to know.
    """

    folder: Path
    watcher: Progress
    rank: int = field(default_factory=rank)
    ranks: int = field(default_factory=world_size)
    _met: bool = False
    _stage: dict[str, Any] = field(default_factory=dict)
    _written: float = 0.0
    _changed: bool = False

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Note a finished unit of work (`starzoo.progress.Progress`)."""
        self._stage = {"stage": stage, "done": done, "total": total, "figures": figures}
        self._changed = self._changed or stage not in _LOOKING
        if time.monotonic() - self._written > _SECONDS_BETWEEN or done == total:
            self._write("running")
        self.watcher(stage, done, total, **figures)

    def met(self) -> None:
        """The processes have met: from now on each leaves marks. Before, only the first knows whose folder it is."""
        self._met = True
        self._write("running")

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record how the block ends."""
        finished = self._finished()
        self._write("running")
        try:
            yield
        except RunLockedError:
            raise
        except BaseException as error:
            if self.ranks > 1 and not isinstance(error, StarzooError) and any(sign in str(error) for sign in _LOST):
                self._write("left alone", by=-1)
                error = self._loss_of_others(error)
                self._write("failed", error, by=self.rank)  # the first process may be the one that was lost
            elif finished and isinstance(error, _REFUSALS) and not self._changed:
                write_text(self.folder / STATUS, finished)
            else:
                self._write("failed", error)
            raise error
        self._write("done")

    def _finished(self) -> str | None:
        """What status.json says, where it is the end of a run and this process was not started by torchrun."""
        if is_torchrun():
            return None
        with suppress(UntrustedInputError, ValueError):
            text = read_file(self.folder / STATUS, _LIMIT).decode()
            if json.loads(text).get("state") == "done":
                return text
        return None

    def _loss_of_others(self, error: BaseException) -> StarzooError:
        """Why another process does not answer: it has said so itself, or it was lost."""
        deadline, marks = time.monotonic() + _SECONDS_TO_END, dict[int, dict[str, Any]]()
        while time.monotonic() < deadline and not any("message" in mark for mark in marks.values()):
            time.sleep(_SECONDS_TO_END / 20)
            marks = {other: self._read_mark(other) for other in range(self.ranks) if other != self.rank}
        for other, mark in marks.items():
            if mark.get("message"):
                found = StarzooError(f"process {other}", mark["message"])
                found.exit_code = mark["exit_code"]  # type: ignore[misc]
                break
        else:
            silent = (str(other) for other, mark in marks.items() if mark.get("state") not in {"left alone", "done"})
            lost = ", ".join(silent) or "unknown"
            here = f"{self._stage.get('stage', 'start')} {self._stage.get('done', 0)}/{self._stage.get('total', 0)}"
            found = PreemptedError(
                f"process {lost} of {self.ranks}",
                f"was lost or does not answer; last done by this one: {here}",
                hint="the same command goes on from the last checkpoint",
            )
        found.__cause__ = error
        return found

    def _write(self, state: str, error: BaseException | None = None, *, by: int = 0) -> None:
        self._written = time.monotonic()
        if self.rank and not self._met:
            return
        if not self.folder.is_dir() and not is_torchrun():
            return
        document: dict[str, Any] = {"state": state, "time": _now(), **self._stage}
        if state != "running":
            document["exit_code"] = exit_code_of(error) if error else 0
        if error is not None:
            document["message"] = without_password(str(to_starzoo_error(error) or error)) or type(error).__name__
        text = json.dumps({**document, "processes": self.ranks}, indent=1) + "\n"
        with suppress(ResourceError):  # a full disk shall be told by what the run cannot do without
            if self.ranks > 1:
                write_text(self.folder / _MARKS / f"{self.rank}.json", text)
            if self.rank == by:
                write_text(self.folder / STATUS, text)

    def _read_mark(self, rank: int) -> dict[str, Any]:
        try:
            mark: dict[str, Any] = json.loads(read_file(self.folder / _MARKS / f"{rank}.json", _LIMIT))
        except (UntrustedInputError, ValueError):
            return {}
        return mark


def is_status(file: Path) -> bool:
    """Whether a file is the status of a run, however that ended, and nothing that somebody else wrote."""
    with suppress(UntrustedInputError, ValueError, RecursionError):
        found = json.loads(read_file(file, _LIMIT, inside=[file.parent]))
        return isinstance(found, dict) and {"state", "time", "processes"} <= found.keys()
    return False


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
