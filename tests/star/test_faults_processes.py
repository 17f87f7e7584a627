"""Runs whose processes are stopped, lost, stuck or at odds (D01–D10 of the list of faults), and T01, T02."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from starzoo.star.run.lock import RunLock
from tests.star.runs import digest, fit_star, hold, kept, kill, launch, status, torchrun, until

UNREADABLE = "digits: 7.png cannot be read: the disk timed out"
EVERY_STEP = ("--set", "runtime.checkpoint_minutes=0.00001")


def mark_of(out: Path, rank: int) -> dict[str, Any]:
    """What one process of a run left for the others."""
    found: dict[str, Any] = json.loads((out / "processes" / f"{rank}.json").read_text())
    return found


def assert_goes_on(members: list[Path], out: Path, step: int, whole: Path) -> None:
    """The same command goes on from a step, and ends as if nothing had happened."""
    ended = fit_star(members, out, ranks=2).wait()
    assert [each.code for each in ended] == [0, 0], ended
    assert f"resumed at step {step} of 22" in (out / "training.log").read_text()
    assert digest(out / "model.safetensors") == digest(whole / "model.safetensors")
    assert status(out)["exit_code"] == 0


def test_d01_sigterm_to_torchrun_ends_the_run_with_a_checkpoint_and_75(
    members: list[Path], whole_of_two: Path, tmp_path: Path
) -> None:
    out = tmp_path / "star"
    process = torchrun(["hold", 13, 1, str(tmp_path / "held")], members, out)
    until(lambda: len(list(tmp_path.glob("held.*"))) == 2, "both ranks")
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    until(lambda: status(out)["state"] == "failed", "the end of the run")
    assert time.monotonic() - begun < 25
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1, text  # whatever its processes end with
    assert status(out)["exit_code"] == 75
    assert status(out)["message"].startswith("stopped by SIGTERM; step 14 of 22 is kept")
    assert kept(out) == [14]
    assert text.count("error: stopped by SIGTERM; step 14 of 22 is kept (hint: re-run the same command to resume") == 2
    assert_goes_on(members, out, 14, whole_of_two)


@pytest.mark.parametrize(
    ("number", "ranks", "step"),
    [
        pytest.param(signal.SIGTERM, [1], 13, id="d02"),
        pytest.param(signal.SIGTERM, [1], 22, id="d02-at-the-last-step"),
        pytest.param(signal.SIGUSR1, [0, 1], 13, id="d03-usr1"),
        pytest.param(signal.SIGUSR2, [0], 11, id="d03-usr2-at-the-end-of-an-epoch"),
    ],
)
def test_d02_d03_a_signal_to_some_ranks_ends_all_of_them_at_one_step(
    number: signal.Signals, ranks: list[int], step: int, members: list[Path], tmp_path: Path
) -> None:
    out, mark = tmp_path / "star", str(tmp_path / "held")
    run = fit_star(members, out, ranks=2, fault=functools.partial(hold_some, ranks, step, mark))
    until(lambda: len(list(tmp_path.glob("held.*"))) == len(ranks), "the ranks")
    run.send(number, *ranks)
    ended = run.wait()
    assert [each.code for each in ended] == [75, 75]
    last = step if step % 11 == 0 else step + 1
    assert kept(out) == [last]
    words = f"stopped by {number.name}; step {last} of 22 is kept"
    for rank, each in enumerate(ended):
        assert f"error: {words} (hint: re-run the same command to resume)" in each.text
        assert "Traceback" not in each.text
        assert mark_of(out, rank)["exit_code"] == status(out)["exit_code"] == 75
        assert mark_of(out, rank)["message"].startswith(words)


def hold_some(ranks: list[int], step: int, mark: str, rank: int) -> None:
    if rank in ranks:
        hold(step, 1, mark, rank)


def signal_while_measuring(number: signal.Signals, rank: int) -> None:
    """A signal comes when the star is fitted, and is being measured."""
    import starzoo.workflows.fit

    evaluate_manifest = starzoo.workflows.fit.evaluate_manifest

    def be_told(*arguments: Any) -> Any:
        signal.raise_signal(number)
        return evaluate_manifest(*arguments)

    starzoo.workflows.fit.evaluate_manifest = be_told


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_d01_a_signal_while_the_star_is_measured(
    number: signal.Signals, code: int, members: list[Path], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "star"
    few = ("--epochs", "1", "--train-size", "320")
    [ended] = fit_star(members, out, *few, fault=functools.partial(signal_while_measuring, number)).wait()
    assert ended.code == code, ended.text
    assert status(out)["exit_code"] == code
    assert "Traceback" not in ended.text
    assert (out / "model.safetensors").is_file()
    assert json.loads((out / "star.json").read_text())["evaluation"] is None


def test_d04_one_interrupt_ends_the_run_with_a_checkpoint_and_130(members: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "star"
    run = fit_star(members, out, fault=functools.partial(hold, 13, 2, str(tmp_path / "held")))
    until((tmp_path / "held.0").exists, "the step")
    for number in (1, 2):  # a terminal and torchrun both send it
        run.send(signal.SIGINT, 0)
        until((tmp_path / f"held-{number}.0").exists, "the signal")
    [ended] = run.wait()
    assert ended.code == 130, ended.text
    assert ended.text == "error: interrupted; step 14 of 22 is kept (hint: re-run the same command to resume)\n"
    assert kept(out) == [14]
    assert status(out)["exit_code"] == 130


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_d04_the_second_interrupt_ends_the_run_at_once(
    first: signal.Signals, members: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "star"
    run = fit_star(members, out, fault=functools.partial(hold, 13, 99, str(tmp_path / "held")))
    until((tmp_path / "held.0").exists, "the step")
    signals = [first] if first == signal.SIGINT else [first, signal.SIGINT]
    for place, number in enumerate(signals, start=1):
        run.send(number, 0)
        until((tmp_path / f"held-{place}.0").exists, "the signal")
    time.sleep(1.1)
    begun = time.monotonic()
    run.send(signal.SIGINT, 0)
    [ended] = run.wait()
    assert time.monotonic() - begun < 10
    assert ended.code == 130, ended.text
    assert ended.text == "error: interrupted (hint: run the same command again)\n"
    assert not (out / "checkpoints").exists()
    assert status(out)["exit_code"] == 130


def test_d05_a_rank_that_is_killed_is_named_and_the_run_goes_on(
    members: list[Path], whole_of_two: Path, tmp_path: Path
) -> None:
    out = tmp_path / "star"
    run = fit_star(members, out, *EVERY_STEP, ranks=2, fault=functools.partial(kill, 1, 13))
    until((out / "processes" / "0.json").exists, "the first rank")
    until(lambda: mark_of(out, 0)["state"] != "running", "the first rank to miss the other")
    run.send(signal.SIGTERM, 0)  # as torchrun does when one of its processes has ended
    ended = run.wait()
    assert [each.code for each in ended] == [75, -signal.SIGKILL], ended
    words = "process 1 of 2: was lost or does not answer; last done by this one: fitting the star 12/22"
    assert f"error: {words} (hint: re-run the same command to resume from the last checkpoint)" in ended[0].text
    assert "Traceback" not in ended[0].text
    assert status(out)["exit_code"] == 75
    assert status(out)["message"].startswith(words)
    assert_goes_on(members, out, max(kept(out)), whole_of_two)


def hang(mark: str, rank: int) -> None:
    """The second process hangs within a step; the first one tells its progress late."""
    import starzoo.star.fit

    starzoo.star.fit._SECONDS_BETWEEN_REPORTS = 99
    if rank == 1:
        hold(13, 99, mark, rank)


def test_d06_a_rank_that_hangs_is_noticed_after_the_timeout(members: list[Path], tmp_path: Path) -> None:
    out, seconds = tmp_path / "star", 6
    timeout = ("--set", f"runtime.timeout_minutes={seconds / 60}")
    run = fit_star(members, out, *timeout, ranks=2, fault=functools.partial(hang, str(tmp_path / "held")))
    until((tmp_path / "held.1").exists, "the step")
    begun = time.monotonic()
    run.processes[0].process.join(60)
    assert time.monotonic() - begun < seconds + 45
    run.send(signal.SIGKILL, 1)
    first, _ = run.wait()
    assert first.code == 75, first.text
    words = "process 1 of 2: was lost or does not answer; last done by this one: fitting the star 12/22"
    assert f"error: {words} (hint: re-run the same command to resume from the last checkpoint)" in first.text
    assert "Traceback" not in first.text
    assert status(out)["exit_code"] == 75
    assert status(out)["message"].startswith(words)


def break_loss(victim: int, step: int, rank: int) -> None:
    """The loss of one process is not finite at a step."""
    from starzoo.star.objective import StarlightLoss

    accumulate, number = StarlightLoss.accumulate, itertools.count(1)

    def break_it(*arguments: Any, **options: Any) -> torch.Tensor:
        loss = accumulate(*arguments, **options)
        return loss * torch.nan if next(number) == step else loss

    if rank == victim:
        StarlightLoss.accumulate = break_it  # type: ignore[method-assign]


@pytest.mark.parametrize("step", [5, 10, 11])  # 11 are an epoch
def test_d07_when_one_rank_sees_nan_all_end_with_6(step: int, members: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "star"
    ended = fit_star(members, out, ranks=2, fault=functools.partial(break_loss, 1, step)).wait()
    assert [each.code for each in ended] == [6, 6]
    for each in ended:
        assert f"error: the loss of the star is not finite at step {step} (epoch 1), source seed-" in each.text
        assert "lower star.lr" in each.text
        assert "Traceback" not in each.text
    assert status(out)["exit_code"] == 6
    [line] = (out / "training.log").read_text().splitlines()
    assert len(line.partition("images ")[2].split(", ")) == 32  # its half of the batch
    assert not (out / "checkpoints").exists()


def test_t01_divergence_ends_with_6(members: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "star"
    [ended] = fit_star(members, out, "--lr", "1e6", "--set", "star.warmup=0").wait()
    assert ended.code == 6, ended.text
    assert ended.text.startswith("error: the loss of the star is not finite at step ")
    assert ended.text.count("\n") == 1
    assert "lower star.lr" in ended.text
    assert status(out)["exit_code"] == 6
    assert "on training images" in (out / "training.log").read_text()
    assert not (out / "star.json").exists()


def refuse_data(victim: int, rank: int) -> None:
    """One process cannot open the images."""
    import starzoo.workflows.fit
    from starzoo.errors import UntrustedInputError

    def load_data(*_: object, **__: object) -> None:
        raise UntrustedInputError("", UNREADABLE, hint="fetch it again")

    if rank == victim:
        starzoo.workflows.fit.load_data_for = load_data  # type: ignore[assignment]


def refuse_batch(victim: int, rank: int) -> None:
    """One process cannot decode an image in the middle of an epoch."""
    from starzoo.data.loader import Loader
    from starzoo.errors import UntrustedInputError

    batch, number = Loader._read, itertools.count(1)

    def read(self: Loader, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if next(number) == 5:
            raise UntrustedInputError("", UNREADABLE, hint="fetch it again")
        return batch(self, indices)

    if rank == victim:
        Loader._read = read  # type: ignore[method-assign]


@pytest.mark.parametrize("fault", [refuse_data, refuse_batch])
@pytest.mark.parametrize("victim", [0, 1])
def test_d08_when_one_rank_cannot_read_its_data_all_end_with_3(
    victim: int, fault: Callable[[int, int], None], members: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "star"
    ended = fit_star(members, out, ranks=2, fault=functools.partial(fault, victim)).wait()
    assert [each.code for each in ended] == [3, 3], ended
    assert f"error: {UNREADABLE} (hint: fetch it again)" in ended[victim].text
    assert f"error: process {victim}: {UNREADABLE}" in ended[1 - victim].text
    assert all("Traceback" not in each.text for each in ended)
    assert status(out)["exit_code"] == 3
    assert UNREADABLE in status(out)["message"]


def test_d09_another_number_of_processes_than_asked_for_is_refused(members: list[Path], tmp_path: Path) -> None:
    [ended] = fit_star(members, tmp_path / "one", "--set", "runtime.num_processes=2").wait()
    assert ended.code == 2
    assert "error: runtime.num_processes: expected 2, got 1 process (hint: start it with torchrun" in ended.text
    assert ended.text.count("\n") == 1
    assert not list(tmp_path.iterdir())
    both = fit_star(members, tmp_path / "two", "--set", "runtime.num_processes=3", ranks=2).wait()
    assert [each.code for each in both] == [2, 2]
    assert status(tmp_path / "two")["exit_code"] == 2
    assert status(tmp_path / "two")["message"].startswith("runtime.num_processes: expected 3, got 2 processes")


def test_a_second_run_touches_nothing_of_the_first(members: list[Path], killed_of_two: Path, tmp_path: Path) -> None:
    out = shutil.copytree(killed_of_two, tmp_path / "star")
    files = [out / "status.json", *(out / "processes" / f"{rank}.json" for rank in range(2))]
    before = [file.read_bytes() for file in files]
    with RunLock(out) as lock:
        lock.acquire()
        first, second = fit_star(members, out, "--set", "runtime.timeout_minutes=0.1", ranks=2).wait()
    assert first.code == 2
    assert "another run is at work in it" in first.text
    assert second.code
    assert [file.read_bytes() for file in files] == before


def test_d10_two_ranks_measure_what_one_does(whole: Path, digits_zoo: list[Path], tmp_path: Path) -> None:
    images = ["--test-size", "45", "--set", "evaluate.batch_size=16", "--set", "evaluate.batch_norm_images=99"]
    options = ["--points", "3", "--source-pairs", "1", "--set", "evaluate.sources=2", *images, "--quiet", "--no-cache"]
    stars = [shutil.copytree(whole, tmp_path / ranks) for ranks in "12"]
    runs = [launch("evaluate", star, "--holdout", digits_zoo[2], *options, ranks=int(star.name)) for star in stars]
    assert [ended.code for run in runs for ended in run.wait()] == [0, 0, 0]
    one, two = (json.loads((star / "star.json").read_text())["evaluation"] for star in stars)
    assert len(one["paths"]) == 5
    assert one["images"] == {"test": 45}
    assert one["paths"] != json.loads((whole / "star.json").read_text())["evaluation"]["paths"]
    assert flat(two) == pytest.approx(flat(one), abs=1e-6)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every number and word of a JSON value, by its place."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {place: leaf for key, part in items for place, leaf in flat(part, f"{path}/{key}").items()}
    return {path: value}


def test_two_ranks_find_the_star_of_one_rank_with_two_draws_per_step(members: list[Path], tmp_path: Path) -> None:
    few = ("--epochs", "1", "--train-size", "320", "--set", "data.augment=crop-flip")
    alone, both = tmp_path / "alone", tmp_path / "both"
    runs = [fit_star(members, alone, *few, "--set", "star.draws=2"), fit_star(members, both, *few, ranks=2)]
    assert [ended.code for run in runs for ended in run.wait()] == [0, 0, 0]
    assert kept(alone) == kept(both) == [5]
    one, two = (load_file(next((out / "checkpoints").iterdir()) / "star.safetensors") for out in (alone, both))
    start = load_file(members[0] / "model.safetensors")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-5 * float(tensor.abs().max()))
        assert not torch.allclose(tensor, start[name], rtol=1e-3)
    histories = [json.loads((out / "star.json").read_text())["history"] for out in (alone, both)]
    assert histories[0] == [pytest.approx(record, rel=1e-5) for record in histories[1]]
