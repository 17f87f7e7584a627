"""Processes that wait for each other's work, and for no lost one."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

from tests.ports import free_port

SPAWN = multiprocessing.get_context("spawn")


def _join(rank: int, port: int, together: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    import accelerate  # noqa: F401
    import torch.distributed  # noqa: F401

    from starzoo import processes
    from starzoo.config import RuntimeConfig

    together.wait(60)  # one may have taken longer to import all this than the other waits for it
    processes.join(RuntimeConfig(timeout_minutes=2 / 60))


def _share(rank: int, port: int, together: Any, out: str) -> None:
    from starzoo import processes

    _join(rank, port, together)

    def work(items: Any) -> Any:
        for item in items:
            time.sleep(5)  # longer than processes wait within a step
            yield item * item

    found = processes.share_out([3], work)
    assert processes.from_first(lambda: time.sleep(4) or "done") == "done"
    Path(out, str(rank)).write_text(str(found))


def _lose(rank: int, port: int, together: Any, out: str) -> None:
    from starzoo import processes

    _join(rank, port, together)
    processes._PATIENCE = datetime.timedelta(minutes=5)
    processes.gather(rank)
    if rank == 1:
        os._exit(1)
    try:
        processes.share_out([1, 2], list)
    except Exception:
        Path(out, "missed").write_text("")
        raise


def _run(target: Any, out: Path) -> list[int | None]:
    port, together = free_port(), SPAWN.Barrier(2)
    both = [SPAWN.Process(target=target, args=(rank, port, together, str(out))) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(90)
    codes = [process.exitcode for process in both]
    for process in both:
        process.kill()
    return codes


def test_processes_wait_for_work_that_only_one_has(tmp_path: Path) -> None:
    assert _run(_share, tmp_path) == [0, 0]
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["[9]", "[9]"]


def test_a_lost_process_ends_the_wait_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert _run(_lose, tmp_path) == [1, 1]
    assert (tmp_path / "missed").exists()
    assert time.monotonic() - begun < 60
