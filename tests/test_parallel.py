"""Processes that wait for each other's work, for no lost one, and for none that nobody started."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from starzoo import parallel as processes
from starzoo.config import RuntimeConfig
from starzoo.errors import UsageError
from tests.ports import free_port, torchrun_variables
from tests.processes import SERVER, start_process


def _join(rank: int, port: int, together: Any) -> None:
    os.environ |= {**torchrun_variables(rank, 2, port), "OMP_NUM_THREADS": "1"}
    import accelerate  # noqa: F401
    import torch.distributed  # noqa: F401

    together.wait(60)  # one may have taken longer to import all this than the other waits for it
    processes.init_processes(RuntimeConfig(timeout_minutes=2 / 60))


def _share(rank: int, port: int, together: Any, out: str) -> None:
    _join(rank, port, together)

    def work(items: Any) -> Any:
        for item in items:
            time.sleep(5)  # longer than processes wait within a step
            yield item * item

    squares = processes.split_across_processes([3], work)
    assert processes.on_main_process(lambda: time.sleep(4) or "done") == "done"
    Path(out, str(rank)).write_text(str(squares))


def _lose(rank: int, port: int, together: Any, out: str) -> None:
    _join(rank, port, together)
    processes._BARRIER_TIMEOUT = datetime.timedelta(minutes=5)
    processes.all_gather_object(rank)
    if rank == 1:
        os._exit(1)
    try:
        processes.split_across_processes([1, 2], list)
    except Exception:
        Path(out, "missed").write_text("")
        raise


def _run(target: Any, out: Path) -> list[int | None]:
    port, together = free_port(), SERVER.Barrier(2)
    both = [start_process(target, rank, port, together, str(out)) for rank in range(2)]
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


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets variables for processes that have not met yet."""
    from accelerate import PartialState

    PartialState._reset_state()

    def leave(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    yield leave
    PartialState._reset_state()


LEFT_OVER = {
    "Kubernetes": {"WORLD_SIZE": "4"},
    "a Kubernetes job of PyTorch that has one process": {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "node-0"},
    "a rank": {"RANK": "3", "LOCAL_RANK": "3"},
    "garbage": {"WORLD_SIZE": "abc", "LOCAL_RANK": "", "PMI_SIZE": "-", "MASTER_PORT": "x"},
    "MPICH": {"PMI_SIZE": "4", "PMI_RANK": "2", "MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "4"},
    "Open MPI": {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
    "MVAPICH": {"MV2_COMM_WORLD_SIZE": "4", "MV2_COMM_WORLD_RANK": "1"},
    "srun -n 4": {"SLURM_NTASKS": "4"},
    "accelerate": {
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_MIXED_PRECISION": "fp7",
        "ACCELERATE_DISTRIBUTED_TYPE": "MULTI_GPU",
        "ACCELERATE_TORCH_DEVICE": "no such device",
        "ACCELERATE_DEBUG_MODE": "perhaps",
        "ACCELERATE_DYNAMO_BACKEND": "none of them",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "x",
        "FORK_LAUNCHED": "perhaps",
    },
    "a torchrun that has ended": {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
}


@pytest.mark.parametrize("variables", LEFT_OVER.values(), ids=LEFT_OVER)
def test_what_another_launcher_left_gives_one_process_and_a_warning(
    variables: dict[str, str], environment: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    environment(**variables)
    assert (processes.rank(), processes.world_size()) == (0, 1)
    processes.init_processes(RuntimeConfig(num_processes=1))
    assert processes.all_gather_object("alone") == ["alone"]
    assert not variables.keys() & os.environ.keys()
    [warning] = [record.getMessage() for record in caplog.records if record.name == "starzoo.parallel"]
    true = {"WORLD_SIZE": "1", "RANK": "0"}  # of one process
    assert warning.startswith("environment variables of another launcher are ignored: ")
    assert all((name in warning) == (value != true.get(name)) for name, value in variables.items())


def test_what_is_true_of_one_process_is_no_reason_for_a_warning(
    environment: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    environment(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", PMI_SIZE="1", PMI_RANK="0", SLURM_NTASKS="1", SLURM_JOB_ID="7"
    )
    processes.init_processes(RuntimeConfig(num_processes=1))
    assert caplog.records == []


WHOLE = torchrun_variables(rank=1, ranks=4, port=29500)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"MASTER_ADDR": None}, "MASTER_ADDR"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT"),
        ({"TORCHELASTIC_RUN_ID": None}, "TORCHELASTIC_RUN_ID"),
        ({"LOCAL_RANK": None}, "LOCAL_RANK"),
        ({"RANK": "4"}, "RANK"),
        ({"RANK": "-1"}, "RANK"),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE"),
        ({"LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE"),
    ],
)
def test_a_rank_among_several_that_torchrun_did_not_start_is_refused(
    changes: dict[str, str | None], named: str, environment: Callable[..., None]
) -> None:
    environment(**{name: value for name, value in {**WHOLE, **changes}.items() if value is not None})
    assert processes.rank() == 0  # who says so
    with pytest.raises(UsageError, match=rf"^{named}: expected what torchrun sets beside RANK='.*' and WORLD_SIZE='"):
        processes.init_processes(RuntimeConfig())


def test_what_torchrun_says_counts_whatever_else_does(
    environment: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    environment(**WHOLE, PMI_SIZE="1", SLURM_NTASKS="2", ACCELERATE_MIXED_PRECISION="bf16")
    assert (processes.rank(), processes.world_size()) == (1, 4)
    processes.ignore_other_launchers()
    assert {name: os.environ[name] for name in WHOLE} == WHOLE
    [warning] = caplog.messages
    assert "ignored: ACCELERATE_MIXED_PRECISION (" in warning
