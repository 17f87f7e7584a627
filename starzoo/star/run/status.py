"""status.json: the progress of a run and how it ended, since torchrun turns every exit code into 1.

On several processes each one also has a status under `processes/`, by which the others know which one was lost.
"""

from __future__ import annotations

import json
import re
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
from starzoo.files import read_file, write_text
from starzoo.parallel import is_torchrun, rank, world_size
from starzoo.progress import Progress

__all__ = ["STATUS", "Status", "is_status"]

STATUS = "status.json"
_RANK_STATUS_DIR = "processes"
_LIMIT = 1_000_000  # bytes
_SECONDS_BETWEEN_WRITES = 1.0
_SECONDS_TO_NOTICE = 3.0  # in which all but a lost process notice that one is lost
_REFUSALS = (UsageError, UntrustedInputError, HubError, IncompatibleError)
_READ_ONLY_STAGES = {"downloading", "loading models", "opening images", "checking models"}
_PEER_LOST = re.compile(r"onnection (closed|reset) by peer|imed out|roken pipe|NCCL|DistBackendError")


@dataclass
class Status:
    """Writes the status of one process of a run; a `Progress` that passes on what is reported.

    Nothing is written before the run's folder exists. The status of a finished run stays where a call is refused that
    changed nothing, unless torchrun started the call, which has no other way to tell.

    Attributes:
        folder: The run's folder.
        progress: Reported to as well.
    """

    folder: Path
    progress: Progress
    rank: int = field(default_factory=rank)
    ranks: int = field(default_factory=world_size)
    _joined: bool = False
    _stage: dict[str, Any] = field(default_factory=dict)
    _began: tuple[float, int] = (0.0, 0)
    _written: float = 0.0
    _changed: bool = False

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Report a finished unit of work (`starzoo.progress.Progress`)."""
        seconds_left = self._estimate(stage, done, total)
        self._stage = {"stage": stage, "done": done, "total": total, "seconds_left": seconds_left, "figures": figures}
        self._changed = self._changed or stage not in _READ_ONLY_STAGES
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES or done == total:
            self._write("running")
        self.progress(stage, done, total, **figures)

    def _estimate(self, stage: str, done: int, total: int) -> int | None:
        """Return the seconds that are left of a stage, from its rate so far; a resumed stage does not begin at 0."""
        now = time.monotonic()
        if stage != self._stage.get("stage") or done < self._began[1]:
            self._began = now, done
        start, first = self._began
        return round((now - start) / (done - first) * (total - done)) if done > first else None

    def processes_joined(self) -> None:
        """Let every process write its status from now on; before, only the first knows whose folder it is."""
        self._joined = True
        self._write("running")

    @contextmanager
    def record_outcome(self) -> Iterator[None]:
        """Record how the block ends."""
        finished = self._read_finished()
        self._write("running")
        try:
            yield
        except RunLockedError:
            raise
        except BaseException as error:
            is_explained = self.ranks == 1 or isinstance(error, StarzooError)
            if not is_explained and _PEER_LOST.search(str(error)):
                self._write("peer-lost", by=-1)
                error = self._diagnose_lost_rank(error)
                self._write("failed", error, by=self.rank)  # the first process may be the one that was lost
            elif finished and isinstance(error, _REFUSALS) and not self._changed:
                write_text(self.folder / STATUS, finished)
            else:
                self._write("failed", error)
            raise error
        self._write("done")

    def _read_finished(self) -> str | None:
        """Return the status of a finished run, where this process was not started by torchrun."""
        if is_torchrun():
            return None
        with suppress(UntrustedInputError, ValueError):
            text = read_file(self.folder / STATUS, _LIMIT).decode()
            if json.loads(text).get("state") == "done":
                return text
        return None

    def _diagnose_lost_rank(self, cause: BaseException) -> StarzooError:
        """Return why another process does not answer: it recorded an error, or it was lost."""
        deadline, statuses = time.monotonic() + _SECONDS_TO_NOTICE, dict[int, dict[str, Any]]()
        while time.monotonic() < deadline and not any("message" in status for status in statuses.values()):
            time.sleep(_SECONDS_TO_NOTICE / 20)
            statuses = {peer: self._read_rank_status(peer) for peer in range(self.ranks) if peer != self.rank}
        for peer, status in statuses.items():
            if status.get("message"):
                error = StarzooError(f"process {peer}", status["message"])
                error.exit_code = status["exit_code"]  # type: ignore[misc]
                break
        else:
            lost = [peer for peer, status in statuses.items() if status.get("state") not in {"peer-lost", "done"}]
            here = f"{self._stage.get('stage', 'start')} {self._stage.get('done', 0)}/{self._stage.get('total', 0)}"
            error = PreemptedError(
                f"process {', '.join(map(str, lost)) or 'unknown'} of {self.ranks}",
                f"was lost or does not answer; last done by this one: {here}",
                hint="re-run the same command to resume from the last checkpoint",
            )
        error.__cause__ = cause
        return error

    def _write(self, state: str, error: BaseException | None = None, *, by: int = 0) -> None:
        self._written = time.monotonic()
        if self.rank and not self._joined:
            return
        if not self.folder.is_dir() and not is_torchrun():
            return
        document: dict[str, Any] = {"state": state, "time": _now(), **self._stage}
        if state != "running":
            document["exit_code"] = exit_code_of(error) if error else 0
        if error is not None:
            document["message"] = without_password(str(to_starzoo_error(error) or error)) or type(error).__name__
        text = json.dumps({**document, "processes": self.ranks}, indent=1) + "\n"
        with suppress(ResourceError):  # a full disk is reported by the write that the run depends on
            if self.ranks > 1:
                write_text(self.folder / _RANK_STATUS_DIR / f"{self.rank}.json", text)
            if self.rank == by:
                write_text(self.folder / STATUS, text)

    def _read_rank_status(self, rank: int) -> dict[str, Any]:
        try:
            status: dict[str, Any] = json.loads(read_file(self.folder / _RANK_STATUS_DIR / f"{rank}.json", _LIMIT))
        except (UntrustedInputError, ValueError):
            return {}
        return status


def is_status(file: Path) -> bool:
    """Whether a file is the status of a run, and not written by another program."""
    with suppress(UntrustedInputError, ValueError, RecursionError):
        document = json.loads(read_file(file, _LIMIT, inside=[file.parent]))
        return isinstance(document, dict) and {"state", "time", "processes"} <= document.keys()
    return False


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
